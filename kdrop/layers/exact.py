"""The layer that drops an exact number of units."""

import functools
import math

import keras
import numpy as np
from keras import ops

from kdrop.errors import check_integer
from kdrop.layers.units import UnitNoise
from kdrop.masks import kernels, run

_CACHED = 2**14  # words that surely fit a processor's cache
# Units of a group, at least, for its limit to be stored: of fewer the memory would be
# a noticeable share of the inputs', and the search again is short.
_STORED = 32
_UNITS = (1, 2, 3)  # the axes of a group's units in the search
_ONE, _HIGHEST = np.uint32(1), np.uint32(2**32 - 1)


@keras.saving.register_keras_serializable("kdrop")
class ExactDropout(UnitNoise):
    """Drop an exact number of units of each example, and scale the others.

    Of `units` units, `count = min(units - 1, floor(rate * units + 0.5))` are dropped,
    each set equally likely, and the others are scaled by `units / (units - count)`.
    Each position of each example has its own set. The rate is rounded to a multiple of
    2^-32 first, so that 0.3 of 5 units rounds as 1.5 does. With fewer than `0.5 / rate`
    units none is dropped: 0.1 of 4 units is none. Inference changes nothing.

    Args:
        axis: Axis of the units, any but that of the batch. The sizes from there on must
            be known, and the units fewer than 2^24.
        noise_shape: `(1, None)` drops the same units in the whole batch. It cannot have
            a 1 for the units.
        **kwargs: Those of `InvertedDropout`, whose shapes and errors hold too.

    >>> layer = kdrop.ExactDropout(0.3, seed=1)
    >>> outputs = layer(keras.ops.ones((3, 10)), training=True)
    >>> print(keras.ops.convert_to_numpy(keras.ops.sum(outputs == 0, axis=1)))
    [3 3 3]

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
    section 4, with an exact count in place of independent decisions
    """

    config_arguments = ("axis", "noise_shape")

    def __init__(self, rate, axis=-1, noise_shape=None, seed=None, **kwargs):
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)
        self.axis = check_integer("axis", axis)

    def check(self, inputs):
        super().check(inputs)
        shape = tuple(inputs.shape)
        if not -len(shape) < self.axis < len(shape) or self.axis == 0:
            raise ValueError(
                f"Argument `axis` of layer {self.name!r} must be an axis of the inputs "
                f"after the first. Received: axis={self.axis}, inputs of shape {shape}"
            )
        sizes, units = self._sizes_from_axis(shape), shape[self.axis]
        if None in (units, *sizes) or units >= 2**24:
            raise ValueError(
                f"Layer {self.name!r} needs fewer than 2^24 units and known sizes from "
                f"axis {self.axis} on. Received: inputs of shape {shape}"
            )
        if sizes[0] != units:
            raise ValueError(
                f"Layer {self.name!r} decides for each unit: a `noise_shape` must have "
                f"no 1 on axis {self.axis}, that of {units} units. Received: "
                f"noise_shape={self.noise_shape}"
            )

    def _sizes_from_axis(self, shape):
        return run.broadcast_sizes(self.noise_shape, shape)[self.axis % len(shape) :]

    def drop(self, inputs, draw, rows):
        units, *inner = self._sizes_from_axis(inputs.shape)
        if units * math.prod(inner) == 0:
            return inputs
        kernel = _kernel(units, math.prod(inner))
        return run.apply(kernel, inputs, draw, rows, self.noise_shape)


