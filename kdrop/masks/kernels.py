"""What dropping does to a tensor, and its gradient, as pure functions.

A kernel turns random words into noise, and noise and inputs into outputs. It takes the
inputs, `draw`, the integer vector `[seed, hash of the layer's name, number of the draw,
threshold, occurrence]` that a layer's draws hand out, and `rows`, which names the rows
of the mask:

    uint32 ()       the rows are numbered from this one on
    uint32 (n, 2)   two words for each row
    uint32 (n, 3)   besides, a seed for each row, in place of the draw's
    uint32 (1, ...) one row, which the whole batch shares

It stores no mask: the gradient draws it again from the same numbers. Drawing, comparing
and scaling are one pass over the inputs, compiled by XLA for each shape.
"""

import contextvars
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from kdrop.masks import bits

# Whether kernels run as plain operations, with the same bits. A function that is
# exported sets it while it is traced: a model server may have no XLA.
plain = contextvars.ContextVar("plain", default=False)

# The values to which alpha dropout sets a SELU unit: Klambauer et al., 2017, section 2
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def threshold(rate):
    """The integer below which a 32-bit word drops its element.

    Args:
        rate: Python float in [0, 1).

    Returns:
        Python int in [0, 2^32 - 1], `rate * 2^32` to the nearest integer.
    """
    return min(round(rate * 2**32), 2**32 - 1)


def rate(draw, dtype):
    """The fraction that a draw drops, as a scalar of a float dtype."""
    return ops.cast(ops.cast(draw[3], "uint32"), dtype) * 2.0**-32


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
    """`inputs * factor`, in the factor's dtype or float64, rounded once."""
    dtype = wide(inputs.dtype)
    product = ops.cast(inputs, dtype) * ops.cast(factor, dtype)
    return ops.cast(product, inputs.dtype)


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


class Kernel(NamedTuple):
    """What makes one kind of dropping: three pure functions.

    Args:
        noise: `(words, draw) -> noise`, element by element.
        forward: `(inputs, noise, draw) -> outputs`, noise of the inputs' shape.
        backward: The same for gradients: the linear part of `forward`.
        block: Sizes, after the batch, of the block of units that each element of the
            noise decides over; empty where that is one unit.
        distinct: Whether the noise needs words that do not repeat within a row.
    """

    noise: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    block: tuple[int, ...] = ()
    distinct: bool = False


# Noise


def dropped(words, draw):
    """True where an element is dropped."""
    return words < ops.cast(draw[3], "uint32")


def uniform(words):
    """Words as float32 numbers spread evenly over (-1, 1), symmetric about 0."""
    return (ops.cast(ops.cast(words, "int32"), "float32") + 0.5) * 2.0**-31


def normal(words):
    """Words as float32 numbers of the standard normal distribution.

    The inverse of the distribution function, as `x N(w) / D(w)` with x uniform in
    (-1, 1) and w = -log(1 - x^2) (Giles, 2010, "Approximating the erfinv function",
    whose two polynomials one quotient replaces). The relative error is below 1e-6 in
    exact arithmetic, out to the 6.3 deviations that a word can hold.
    """
    signed = ops.cast(words, "int32")
    sign = ops.right_shift(signed, 31)  # 0 or -1
    below = ops.bitwise_xor(signed, sign)  # of the magnitude: |x| = (below + .5) / 2^31
    x = (ops.cast(below, "float32") + 0.5) * 2.0**-31
    # 1 - |x| from the integer: the tails keep their digits.
    rest = (ops.cast(2**31 - 1 - below, "float32") + 0.5) * 2.0**-31
    w = -ops.log(rest * (1 + x))
    return ops.where(sign < 0, -x, x) * (_polynomial(_N, w) / _polynomial(_D, w))


_N = (
    1.25331428,
    0.45237452,
    0.0898234262,
    0.0118737451,
    0.000999239838,
    2.92884038e-05,
)
_D = (
    1,
    0.0991460133,
    0.0326695694,
    0.00227929531,
    0.000169773925,
    1.00846562e-06,
)


