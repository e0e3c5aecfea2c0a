"""What a user got wrong, reported in one sentence."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """What a user got wrong, in one sentence."""


def check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
    """Raise `UserError`, which names the nearest choice, if `name` is not a choice.

    Args:
        kind: What the name is one of, as the sentence says it: "data set".
    """
    choices = list(choices)
    if name in choices:
        return
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    hint = (
        f"did you mean {by_lower[near[0]]}?" if near else f"take {', '.join(choices)}."
    )
    raise UserError(f"There is no {kind} {name!r}: {hint}")


@contextlib.contextmanager
def one_sentence(program: str, extra: str) -> Iterator[None]:
    """Exit with status 2 and one sentence on standard error instead of a traceback.

    For the commands: of a `UserError` its sentence, of a missing package the
    optional dependencies that hold it.

    Args:
        program: The command's name, before the sentence.
        extra: The optional dependencies that the command needs.
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
