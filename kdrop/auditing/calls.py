"""What the layers of a model receive, recorded while the model runs."""

import contextlib
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kdrop import backend, keras_internals
from kdrop.layers.draws import Draws


class Call(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, layer, training):
        return layer(*self.args, **{**self.kwargs, "training": training})

    def single_input(self):
        """The one tensor of floats that the call has; `None` if it has others."""
        leaves = keras.tree.flatten((self.args, self.kwargs))
        tensors = [x for x in leaves if ops.is_tensor(x)]
        floats = len(tensors) == 1 and "float" in str(tensors[0].dtype)
        return tensors[0] if floats else None


def record(model, inputs):
    """The first call of each layer, inner layers before outer ones.

    A layer that runs only inside traced functions gets inputs of its shapes, made up.
    Cells of recurrent layers are left out: they cache their masks between calls.
    """
    calls = {}

    def recorded(layer, call, *args, **kwargs):
        outputs = call(*args, **kwargs)
        if layer not in calls:
            values = args, kwargs
            if backend.is_traced():
                values = keras.tree.map_structure(_made_up, values)
            calls[layer] = Call(*values)
        return outputs

    layers = [
        layer
        for layer in keras_internals.layers_of(model)
        if not isinstance(layer, Draws | keras.layers.InputLayer)
        and (isinstance(layer, keras.layers.RNN) or not hasattr(layer, "state_size"))
    ]
    with keras_internals.wrapped_calls(layers, recorded):
        model(inputs, training=False)
        with contextlib.suppress(Exception):  # of a layer, whose own call will show it
            model(inputs, training=True)
    return calls


def made_up_inputs(model):
    """Inputs for a model by its own description; raises `ValueError` without one."""
    return keras.tree.map_structure(_made_up, keras_internals.input_structure(model)[0])


def _made_up(tensor):
    """Normal floats, or ones, which are in any vocabulary, in place of a tensor."""
    if not hasattr(tensor, "dtype"):
        return tensor
    unknown = (2 if axis == 0 else 32 for axis in range(len(tensor.shape)))
    shape = [n or size for n, size in zip(tensor.shape, unknown, strict=True)]
    if "float" in str(tensor.dtype):
        return ops.cast(np.random.default_rng(0).normal(size=shape), tensor.dtype)
    return ops.ones(shape, tensor.dtype)