def _polynomial(coefficients, x):
    value = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _gaussian(words, draw):
    deviation = ops.sqrt(rate(draw, "float32") / kept(draw, "float32"))
    return 1 + deviation * normal(words)


def _uniform(words, draw):
    return 1 + rate(draw, "float32") * uniform(words)


# From noise to outputs


def select(inputs, dropped, draw):
    return ops.where(dropped, ops.zeros_like(inputs), inputs)


def select_and_scale(inputs, dropped, draw):
    kept_inputs = scale(inputs, 1 / kept(draw, wide(inputs.dtype)))
    return select(kept_inputs, dropped, draw)


def _multiply(inputs, noise, draw):
    return scale(inputs, noise)


def _alpha_factor(draw, dtype):
    """The `a` of section 2 of the paper, from the rate and the dropped value."""
    share = rate(draw, dtype) * (_SELU_ALPHA * _SELU_SCALE) ** 2
    return ops.rsqrt(kept(draw, dtype) * (1 + share))


def _alpha(inputs, dropped, draw):
    dtype, lowest = wide(inputs.dtype), -_SELU_ALPHA * _SELU_SCALE
    a = _alpha_factor(draw, dtype)
    b = -a * rate(draw, dtype) * lowest
    outputs = ops.where(dropped, lowest, ops.cast(inputs, dtype)) * a + b
    return ops.cast(outputs, inputs.dtype)


def _alpha_gradient(inputs, dropped, draw):
    factor = _alpha_factor(draw, wide(inputs.dtype))
    return select(scale(inputs, factor), dropped, draw)


INVERTED = Kernel(dropped, select_and_scale, select_and_scale)
VANILLA = Kernel(dropped, select, select)
GAUSSIAN = Kernel(_gaussian, _multiply, _multiply)
UNIFORM = Kernel(_uniform, _multiply, _multiply)
ALPHA = Kernel(dropped, _alpha, _alpha_gradient)


@functools.cache
def blocks(block):
    """The kernel that drops blocks of units around seeds.

    Args:
        block: Tuple of the block's sizes in the dimensions after the batch.

    A draw's threshold is that of a seed, as `block_threshold` gives it.
    """
    cells = math.prod(block)

    def forward(inputs, dropped, draw):
        dtype = wide(inputs.dtype)
        seeds, none = rate(draw, dtype), kept(draw, dtype)
        # A unit is kept if none of `cells` seeds falls. Each form of the logarithm
        # where it has its digits.
        log_none = ops.where(seeds < 0.5, ops.log1p(-seeds), ops.log(none))
        return select(scale(inputs, ops.exp(-cells * log_none)), dropped, draw)

    return Kernel(dropped, forward, forward, block)


def block_threshold(rate, cells):
    """The threshold of seeds whose blocks of `cells` units drop a fraction `rate`.

    Args:
        rate: Python float in [0, 1).
        cells: Units in a block: as many seeds can drop a unit, each by itself.

    Returns:
        Python int. The fraction is within `cells * 2^-33` of the rate, or 2^-32 at
        the upper end.
    """
    return threshold(-math.expm1(math.log1p(-rate) / cells))


# How a kernel is run


