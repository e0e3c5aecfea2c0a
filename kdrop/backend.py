"""All that differs between TensorFlow and JAX, and their private names.

A new version of either that moves a private name breaks this file alone.
"""

import contextlib
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


def strategy_scope(model):
    """The scope of the `tf.distribute` strategy that a model was made under."""
    if name() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    if tf.distribute.has_strategy():
        return contextlib.nullcontext()
    return model.distribute_strategy.scope()
