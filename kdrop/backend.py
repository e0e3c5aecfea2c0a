"""What differs between TensorFlow and JAX, and the private names of both and of Keras.

A new version of Keras or TensorFlow that moves a private name breaks this file alone.
"""

import contextlib
import importlib
import os
import sys

BACKENDS = ("tensorflow", "jax")


def check_backend():
    """Raise `ImportError` unless Keras runs on TensorFlow or JAX."""
    # Before Keras is imported: it fails by itself if the backend is not installed.
    name = None if "keras" in sys.modules else os.environ.get("KERAS_BACKEND")
    if not name:
        import keras

        name = keras.backend.backend()
    if name not in BACKENDS:
        raise ImportError(
            f"kdrop runs on the Keras backends {' and '.join(BACKENDS)}. Received: "
            f"{name!r}; set KERAS_BACKEND to one of them before Keras is imported."
        )


check_backend()

import keras  # noqa: E402
from keras import tree  # noqa: E402
from keras.src.backend.common import global_state  # noqa: E402
from keras.src.models.functional import Functional  # noqa: E402
from keras.src.trainers.trainer import Trainer  # noqa: E402

# What the methods of a model write on it: `compile`, `fit`, `predict` and their kin.
_OF_TRAINING = {
    *vars(Trainer()),
    "_called",
    "_compile_config",
    "_compiled_trainable_state",
    "_trainable",
    "history",
    "optimizer",
    "predict_function",
    "stop_evaluating",
    "stop_predicting",
    "stop_training",
    "test_function",
    "train_function",
}


# The attributes of a layer that belong to its place in a model, not to its class:
# methods that Keras binds when it makes the object, and its calls in graphs.
_PLACE = ("build", "quantize", "_inbound_nodes", "_outbound_nodes", "_remat_mode")

_COMPILED = (
    "train_function",
    "test_function",
    "predict_function",
    "generate_function",  # of KerasHub
)


def name() -> str:
    """The backend that Keras runs on."""
    return keras.backend.backend()


def current_trace():
    """What tells one trace from another, loops and nested functions in it included.

    Compares equal while the same function is being traced, and in eager mode.
    """
    if name() == "jax":
        from jax.extend.core import get_opaque_trace_state

        return get_opaque_trace_state(convention="flax")
    import tensorflow as tf

    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def is_traced() -> bool:
    """Whether code runs for a graph in place of values."""
    if name() == "jax":
        from jax.extend.core import get_opaque_trace_state

        return get_opaque_trace_state(convention="flax") != _JAX_EAGER
    import tensorflow as tf

    return not tf.executing_eagerly()


if name() == "jax":
    _JAX_EAGER = current_trace()


def init_scope():
    """A context in which variables are made in eager mode, out of all functions."""
    if name() == "jax":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def in_saved_model() -> bool:
    """Whether `tf.saved_model.save` builds the graph that it writes."""
    import tensorflow as tf

    # It is no function's.
    graph = tf.compat.v1.get_default_graph()
    return not tf.executing_eagerly() and not graph.building_function


def in_xla(trace) -> bool:
    """Whether TensorFlow compiles the graph that is being traced with XLA."""
    from tensorflow.python.ops import control_flow_util

    return trace is not None and control_flow_util.GraphOrParentsInXlaContext(trace)


class _Apart:
    """Stands in for the options of a save, which are part of a function's cache key.

    Equal to itself alone, so that functions are traced for it and for nothing else. For
    distributed variables it is the policy under which a save changes nothing.
    """

    def __init__(self):
        self.experimental_variable_policy = self

    def __eq__(self, other):
        from tensorflow.python.saved_model.save_options import VariablePolicy

        return other is self or other is VariablePolicy.EXPAND_DISTRIBUTED_VARIABLES

    def __hash__(self):
        return id(self)

    def _save_variable_devices(self):
        return False

    def _expand_distributed_variables(self):
        return True


def apart():
    """A key for `traced_apart`."""
    return _Apart() if name() == "tensorflow" else None


@contextlib.contextmanager
def traced_apart(key):
    """Trace every `tf.function` that is called in this context for `key` alone.

    TensorFlow traces a function once for the same arguments. What a layer reads besides
    its arguments, such as whether it is being sampled, has to be part of the key: else
    a trace made at inference is used for sampling, and the other way round.
    """
    if key is None:
        yield
        return
    from tensorflow.python.saved_model.save_context import _save_context as context

    before = _enter(context, key)
    try:
        yield
    finally:
        _enter(context, before)


