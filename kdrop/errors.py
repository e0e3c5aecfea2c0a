"""Errors of the user, reported in one sentence instead of a traceback."""

import contextlib
import difflib
import signal
import sys
from collections.abc import Generator, Iterable


class UserError(ValueError):
    """A mistake of the user; its message is one complete sentence."""


def check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
    """Raise `UserError`, which names the nearest choice, if `name` is not a choice."""
    choices = list(choices)
    if name in choices:
        return
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    hint = f"take {', '.join(choices)}."
    if near:
        hint = f"did you mean {by_lower[near[0]]}?"
    raise UserError(f"There is no {kind} {name!r}: {hint}")


@contextlib.contextmanager
def one_sentence(program: str, extra: str) -> Generator[None]:
    """Exit with status 2 and one sentence on standard error instead of a traceback.

    It reports a `UserError`, an `OSError`, and a missing package together with the
    command that installs the optional dependencies `extra`.
    """
    try:
        yield
    except (UserError, OSError) as error:
        sentence = str(error)
    except ModuleNotFoundError as error:
        sentence = f"{error}: pip install '.[{extra}]'"
    else:
        return
    print(f"{program}: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def stop_on_signals() -> None:
    """Let SIGINT and SIGTERM raise `KeyboardInterrupt`, with the exit status in it."""

    def stop(number, _):
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        raise KeyboardInterrupt(128 + number)

    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, stop)
