"""What dropping does to a tensor, and its gradient, as pure functions.

A kernel turns random words into noise, and noise and inputs into outputs. It takes the
inputs, `draw`, the integer vector `[seed, salt, number of the draw, threshold, ...]`
that a layer's draws hand out, and `rows`, which names the rows of the mask:

    uint32 ()       the rows are numbered from this one on
    uint32 (n, 2)   two words for each row
    uint32 (1, 2)   one row, which the whole batch shares

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

from kdrop import bits

# Whether kernels run as plain operations, with the same bits. A function that is
# exported sets it while it is traced: a model server may have no XLA.
plain = contextvars.ContextVar("plain", default=False)

# The values to which alpha dropout sets a SELU unit: Klambauer et al., 2017, section 3
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
    """

    noise: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]


# Noise


def dropped(words, draw):
    """True where an element is dropped."""
    return words < ops.cast(draw[3], "uint32")


def uniform(words):
    """Words as float32 numbers spread evenly over (-1, 1), symmetric about 0."""
    return (ops.cast(ops.view(words, "int32"), "float32") + 0.5) * 2.0**-31


def normal(words):
    """Words as float32 numbers of the standard normal distribution.

    The inverse of the distribution function, as `x N(w) / D(w)` with x uniform in
    (-1, 1) and w = -log(1 - x^2) (Giles, 2010, "Approximating the erfinv function",
    whose two polynomials one quotient replaces). The relative error is below 1e-6 in
    exact arithmetic, out to the 6.3 deviations that a word can hold.
    """
    signed = ops.view(words, "int32")
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


def _select(inputs, dropped, draw):
    return ops.where(dropped, ops.zeros_like(inputs), inputs)


def _select_and_scale(inputs, dropped, draw):
    kept_inputs = scale(inputs, 1 / kept(draw, wide(inputs.dtype)))
    return _select(kept_inputs, dropped, draw)


def _multiply(inputs, noise, draw):
    return scale(inputs, noise)


def _alpha_factor(draw, dtype):
    """The `a` of section 3 of the paper, from the rate and the dropped value."""
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
    return _select(scale(inputs, factor), dropped, draw)


INVERTED = Kernel(dropped, _select_and_scale, _select_and_scale)
VANILLA = Kernel(dropped, _select, _select)
GAUSSIAN = Kernel(_gaussian, _multiply, _multiply)
UNIFORM = Kernel(_uniform, _multiply, _multiply)
ALPHA = Kernel(dropped, _alpha, _alpha_gradient)


# How a kernel is run


def apply(kernel, inputs, draw, rows, noise_shape=None):
    """Run a kernel on inputs; its gradient runs its linear part, with the same noise.

    Args:
        kernel: `Kernel`.
        inputs: Float tensor `(batch, ...)`.
        draw: Integer vector `[seed, salt, number, threshold, ...]`.
        rows: uint32 tensor `()`, `(batch, 2)` or `(1, 2)`, as said above.
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
        _check_sizes(noise_shape or (), inputs)
        if tf.executing_eagerly():
            of = (inputs.dtype, inputs.shape.rank, len(rows.shape))
            return _traced(of, kernel, noise_shape)(inputs, draw, rows)
    return _differentiable(kernel, noise_shape, inputs, draw, rows)


def _check_sizes(noise_shape, inputs):
    """What `check_broadcast` could not see: sizes known only at run time."""
    import tensorflow as tf

    for place, size in enumerate(reversed(noise_shape), start=1):
        if size not in (None, 1) and inputs.shape[-place] is None:
            tf.debugging.assert_equal(
                tf.shape(inputs)[-place],
                size,
                f"`noise_shape` {noise_shape} must broadcast to the inputs' shape",
            )


@functools.cache
def _traced(of, kernel, noise_shape):
    """`_differentiable` as a graph, whose sizes are unknown when they have changed.

    So eager calls do not compile for each new shape either.
    """
    import tensorflow as tf

    def call(inputs, draw, rows):
        return _differentiable(kernel, noise_shape, inputs, draw, rows)

    return tf.function(call, autograph=False, reduce_retracing=True)


def _differentiable(kernel, noise_shape, inputs, draw, rows):
    @ops.custom_gradient
    def call(inputs, draw, rows):
        # Of this graph, so that the gradient of a gradient finds them.
        draw, rows = ops.stop_gradient(draw), ops.stop_gradient(rows)

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            linear = kernel._replace(forward=kernel.backward)
            return (
                _differentiable(linear, noise_shape, upstream, draw, rows),
                None,
                None,
            )

        return _run(kernel, noise_shape, inputs, draw, rows), gradient

    return call(inputs, draw, rows)


def _run(kernel, noise_shape, inputs, draw, rows):
    if plain.get():
        return _fused(kernel, noise_shape, inputs, draw, rows)
    if None in inputs.shape[1:]:
        return _padded(kernel, noise_shape, inputs, draw, rows)
    # A function for each shape, since TensorFlow warns of one that is traced often.
    of = (inputs.dtype, *inputs.shape)
    return _compiled(_fused, of, kernel, noise_shape)(inputs, draw, rows)


@functools.cache
def _compiled(function, of, *static):
    """A function as one fused pass, which stands in a graph like a single op."""
    function = functools.partial(function, *static)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    if keras.backend.backend() == "jax":
        import jax  # ty: ignore[import-not-found]

        return jax.jit(function)
    return function


def _fused(kernel, noise_shape, inputs, draw, rows):
    shape = ops.shape(inputs)
    sizes = _sizes(noise_shape, shape)
    noise = _noise(kernel, draw, _named(rows, shape), math.prod(sizes))
    return _combined(kernel, noise, sizes, inputs, draw)


def _padded(kernel, noise_shape, inputs, draw, rows):
    """The same for sizes known only at run time, of which there may be many.

    Only the noise is compiled, for sizes that are powers of four.
    """
    import tensorflow as tf

    shape = ops.shape(inputs)
    sizes = _sizes(noise_shape, shape)
    count = functools.reduce(operator.mul, sizes, 1)
    bits_of_count = tf.math.log(tf.cast(count, "float64")) / math.log(4)
    padded = 4 ** tf.cast(tf.math.ceil(bits_of_count), "int32")
    draw_noise = _compiled(_noise_like, None, kernel)
    noise = draw_noise(draw, _named(rows, shape), tf.zeros([padded], "bool"))
    return _combined(kernel, noise[:, :count], sizes, inputs, draw)


def _sizes(noise_shape, shape):
    """The noise's dimensions after the first."""
    if noise_shape is None:
        return shape[1:]
    noise_shape = (1,) * (len(shape) - len(noise_shape)) + noise_shape
    return [s if n is None else n for n, s in zip(noise_shape, shape, strict=True)][1:]


