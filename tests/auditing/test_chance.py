"""The bounds of an audit: a right layer is within them, a wrong one is not."""

import math

import numpy as np
import pytest

from kdrop.auditing import chance


def binomial_tail(count, size, rate):
    """The probability of at least `count`, summed from the law."""
    logs = (
        math.lgamma(size + 1)
        - math.lgamma(k + 1)
        - math.lgamma(size - k + 1)
        + k * math.log(rate)
        + (size - k) * math.log1p(-rate)
        for k in range(count, size + 1)
    )
    return sum(math.exp(x) for x in logs)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("size", [256, 5000])
def test_a_right_frequency_is_hardly_ever_out_of_bounds(rate, size):
    above = rate + chance.frequency_bound(rate, rate + 1e-9, size)
    below = rate - chance.frequency_bound(rate, rate - 1e-9, size)
    if above < 1:
        assert binomial_tail(math.floor(above * size) + 1, size, rate) < 1e-9
    if below > 0:
        # Fewer dropped is more of those that are not.
        above = size - math.ceil(below * size) + 1
        assert binomial_tail(above, size, 1 - rate) < 1e-9


def test_the_bound_is_near_that_of_the_normal_law():
    bound = chance.frequency_bound(0.3, 0.31, 10**6)
    normal = chance.DEVIATIONS * math.sqrt(0.3 * 0.7 / 10**6)
    assert bound == pytest.approx(normal, rel=0.01)


def test_nothing_may_be_dropped_at_rate_0():
    assert chance.frequency_bound(0.0, 0.1, 10) == 0


def test_moments_of_a_normal_law_are_within_their_bounds():
    values = np.random.default_rng(0).normal(1, 0.5, 10**5)
    mean, variance = chance.moment_bounds(values, values.size)
    assert abs(values.mean() - 1) < mean < 0.02
    assert abs(values.var() - 0.25) < variance < 0.02


def test_calls_are_told_apart_where_they_surely_differ():
    assert chance.tells_calls_apart(0.5, 100)
    assert not chance.tells_calls_apart(0.5, 4)
    assert not chance.tells_calls_apart(0.0, 10**6)
