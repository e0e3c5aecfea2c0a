"""What the layers of a model receive, recorded while the model runs once."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kdrop import backend, keras_internals
from kdrop.errors import UserError
from kdrop.layers.draws import Draws

_UNKNOWN_SIZE = 32  # of an axis whose size a model leaves open
_ROWS = 2


class Call(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, layer, training):
        """The outputs of the layer for this call, in training or at inference."""
        kwargs = {name: x for name, x in self.kwargs.items() if name != "training"}
        if keras_internals.takes_training(layer):
            kwargs["training"] = training
        return layer(*self.args, **kwargs)

    def single_input(self):
        """The one tensor of floats that the call has; `None` if it has others."""
        leaves = keras.tree.flatten((self.args, self.kwargs))
        tensors = [x for x in leaves if ops.is_tensor(x)]
        if len(tensors) == 1 and "float" in str(tensors[0].dtype):
            return tensors[0]
        return None


def record(model, inputs):
    """The first call of each layer with values, inner layers before outer ones.

    A layer that runs only inside traced functions gets random inputs of its shape.
    Cells of recurrent layers are left out: they cache their masks between calls.
    """
    calls = {}

    def recorded(layer, call, *args, **kwargs):
        outputs = call(*args, **kwargs)
        if layer not in calls:
            first = Call(args, kwargs)
            if backend.is_traced():
                first = _outside_of_trace(first)
            if first is not None:
                calls[layer] = first
        return outputs

    layers = [
        layer
        for layer in keras_internals.layers_of(model)
        if not isinstance(layer, Draws | keras.layers.InputLayer)
        and (isinstance(layer, keras.layers.RNN) or not hasattr(layer, "state_size"))
    ]
    with keras_internals.wrapped_calls(layers, recorded):
        Call((inputs,), {}).run(model, False)
        try:
            Call((inputs,), {}).run(model, True)
        except Exception:  # of a layer, whose own call will show it
            pass
    return calls


def _outside_of_trace(call):
    tensor = call.single_input()
    if tensor is None:
        return None
    shape = [_ROWS if size is None else size for size in tensor.shape]
    values = np.random.default_rng(0).normal(size=shape)
    return Call((ops.convert_to_tensor(values, tensor.dtype),), {})


def made_up_inputs(model):
    """Normal floats and ones, which are in any vocabulary, by the model's inputs."""

    def values(tensor):
        _, *inner = tensor.shape
        shape = (tensor.shape[0] or _ROWS, *(n or _UNKNOWN_SIZE for n in inner))
        if "float" in str(tensor.dtype):
            return ops.cast(np.random.default_rng(0).normal(size=shape), tensor.dtype)
        return ops.ones(shape, tensor.dtype)

    try:
        structure, _, several = keras_internals.input_structure(model)
        if several:
            raise ValueError("its `call` takes several arguments")
        return keras.tree.map_structure(values, structure)
    except Exception as error:  # Keras has many
        raise UserError(
            f"audit() needs `inputs` for model {model.name!r}, whose own description "
            f"does not suffice ({str(error).splitlines()[0]})"
        ) from None
