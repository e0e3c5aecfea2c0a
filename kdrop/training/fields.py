"""Fields of dataclasses of settings, with their help text and allowed values."""

from dataclasses import Field, field, fields
from typing import Any

from kdrop.errors import UserError, is_in


def setting(
    default: Any,
    text: str,
    allowed: str = "",
    unset: str = "",
    word: str | None = None,
    group: str = "",
) -> Any:
    """A field of a dataclass with the help text of its command-line option.

    Args:
        default: `dataclasses.MISSING` for a field without a default.
        allowed: The interval of the number, or of each of several, as "[0, 1)".
        unset: Words for a default of `None`, 0 or `()`.
        word: A value that is allowed in place of a number.
        group: Heading of this field and of those after it, up to the next heading.
    """
    metadata = {"help": text, "allowed": allowed, "unset": unset, "word": word}
    return field(default=default, metadata={**metadata, "group": group})


def by_group(*kinds: Any) -> dict[str, list[Field]]:
    """The settings of dataclasses by their headings."""
    groups, heading = {}, ""
    for each in (x for kind in kinds for x in fields(kind) if x.metadata):
        heading = each.metadata["group"] or heading
        groups.setdefault(heading, []).append(each)
    return groups


def check(name: str, number: Any, allowed: str, word: str | None = None) -> None:
    """Raise `UserError` unless the number is in the interval."""
    if number == word or not isinstance(number, str) and is_in(number, allowed):
        return
    rule = f"{word} or a number in {allowed}" if word else f"in {allowed}"
    quoted = name if name.startswith("-") else f"`{name}`"  # an option or an argument
    raise UserError(f"{quoted} is {number}, but must be {rule}.")


def check_settings(settings: Any) -> None:
    """Raise `UserError` unless all fields of a dataclass have allowed values."""
    for each in fields(settings):
        value, allowed = getattr(settings, each.name), each.metadata.get("allowed")
        if allowed and value is not None:
            for number in value if isinstance(value, tuple) else (value,):
                check(each.name, number, allowed, each.metadata["word"])
