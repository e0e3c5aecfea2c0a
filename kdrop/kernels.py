"""What dropping does to a tensor, and its gradient, as pure functions.

A kernel takes the inputs and `draw`, the integer vector `[seed, salt, number of the
draw, threshold, ...]` that a layer's draws hand out. It stores no mask: the gradient
draws it again from the same numbers.
"""

import functools
import operator

import keras
from keras import ops

from kdrop import bits


def threshold(rate):
    """The integer below which a 32-bit word drops its element.

    Args:
        rate: Python float in [0, 1).

    Returns:
        Python int in [0, 2^32 - 1], `rate * 2^32` to the nearest integer.
    """
    return min(round(rate * 2**32), 2**32 - 1)


def kept(draw, dtype):
    """The fraction that a draw keeps, `1 - rate`, as a scalar of a float dtype."""
    # The complement first: in float32, 1 - threshold / 2^32 loses a high rate's digits.
    complement = ops.bitwise_not(ops.cast(draw[3], "uint32"))
    return (ops.cast(complement, dtype) + 1) * 2.0**-32


def wide(dtype):
    """The dtype that scaling is done in: float32, or float64 for float64 inputs."""
    double = keras.backend.standardize_dtype(dtype) == "float64"
    return "float64" if double else "float32"


def scale(inputs, factor):
    """`inputs * factor`, in the factor's dtype and rounded once to the inputs'."""
    return ops.cast(ops.cast(inputs, factor.dtype) * factor, inputs.dtype)


def check_broadcast(noise_shape, shape):
    """Raise `ValueError` unless `noise_shape` broadcasts to `shape`."""
    if noise_shape is None:
        return
    fits = len(noise_shape) <= len(shape) and all(
        n in (None, 1, size) or size is None
        for n, size in zip(reversed(noise_shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"`noise_shape` must broadcast to the inputs' shape {tuple(shape)}: each "
            f"dimension 1, None or the inputs' own. Received: noise_shape={noise_shape}"
        )


def _mask(draw, rows, noise_shape, shape):
    """Which elements are dropped: a boolean tensor that broadcasts to `shape`."""
    if noise_shape is None:
        noise_shape = (None,) * len(shape)
    else:
        noise_shape = (1,) * (len(shape) - len(noise_shape)) + noise_shape
    if not shape or noise_shape[0] == 1:
        # One decision for the whole batch, on whichever device it lies.
        rows = ops.zeros((1, 2), dtype="uint32")
    size = [s if n is None else n for n, s in zip(noise_shape, shape, strict=True)]
    seed, salt, number = (ops.cast(draw[i], "uint32") for i in range(3))
    words = bits.words(
        bits.fold(seed, salt, number), rows, functools.reduce(operator.mul, size[1:], 1)
    )
    return ops.reshape(words, size) < ops.cast(draw[3], "uint32")


def _bernoulli(inputs, draw, rows, noise_shape, inverted):
    shape = ops.shape(inputs)
    drop = ops.broadcast_to(_mask(draw, rows, noise_shape, shape), shape)
    if inverted:
        inputs = scale(inputs, 1 / kept(draw, wide(inputs.dtype)))
    return ops.where(drop, ops.zeros_like(inputs), inputs)


@functools.cache
def _compiled(kernel, *static):
    """The kernel as one fused pass, which stands in a graph like a single op."""
    kernel = functools.partial(kernel, **dict(static))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(kernel, jit_compile=True, autograph=False)
    if keras.backend.backend() == "jax":
        import jax  # ty: ignore[import-not-found]

        return jax.jit(kernel)
    return kernel


def bernoulli(inputs, draw, rows, noise_shape=None, inverted=True):
    """Set each element to zero with probability `rate`, whatever it was.

    The kernel is linear in its inputs: its gradient is the same kernel on the
    incoming gradient, and so are the higher derivatives.

    Args:
        inputs: Float tensor `(batch, ...)`.
        draw: Integer vector `[seed, salt, number, threshold, ...]`.
        rows: uint32 tensor `(n, 2)` that names the rows of the mask.
        noise_shape: Tuple of the mask's dimensions, `None` for the inputs' own; it
            broadcasts to the inputs' shape.
        inverted: Whether what is kept is scaled by `1 / (1 - rate)`.

    Returns:
        Tensor of the inputs' shape and dtype.
    """
    kernel = _compiled(_bernoulli, ("noise_shape", noise_shape), ("inverted", inverted))

    @ops.custom_gradient
    def drop(inputs, draw, rows):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return bernoulli(upstream, draw, rows, noise_shape, inverted), None, None

        return kernel(inputs, draw, rows), gradient

    return drop(inputs, draw, rows)
