"""What a claim is, and the names of the layers that most compare."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Measure = Callable[[], float]  # one measurement of one unit of work: seconds or bytes
Variants = dict[str, Measure]

RIVAL, DROPOUT = "keras Dropout", "InvertedDropout"
PAIR = (RIVAL, DROPOUT)


@dataclass(frozen=True)
class Claim:
    """What is measured, against what, and what is accepted."""

    work: str  # one unit of it
    rival: str  # the variant that the others are compared with
    variants: Callable[[], Variants]
    accepted: Mapping[str, float] = field(default_factory=dict)  # the highest ratios
    rounds: int = 5  # measurements of each variant in a process
    warm_up: int = 1  # those before, which do not count
    unit: str = "ms"  # that it is shown in: ms, ns or MiB
