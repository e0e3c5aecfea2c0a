"""Fields of dataclasses that are options of the command line."""

from dataclasses import field
from typing import Any


def setting(default: Any, text: str, unset: str = "") -> Any:
    """A field with the help text of its option.

    Args:
        default: `dataclasses.MISSING` for a field without a default.
        unset: Words for a default of `None`, 0 or `()`.
    """
    return field(default=default, metadata={"help": text, "unset": unset})