@contextlib.contextmanager
def traced_together():
    """Trace functions as outside of `traced_apart`: kernels read nothing besides."""
    if name() == "jax":
        yield
        return
    from tensorflow.python.saved_model.save_context import _save_context as context

    before = context.options() if context.in_save_context() else None
    if isinstance(before, _Apart):
        _enter(context, None)
    try:
        yield
    finally:
        if isinstance(before, _Apart):
            _enter(context, before)


def current_key():
    """The key of the innermost `traced_apart`, or `None`."""
    from tensorflow.python.saved_model.save_context import _save_context as context

    options = context.options() if context.in_save_context() else None
    return options if isinstance(options, _Apart) else None


def _enter(context, options):
    """Put options in the place of those of a save, and return those."""
    before = context.options() if context.in_save_context() else None
    context.exit_save_context()
    if options is not None:
        context.enter_save_context(options)
    return before


def calls():
    """The context of the outermost call of a layer that is running, or `None`.

    Its `entry_layer` is the layer or model that was called first.
    """
    return global_state.get_global_attribute("current_call_ctx")


def attributes(layer) -> dict:
    """The attributes on which a trace of a layer can depend."""
    return {
        name: value
        for name, value in vars(layer).items()
        if name not in _OF_TRAINING and not name.startswith("_kdrop")
    }


def input_structure(model):
    """What a model's call takes, as Keras's `model.export` takes it.

    Returns:
        A structure of `keras.KerasTensor`; the names of the input layers in the order
        of its tensors, empty if the model has none; and whether the structure is a
        dictionary of several arguments of the call instead of the first one.

    Raises:
        ValueError: If the model has not been built, or a subclassed one not called.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if isinstance(graph, Functional):
        layers = [tensor._keras_history.operation for tensor in graph.inputs]
        return graph._inputs_struct, [layer.name for layer in layers], False
    shapes = model._build_shapes_dict
    if not (model.built and model._called and shapes):
        raise ValueError(
            f"Model {model.name!r} has no record of its inputs: call it on a batch "
            "before it is exported; if it was called, Keras could not trace its `call`."
        )

    def tensor(shape):
        return keras.KerasTensor((None, *shape[1:]), model.input_dtype)

    # Keras records the shapes alone, as arguments of `build`.
    arguments = {
        name.removesuffix("_shape"): tree.map_shape_structure(tensor, _plain(shape))
        for name, shape in shapes.items()
    }
    if len(arguments) == 1:
        return *arguments.values(), [], False
    return arguments, [], True


def _plain(structure):
    """A structure whose dictionaries and lists are not Keras's tracked ones."""
    if isinstance(structure, dict):
        return {key: _plain(value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(map(_plain, structure))
    return structure


def custom_classes(model):
    """The classes in a model that are not of Keras or kdrop, as `MODULE:NAME`."""
    classes = {type(layer) for layer in layers_of(model)}
    names = {f"{each.__module__}:{each.__qualname__}" for each in classes}
    return sorted(n for n in names if n.split(".")[0] not in ("keras", "kdrop"))


def load_called(file, classes):
    """Load a `.keras` file of a model that was called before it was saved.

    Args:
        file: The path of the file.
        classes: What `custom_classes` returned for the model.

    Raises:
        ValueError: If a class is not at the top level of a module that can be imported.
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


def layers_of(layer):
    """All layers that Keras tracks in a layer or model, itself included, each once."""
    return layer._flatten_layers()


def holds_layers(layer):
    """Whether Keras tracks other layers in a layer."""
    return bool(layer._layers)


def was_called(layer):
    """Whether a layer has ever been called."""
    return layer._called


def has_seed_generator(layer):
    """Whether Keras tracks a seed generator in the layer itself."""
    return bool(layer._seed_generators)


def time_steps(layer):
    """The time steps that a `TimeDistributed` was built for; `None` if unknown."""
    shape = (layer.get_build_config() or {}).get("input_shape") or (None, None)
    return shape[1]


def strategy_scope(model):
    """The scope of the `tf.distribute` strategy that a model was made under."""
    if name() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    if tf.distribute.has_strategy():
        return contextlib.nullcontext()
    return model.distribute_strategy.scope()


def become(layer, kind, config):
    """Make a layer object one of class `kind`, newly initialised, at the same place.

    Whatever refers to the object (graphs, containers, wrappers, trackers, closures)
    refers to the new layer then. Of the old one, no state is left.
    """
    place = {name: vars(layer)[name] for name in _PLACE}
    vars(layer).clear()
    layer.__class__ = kind
    vars(layer).update(place)
    layer.__init__(**config)
    vars(layer).update(place)


def forget_compiled(model):
    """Make all models in a model trace their functions anew at the next call."""
    for layer in layers_of(model):
        for name in _COMPILED:
            if isinstance(layer, keras.Model) and name in vars(layer):
                setattr(layer, name, None)
