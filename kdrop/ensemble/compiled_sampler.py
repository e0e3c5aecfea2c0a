"""Compute Monte Carlo samples: the prefix once, the suffix for many samples at once."""

import math
import warnings

import keras
import numpy as np
from keras import ops, tree

from kdrop import backend, keras_internals
from kdrop.ensemble.split import SplitModel, rows_of
from kdrop.layers.base import active_drop_layers, drop_layers
from kdrop.layers.replace import remaining
from kdrop.layers.sampling_context import ONE_BY_ONE

if backend.name() == "tensorflow":
    import tensorflow as tf
else:
    import jax

MEMORY = 2**28  # bytes


class CompiledSampler:
    """The compiled prefix and suffix of a built model with drop layers."""

    def __init__(self, model, inputs):
        if names := stateful_layers(model):
            raise ValueError(
                f"A model with stateful layers cannot be sampled: {names}. Each sample "
                "would depend on the one before. Allowed: `stateful=False`."
            )
        graph = JaxGraph if backend.name() == "jax" else TensorFlowGraph
        for one_by_one in (False, True):
            self.split = SplitModel(model, one_by_one)
            self.prefix = graph(self.split.prefix, model)
            self.suffix = graph(self.split.sample, model)
            if one_by_one or self._takes_batches(inputs):
                break
        # Last: a layer may count its traces in an attribute.
        self.fingerprint = fingerprint(model)

    def _takes_batches(self, inputs):
        """Whether several examples can be computed at once.

        They cannot where the first axis of a prefix output or of a drop layer's inputs
        is not that of the examples, for example where time is folded into the batch.
        """
        for size in (2, 3):  # another axis may have one of these sizes by chance
            indices = np.arange(size, dtype="int32")
            rows = np.zeros((size, 3), "uint32")
            try:
                outputs = self.prefix.try_shapes(rows_of(inputs, indices * 0))
                batches = [x for x in tree.flatten(outputs) if x is not None]
                if any(tuple(x.shape)[:1] != (size,) for x in batches):
                    return False
                self.suffix.try_shapes(outputs, indices, rows)
            except Exception as error:  # TensorFlow has a class for errors of graphs
                if ONE_BY_ONE not in str(error):
                    raise
                return False
        return True

    def max_rows(self, prefix_outputs, memory):
        """The number of rows whose intermediate results fit in `memory` bytes."""
        row = np.zeros(1, "int32"), np.zeros((1, 3), "uint32")
        return max(1, memory // self.suffix.row_bytes(prefix_outputs, *row))

    def sample_batch(self, batch, seed, samples, examples, memory):
        """Yield arrays `(samples, part of the examples, ...)` for a batch.

        `examples` are the numbers of its examples in the masks' rows, as uint32.
        """
        prefix_outputs = self.prefix(batch)
        max_rows = self.max_rows(prefix_outputs, memory)

        def compute(indices, numbers):
            rows = sample_rows(numbers, examples[indices], seed)
            outputs = self.suffix(prefix_outputs, np.tile(indices, len(numbers)), rows)
            return tree.map_structure(ops.convert_to_numpy, outputs)

        def joined(*outputs):
            rows = np.concatenate(outputs)
            return rows.reshape(samples, len(rows) // samples, *rows.shape[1:])

        example_parts = _parts(len(examples), max_rows)
        sample_parts = _parts(samples, max(1, max_rows // len(example_parts[0])))
        for indices in example_parts:
            outputs = [compute(indices, numbers) for numbers in sample_parts]
            yield tree.map_structure(joined, *outputs)


def sample_rows(samples, examples, seed):
    """uint32 array `(samples * examples, 3)`: the mask rows of all combinations."""
    columns = np.broadcast_arrays(np.asarray(samples)[:, None], examples, seed)
    return np.stack([x.ravel() for x in columns], axis=1).astype("uint32")


def _parts(total, limit):
    """The numbers below `total` in as few, even parts as the limit allows."""
    return np.array_split(np.arange(total, dtype="int32"), math.ceil(total / limit))


def sampler_of(model, batch):
    """The model's `CompiledSampler`, stored with the model until the model changes."""
    build(model, batch)
    sampler = vars(model).get("_kdrop_sampler")
    if sampler is None or sampler.fingerprint != fingerprint(model):
        sampler = vars(model)["_kdrop_sampler"] = CompiledSampler(model, batch)
    return sampler


def build(model, batch):
    """Build a model by a call of one example; raise if it has no drop layer."""
    if not model.built:
        model(rows_of(batch, slice(1)), training=False)
    check_drop_layers(model)


def check_drop_layers(model):
    if drop_layers(model):
        return
    message = f"Model {model.name!r} has no drop layer of kdrop to sample."
    if remaining(model):
        message += " `kdrop.replace(model)` replaces those of Keras."
    raise ValueError(message)


def prepare(model, batch):
    """Build a model; raise if nothing drops, and warn of what is not sampled."""
    build(model, batch)
    if not active_drop_layers(model):
        raise ValueError(
            f"All drop layers of model {model.name!r} have rate 0: its samples would "
            "all be the same."
        )
    warn_of_other_dropout(model, stacklevel=4)


def stateful_layers(model):
    """Names of the layers that carry state from one call to the next."""
    layers = keras_internals.layers_of(model)
    return [x.name for x in layers if getattr(x, "stateful", False) is True]


def warn_of_other_dropout(model, stacklevel=3):
    """Warn if layers outside kdrop, which are not sampled, drop in training."""
    if names := remaining(model):
        warnings.warn(
            f"These layers of model {model.name!r} stay at inference while it is "
            f"sampled: {', '.join(map(repr, names))}. `kdrop.replace(model)` replaces "
            "the dropout layers of Keras, but no dropout in a layer's own code (LSTM).",
            stacklevel=stacklevel,
        )


def fingerprint(model):
    """The parts of a model on which a trace depends; equal while they are unchanged."""
    parts = []
    for layer in keras_internals.layers_of(model):
        state = getattr(layer, "trace_state", None)
        attributes = state() if state else keras_internals.attributes(layer)
        # Keras writes some attributes late, as `None`.
        values = {k: _snapshot(v) for k, v in attributes.items() if v is not None}
        parts.append((_Identity(layer), values))
    return parts


def _snapshot(value):
    """Plain values by their text, since lists change in place; others by identity."""
    if isinstance(value, np.ndarray) and value.size < 10_000:
        return value.shape, value.dtype.str, value.tobytes()
    return repr(value) if _is_plain(value) else _Identity(value)


def _is_plain(value):
    if isinstance(value, dict):
        return _is_plain([*value.items()])
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


class _Identity:
    """Equal to another one only if both hold the same object."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, _Identity) and self.value is other.value


class TensorFlowGraph:
    """A function of structures of batches, traced once for any number of rows."""

    def __init__(self, function, model):
        self._function = tf.function(function, autograph=False)

    def __call__(self, *structures):
        return self._concrete(structures)(*structures)

    try_shapes = __call__  # results of the right shapes, or the function's error

    def row_bytes(self, *structures):
        """Bytes of all intermediate results for one row."""
        operations = self._concrete(structures).graph.get_operations()
        results = [x for op in operations for x in op.outputs if x.shape.rank]
        rows = [x for x in results if x.shape[0] is None]
        return sum(x.dtype.size * math.prod(n or 1 for n in x.shape[1:]) for x in rows)

    def _concrete(self, structures):
        def spec(x):
            if x is None:
                return None
            return tf.TensorSpec((None, *x.shape[1:]) if len(x.shape) else (), x.dtype)

        specs = tree.map_structure(spec, structures)
        return self._function.get_concrete_function(*specs)


class JaxGraph:
    """The same for JAX, which compiles for each number of rows."""

    def __init__(self, function, model):
        self._variables = model.variables

        def pure(values, *structures):
            state = list(zip(self._variables, values, strict=True))
            with keras.StatelessScope(state_mapping=state):
                return function(*structures)

        self._pure, self._compiled = pure, jax.jit(pure)

    def __call__(self, *structures):
        return self._compiled(self._values(), *structures)

    def try_shapes(self, *structures):
        return jax.eval_shape(self._pure, self._values(), *structures)

    def row_bytes(self, *structures):
        first = tree.map_structure(
            lambda x: x[:1] if getattr(x, "shape", ()) else x, structures
        )
        program = jax.make_jaxpr(self._pure)(self._values(), *first)
        results = [v.aval for e in program.eqns for v in e.outvars]
        return sum(x.size * x.dtype.itemsize for x in results)

    def _values(self):
        return [variable.value for variable in self._variables]
