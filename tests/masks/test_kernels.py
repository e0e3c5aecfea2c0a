"""The pieces of a kernel, each by itself."""

from statistics import NormalDist

import numpy as np
import pytest
from keras import ops

from kdrop.masks import kernels


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.0, 0),
        (2.0**-32, 1),
        (1e-6, 4295),
        (0.1, 429496730),
        (0.5, 2**31),
        (1 - 2.0**-33, 2**32 - 1),
        (1 - 2.0**-53, 2**32 - 1),
    ],
)
def test_threshold_is_the_rate_to_the_last_of_32_bits(rate, expected):
    assert kernels.threshold(rate) == expected


@pytest.mark.parametrize("threshold", [0, 1, 2**31, 2**32 - 2**8, 2**32 - 1])
def test_rate_and_kept_are_exact_to_the_dtype_at_both_ends(threshold):
    draw = ops.convert_to_tensor(np.array([0, 0, 0, threshold], "uint32"))
    expected = {kernels.rate: threshold, kernels.kept: 2**32 - threshold}
    for function, numerator in expected.items():
        found = ops.convert_to_numpy(function(draw, "float32"))
        np.testing.assert_allclose(found, numerator / 2**32, rtol=3e-7)


def test_normal_is_the_inverse_of_the_distribution_function():
    """Against the exact probabilities of the standard library, to the last word."""
    ends = [0, 1, 2, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1]
    words = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    words = np.concatenate([np.array(ends, "uint32"), words])
    found = ops.convert_to_numpy(kernels.normal(ops.convert_to_tensor(words)))
    signed = words.astype("int32").astype("float64")
    below = (np.minimum(signed, -1 - signed) + 2**31 + 0.5) / 2**32  # the nearer tail
    exact = np.array([NormalDist().inv_cdf(p) for p in below])
    np.testing.assert_allclose(-np.abs(found), exact, rtol=1e-6)
    np.testing.assert_array_equal(found < 0, signed < 0)


def test_uniform_fills_the_interval_evenly():
    words = np.array([0, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 1], "uint32")
    found = ops.convert_to_numpy(kernels.uniform(ops.convert_to_tensor(words)))
    np.testing.assert_allclose(found, [0, 0.5, 1, -1, -0.5, 0], atol=1e-6)


def test_check_broadcast_takes_what_broadcasts():
    for noise_shape in (None, (4, 8), (1, 8), (None, 1), (8,), (1,)):
        kernels.check_broadcast(noise_shape, (4, 8))
    kernels.check_broadcast((4, 8), (None, 8))
    for noise_shape in ((4, 7), (3, 8), (1, 4, 8), (7,)):
        with pytest.raises(ValueError, match="must broadcast"):
            kernels.check_broadcast(noise_shape, (4, 8))
