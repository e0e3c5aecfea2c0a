"""Products of inputs and weights of which each example drops its own.

Outputs `bo` are bilinear in inputs `bi` and weights `io`, indexed by an example b, an
input i and an output o. So the gradient towards each of the three is bilinear in the
other two, and again the gradients of that. Nothing of the size `bio` is stored.
"""

import functools

import keras
from keras import ops

from kdrop.masks import bits, kernels

_UNROLLED = 4  # terms of a sum for each pass over the result: with more, XLA is slower


def connect(inputs, weights, draw, rows):
    """`inputs @ weights`, where each example drops weights of its own.

    The words are drawn while the product is summed.

    Args:
        inputs: Float tensor `(batch, size)`.
        weights: Tensor `(size, units)` of the inputs' dtype.
        draw: Integer vector of five, as in `kernels`.
        rows: uint32 tensor `()` or `(batch, 2 or 3)`. The weight `[i, o]` has the
            position `i * units + o` in each row.

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
        draw: Integer vector of five, as in `kernels`.
        rows: uint32 tensor `()` or `(batch, 2 or 3)`.

    Returns:
        The outputs of the product, with weights scaled by `1 / (1 - rate)`.
    """
    run = functools.partial(_one_by_one, product)
    factors = {"bi": inputs, "io": weights}
    return _bilinear(run, "bo", factors, draw, rows, inputs, weights)


def thin(weights, draw, row):
    """Weights of which one row, a uint32 tensor `(1, 2 or 3)`, drops its own."""
    return ops.squeeze(
        kernels.apply(kernels.INVERTED, ops.expand_dims(weights, 0), draw, row), 0
    )


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
    if kernels.plain.get():
        return _sum(result, names, one, other, draw, rows)
    of = (one.dtype, *one.shape, *other.shape, *rows.shape)
    return kernels.compiled(_sum, of, result, names)(one, other, draw, rows)


def _sum(result, names, one, other, draw, rows):
    (summed,) = set("bio").difference(result)
    dtype = kernels.wide(one.dtype)

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
    rows = kernels.named(rows, (size["b"],))
    keys = bits.row_keys(kernels.key_of(draw, rows), rows)
    if summed == "b":
        # XLA compiles the loop of an empty batch too, and has to find a row for it.
        down, across = (ops.pad(value, ((0, 1), (0, 0))) for value in (down, across))
        keys = [ops.pad(key, ((0, 1),)) for key in keys]

    def add(k, total):
        at = {**place, summed: k}
        position = ops.cast(at["i"] * size["o"] + at["o"], "uint32")
        row = [key[k] if summed == "b" else key[:, None] for key in keys]
        product = down[k][:, None] * across[k]
        return total + kernels.select(
            product, kernels.dropped(bits.word(position, *row), draw), draw
        )

    def add_many(step, total):
        for k in range(_UNROLLED):
            total = add(step * _UNROLLED + k, total)
        return total

    steps = count // _UNROLLED
    total = ops.fori_loop(0, steps, add_many, ops.zeros(sizes, dtype))
    total = ops.fori_loop(steps * _UNROLLED, count, add, total)
    return _unrecorded(ops.cast(total / kernels.kept(draw, dtype), one.dtype))


def _one_by_one(product, result, names, one, other, draw, rows, inputs, weights):
    if keras.backend.backend() == "tensorflow" and not kernels.plain.get():
        of = (inputs.dtype, inputs.shape.rank, weights.shape, tuple(rows.shape[1:]))
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
    rows, count = kernels.named(rows, ops.shape(inputs)), ops.shape(inputs)[0]
    # What is not given says where to differentiate: of a bilinear product, anywhere.
    examples = ops.convert_to_tensor(given.get("bi", inputs))
    values, looped = [rows, examples, given.get("bo")], count
    if not isinstance(count, int) and result != "io":
        # TensorFlow cannot stack the results of no example: there is one at least.
        values = [value if value is None else _one_more(value) for value in values]
        looped = ops.maximum(count, 1)

    def at(k):
        row, example, upstream = (
            value if value is None else ops.expand_dims(value[k], 0) for value in values
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
        numbers = ops.arange(looped, dtype="int32")
        found = ops.map(lambda k: ops.squeeze(at(k), 0), numbers)[:count]
    return _unrecorded(found)


def _one_more(value):
    """A batch with an example of zeros behind it."""
    return ops.pad(value, ((0, 1), *((0, 0),) * (len(value.shape) - 1)))


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
    import jax

    return jax.vjp(function, *args)[1](upstream)
