"""Detect whether a model changed since it was traced."""

import numpy as np

from kdrop import keras_internals


class TraceFingerprint:
    """The parts of a model on which a trace of it depends.

    Layers, variables and functions are compared by identity, numbers by value.

    Args:
        model: A built `keras.Model`.
    """

    def __init__(self, model):
        self._model, self._parts = model, _parts(model)

    def matches(self):
        """Whether the model is unchanged."""
        parts = _parts(self._model)
        return len(parts) == len(self._parts) and all(
            layer is old_layer and _equal(values, old_values)
            for (layer, values), (old_layer, old_values) in zip(
                parts, self._parts, strict=True
            )
        )


def _parts(model):
    return [(layer, _values(layer)) for layer in keras_internals.layers_of(model)]


def _values(layer):
    """The values by name that a trace of a layer depends on."""
    state = getattr(layer, "trace_state", None)
    attributes = keras_internals.attributes(layer) if state is None else state()
    return {name: _snapshot(value) for name, value in attributes.items()}


def _snapshot(value):
    """The value, or its contents where those can change in place."""
    if isinstance(value, np.ndarray) and value.size < 10_000:
        return value.shape, value.dtype.str, value.tobytes()
    mutable = isinstance(value, list | dict | set)
    return repr(value) if mutable and _is_plain(value) else value


def _is_plain(value):
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _equal(values, others):
    def same(value, other):
        plain = isinstance(value, bool | int | float | str | tuple)
        return value is other or (
            plain and type(value) is type(other) and value == other
        )

    names = values.keys() | others.keys()
    return all(same(values.get(name), others.get(name)) for name in names)
