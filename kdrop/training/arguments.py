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
DIFFERENT_NAMES = {"folder": "--data-dir"}  # of an argument and its option


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def parse(arguments: Sequence[str]) -> tuple[Comparison, DeviceOptions]:
    """The comparison that the arguments ask for, and its devices.

    Raises:
        UserError: An unknown option or a wrong value. It names arguments, which
            `options_in_errors` turns into options.

    >>> comparison, devices = parse(["--dropout=none,DropPath", "--seeds", "2"])
    >>> [experiment.slug() for experiment in comparison.experiments]
    ['spiral-none', 'spiral-drop-path']
    """
    parser = _parser()
    namespace, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        if not argument.startswith("--"):
            raise UserError(f"unrecognised argument {argument}")
        options = [x for x in parser._option_string_actions if x.startswith("--")]
        check_choice("option", argument.partition("=")[0], options)
    settings = vars(namespace)
    devices = DeviceOptions(**_take(settings, DeviceOptions))
    common: dict[str, Any] = {"vote_size": VOTE_SIZES.get(settings["data"], 0)}
    common |= _take(settings, Comparison)
    return Comparison(experiments=_experiments(settings), **common), devices


def _take(settings: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Remove a dataclass's fields from the settings and return them."""
    names = [field.name for field in fields(kind) if field.name in settings]
    return {name: settings.pop(name) for name in names}


def _experiments(settings: dict[str, Any]) -> list[Experiment]:
    """An experiment for each layer in the list of `dropout`."""
    kinds = [kind.strip() for kind in settings.pop("dropout", DROPOUT).split(",")]
    kinds = ["none" if kind.lower() == "none" else kind for kind in kinds]
    kinds = list(dict.fromkeys(kinds))
    rates = "rate", "input_rate", "schedule"
    without = {name: value for name, value in settings.items() if name not in rates}
    plain = without if len(kinds) > 1 else settings  # rates are for the other layers
    return [
        Experiment.preset(dropout=kind, **(plain if kind == "none" else settings))
        for kind in kinds
    ]


def _parser() -> argparse.ArgumentParser:
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
    return parser


def _option(name: str) -> str:
    return DIFFERENT_NAMES.get(name, f"--{name.replace('_', '-')}")


def _with_options(text: str) -> str:
    """The text with options in place of the arguments in backticks."""
    return re.sub(r"`(\w+)`", lambda match: _option(match[1]), text)


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
    if field.name == "vote_size":
        values = VOTE_SIZES
    elif field not in fields(Experiment):
        values = {"": field.default}
    else:
        values = {x: getattr(Experiment.preset(x), field.name) for x in PRESETS}
    unset = field.metadata["unset"]
    words = {}
    for data, value in values.items():
        text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words[data] = unset if unset and not value else text
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
