"""How far from its law a right layer may be measured: once in a thousand million."""

import math

import numpy as np

_LOG = math.log(2e9)  # of two sides
DEVIATIONS = math.sqrt(2 * _LOG)  # of a normal law, as rare


def frequency_bound(rate, frequency, decisions):
    """How far a frequency may be from its rate on this side, by Chernoff's bound."""
    if not rate:
        return 0.0
    side = 1 if frequency >= rate else -1
    low, high = 0.0, 1 - rate if side > 0 else rate
    for _ in range(50):
        middle = (low + high) / 2
        rare = decisions * _divergence(rate + side * middle, rate) > _LOG
        low, high = (low, middle) if rare else (middle, high)
    return high


def _divergence(frequency, rate):
    """The Kullback-Leibler divergence of two Bernoulli laws."""
    pairs = ((frequency, rate), (1 - frequency, 1 - rate))
    return sum(p * math.log(p / q) if q else math.inf for p, q in pairs if p > 0)


def moment_bounds(values, decisions):
    """How far the mean and the variance of values may be from those of their law.

    `decisions` is the number of independent ones among the values.
    """
    centred = (values - values.mean()) ** 2
    spread = DEVIATIONS / math.sqrt(decisions)
    return spread * np.sqrt(centred.mean()), spread * centred.std()


def tells_calls_apart(rate, decisions):
    """Whether two independent calls of so many decisions surely differ."""
    return decisions * -math.log1p(-2 * rate * (1 - rate)) > _LOG if rate else False
