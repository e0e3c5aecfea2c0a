"""Runs a kernel on inputs: compiles it, pads unknown sizes and differentiates it.

For each shape, XLA compiles one fused pass that draws, compares and scales. No mask is
stored: the gradient draws it again. Where the sizes are known, a kernel that needs
limits finds them in a pass before, and stores them. The package explains `draw` and
`rows`.
"""

import contextvars
import functools
import math

import keras
import numpy as np
from keras import ops

from kdrop import backend
from kdrop.masks import bits

# Whether a function is being traced for export. Kernels then run as plain operations,
# with the same bits, because a model server may have no XLA.
exporting = contextvars.ContextVar("exporting", default=False)

# Words of a row up to which XLA on a CPU compiles three times as fast if it does not
# fuse the key with the rows.
_SHORT = 128


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


def apply(kernel, inputs, draw, rows, noise_shape=None):
    """Run a kernel. Its gradient runs the kernel's linear part on the same noise.

    The first entry of a full `noise_shape` is ignored: `rows` says whether the batch
    shares a mask.
    """
    if backend.name() == "jax":
        # JAX differentiates the kernel itself, forward mode included. `remat` keeps it
        # from storing the mask.
        run = functools.partial(_run, kernel, noise_shape)
        limits = _limits(kernel, noise_shape, inputs, draw, rows)
        return keras.remat(run)(inputs, draw, rows, *limits)
    if inputs.shape.rank is None:
        return backend.on_matrix(lambda flat: apply(kernel, flat, draw, rows), inputs)
    if noise_shape is not None and None in inputs.shape:
        inputs = _check_at_run_time(inputs, noise_shape)
    if backend.is_traced():
        return _differentiable(kernel, noise_shape, inputs, draw, rows)
    # Each form of rows has a function, so that retracing relaxes only their number.
    signature = inputs.dtype, inputs.shape.rank, tuple(rows.shape[1:])
    static = kernel, noise_shape
    call = backend.compiled(_differentiable, signature, *static, xla=False)
    return call(inputs, draw, rows)


def _check_at_run_time(inputs, noise_shape):
    """`check_broadcast` for the sizes that were unknown when it ran."""
    sizes = ops.shape(inputs)[len(inputs.shape) - len(noise_shape) :]
    fits = [
        actual == size
        for size, actual in zip(noise_shape, sizes, strict=True)
        if size not in (None, 1) and not isinstance(actual, int)
    ]
    message = f"`noise_shape` {noise_shape} must broadcast to the inputs' shape"
    return backend.checked(inputs, fits, message)


def _differentiable(kernel, noise_shape, inputs, draw, rows, *limits):
    if exporting.get():  # without a gradient
        return _fused(kernel, noise_shape, inputs, draw, rows)
    limits = limits or _limits(kernel, noise_shape, inputs, draw, rows)

    @ops.custom_gradient
    def call(inputs, *others):
        # Tensors of this graph, which the gradient of a gradient can use.
        others = [ops.stop_gradient(value) for value in others]

        def gradient(upstream):
            linear = kernel._replace(forward=kernel.backward)
            result = _differentiable(linear, noise_shape, upstream, *others)
            # The outputs' dtype may differ from the inputs', as with float32 noise.
            return ops.cast(result, inputs.dtype), *(None for _ in others)

        return _run(kernel, noise_shape, inputs, *others), gradient

    return call(inputs, draw, rows, *limits)


def _run(kernel, noise_shape, inputs, draw, rows, *limits):
    if None in inputs.shape[1:]:
        # The sizes may vary at run time: only the noise is compiled, for padded ones.
        return _fused(kernel, noise_shape, inputs, draw, rows, make_noise=_padded_noise)
    call = _compiled(_fused, kernel, noise_shape, inputs)
    return call(inputs, draw, rows, *limits)


def _limits(kernel, noise_shape, inputs, draw, rows):
    """The limits as a tuple of one; empty without limits, or if sizes are unknown."""
    if kernel.limits is None or None in inputs.shape[1:]:
        return ()
    call = _compiled(_find_limits, kernel, noise_shape, inputs)
    return (call(inputs, draw, rows),)


def _compiled(function, kernel, noise_shape, inputs):
    # A function for each shape: TensorFlow warns of one that is often retraced.
    signature = inputs.dtype, *inputs.shape
    return backend.compiled(function, signature, kernel, noise_shape)


def _find_limits(kernel, noise_shape, inputs, draw, rows):
    shape = ops.shape(inputs)
    size = math.prod(broadcast_sizes(noise_shape, shape)[1:])
    ids = row_ids(rows, shape)
    words = bits.words(draw_key(draw, ids), ids, size, kernel.distinct)
    return kernel.limits(words, draw)


