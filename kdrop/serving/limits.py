"""How much the server lets a request ask for: options of `python -m kdrop.serving`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """The largest values; a request beyond them gets 413, or 503 for the last."""

    max_rows: int = field(default=20_000, metadata={"help": "rows of a request"})
    max_bytes: int = field(default=2**23, metadata={"help": "bytes of a request"})
    max_values: int = field(default=10**6, metadata={"help": "values of an answer"})
    max_requests: int = field(default=64, metadata={"help": "requests at one time"})
