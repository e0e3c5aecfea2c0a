"""Rates that change while a model trains, and rates that change with its depth.

A schedule is a function `schedule(progress) -> rate`. Progress is 0.0 in the first
training step and 1.0 in the last. The functions here make schedules:

    schedule = kdrop.schedules.early(0.1)
    model.fit(x, y, epochs=300, callbacks=[kdrop.RateSchedule(schedule)])

Rates lie in [0, 1). Every function raises `ValueError` for a rate outside of it, or
another argument outside the range that its docstring states.
"""

import math
from collections.abc import Callable

from kdrop.errors import check, check_integer, check_number

Schedule = Callable[[float], float]
_RATE, _PROGRESS = "[0, 1)", "(0, 1]"


def constant(rate: float) -> Schedule:
    """The same rate throughout.

    >>> kdrop.schedules.constant(0.3)(0.5)
    0.3
    """
    rate = check_number("rate", rate, _RATE)
    return lambda progress: rate


def linear(start: float, end: float) -> Schedule:
    """From `start` to `end` in a straight line.

    >>> kdrop.schedules.linear(0.0, 0.5)(0.5)
    0.25
    """
    start, end = check_number("start", start, _RATE), check_number("end", end, _RATE)
    return lambda progress: (1 - progress) * start + progress * end


def cosine(start: float, end: float) -> Schedule:
    """From `start` to `end` along half a cosine: slow, fast, slow.

    >>> round(kdrop.schedules.cosine(0.0, 0.5)(0.25), 3)
    0.073
    """
    line = linear(start, end)
    return lambda progress: line((1 - math.cos(math.pi * progress)) / 2)


def early(rate: float, cutoff: float = 1 / 6, decay: str = "linear") -> Schedule:
    """Drop only at the start of training, which helps networks that underfit.

    The rate is 0 from the progress `cutoff` in (0, 1] on; by default, as in the paper,
    after 50 of 300 epochs. Until then it falls linearly from `rate` if `decay` is
    "linear", and stays at `rate` if it is "constant".

    >>> schedule = kdrop.schedules.early(0.4, cutoff=0.5)
    >>> schedule(0.25), schedule(0.75)
    (0.2, 0.0)

    Reference: [Liu et al., 2023](https://arxiv.org/abs/2303.01500)
    """
    rate = check_number("rate", rate, _RATE)
    cutoff = check_number("cutoff", cutoff, _PROGRESS)
    check("decay", decay, decay in ("linear", "constant"), "'linear' or 'constant'")
    if decay == "linear":
        return lambda progress: rate * max(0.0, 1 - progress / cutoff)
    return lambda progress: rate if progress < cutoff else 0.0


def late(rate: float, cutoff: float = 1 / 6) -> Schedule:
    """0 before the progress `cutoff` in (0, 1], then `rate`: for networks that overfit.

    >>> schedule = kdrop.schedules.late(0.4, cutoff=0.5)
    >>> schedule(0.25), schedule(0.75)
    (0.0, 0.4)

    Reference: [Liu et al., 2023](https://arxiv.org/abs/2303.01500)
    """
    rate = check_number("rate", rate, _RATE)
    cutoff = check_number("cutoff", cutoff, _PROGRESS)
    return lambda progress: 0.0 if progress < cutoff else rate


def curriculum(rate: float, gamma: float = 10.0) -> Schedule:
    """Rise from 0 towards `rate` as `rate * (1 - exp(-gamma * progress))`; gamma > 0.

    >>> round(kdrop.schedules.curriculum(0.5)(0.1), 3)
    0.316

    Reference: [Morerio et al., 2017](https://arxiv.org/abs/1703.06229)
    """
    rate = check_number("rate", rate, _RATE)
    gamma = check_number("gamma", gamma, "(0, inf)")
    return lambda progress: -rate * math.expm1(-gamma * progress)


def annealed(rate: float, end: float = 1.0) -> Schedule:
    """From `rate` to 0 in a straight line, and 0 after the progress `end` in (0, 1].

    >>> kdrop.schedules.annealed(0.5)(0.5)
    0.25

    Reference: Rennie et al., "Annealed dropout training of deep networks", SLT 2014
    """
    return early(rate, check_number("end", end, _PROGRESS), decay="linear")


def scheduled_drop_path(rate: float) -> Schedule:
    """From 0 to `rate` in a straight line.

    >>> kdrop.schedules.scheduled_drop_path(0.5)(0.5)
    0.25

    Reference: [Zoph et al., 2018](https://arxiv.org/abs/1707.07012), section 4
    """
    return linear(0.0, check_number("rate", rate, _RATE))


def over_depth(rate: float, layers: int) -> list[float]:
    """The rates of a stack of layers, from `rate / layers` up to `rate` at the last.

    >>> kdrop.schedules.over_depth(0.5, 4)
    [0.125, 0.25, 0.375, 0.5]

    Reference: [Huang et al., 2016](https://arxiv.org/abs/1603.09382), equation 4
    """
    rate = check_number("rate", rate, _RATE)
    layers = check_integer("layers", layers, 1)
    return [rate * (place / layers) for place in range(1, layers + 1)]
