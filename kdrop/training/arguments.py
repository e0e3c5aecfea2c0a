"""The command line of train.py, made of the fields of three dataclasses."""

import argparse
import contextlib
import re
from collections.abc import Generator, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from kdrop.errors import UserError, check_choice
from kdrop.training.comparison import VOTE_SIZES, Comparison
from kdrop.training.devices import DeviceOptions
from kdrop.training.experiment import PRESETS, Experiment

DROPOUT = "none,InvertedDropout,VanillaDropout"


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def parse(arguments: Sequence[str]) -> tuple[Comparison, DeviceOptions]:
    """The comparison that the arguments ask for, and its devices.

    Raises:
        UserError: An unknown option or a wrong value. It names arguments, which
            `options_in_errors` turns into options.
    """
    parser = _Parser(
        prog="train.py",
        description="Train networks with dropout, compare them, export SavedModels.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    data, *settings = fields(Experiment)
    text = f"{data.metadata['help']} (default: spiral)"
    parser.add_argument("data", nargs="?", default="spiral", help=text)
    for field in (*settings, *fields(Comparison)[1:], *fields(DeviceOptions)):
        text, default = field.metadata["help"], _default(field)
        if field.name == "dropout":
            text, default = f"{text}, or several to compare with commas", DROPOUT
        text = _with_options(f"{text} (default: {default})")
        parser.add_argument(_option(field.name), help=text, **_form(field.type))
    namespace, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        if not argument.startswith("--"):
            raise UserError(f"unrecognised argument {argument}")
        options = [x for x in parser._option_string_actions if x.startswith("--")]
        check_choice("option", argument.partition("=")[0], options)
    values = vars(namespace)
    vote_size = VOTE_SIZES.get(values["data"], 1)
    devices = DeviceOptions(**_pop_fields(values, DeviceOptions))
    common: Any = {"vote_size": vote_size, **_pop_fields(values, Comparison)}
    return Comparison(experiments=_experiments(values), **common), devices


def _pop_fields(values: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Remove a dataclass's fields from the values and return them."""
    names = [field.name for field in fields(kind) if field.name in values]
    return {name: values.pop(name) for name in names}


def _experiments(settings: dict[str, Any]) -> list[Experiment]:
    """An experiment for each layer in the list of `dropout`."""
    names = [name.strip() for name in settings.pop("dropout", DROPOUT).split(",")]
    names = ["none" if name.lower() == "none" else name for name in names]
    experiments = []
    for name in dict.fromkeys(names):
        usable = dict(settings)
        if name == "none" and len(set(names)) > 1:  # rates are for the other layers
            for rate in ("rate", "input_rate", "schedule"):
                usable.pop(rate, None)
        experiments.append(Experiment.preset(dropout=name, **usable))
    return experiments


def _option(name: str) -> str:
    """The option for an argument; `folder`, of the data, is --data-dir."""
    return "--data-dir" if name == "folder" else f"--{name.replace('_', '-')}"


def _with_options(text: str) -> str:
    """The text with options in place of the arguments in backticks."""
    kinds = (Experiment, Comparison, DeviceOptions)
    names = {field.name for kind in kinds for field in fields(kind)}
    return re.sub(r"`(\w+)`", lambda m: _option(m[1]) if m[1] in names else m[0], text)


def _form(kind: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    several = getattr(kind, "__origin__", None) is tuple
    if several or isinstance(kind, UnionType):
        first, second = get_args(kind)
        kind = _number_or_word if second is str else first
    metavar = {int: "INT", str: "NAME", Path: "FOLDER"}.get(kind, "NUMBER")
    return {"type": kind, "metavar": metavar, **({"nargs": "*"} if several else {})}


def _number_or_word(text: str) -> float | str:
    with contextlib.suppress(ValueError):
        return float(text)
    return text


def _default(field: Field) -> str:
    """The default of a field, or that of each data set, in words."""
    values = {"": field.default}
    if field.name == "vote_size":
        values = VOTE_SIZES
    elif field in fields(Experiment):
        values = {x: getattr(Experiment.preset(x), field.name) for x in PRESETS}
    words = {}
    for data, value in values.items():
        text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words[data] = (not value and field.metadata["unset"]) or text
    if len(set(words.values())) == 1:
        return words.popitem()[1]
    return ", ".join(f"{word} for {data}" for data, word in words.items())


@contextlib.contextmanager
def options_in_errors() -> Generator[None]:
    """Name options in errors, not arguments: `batch_size` becomes --batch-size."""
    try:
        yield
    except UserError as error:
        raise UserError(_with_options(str(error))) from error
    except OSError as error:
        sentence = f"{error}; --resume continues from the last checkpoint"
        raise UserError(sentence) from error
