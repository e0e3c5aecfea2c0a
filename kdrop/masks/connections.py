"""Products of inputs and weights in which each example drops different weights.

Outputs `bo` are bilinear in inputs `bi` and weights `io`, where `b` indexes an example,
`i` an input and `o` an output. So each gradient, of any order, is bilinear too and
runs the same code. No tensor of size `bio` is ever stored.
"""

import functools

from keras import ops

from kdrop import backend
from kdrop.masks import bits, kernels, run

# Terms of a sum that are added in one loop step. With more, XLA is slower.
_UNROLLED = 4


def connect(product, inputs, weights, draw, rows):
    """`product(inputs, weights) / (1 - rate)`: each example drops different weights.

    The product is a hashable bilinear function of a batch and of weights of one dtype.
    The position of a weight is its index in the flattened tensor. A product of matrices
    draws its words while it is summed; others run for one example after the other.
    """
    factors = {"bi": inputs, "io": weights}
    if product is ops.matmul and len(inputs.shape) == 2:
        return _bilinear(_summed, "bo", factors, draw, rows)
    evaluate = functools.partial(_one_by_one, product)
    return _bilinear(evaluate, "bo", factors, draw, rows, inputs, weights)


def thin(weights, draw, row):
    """The weights with one mask applied; `row` is uint32 `(1, 2 or 3)`."""
    weights = ops.expand_dims(weights, 0)
    return ops.squeeze(run.apply(kernels.INVERTED, weights, draw, row), 0)


def _bilinear(evaluate, result, factors, *others):
    """One of the three from the other two, differentiable any number of times."""
    names = tuple(factors)

    @ops.custom_gradient
    def call(first, second, *others):
        others = [ops.stop_gradient(value) for value in others]

        def gradient(upstream):
            values = {names[0]: first, names[1]: second, result: upstream}
            gradients = []
            for name in names:
                factors = {key: values[key] for key in values if key != name}
                gradients.append(_bilinear(evaluate, name, factors, *others))
            return *gradients, *(None for _ in others)

        return evaluate(result, names, first, second, *others), gradient

    return call(*factors.values(), *others)


def _summed(result, names, first, second, draw, rows):
    if run.exporting.get():
        return _sum(result, names, first, second, draw, rows)
    signature = first.dtype, *first.shape, *second.shape, *rows.shape
    call = backend.compiled(_sum, signature, result, names)
    return call(first, second, draw, rows)


def _sum(result, names, first, second, draw, rows):
    """A product of matrices in which each term of a sum draws its words.

    Outputs "bo" sum over i, the inputs' gradient "bi" over o, the weights' "io" over b.
    """
    (summed,) = set("bio") - set(result)
    dtype = kernels.wide(first.dtype)

    def vectors(index):
        """The factor that has an index, with the summed index as its first axis."""
        name, factor = (names[0], first) if index in names[0] else (names[1], second)
        return ops.cast(factor if name[0] == summed else ops.transpose(factor), dtype)

    down, across = (vectors(index) for index in result)
    count, sizes = ops.shape(down)[0], (ops.shape(down)[1], ops.shape(across)[1])
    size = {summed: count, result[0]: sizes[0], result[1]: sizes[1]}
    place = {
        result[0]: ops.arange(sizes[0], dtype="int32")[:, None],
        result[1]: ops.arange(sizes[1], dtype="int32"),
    }
    ids = run.row_ids(rows, (size["b"],))
    keys = bits.row_keys(run.draw_key(draw, ids), ids)
    if summed == "b":
        # XLA compiles the loop for an empty batch too, and needs a row to index.
        down, across, *keys = (_append_zero(value) for value in (down, across, *keys))

    def add(k, total):
        at = {**place, summed: k}
        position = ops.cast(at["i"] * size["o"] + at["o"], "uint32")
        row = [key[k] if summed == "b" else key[:, None] for key in keys]
        product = down[k][:, None] * across[k]
        mask = kernels.dropped(bits.word(position, *row), draw)
        return total + kernels.select(product, mask, draw)

    def add_several(step, total):
        for k in range(_UNROLLED):
            total = add(step * _UNROLLED + k, total)
        return total

    steps = count // _UNROLLED
    total = ops.fori_loop(0, steps, add_several, ops.zeros(sizes, dtype))
    total = ops.fori_loop(steps * _UNROLLED, count, add, total)
    total = total / kernels.keep_fraction(draw, dtype)
    return _unrecorded(ops.cast(total, first.dtype))


def _one_by_one(product, result, names, first, second, draw, rows, inputs, weights):
    tensors = first, second, draw, rows, inputs, weights
    if backend.name() == "jax" or run.exporting.get():
        return _loop(product, result, names, *tensors)
    # In a graph TensorFlow runs several examples in parallel.
    signature = inputs.dtype, inputs.shape.rank, weights.shape, tuple(rows.shape[1:])
    static = product, result, names
    return backend.compiled(_loop, signature, *static, xla=False)(*tensors)


def _loop(product, result, names, first, second, draw, rows, inputs, weights):
    factors = {names[0]: first, names[1]: second}
    rows, count = run.row_ids(rows, ops.shape(inputs)), ops.shape(inputs)[0]
    # A bilinear product has the same gradient at any value of the missing factor.
    examples = ops.convert_to_tensor(factors.get("bi", inputs))
    values, length = [rows, examples, factors.get("bo")], count
    if not isinstance(count, int) and result != "io":
        # TensorFlow cannot stack the results of no example: compute at least one.
        values = [value if value is None else _append_zero(value) for value in values]
        length = ops.maximum(count, 1)

    def at(k):
        row, example, upstream = (
            value if value is None else ops.expand_dims(value[k], 0) for value in values
        )
        if result == "io":
            _, (_, of_weights) = backend.output_and_gradients(
                product, (example, weights), upstream
            )
            return thin(of_weights, draw, row)
        point = example, thin(factors["io"], draw, row)
        if result == "bo":
            return product(*point)
        return backend.output_and_gradients(product, point, upstream)[1][0]

    if result == "io":
        zeros = ops.zeros_like(weights)
        return _unrecorded(ops.fori_loop(0, count, lambda k, sum: sum + at(k), zeros))
    numbers = ops.arange(length, dtype="int32")
    return _unrecorded(ops.map(lambda k: ops.squeeze(at(k), 0), numbers)[:count])


def _append_zero(batch):
    """The batch with one more example, of zeros."""
    return ops.pad(batch, ((0, 1), *((0, 0),) * (len(batch.shape) - 1)))


def _unrecorded(result):
    """A result whose computation TensorFlow does not store for a gradient.

    JAX stores it only for a second derivative, which it takes through the loop.
    """
    return ops.stop_gradient(result) if backend.name() == "tensorflow" else result
