"""Every private name of Keras: only this file breaks if a new version moves one."""

import contextlib
import functools
import importlib

import keras
from keras import tree
from keras.src.backend import get_keras_mask, set_keras_mask, standardize_data_format
from keras.src.backend.common import global_state
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.export.export_utils import _infer_input_signature_from_model
from keras.src.layers.rnn.dropout_rnn_cell import DropoutRNNCell as DropoutRNNCell
from keras.src.models.functional import Functional
from keras.src.trainers.trainer import Trainer

_COMPILED_FUNCTIONS = {"train_function", "test_function", "predict_function"}

# Attributes that `compile`, `fit`, `predict` and their kin write on a model.
_TRAINING_ATTRIBUTES = {*vars(Trainer()), *_COMPILED_FUNCTIONS} | set(
    "_called _compile_config _compiled_trainable_state _trainable history optimizer "
    "stop_evaluating stop_predicting stop_training".split()
)

# The attributes of a layer that belong to its place in a model, not to its class:
# methods that Keras binds when it creates the object, and its calls in graphs.
_PLACE_ATTRIBUTES = "build quantize _inbound_nodes _outbound_nodes _remat_mode".split()

# The mask that Keras stores with a tensor.
get_mask, set_mask = get_keras_mask, set_keras_mask

# Whether Keras infers shapes, and discards what layers write.
infers_shapes = in_symbolic_scope

# Keras's checks of two arguments.
check_data_format = standardize_data_format
check_noise_shape = keras.layers.Dropout(0, name="any")._validate_noise_shape


class Substitution(keras.StatelessScope):
    """A scope in which some variables have other values, and nothing else changes.

    What is written to the other variables, and the losses that layers add, go to the
    scope around this one, or to the variables and to `losses`.
    """

    def __init__(self, values):
        super().__init__(values, collect_losses=True)
        self._substituted = {id(variable) for variable, _ in values}

    def __enter__(self):
        super().__enter__()
        if self.original_scope is not None:
            self.collect_losses = self.original_scope.collect_losses
        return self

    def get_current_value(self, variable):
        if id(variable) in self._substituted or self.original_scope is None:
            return super().get_current_value(variable)
        return self.original_scope.get_current_value(variable)

    def add_update(self, update):
        variable, value = update
        if id(variable) in self._substituted:
            raise ValueError(
                f"Weight {variable.path!r} cannot be thinned: its layer writes to it."
            )
        if self.original_scope is None:
            variable._direct_assign(value)
        else:
            self.original_scope.add_update(update)

    def add_loss(self, loss):
        if self.original_scope is None:
            super().add_loss(loss)
        else:
            self.original_scope.add_loss(loss)


def recomputes(layer):
    """Whether a layer in this one was created in a `keras.RematScope`."""
    return any(each._remat_mode is not None for each in layers_of(layer))


def call_context():
    """Keras's context of the running call, or `None`; `entry_layer` is outermost."""
    return global_state.get_global_attribute("current_call_ctx")


def call_at_inference(operation, *args, **kwargs):
    """Call a layer or another operation of a graph with `training=False`."""
    if "training" in getattr(operation, "_call_context_args", ()):
        kwargs["training"] = False
    return operation(*args, **kwargs)