def broadcast_sizes(noise_shape, shape):
    """The shape of noise for inputs of this shape: each size is 1 or the inputs'."""
    if noise_shape is None:
        return list(shape)
    noise_shape = (1,) * (len(shape) - len(noise_shape)) + noise_shape
    return [s if n is None else n for n, s in zip(noise_shape, shape, strict=True)]


def row_ids(rows, shape):
    """`rows` as two or three words for each row, for inputs of this shape."""
    if len(rows.shape):
        return rows
    count = shape[0] if shape else 1
    # XLA has no range of unsigned integers.
    rows = rows + ops.cast(ops.arange(count, dtype="int32"), "uint32")
    return ops.stack([rows, ops.zeros_like(rows)], axis=1)


def is_shared(rows):
    """Whether the whole batch shares one row."""
    return len(rows.shape) == 2 and rows.shape[0] == 1


def draw_key(draw, ids):
    """The key of a draw for row ids; a key for each row if they have seeds."""
    # Seed, name hash, draw number and occurrence.
    key = [ops.cast(draw[i], "uint32") for i in (0, 1, 2, 4)]
    if ids.shape[1] == 3:
        key[0] = ids[:, 2]
    return bits.fold(*key)


def _noise(kernel, draw, ids, size, *limits):
    short = isinstance(size, int) and size <= _SHORT and not exporting.get()
    if short and backend.on_cpu():
        shape = (2, ops.shape(ids)[0]) if ids.shape[1] == 3 else (2,)
        stacked = functools.partial(ops.stack, draw_key(draw, ids))
        key = _materialise(stacked, draw, shape, "uint32")
    else:
        key = draw_key(draw, ids)

    def noise():
        words = bits.words((key[0], key[1]), ids, size, kernel.distinct)
        return kernel.noise(words, draw, *limits)

    if kernel.block:
        return _materialise(noise, draw, (ops.shape(ids)[0], size))
    return noise()


def _noise_like(kernel, draw, ids, like):
    return _noise(kernel, draw, ids, ops.shape(like)[0])


def _padded_noise(kernel, draw, ids, size):
    """Noise that is compiled for sizes that are powers of four."""
    padding = ops.zeros((_next_power_of_four(size),), "bool")
    return backend.compiled(_noise_like, None, kernel)(draw, ids, padding)[:, :size]


def _next_power_of_four(size):
    """The next power of four, or the size itself if that would overflow an int32."""
    powers = 4 ** np.arange(16, dtype="int32")
    return ops.maximum(size, ops.max(ops.where(powers // 4 < size, powers, 1)))


def _fused(kernel, noise_shape, inputs, draw, rows, *limits, make_noise=_noise):
    shape = ops.shape(inputs)
    if kernel.block:
        # Blocks that start before the map reach into it.
        sizes = [s + b - 1 for s, b in zip(shape[1:], kernel.block, strict=True)]
    else:
        sizes = broadcast_sizes(noise_shape, shape)[1:]
    noise = make_noise(kernel, draw, row_ids(rows, shape), math.prod(sizes), *limits)
    noise = ops.reshape(noise, (ops.shape(noise)[0], *sizes) if shape else ())
    for axis, size in enumerate(kernel.block, start=1):
        if size > 1:
            noise = _cover(noise, axis, size, draw)
    return kernel.forward(inputs, ops.broadcast_to(noise, shape), draw)


def _cover(seeds, axis, size, draw):
    """True where one of the next `size` elements along an axis is a seed."""

    def part(tensor, start, end):
        return tensor[(slice(None),) * axis + (slice(start, end),)]

    def cover():
        covered, reach = seeds, 1
        while reach < size:
            step = min(reach, size - reach)
            length = ops.shape(covered)[axis]
            ahead = part(covered, step, length)
            covered = ops.logical_or(part(covered, 0, length - step), ahead)
            reach += step
        return covered

    shape = list(ops.shape(seeds))
    shape[axis] -= size - 1
    return _materialise(cover, draw, shape)


def _materialise(function, draw, shape, dtype="bool"):
    """Forces XLA to materialise the tensor that a function returns.

    Fused, it would be recomputed for each consumer; XLA does not fuse across the
    branches of a conditional.
    """
    # Always true, which XLA cannot know: an occurrence counts the layers of a model.
    holds = ops.cast(draw[4], "uint32") != np.uint32(2**32 - 1)
    return ops.cond(holds, function, lambda: ops.zeros(shape, dtype))
