"""The command line of train.py: an option for each field of the settings.

Those are the fields of `Experiment`, `Comparison` and `DeviceOptions`.
"""

import argparse
import contextlib
import re
import textwrap
from collections.abc import Generator, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

from kdrop.errors import UserError, check_choice
from kdrop.training.experiment import PRESETS, Experiment
from kdrop.training.fields import by_group
from kdrop.training.settings import VOTE_SIZES, Comparison, DeviceOptions

DROPOUT = "none,InvertedDropout,VanillaDropout"


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(textwrap.shorten(message, 300, placeholder=" ..."))


def parse(
    arguments: Sequence[str] | None = None,
) -> tuple[Comparison, DeviceOptions]:
    """The comparison that the arguments, or `sys.argv`, ask for, and its devices.

    Raises:
        UserError: An unknown option or a wrong value. It names the field
            (`batch_size`), which `options_in_errors` replaces by --batch-size.
    """
    parser = _Parser(
        prog="train.py",
        usage="%(prog)s [data] [options]",
        description="Train networks with dropout, compare them, export SavedModels.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for heading, settings in by_group(Experiment, Comparison, DeviceOptions).items():
        group = parser.add_argument_group(heading)
        for field in settings:
            name, text = field.name, field.metadata["help"]
            if name == "data":
                text = f"{text} (default: spiral)"
                group.add_argument(name, nargs="?", default="spiral", help=text)
                continue
            default = _default(field)
            if name == "dropout":
                text, default = f"{text}, or several to compare with commas", DROPOUT
            text = with_options(f"{text} (default: {default})")
            group.add_argument(option(name), help=text, **_form(field))
    namespace, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        if not argument.startswith("--"):
            raise UserError(f"unrecognised argument {argument}")
        options = [x for x in parser._option_string_actions if x.startswith("--")]
        check_choice("option", argument.partition("=")[0], options)
    values = vars(namespace)

    def values_of(kind) -> Any:
        names = [field.name for field in fields(kind) if field.name in values]
        return {name: values.pop(name) for name in names}

    devices = DeviceOptions(**values_of(DeviceOptions))
    common = values_of(Comparison)
    common.setdefault("vote_size", VOTE_SIZES.get(values["data"], 1))
    return Comparison(experiments=_experiments(values), **common), devices


def _experiments(settings: dict[str, Any]) -> list[Experiment]:
    """An experiment for each layer in the list of `dropout`."""
    names = [name.strip() for name in settings.pop("dropout", DROPOUT).split(",")]
    names = ["none" if name.lower() == "none" else name for name in names]
    rates = {"rate", "input_rate", "schedule"}  # beside other layers, for those alone
    others = {name: settings[name] for name in settings.keys() - rates}
    settings_of = {"none": others} if len(set(names)) > 1 else {}
    return [
        Experiment.preset(dropout=name, **settings_of.get(name, settings))
        for name in dict.fromkeys(names)
    ]


def option(name: str) -> str:
    """The option for an argument."""
    return f"--{name.replace('_', '-')}"


def with_options(text: str) -> str:
    """The text with options in place of the arguments in backticks."""
    kinds = (Experiment, Comparison, DeviceOptions)
    names = {field.name for kind in kinds for field in fields(kind)}
    return re.sub(r"`(\w+)`", lambda m: option(m[1]) if m[1] in names else m[0], text)


def _form(field: Field) -> dict[str, Any]:
    """How argparse reads the value of a field."""
    kind: Any = field.type
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    several = getattr(kind, "__origin__", None) is tuple
    first = get_args(kind)[0] if get_args(kind) else kind
    metavar = {int: "INT", str: "NAME", Path: "FOLDER"}.get(first, "NUMBER")
    if kind == float | str:
        first = _number_or_word
    nargs = "+" if field.metadata["unset"] else "*"  # no value at all would unset it
    return {"type": first, "metavar": metavar, **({"nargs": nargs} if several else {})}


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _default(field: Field) -> str:
    """The default of a field, or that of each data set, in words."""
    values = {"": field.default}
    if field.name == "vote_size":
        values = VOTE_SIZES
    elif field in fields(Experiment):
        values = {x: getattr(Experiment.preset(x), field.name) for x in PRESETS}
    words = {data: in_words(field, value) for data, value in values.items()}
    if len(set(words.values())) == 1:
        return words.popitem()[1]
    return ", ".join(f"{word} for {data}" for data, word in words.items())


def in_words(field: Field, value: Any) -> str:
    """The value of a setting as on the command line, or the words for an unset one."""
    several = isinstance(value, (tuple, list))
    text = " ".join(map(str, value)) if several else str(value)
    return (not value and field.metadata["unset"]) or text


@contextlib.contextmanager
def options_in_errors() -> Generator[None]:
    """Name options in errors, not arguments: `batch_size` becomes --batch-size."""
    try:
        yield
    except UserError as error:
        raise UserError(with_options(str(error))) from error