def apply(kernel, inputs, draw, rows, noise_shape=None):
    """Run a kernel on inputs; its gradient runs its linear part, with the same noise.

    Args:
        kernel: `Kernel`.
        inputs: Float tensor `(batch, ...)`.
        draw: Integer vector of five, as described above.
        rows: uint32 tensor `()`, `(batch, 2 or 3)` or `(1, 2 or 3)`, likewise.
        noise_shape: Tuple of the noise's dimensions, `None` for the inputs' own; it
            broadcasts to the inputs' shape, and `rows` decides over the first.

    Returns:
        Tensor of the inputs' shape and dtype.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if inputs.shape.rank is None:
            if noise_shape is not None:
                raise ValueError(
                    "A `noise_shape` takes inputs of a known rank. "
                    f"Received: noise_shape={noise_shape}"
                )
            flat = tf.reshape(inputs, (tf.shape(inputs)[0], -1))
            return tf.reshape(apply(kernel, flat, draw, rows), tf.shape(inputs))
        if noise_shape is not None:
            inputs = _checked(inputs, noise_shape)
        if tf.executing_eagerly():
            # What a row has is not to be relaxed with the number of rows.
            of = (inputs.dtype, inputs.shape.rank, tuple(rows.shape[1:]))
            return _traced(of, kernel, noise_shape)(inputs, draw, rows)
    return _differentiable(kernel, noise_shape, inputs, draw, rows)


def _checked(inputs, noise_shape):
    """The inputs, once sizes that `check_broadcast` could not know have been seen."""
    import tensorflow as tf

    message = f"`noise_shape` {noise_shape} must broadcast to the inputs' shape"
    seen = [
        tf.debugging.assert_equal(tf.shape(inputs)[-place], size, message)
        for place, size in enumerate(reversed(noise_shape), start=1)
        if size not in (None, 1) and inputs.shape[-place] is None
    ]
    with tf.control_dependencies(seen):
        return tf.identity(inputs) if seen else inputs


@functools.cache
def _traced(of, kernel, noise_shape):
    """`_differentiable` as a graph, whose sizes are unknown when they have changed.

    So eager calls do not compile for each new shape either.
    """
    import tensorflow as tf

    call = functools.partial(_differentiable, kernel, noise_shape)
    return tf.function(call, autograph=False, reduce_retracing=True)


def _differentiable(kernel, noise_shape, inputs, draw, rows):
    if plain.get():  # an export keeps no gradient
        return _fused(kernel, noise_shape, inputs, draw, rows)
    if keras.backend.backend() == "jax":
        import jax

        # JAX's own derivatives, forward ones too, of which it keeps nothing.
        run = functools.partial(_run, kernel, noise_shape)
        return jax.checkpoint(run)(inputs, draw, rows)

    @ops.custom_gradient
    def call(inputs, draw, rows):
        # Of this graph, so that the gradient of a gradient finds them.
        draw, rows = ops.stop_gradient(draw), ops.stop_gradient(rows)

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            linear = kernel._replace(forward=kernel.backward)
            result = _differentiable(linear, noise_shape, upstream, draw, rows)
            # Outputs may be of another dtype, as float32 noise is.
            return ops.cast(result, inputs.dtype), None, None

        return _run(kernel, noise_shape, inputs, draw, rows), gradient

    return call(inputs, draw, rows)


def _run(kernel, noise_shape, inputs, draw, rows):
    if None in inputs.shape[1:]:
        return _padded(kernel, noise_shape, inputs, draw, rows)
    # A function for each shape, since TensorFlow warns of one that is traced often.
    of = (inputs.dtype, *inputs.shape)
    return compiled(_fused, of, kernel, noise_shape)(inputs, draw, rows)


@functools.cache
def compiled(function, of, *static):
    """A function as one fused pass, which stands in a graph like a single op."""
    function = functools.partial(function, *static)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def _fused(kernel, noise_shape, inputs, draw, rows):
    shape = ops.shape(inputs)
    sizes = _sizes(kernel, noise_shape, shape)
    noise = _noise(kernel, draw, named(rows, shape), math.prod(sizes))
    return _combined(kernel, noise, sizes, inputs, draw)


def _padded(kernel, noise_shape, inputs, draw, rows):
    """The same for sizes known only at run time, of which there may be many.

    Only the noise is compiled, for sizes that are powers of four.
    """
    import tensorflow as tf

    shape = ops.shape(inputs)
    sizes = _sizes(kernel, noise_shape, shape)
    count = functools.reduce(operator.mul, sizes, 1)
    padded = _next_power(count)
    draw_noise = compiled(_noise_like, None, kernel)
    noise = draw_noise(draw, named(rows, shape), tf.zeros([padded], "bool"))
    return _combined(kernel, noise[:, :count], sizes, inputs, draw)


def _next_power(count):
    """The next power of four, or the count itself where that would be no int32."""
    import tensorflow as tf

    exponent = tf.math.log(tf.cast(tf.maximum(count, 1), "float64")) / math.log(4)
    power = tf.cast(tf.math.ceil(exponent), "int32")
    return tf.where(power < 16, 4 ** tf.minimum(power, 15), count)


def _sizes(kernel, noise_shape, shape):
    """The noise's dimensions after the first."""
    if kernel.block:
        # Blocks that begin before the map reach into it.
        return [s + b - 1 for s, b in zip(shape[1:], kernel.block, strict=True)]
    if noise_shape is None:
        return shape[1:]
    noise_shape = (1,) * (len(shape) - len(noise_shape)) + noise_shape
    return [s if n is None else n for n, s in zip(noise_shape, shape, strict=True)][1:]


