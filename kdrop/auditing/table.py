"""The rows of an audit, and their table."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Row:
    """What one layer is asked for, and what it does. `None`: not measured.

    `problems` says in words what is wrong; `ok` is whether nothing is, and `None` for a
    layer that was never called, or whose rate is too low to show. `bfloat16` is no part
    of it: a layer of that type is measured in it.
    """

    layer: str  # its name after those of the layers around it
    kind: str  # the name of its class
    rate: float | None  # the fraction that it is asked to drop
    dropped: float | None = None  # the fraction that it dropped
    bound: float | None = None  # how far chance may bring `dropped` from `rate`
    mean: float | None = None  # of the outputs for ones
    variance: float | None = None
    together: str | None = None  # what is decided together: unit, channel, row, batch
    fresh: bool | None = None  # two calls differ
    quiet: bool | None = None  # two calls at inference agree
    saved: bool | None = None  # a loaded or configured copy does the same
    bfloat16: bool | None = None  # a copy in bfloat16 does the same
    replicas: bool | None = None  # two replicas draw other masks
    recompute: bool | None = None  # forward and backward masks agree
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool | None:
        unknown = self.quiet is None or (self.rate and self.fresh is None)
        return None if unknown and not self.problems else not self.problems


class Audit(tuple[Row, ...]):
    """The rows of an audit, which print as a table."""

    @property
    def ok(self) -> bool:
        """Whether no row has a problem."""
        return all(row.ok is not False for row in self)

    def __repr__(self):
        return str(self)

    def __str__(self):
        if not self:
            return "No layer is random in training."
        names = [x.name for x in fields(Row) if x.name != "problems"]
        names = [n for n in names if any(getattr(row, n) is not None for row in self)]
        table = [[*names, "ok"]] + [
            [_cell(getattr(row, name)) for name in (*names, "ok")] for row in self
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(x.ljust(width) for x, width in zip(line, widths, strict=True))
            for line in table
        ]
        problems = [f"{row.layer}: {x}" for row in self for x in row.problems]
        return "\n".join(map(str.rstrip, [*lines, *problems]))


def _cell(value):
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else str("-" if value is None else value)
    )