def _named(rows, shape):
    """The rows as two words for each."""
    if len(rows.shape):
        return rows
    count = shape[0] if shape else 1
    # XLA lacks an unsigned range
    rows = rows + ops.cast(ops.arange(count, dtype="int32"), "uint32")
    return ops.stack([rows, ops.zeros_like(rows)], axis=1)


def _noise(kernel, draw, rows, size):
    return kernel.noise(bits.words(_key(draw), rows, size), draw)


def _key(draw):
    return bits.fold(*(ops.cast(draw[i], "uint32") for i in range(3)))


def _noise_like(kernel, draw, rows, like):
    return _noise(kernel, draw, rows, ops.shape(like)[0])


def _combined(kernel, noise, sizes, inputs, draw):
    shape = ops.shape(inputs)
    noise = ops.reshape(noise, (ops.shape(noise)[0], *sizes) if shape else ())
    return kernel.forward(inputs, ops.broadcast_to(noise, shape), draw)


# Weights, of which each example drops its own
#
# Outputs `bo` are bilinear in inputs `bi` and weights `io`, indexed by an example b, an
# input i and an output o. So the gradient towards each of the three is bilinear in the
# other two, and again the gradients of that. Nothing of the size `bio` is stored.

_UNROLLED = 16  # terms of a sum for each pass over the result


def connect(inputs, weights, draw, rows):
    """`inputs @ weights`, where each example drops weights of its own.

    The words are drawn while the product is summed.

    Args:
        inputs: Float tensor `(batch, size)`.
        weights: Tensor `(size, units)` of the inputs' dtype.
        draw: Integer vector `[seed, salt, number, threshold, ...]`.
        rows: uint32 tensor `()` or `(batch, 2)`. The weight `[i, o]` has the position
            `i * units + o` in each row.

    Returns:
        Tensor `(batch, units)`, scaled by `1 / (1 - rate)`.
    """
    return _bilinear(_summed, "bo", {"bi": inputs, "io": weights}, draw, rows)


def each(product, inputs, weights, draw, rows):
    """`product(example, weights)`, where each example drops weights of its own.

    One example after the other, with weights that are thinned for one at a time.

    Args:
        product: Hashable bilinear function `(inputs, weights) -> outputs` of a batch.
        inputs: Float tensor `(batch, ...)`.
        weights: Tensor of the inputs' dtype. An entry has its place among them all as
            the position in each row.
        draw: Integer vector `[seed, salt, number, threshold, ...]`.
        rows: uint32 tensor `()` or `(batch, 2)`.

    Returns:
        The outputs of the product, with weights scaled by `1 / (1 - rate)`.
    """
    run = functools.partial(_one_by_one, product)
    factors = {"bi": inputs, "io": weights}
    return _bilinear(run, "bo", factors, draw, rows, inputs, weights)


def thin(weights, draw, row):
    """Weights of which one row, a uint32 tensor `(1, 2)`, decides what is dropped."""
    return ops.squeeze(apply(INVERTED, ops.expand_dims(weights, 0), draw, row), 0)


