"""The bound of an audit: a right layer is within it, a wrong one is not."""

import math

import keras
import pytest

import kdrop
from kdrop.auditing.measure import chance_bound


def binomial_tail(least, count, rate):
    """The probability of at least so many, summed from the law."""

    def log(k):
        ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        return ways + k * math.log(rate) + (count - k) * math.log1p(-rate)

    return sum(math.exp(log(k)) for k in range(least, count + 1))


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [256, 5000])
def test_a_right_fraction_is_hardly_ever_out_of_bounds(rate, count):
    bound = chance_bound(rate * (1 - rate), count)
    # Fewer dropped is more of those that are not.
    for p in rate, 1 - rate:
        least = math.floor((p + bound) * count) + 1
        assert binomial_tail(least, count, p) < 1e-9


def test_the_bound_is_that_of_the_decisions_made():
    """4,096 positions share the decision of a row."""
    model = keras.Sequential([keras.Input((64, 64)), kdrop.DropPath(0.3)])
    (row,) = kdrop.audit(model)
    assert row.bound >= chance_bound(0.3 * 0.7, 2**19)
    assert chance_bound(0.21, 10**6) == pytest.approx(6.5 * (0.21 / 10**6) ** 0.5, 0.02)
    assert chance_bound(0.0, 10) == 0
