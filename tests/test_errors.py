"""The words of errors."""

import pytest

from kdrop.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n one\n"), "one"),
        (EOFError(), "EOFError()"),
        ("one\ntwo", "one"),
    ],
)
def test_the_first_line_of_an_error_is_of_its_words_or_its_type(error, line):
    assert first_line(error) == line
