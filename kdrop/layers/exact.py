"""The layer that drops an exact number of units."""

import functools
import math
import numbers

import keras
import numpy as np
from keras import ops

from kdrop.layers.units import _Units
from kdrop.masks import kernels

_CACHED = 2**14  # words that a processor's cache surely holds
_ONE, _BYTE, _HIGHEST = np.uint32(1), np.uint32(255), np.uint32(2**32 - 1)


@keras.saving.register_keras_serializable("kdrop")
class ExactDropout(_Units):
    """Drop an exact number of units of each example, and scale what is kept.

    Of `units` units, `count = min(units - 1, floor(rate * units + 0.5))` are dropped,
    every set of them with the same probability, and the others are scaled by
    `units / (units - count)`; at rest nothing is done. Each example, and each other
    position in it, has a set of its own. A half of a unit rounds up as it does in
    decimals: the rate counts to 2^-32.

    Args:
        rate: Fraction of units to drop, in [0, 1).
        axis: Axis of the units, any but that of the batch.
        noise_shape: Shape of the mask: 1 where the positions of a dimension share
            their fate, `None` for the inputs' own size. `(1, None)` drops the same
            units in the whole batch.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: any of a float dtype, known from `axis` on, with fewer than 2^24 units.
    Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, the inputs are not as said, or
            `noise_shape` does not broadcast to their shape or has a 1 for the units.

    Reference: the count in place of the coin of
    [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 4
    """

    def __init__(self, rate, axis=-1, noise_shape=None, seed=None, **kwargs):
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)
        if not isinstance(axis, numbers.Integral) or isinstance(axis, bool):
            raise ValueError(
                f"Argument `axis` must be one integer. Received: axis={axis!r}"
            )
        self.axis = int(axis)

    def check(self, inputs):
        super().check(inputs)
        shape = inputs.shape
        axis = self.axis % (len(shape) or 1)
        if not -len(shape) <= self.axis < len(shape) or axis == 0:
            raise ValueError(
                f"Argument `axis` of layer {self.name!r} must be an axis of the inputs "
                f"after the first. Received: axis={self.axis}, inputs of shape "
                f"{tuple(shape)}"
            )
        sizes = self._sizes(shape)[axis:]
        if None in sizes:
            raise ValueError(
                f"Layer {self.name!r} counts units along axis {self.axis}: the sizes "
                f"from there on must be known. Received: inputs of shape {tuple(shape)}"
            )
        if sizes[0] != shape[axis] or sizes[0] >= 2**24:
            raise ValueError(
                f"Layer {self.name!r} decides for fewer than 2^24 units by themselves. "
                f"Received: {shape[axis]} units, noise_shape={self.noise_shape}"
            )

    def _sizes(self, shape):
        """The mask's dimensions."""
        noise_shape = self.noise_shape or (None,) * len(shape)
        noise_shape = (1,) * (len(shape) - len(noise_shape)) + noise_shape
        sizes = zip(noise_shape, shape, strict=True)
        return [size if n is None else n for n, size in sizes]

    def drop(self, inputs, draw, rows):
        units, *inner = self._sizes(inputs.shape)[self.axis % len(inputs.shape) :]
        if units * math.prod(inner) == 0:
            return inputs
        kernel = _kernel(units, math.prod(inner))
        return kernels.apply(kernel, inputs, draw, rows, self.noise_shape)

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}


# The words within a row are distinct here. So the `count` lowest of a group are those
# below a threshold, every set of units has them equally often, and to find the
# threshold is to count how many words lie below a guess.


