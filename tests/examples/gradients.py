"""What the tests of the NumPy example share: gradients, all masks, data."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.testing import assert_allclose

from examples.dropout_in_numpy import Array, Mask

SIGMAS = 6.0  # a correct law fails by chance about twice in 10^9


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def numeric_gradient(loss: Callable[[], float], parameter: Array) -> Array:
    """Central differences of `loss`, which reads `parameter`, in every element."""
    gradient = np.zeros_like(parameter)
    for index in np.ndindex(parameter.shape):
        value, width = parameter[index], 1e-5
        parameter[index] = value + width
        above = loss()
        parameter[index] = value - width
        below = loss()
        parameter[index] = value
        gradient[index] = (above - below) / (2 * width)
    return gradient


def assert_gradient(analytic: Array, loss: Callable[[], float], x: Array) -> None:
    numeric = numeric_gradient(loss, x)
    assert np.abs(numeric).max() > 1e-4  # a zero gradient would prove nothing
    assert_allclose(analytic, numeric, rtol=1e-6, atol=1e-9)


def all_masks(units: int, rate: float) -> Iterator[tuple[float, Mask]]:
    """Every mask over `units`, with its probability."""
    for bits in itertools.product([False, True], repeat=units):
        count = sum(bits)
        yield (1 - rate) ** count * rate ** (units - count), np.array(bits)


def points(count: int) -> tuple[Array, np.ndarray]:
    return rng(5).uniform(-1, 1, (count, 2)), rng(6).integers(0, 3, count)
