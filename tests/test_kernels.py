"""The pieces of a kernel, each by itself."""

import numpy as np
import pytest
from keras import ops

from kdrop import kernels


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
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kept_is_exact_to_the_dtype_at_both_ends(threshold, dtype):
    draw = ops.convert_to_tensor([0, 0, 0, threshold], dtype="int64")
    kept = ops.convert_to_numpy(kernels.kept(draw, dtype))
    expected = (2**32 - threshold) / 2**32
    np.testing.assert_allclose(kept, expected, rtol=2 * np.finfo(dtype).eps)


def test_check_broadcast_takes_what_broadcasts():
    for noise_shape in (None, (4, 8), (1, 8), (None, 1), (8,), (1,)):
        kernels.check_broadcast(noise_shape, (4, 8))
    kernels.check_broadcast((4, 8), (None, 8))
    for noise_shape in ((4, 7), (3, 8), (1, 4, 8), (7,)):
        with pytest.raises(ValueError, match="must broadcast"):
            kernels.check_broadcast(noise_shape, (4, 8))
