"""Which rows a mask has: those of the global batch, or those that sampling names."""

import numpy as np
from keras import ops

from kdrop import backend
from kdrop.layers.sampling_context import NOT_BY_EXAMPLE, sampling
from kdrop.masks import bits

# Distinguishes the inner rows of an example from the rows of a batch: "inne".
_INNER = np.uint32(0x696E6E65)


def mask_rows(layer, inputs):
    """The rows of the mask for a call of a layer, in a form that kernels take."""
    shared, active = layer.shares_batch(inputs), sampling.get()
    if active is None or active.rows is None:
        return np.zeros((1, 2), "uint32") if shared else backend.first_row(inputs)
    rows = active.rows
    if shared:  # one mask for each sample; a batch holds rows of several samples
        rows = rows * np.array([1, 0, 1], "uint32")
    return _sampled_rows(layer.name, inputs, rows, shared)


def _sampled_rows(name, inputs, rows, shared):
    """One row for each row of the inputs; raises if the numbers of both differ."""
    size = 1 if inputs.shape == () else inputs.shape[0]
    count = rows.shape[0]
    if count == 1:  # a single example, to which all rows of the inputs belong
        return rows if shared or size == 1 else _inner_rows(rows, ops.shape(inputs)[0])
    message = (
        f"Layer {name!r} cannot be sampled for several examples at once: "
        f"{NOT_BY_EXAMPLE}. `kdrop.sample` computes such a model one by one."
    )
    if size is None or count is None:
        return backend.with_equal_rows(rows, inputs, message)
    if size != count:
        raise ValueError(message)
    return rows


def _inner_rows(row, size):
    """Rows for `size` parts of one example: the row itself, then hashes of it."""
    inner = ops.cast(ops.arange(size, dtype="int32"), "uint32")
    hashed = bits.threefry((row[:, 0], row[:, 1]), (inner, _INNER))
    words = [ops.where(inner == 0, row[:, i], hashed[i]) for i in range(2)]
    seeds = ops.broadcast_to(row[:, 2], ops.shape(inner))
    return ops.stack([*words, seeds], axis=1)