@functools.cache
def _kernel(units, inner):
    """Exact counts in groups of `units * inner` words that follow each other."""
    split = math.gcd(units, 16)  # so that sums over short rows fill vectors

    def noise(words, draw):
        rows, size = ops.shape(words)
        if isinstance(rows, int) and rows == 0:
            return ops.zeros((rows, size), "bool")
        size -= size % (units * inner)  # words drawn for a padded size may remain
        words = ops.reshape(words[:, :size], (rows, -1, split, units // split, inner))
        count = _count(draw, units)
        if isinstance(rows, int) and isinstance(size, int):
            # Part by part, each in the cache while it is searched.
            fitting = max(1, _CACHED // size)
            part = max(n for n in range(1, fitting + 1) if rows % n == 0)
            parts = ops.reshape(words, (rows // part, -1, *words.shape[2:]))
            dropped = ops.map(lambda part: _lowest(part, count), parts)
        else:
            dropped = _lowest(ops.reshape(words, (-1, *words.shape[2:])), count)
        return ops.reshape(dropped, (rows, size))

    def select(inputs, dropped, draw):
        kept = ops.cast(units - _count(draw, units), kernels.wide(inputs.dtype))
        scaled = kernels.scale(inputs, units / kept)
        return ops.where(dropped, ops.zeros_like(inputs), scaled)

    return kernels.Kernel(noise, select, select, distinct=True)


def _count(draw, units):
    """How many of `units` are dropped, as an int32 scalar."""
    threshold = ops.cast(draw[3], "uint32")
    # (units * threshold + 2^31 + units / 2) / 2^32, digit by digit: JAX has 32 bits. By
    # units / 2 because a threshold may be half a step below its rate.
    total = np.uint32((units + 1) // 2)
    for shift, half in ((0, 0), (8, 0), (16, 0), (24, 128)):
        digit = ops.bitwise_and(ops.right_shift(threshold, np.uint32(shift)), _BYTE)
        total = ops.right_shift(digit * np.uint32(units) + total + np.uint32(half), 8)
    return ops.minimum(ops.cast(total, "int32"), units - 1)


def _lowest(words, count):
    """Which words are the `count` lowest of their groups.

    Args:
        words: uint32 tensor `(groups, split, units / split, inner)`, distinct along the
            units.
        count: int32 scalar, less than the number of units.

    Returns:
        Boolean tensor of the words' shape.
    """
    # A bracket and the counts below its ends, narrowed by interpolation until what is
    # missing is one word at most. Each is one pass over the words.
    low = ops.zeros_like(words[:, :1, :1])
    zero = ops.cast(low, "int32")

    def inside(low, high, below, above):
        share = (ops.cast(count - below, "float32") + 0.5) / (
            ops.cast(above - below, "float32") + 1
        )
        width = high - low
        step = ops.cast(ops.cast(width, "float32") * share, "uint32")
        return low + ops.clip(step, _ONE, width - _ONE)

    def narrow(low, high, below, above, guess, missing):
        found = _over_units(ops.sum, ops.cast(words < guess, "int32"))
        missing = count - found
        few = missing > 0
        low, below = ops.where(few, guess, low), ops.where(few, found, below)
        high, above = ops.where(few, high, guess), ops.where(few, above, found)
        near = ops.abs(missing) <= 1
        guess = ops.where(near, guess, inside(low, high, below, above))
        return low, high, below, above, guess, missing

    bracket = (low, low + _HIGHEST, zero, zero + words.shape[1] * words.shape[2])
    *_, guess, missing = ops.while_loop(
        lambda *state: ops.any(ops.abs(state[-1]) > 1),
        narrow,
        (*bracket, inside(*bracket), zero + 2),
    )
    # What is missing is the next word upwards or, with all bits turned, downwards.
    up = missing > 0
    turn = ops.where(up, np.uint32(0), _HIGHEST)
    start = ops.where(up, guess, np.uint32(0) - guess)
    gap = _over_units(ops.min, ops.bitwise_xor(words, turn) - start)
    moved = ops.where(up, guess + gap + _ONE, guess - gap - _ONE)
    guess = ops.where(missing == 0, guess, moved)
    return words < guess


def _over_units(reduce, words):
    return reduce(reduce(words, axis=1, keepdims=True), axis=2, keepdims=True)
