"""How much the server lets a request ask for: options of `python -m kdrop.serving`."""

from typing import NamedTuple


class Limits(NamedTuple):
    """The largest values; a request beyond them gets 413, or 503 for the last."""

    max_rows: int = 20_000  # rows of a request
    max_bytes: int = 2**23  # bytes of a request's body
    max_requests: int = 64  # requests that are being answered at the same time


MEANINGS = ("rows of a request", "bytes of a request's body", "requests at one time")
