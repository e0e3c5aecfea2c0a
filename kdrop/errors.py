"""Errors of the user, each in one sentence, and checks of arguments."""

import contextlib
import difflib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Generator, Iterable, Sequence
from numbers import Integral, Real
from reprlib import repr as shortened
from typing import Any

# Here, because arguments are checked before TensorFlow is imported: formats of exported
# models besides the SavedModel, and the packages that write and check them.
SAVED_MODEL = "saved_model"
FORMATS = {
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
}


class UserError(ValueError):
    """A mistake of the user; its message is one complete sentence."""


def check(name: str, value: Any, fits: bool, allowed: str) -> Any:
    """The value of an argument; raises `ValueError` if it does not fit."""
    if fits:
        return value
    raise ValueError(f"Argument `{name}` must be {allowed}. Received: {name}={value!r}")


def first_line(error: object) -> str:
    """The first line of an error or of its message; without words, its `repr`."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def is_number(value: Any, kind: type = Real) -> bool:
    """Whether the value is a number of this kind, and not a bool."""
    return isinstance(value, kind) and not isinstance(value, bool)


def is_in(number: Any, interval: str) -> bool:
    """Whether a number is in an interval such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    ends = {low} if interval[0] == "[" else set()
    ends |= {high} if interval[-1] == "]" else set()
    return low < number < high or number in ends


def check_number(name: str, value: Any, interval: str) -> float:
    """The value of an argument as a float: a number in an interval."""
    fits = is_number(value) and is_in(value, interval)
    return float(check(name, value, fits, f"a number in {interval}"))


def check_integer(name: str, value: Any, lowest: int | None = None) -> int:
    """The value of an argument as an int: any, or one of at least `lowest`."""
    fits = is_number(value, Integral) and (lowest is None or value >= lowest)
    limit = "" if lowest is None else f" of at least {lowest}"
    return int(check(name, value, fits, f"an integer{limit}"))


def check_bool(name: str, value: Any) -> bool:
    """The value of an argument, a bool."""
    return check(name, value, isinstance(value, bool), "True or False")


def check_seed(seed: Any) -> int | None:
    """The seed as an int, or `None`; raises `ValueError` unless it is in [0, 2^32)."""
    fits = seed is None or is_number(seed, Integral) and 0 <= seed < 2**32
    check("seed", seed, fits, "an integer in [0, 2^32), or None")
    return None if seed is None else int(seed)


def check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
    """Raise `UserError`, which names the nearest choice, if `name` is not a choice."""
    choices = list(choices)
    if name in choices:
        return
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    all_choices = f"take {', '.join(choices)}."
    hint = f"did you mean {by_lower[near[0]]}?" if near else all_choices
    raise UserError(f"There is no {kind} {name!r}: {hint}")


def check_model_name(name: str) -> None:
    """Raise `UserError` if a name could not stand in a URL, or could be a version."""
    allowed = re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name)
    if not allowed or name.isdecimal():
        raise UserError(
            f"{shortened(name)} cannot be the name of a model: take up to 100 of the "
            "characters A-Z a-z 0-9 _ - . that begin with neither - nor . and are no "
            "number"
        )


def checked_formats(formats: Sequence[str]) -> list[str]:
    """The formats besides that of a SavedModel, each once.

    Raises `UserError` if there is no such format, or if its packages are missing.
    """
    fits = isinstance(formats, Sequence) and not isinstance(formats, str)
    fits = fits and all(isinstance(x, str) for x in formats)
    check("formats", formats, fits, "a list of names")
    for name in formats:
        check_choice("format", name, [SAVED_MODEL, *FORMATS])
        for package in FORMATS.get(name, ()):
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"Format {name} needs the package {package}: "
                    "pip install '.[formats]'"
                )
    return [name for name in FORMATS if name in formats]


@contextlib.contextmanager
def one_sentence(program: str, extra: str) -> Generator[None]:
    """Exit with status 2 and one sentence on standard error instead of a traceback.

    It reports a `UserError`, an `OSError`, and an `ImportError`: a missing package with
    the command that installs the optional dependencies `extra`.
    """
    try:
        yield
        return
    except ModuleNotFoundError as error:
        sentence = f"{error}: pip install '.[{extra}]'"
    except (UserError, OSError, ImportError) as error:
        sentence = str(error)
    print(f"{program}: {sentence}", file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def silent_stderr() -> Generator[None]:
    """Discard what is written to the standard error, also by compiled libraries."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def stop_on_signals() -> None:
    """Let SIGINT and SIGTERM raise `KeyboardInterrupt`, with the exit status in it."""

    def stop(number, _):
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        raise KeyboardInterrupt(128 + number)

    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, stop)