def _bilinear(run, result, factors, *others):
    """One of the three from the other two, by `run`, with its gradients."""
    names = tuple(factors)

    @ops.custom_gradient
    def call(one, other, *others):
        others = [ops.stop_gradient(value) for value in others]

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            known = {names[0]: one, names[1]: other, result: upstream}
            found = []
            for name in names:
                factors = {key: known[key] for key in known if key != name}
                found.append(_bilinear(run, name, factors, *others))
            return *found, *(None for _ in others)

        return run(result, names, one, other, *others), gradient

    return call(*factors.values(), *others)


def _summed(result, names, one, other, draw, rows):
    if plain.get():
        return _sum(result, names, one, other, draw, rows)
    of = (one.dtype, *one.shape, *other.shape, *rows.shape)
    return _compiled(_sum, of, result, names)(one, other, draw, rows)


def _sum(result, names, one, other, draw, rows):
    (summed,) = set("bio").difference(result)
    dtype = wide(one.dtype)

    def vectors(index):
        """The factor over this index and the summed one, that one first."""
        name, factor = (names[0], one) if index in names[0] else (names[1], other)
        return ops.cast(factor if name[0] == summed else ops.transpose(factor), dtype)

    down, across = (vectors(index) for index in result)
    count, sizes = ops.shape(down)[0], (ops.shape(down)[1], ops.shape(across)[1])
    size = {summed: count, result[0]: sizes[0], result[1]: sizes[1]}
    place = {
        result[0]: ops.arange(sizes[0], dtype="int32")[:, None],
        result[1]: ops.arange(sizes[1], dtype="int32"),
    }
    keys = bits.row_keys(_key(draw), _named(rows, (size["b"],)))

    def add(k, total):
        at = {**place, summed: k}
        position = ops.cast(at["i"] * size["o"] + at["o"], "uint32")
        row = [key[k] if summed == "b" else key[:, None] for key in keys]
        product = down[k][:, None] * across[k]
        return total + _select(product, dropped(bits.word(position, *row), draw), draw)

    def add_many(step, total):
        for k in range(_UNROLLED):
            total = add(step * _UNROLLED + k, total)
        return total

    steps = count // _UNROLLED
    total = ops.fori_loop(0, steps, add_many, ops.zeros(sizes, dtype))
    total = ops.fori_loop(steps * _UNROLLED, count, add, total)
    return _unrecorded(ops.cast(total / kept(draw, dtype), one.dtype))


def _one_by_one(product, result, names, one, other, draw, rows, inputs, weights):
    if keras.backend.backend() == "tensorflow" and not plain.get():
        of = (inputs.dtype, inputs.shape.rank, weights.shape, len(rows.shape))
        run = _traced_loop(of, product, result, names)
        return run(one, other, draw, rows, inputs, weights)
    return _loop(product, result, names, one, other, draw, rows, inputs, weights)


@functools.cache
def _traced_loop(of, product, result, names):
    """The loop as a graph, in which TensorFlow runs several examples at once."""
    import tensorflow as tf

    loop = functools.partial(_loop, product, result, names)
    return tf.function(loop, autograph=False, reduce_retracing=True)


def _loop(product, result, names, one, other, draw, rows, inputs, weights):
    given = {names[0]: one, names[1]: other}
    rows, count = _named(rows, ops.shape(inputs)), ops.shape(inputs)[0]
    # What is not given says where to differentiate: of a bilinear product, anywhere.
    examples = ops.convert_to_tensor(given.get("bi", inputs))

    def at(k):
        row, example, upstream = (
            value if value is None else ops.expand_dims(value[k], 0)
            for value in (rows, examples, given.get("bo"))
        )
        if result == "bo":
            return product(example, thin(given["io"], draw, row))
        if result == "bi":
            points = example, thin(given["io"], draw, row)
            return _gradients(product, points, upstream)[0]
        of_weights = _gradients(product, (example, weights), upstream)[1]
        return thin(of_weights, draw, row)

    if result == "io":
        zero = ops.zeros_like(weights)
        found = ops.fori_loop(0, count, lambda k, total: total + at(k), zero)
    else:
        numbers = ops.arange(count, dtype="int32")
        found = ops.map(lambda k: ops.squeeze(at(k), 0), numbers)
    return _unrecorded(found)


def _unrecorded(result):
    """A result whose steps no tape of TensorFlow stores for a gradient of them.

    JAX stores nothing, but for a second derivative, which it takes through the steps.
    """
    tape = keras.backend.backend() == "tensorflow"
    return ops.stop_gradient(result) if tape else result


def _gradients(function, args, upstream):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(args)
            outputs = function(*args)
        return tape.gradient(outputs, args, upstream)
    import jax  # ty: ignore[import-not-found]

    return jax.vjp(function, *args)[1](upstream)
