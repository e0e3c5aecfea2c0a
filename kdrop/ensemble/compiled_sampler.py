"""Compute Monte Carlo samples: the prefix once, the suffix for many samples at once."""

import math

import numpy as np
from keras import ops, tree

from kdrop.ensemble.checks import check_drop_layers, stateful_layers
from kdrop.ensemble.fingerprint import TraceFingerprint
from kdrop.ensemble.graphs import compiled
from kdrop.ensemble.split import SplitModel, rows_of

MEMORY = 2**28  # bytes


class CompiledSampler:
    """The compiled prefix and suffix of a model.

    Args:
        model: A built `keras.Model` with drop layers.
        inputs: A structure of batches with at least one example.
    """

    def __init__(self, model, inputs):
        if names := stateful_layers(model):
            raise ValueError(
                f"A model with stateful layers cannot be sampled: {names}. Each sample "
                "would depend on the one before. Allowed: `stateful=False`."
            )
        self.split = SplitModel(model)
        self._compile(model)
        if not self.split.check_batching(self.prefix, self.suffix, inputs):
            self.split.compute_one_by_one()
            self._compile(model)
        # Last: a layer may count its traces in an attribute.
        self.fingerprint = TraceFingerprint(model)

    def _compile(self, model):
        self.prefix = compiled(self.split.prefix, model)
        self.suffix = compiled(self.split.sample, model)

    def max_rows(self, prefix_outputs, memory):
        """The number of rows whose intermediate results fit in `memory` bytes."""
        row = np.zeros(1, "int32"), np.zeros((1, 3), "uint32")
        return max(1, memory // self.suffix.row_bytes(prefix_outputs, *row))

    def sample_once(self, batch, rows):
        """The outputs of one sub-network for each example.

        Args:
            rows: uint32 array `(examples, 3)` of sample, example and seed.
        """
        indices = np.arange(len(rows), dtype="int32")
        return self.suffix(self.prefix(batch), indices, rows)

    def sample_batch(self, batch, seed, samples, examples, memory):
        """Compute the samples of a batch, for a part of its examples at a time.

        Args:
            samples: Number of samples.
            examples: uint32 array of the examples' numbers in the masks' rows.
            memory: Bytes for the intermediate results.

        Yields:
            Arrays `(samples, examples, ...)`.
        """
        prefix_outputs = self.prefix(batch)
        max_rows = self.max_rows(prefix_outputs, memory)
        size = _equal_share(len(examples), max_rows)
        count = _equal_share(samples, max(1, max_rows // size))
        for start in range(0, len(examples), size):
            indices = np.arange(start, min(start + size, len(examples)), dtype="int32")
            parts = []
            for first in range(0, samples, count):
                numbers = np.arange(first, min(first + count, samples))
                rows = sample_rows(numbers, examples[indices], seed)
                stacked = np.tile(indices, len(numbers))
                outputs = self.suffix(prefix_outputs, stacked, rows)
                parts.append(_unstacked(outputs, len(numbers), len(indices)))
            yield tree.map_structure(lambda *x: np.concatenate(x), *parts)


def sample_rows(samples, examples, seed):
    """uint32 array `(samples * examples, 3)`: the mask rows of all combinations."""
    columns = np.broadcast_arrays(np.asarray(samples)[:, None], examples, seed)
    return np.stack([x.ravel() for x in columns], axis=1).astype("uint32")


def _unstacked(outputs, *sizes):
    def reshape(output):
        output = ops.convert_to_numpy(output)
        return output.reshape(*sizes, *output.shape[1:])

    return tree.map_structure(reshape, outputs)


def compiled_sampler(model, batch):
    """The model's `CompiledSampler`, stored with the model until the model changes."""
    build(model, batch)
    check_drop_layers(model)
    sampler = vars(model).get("_kdrop_sampler")
    if sampler is None or not sampler.fingerprint.matches():
        sampler = vars(model)["_kdrop_sampler"] = CompiledSampler(model, batch)
    return sampler


def build(model, batch):
    """Build the model by a call of one example, unless it is built."""
    if not model.built:
        model(rows_of(batch, slice(1)), training=False)


def _equal_share(total, limit):
    """The largest of the fewest equal shares of `total` that are at most `limit`."""
    return math.ceil(total / math.ceil(total / limit))