@functools.cache
def _kernel(units, inner):
    """The kernel for consecutive groups of `units * inner` distinct words.

    Its limits are `(rows, groups, inner)`: dropped are the words of a group below them.
    """
    blocks = (1, 1, units)
    if inner == 1:  # XLA sums over rows slowly, and fastest over blocks of 16 by 8
        split = math.gcd(units, 16)
        blocks = (1, split, units // split) if units % 128 else (units // 128, 16, 8)

    def limits(words, draw):
        rows, size = ops.shape(words)
        groups, count = size // (units * inner), _count(draw, units)
        static = isinstance(rows, int) and isinstance(size, int)
        if static and rows * size > _CACHED:
            # Part by part, so that each part stays in the cache during its search.
            most = max(1, _CACHED // size)
            part = max(n for n in range(1, most + 1) if rows % n == 0)
            parts = ops.reshape(words, (rows // part, part * groups, *blocks, inner))
            limit = ops.map(lambda part: _limit(part, count), parts)
        else:
            parts = ops.reshape(words, (rows * groups, *blocks, inner))
            limit = _limit(parts, count)
        return ops.reshape(limit, (rows, groups, inner))

    def noise(words, draw, limit=None):
        rows, size = ops.shape(words)
        size -= size % (units * inner)  # a padded size may not be a multiple
        words = words[:, :size]
        limit = limits(words, draw) if limit is None else limit
        groups = (rows, size // (units * inner), units, inner)
        dropped = ops.reshape(words, groups) < limit[:, :, None]
        return ops.reshape(dropped, (rows, size))

    def select(inputs, dropped, draw):
        remaining = ops.cast(units - _count(draw, units), kernels.wide(inputs.dtype))
        scaled = kernels.scale(inputs, units / remaining)
        return kernels.select(scaled, dropped, draw)

    stored = limits if units >= _STORED else None
    return kernels.Kernel(noise, select, select, distinct=True, limits=stored)


def _count(draw, units):
    """How many of `units` are dropped, as an int32 scalar."""
    threshold = ops.cast(draw[3], "uint32")
    # (units * threshold + 2^31 + units / 2) / 2^32, byte by byte, because JAX has 32
    # bits. The units / 2 make up for a threshold that is half a step below its rate.
    total = np.uint32((units + 1) // 2)
    for shift, half in ((0, 0), (8, 0), (16, 0), (24, 128)):
        # LiteRT has no bitwise and.
        byte = ops.right_shift(ops.left_shift(threshold, np.uint32(24 - shift)), 24)
        total = ops.right_shift(byte * np.uint32(units) + total + np.uint32(half), 8)
    return ops.minimum(ops.cast(total, "int32"), units - 1)


def _limit(words, count):
    """The number below which `count` words of each group `(*blocks, inner)` are."""
    # The words are distinct, so there is one. Narrow a bracket of it, with the counts
    # below its ends, by interpolation until at most one word is missing. Each step is
    # one pass over the words.
    low = ops.zeros_like(words[:, :1, :1, :1])
    zero = ops.cast(low, "int32")

    def interpolate(low, high, below, above):
        share = (ops.cast(count - below, "float32") + 0.5) / (
            ops.cast(above - below, "float32") + 1
        )
        width = high - low
        step = ops.cast(ops.cast(width, "float32") * share, "uint32")
        return low + ops.clip(step, _ONE, width - _ONE)

    def narrow(low, high, below, above, guess, missing):
        smaller = ops.sum(ops.cast(words < guess, "int32"), _UNITS, keepdims=True)
        missing = count - smaller
        few = missing > 0
        low, below = ops.where(few, guess, low), ops.where(few, smaller, below)
        high, above = ops.where(few, high, guess), ops.where(few, above, smaller)
        near = ops.abs(missing) <= 1
        guess = ops.where(near, guess, interpolate(low, high, below, above))
        return low, high, below, above, guess, missing

    bracket = (low, low + _HIGHEST, zero, zero + math.prod(words.shape[1:4]))
    *_, guess, missing = ops.while_loop(
        lambda *state: ops.any(ops.abs(state[-1]) > 1),
        narrow,
        (*bracket, interpolate(*bracket), zero + 2),  # 2 missing: not yet narrowed
    )
    # One word is missing or too many: move the guess to the next word above or, with
    # all bits flipped, below.
    up = missing > 0
    flip = ops.where(up, np.uint32(0), _HIGHEST)
    start = ops.where(up, guess, np.uint32(0) - guess)
    gap = ops.min(ops.bitwise_xor(words, flip) - start, _UNITS, keepdims=True)
    moved = ops.where(up, guess + gap + _ONE, guess - gap - _ONE)
    return ops.where(missing == 0, guess, moved)