def named(rows, shape):
    """The rows as two words for each."""
    if len(rows.shape):
        return rows
    count = shape[0] if shape else 1
    # XLA lacks an unsigned range
    rows = rows + ops.cast(ops.arange(count, dtype="int32"), "uint32")
    return ops.stack([rows, ops.zeros_like(rows)], axis=1)


def is_shared(rows):
    """Whether one row holds for the whole batch."""
    return len(rows.shape) == 2 and rows.shape[0] == 1


def key_of(draw, rows):
    """The key of a draw for named rows, or a key for each of them that has a seed."""
    seed, name_hash, number, _, occurrence = (
        ops.cast(draw[i], "uint32") for i in range(5)
    )
    if rows.shape[1] == 3:
        seed = rows[:, 2]
    return bits.fold(seed, name_hash, number, occurrence)


def _noise(kernel, draw, rows, size):
    draw_words = bits.distinct_words if kernel.distinct else bits.words

    def noise():
        return kernel.noise(draw_words(key_of(draw, rows), rows, size), draw)

    if kernel.block:
        return _once(noise, draw, (ops.shape(rows)[0], size))
    return noise()


def _noise_like(kernel, draw, rows, like):
    return _noise(kernel, draw, rows, ops.shape(like)[0])


def _combined(kernel, noise, sizes, inputs, draw):
    shape = ops.shape(inputs)
    noise = ops.reshape(noise, (ops.shape(noise)[0], *sizes) if shape else ())
    for axis, size in enumerate(kernel.block, start=1):
        if size > 1:
            noise = _covered(noise, axis, size, draw)
    return kernel.forward(inputs, ops.broadcast_to(noise, shape), draw)


def _covered(seeds, axis, size, draw):
    """True where one of the `size` seeds from there on along an axis is."""

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
    return _once(cover, draw, shape)


def _once(function, draw, shape):
    """A boolean tensor that XLA stores: what it fuses, it computes for each reader.

    It does not fuse across the branches of a condition; here, that anything drops.
    """
    drops = ops.cast(draw[3], "uint32") != 0
    return ops.cond(drops, function, lambda: ops.zeros(shape, "bool"))


# Subsets


def subset(draw, rows, batch, size, count):
    """A random subset of positions for each row, all of one size equally likely.

    Args:
        draw: Integer vector of five, as described above.
        rows: uint32 tensor, likewise.
        batch: How many rows, an integer or a scalar tensor, as are the next two.
        size: Positions to choose from.
        count: Positions to choose.

    Returns:
        int32 tensor `(batch, count)`, ascending in each row.
    """
    # No word repeats in a row: their order is a random permutation of the positions.
    rows = named(rows, (batch,))
    words = bits.distinct_words(key_of(draw, rows), rows, size)
    order = ops.argsort(words, axis=-1)
    return ops.sort(order[:, :count], axis=-1)


def take(inputs, positions):
    """The elements of `(batch, size, ...)` at int32 positions `(batch, count)`."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.gather(inputs, positions, batch_dims=1)
    positions = ops.reshape(positions, (*positions.shape, *(1,) * (inputs.ndim - 2)))
    return ops.take_along_axis(inputs, positions, axis=1)
