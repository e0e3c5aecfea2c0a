"""The functions that kernels are made of."""

from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import ops

from kdrop.masks import kernels

HIGHEST = 2**32 - 1


@given(rate=st.floats(0, 1, exclude_max=True))
@example(rate=1e-6)
@example(rate=1 - 2.0**-33)
@example(rate=1 - 2.0**-53)
@settings(derandomize=True, deadline=None, max_examples=50)
def test_threshold_is_the_rate_to_the_last_of_32_bits(rate):
    threshold = kernels.threshold(rate)
    assert isinstance(threshold, int) and 0 <= threshold <= HIGHEST
    exact = Fraction(rate) * 2**32
    assert abs(threshold - exact) <= Fraction(1, 2) or threshold == HIGHEST


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("cells", [1, 4, 27, 49, 343])
def test_the_threshold_of_a_block_is_exact_to_its_last_bit(rate, cells):
    seed = Fraction(kernels.block_threshold(rate, cells), 2**32)
    dropped_fraction = 1 - (1 - seed) ** cells
    assert abs(dropped_fraction - Fraction(rate)) <= Fraction(cells, 2**33)


@pytest.mark.parametrize("threshold", [0, 1, 2**31, 2**32 - 2**8, HIGHEST])
def test_rate_and_keep_fraction_are_exact_to_the_dtype_at_both_ends(threshold):
    draw = ops.convert_to_tensor(np.array([0, 0, 0, threshold], "uint32"))
    numerators = {kernels.rate: threshold, kernels.keep_fraction: 2**32 - threshold}
    for function, numerator in numerators.items():
        fraction = ops.convert_to_numpy(function(draw, "float32"))
        np.testing.assert_allclose(fraction, numerator / 2**32, rtol=3e-7)


def test_normal_is_the_inverse_of_the_distribution_function():
    """Against the exact probabilities of the standard library, to the last word."""
    ends = [0, 1, 2, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, HIGHEST - 1, HIGHEST]
    words = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    words = np.concatenate([np.array(ends, "uint32"), words])
    values = ops.convert_to_numpy(kernels.normal(ops.convert_to_tensor(words)))
    signed = words.astype("int32").astype("float64")
    tail = (np.minimum(signed, -1 - signed) + 2**31 + 0.5) / 2**32  # the nearer one
    exact = np.array([NormalDist().inv_cdf(p) for p in tail])
    np.testing.assert_allclose(-np.abs(values), exact, rtol=1e-6)
    np.testing.assert_array_equal(values < 0, signed < 0)


def test_uniform_fills_the_interval_evenly():
    words = np.array([0, 2**30, 2**31 - 1, 2**31, 3 * 2**30, HIGHEST], "uint32")
    values = ops.convert_to_numpy(kernels.uniform(ops.convert_to_tensor(words)))
    np.testing.assert_allclose(values, [0, 0.5, 1, -1, -0.5, 0], atol=1e-6)


@pytest.mark.parametrize("name", ["UNIFORM_NOISE", "LOGISTIC_NOISE", "NORMAL_NOISE"])
def test_noise_alone_has_no_gradient(name):
    kernel = getattr(kernels, name)
    inputs = ops.ones((3, 4), "float16")
    words = ops.cast(ops.reshape(ops.arange(12), (3, 4)), "uint32")
    noise = kernel.noise(words, None)
    assert kernel.forward(inputs, noise, None) is noise
    gradient = kernel.backward(inputs, noise, None)
    assert ops.convert_to_numpy(gradient).tolist() == [[0] * 4] * 3