@contextlib.contextmanager
def wrapped_calls(layers, wrapper):
    """A context in which `wrapper(layer, call, ...)` runs in place of each `call`."""
    for layer in layers:
        vars(layer)["call"] = functools.partial(wrapper, layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["call"]


def paths_of(model):
    """Each layer in a model, with the names that lead to it, `block/drop`."""
    paths, pending = {}, [("", layer) for layer in reversed(model._layers)]
    while pending:
        prefix, layer = pending.pop()
        if layer not in paths:
            paths[layer] = prefix + layer.name
            pending += [(f"{paths[layer]}/", x) for x in reversed(layer._layers)]
    return paths


def functional_graph(model):
    """The Functional model that a Functional or Sequential one runs; else `None`."""
    call = getattr(type(model), "call", None)  # a subclass may define another one
    if call is keras.Sequential.call:
        return model._functional
    return model if call is Functional.call else None


def graph_calls(graph):
    """The calls in a Functional model, as nodes of Keras in the order of execution."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (x for x in graph._nodes_by_depth[depth] if not x.is_input)


def pack_outputs(graph, outputs):
    """The structure of a Functional model's outputs, with these tensors in it."""
    return tree.pack_sequence_as(graph._outputs_struct, outputs)


def standardise_inputs(model, inputs, **settings):
    """The list of input tensors of a model's graph, from a structure of inputs.

    `settings` are the other arguments of the call, which have no effect on them.
    """
    if model._convert_input_args:
        policy = model.dtype_policy
        inputs = tree.map_structure(
            lambda x: policy.convert_input(x, model.autocast, model.input_dtype), inputs
        )
    return functional_graph(model)._standardize_inputs(inputs)


def attributes(layer) -> dict:
    """The attributes on which a trace of a layer can depend."""
    return {
        name: value
        for name, value in vars(layer).items()
        if name not in _TRAINING_ATTRIBUTES and not name.startswith("_kdrop")
    }


def input_structure(model):
    """The inputs of a model's `call`, in the form that `model.export` uses.

    Returns a structure of tensor specifications; the names of the input layers in their
    order, if the model has such layers; and whether the structure is a dictionary of
    several arguments of `call` instead of its first. Raises `ValueError` if the model
    has not been built, or a subclassed one not called.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if isinstance(graph, Functional):
        layers = [tensor._keras_history.operation for tensor in graph.inputs]
        return graph._inputs_struct, [layer.name for layer in layers], False
    inputs = _infer_input_signature_from_model(model)
    if not (model.built and model._called and inputs):
        raise ValueError(
            f"Model {model.name!r} has no record of its inputs: call it on a batch "
            "first; if it was called, Keras could not trace its `call`."
        )
    if len(inputs) == 1:
        return *inputs, [], False
    # Keras records the arguments of `build`.
    names = [name.removesuffix("_shape") for name in model._build_shapes_dict]
    return dict(zip(names, inputs, strict=True)), [], True


def custom_classes(model):
    """The classes of a model's layers outside Keras and kdrop, as `MODULE:NAME`."""
    classes = {type(layer) for layer in layers_of(model)}
    names = {f"{each.__module__}:{each.__qualname__}" for each in classes}
    return sorted(n for n in names if n.split(".")[0] not in ("keras", "kdrop"))


def load_called(file, classes):
    """Load a `.keras` file of a model that was called before it was saved.

    Raises `ValueError` if one of its `custom_classes` cannot be imported.
    """
    objects = {}
    for name in classes:
        module, _, name = name.partition(":")
        try:
            objects[name] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            raise ValueError(
                f"class {name} of {module} is not at the top level of a module that "
                "the process with the TensorFlow backend can import"
            ) from None
    model = keras.models.load_model(file, objects, compile=False, safe_mode=False)
    model._called = True
    return model


def direct_layers(layer):
    """The layers that Keras tracks in a layer or model itself, not in its layers."""
    return layer._layers


def layers_of(layer):
    """All layers that Keras tracks in a layer or model, itself included, each once."""
    return layer._flatten_layers()


def attention_mask(layer, query, value, **masks):
    """What the queries of an attention layer may see, by all masks of the call.

    `None` if that is everything, else boolean, broadcastable to (batch, queries, keys).
    """
    return layer._compute_attention_mask(query, value, **masks)


def fits_at_inference(model):
    """Whether `fit` cannot tell the model that it trains: `call` has no `training`."""
    own_step = type(model).train_step is not keras.Model.train_step
    return not (model._call_has_training_arg or own_step)


def was_called(layer):
    """Whether a layer has ever been called."""
    return layer._called


def has_seed_generator(layer):
    """Whether Keras tracks a seed generator in the layer itself."""
    return bool(layer._seed_generators)


def add_seed_generator(layer):
    """Give a layer of Keras that was created with rate 0 its seed generator."""
    if hasattr(layer, "seed") and not (has_seed_generator(layer) or layer._layers):
        locked, layer._tracker.locked = layer._tracker.locked, False
        layer.seed_generator = keras.random.SeedGenerator(layer.seed)
        layer._tracker.locked = locked


def time_steps(layer):
    """The time steps that a `TimeDistributed` was built for; `None` if unknown."""
    shape = (layer.get_build_config() or {}).get("input_shape") or (None, None)
    return shape[1]


def become(layer, kind, config):
    """Turn a layer into a newly initialised one of class `kind`, in the same object.

    So all references to it (graphs, containers, wrappers, closures) have the new layer.
    """
    place = {name: vars(layer)[name] for name in _PLACE_ATTRIBUTES}
    vars(layer).clear()
    layer.__class__ = kind
    vars(layer).update(place)
    layer.__init__(**config)
    vars(layer).update(place)


def forget_compiled(model):
    """Make a model and the models in it retrace their functions at the next call."""
    for layer in layers_of(model):
        for name in (*_COMPILED_FUNCTIONS, "generate_function"):  # the last of KerasHub
            if isinstance(layer, keras.Model) and name in vars(layer):
                setattr(layer, name, None)


def quantized_kernel(dense):
    """The integers of a Dense layer that is quantized to int8 or int4."""
    if dense.quantization_mode == "int4":
        return keras.quantizers.unpack_int4(dense._kernel, dense.units, axis=-1)
    return dense._kernel
