"""Traces, replicas and whatever else differs between TensorFlow and JAX.

Every private name of the two is used here alone, so that a new version breaks one file.
"""

import contextlib
import functools
import os
import sys

import numpy as np

# Keras is not imported first: it fails if its backend is not installed.
_backend = None if "keras" in sys.modules else os.environ.get("KERAS_BACKEND")
if not _backend:
    import keras

    _backend = keras.backend.backend()
if _backend not in ("tensorflow", "jax"):
    raise ImportError(
        "kdrop runs on the Keras backends tensorflow and jax. Received: "
        f"{_backend!r}; set KERAS_BACKEND to one of them before Keras is imported."
    )

import keras  # noqa: E402

if _backend == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants
    from tensorflow.python.ops import control_flow_util
    from tensorflow.python.saved_model.save_context import _save_context
    from tensorflow.python.saved_model.save_options import VariablePolicy
else:
    import jax
    from jax.core import Tracer
    from jax.extend.core import get_opaque_trace_state


name = keras.backend.backend


def current_trace():
    """A value that is equal while the same function is traced, and in eager mode.

    The body of a loop and a nested function have other traces.
    """
    if name() == "jax":
        return get_opaque_trace_state(convention="flax")
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def is_traced() -> bool:
    """Whether code is being traced instead of run on values."""
    return current_trace() != _EAGER


_EAGER = current_trace() if name() == "jax" else None


def init_scope():
    """A context that creates variables eagerly, outside of any traced function."""
    return contextlib.nullcontext() if name() == "jax" else tf.init_scope()


def in_saved_model() -> bool:
    """Whether `tf.saved_model.save` is building the graph that it writes."""
    # That graph is the only one that belongs to no function.
    graph = tf.compat.v1.get_default_graph()
    return not tf.executing_eagerly() and not graph.building_function


def escapes(value, source) -> bool:
    """Whether a value of JAX belongs to a loop, branch or function, but not its source.

    Such a value cannot be used outside.
    """
    values = (value, source) if name() == "jax" else ()
    traces = {x._trace if isinstance(x, Tracer) else None for x in values}
    return len(traces) > 1


class TraceKey:
    """Keeps the traces of `tf.function` apart that are made under different keys.

    TensorFlow reuses a trace for equal arguments and equal options of the running save.
    A key stands in the place of those options and equals only itself. Distributed
    variables compare the options with `EXPAND_DISTRIBUTED_VARIABLES`, under which they
    behave as outside a save: a key claims to be equal to it.
    """

    def __init__(self):
        self.experimental_variable_policy = self

    def __eq__(self, other):
        return other is self or other is VariablePolicy.EXPAND_DISTRIBUTED_VARIABLES

    def __hash__(self):
        return id(self)

    def _save_variable_devices(self):
        return False

    def _expand_distributed_variables(self):
        return True


@contextlib.contextmanager
def retraced_for(key):
    """A context in which every `tf.function` uses the traces of this `TraceKey`.

    A layer reads more than its arguments, such as whether it is being sampled: without
    a key, a trace made at inference would be reused for sampling, and the reverse.
    `None` stands for the traces without a key.
    """
    if name() == "jax":  # which does not need a key
        yield
        return
    before = _save_context.options() if _save_context.in_save_context() else None
    _set_save_options(key)
    try:
        yield
    finally:
        _set_save_options(before)


def _set_save_options(options):
    _save_context.exit_save_context()
    if options is not None:
        _save_context.enter_save_context(options)


def shared_traces():
    """A context without the key, for kernels, which depend only on their arguments."""
    keyed = name() == "tensorflow" and current_trace_key() is not None
    return retraced_for(None) if keyed else contextlib.nullcontext()


def current_trace_key():
    """The key of the innermost `retraced_for`, or `None`."""
    options = _save_context.options() if _save_context.in_save_context() else None
    return options if isinstance(options, TraceKey) else None


class CallCounter:
    """Counts calls at run time, from 0 in each run of a graph, also those in loops."""

    def __init__(self, trace):
        # Each run of the graph creates a table, so concurrent runs do not share one.
        with tf.init_scope() if trace is None else trace.as_default():
            self._table = tf.raw_ops.AnonymousMutableHashTable(
                key_dtype=tf.int64, value_dtype=tf.int64
            )

    @staticmethod
    def is_possible():
        """Whether calls can be counted here: XLA compiles no hash tables."""
        trace = current_trace()
        return trace is None or not control_flow_util.GraphOrParentsInXlaContext(trace)

    def next(self, caller):
        """int64 scalar: the number of earlier calls with this integer."""
        key, zero = tf.constant([caller], tf.int64), tf.constant(0, tf.int64)
        entry = {"table_handle": self._table, "keys": key}
        count = tf.raw_ops.LookupTableFindV2(**entry, default_value=zero)
        tf.raw_ops.LookupTableInsertV2(**entry, values=count + 1)
        return count[0]


def on_cpu() -> bool:
    """Whether there is no GPU; on JAX, whether the default device is a CPU."""
    if name() == "jax":
        return jax.default_backend() == "cpu"
    return not tf.config.list_logical_devices("GPU")


@functools.cache
def compiled(function, signature, *static, xla=True):
    """The function after `static`, compiled once for each hashable signature.

    Without XLA, TensorFlow traces it once, then again with unknown sizes if they vary.
    """
    function = functools.partial(function, *static)
    if name() == "jax":
        return jax.jit(function)
    options = {"jit_compile": True} if xla else {"reduce_retracing": True}
    return tf.function(function, autograph=False, **options)


@functools.cache
def of_vectors(function):
    """A function of four uint32 vectors, which TensorFlow traces once for all sizes."""
    if name() == "jax":
        return jax.jit(function)
    signature = [tf.TensorSpec((None,), tf.uint32)] * 4
    return tf.function(function, signature, autograph=False)


def output_and_gradients(function, arguments, upstream):
    """The result of a function, and the gradient for each argument from its own."""
    if name() == "jax":
        outputs, backward = jax.vjp(function, *arguments)
        return outputs, backward(upstream)
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        outputs = function(*arguments)
    return outputs, tape.gradient(outputs, arguments, upstream)


def traced(function):
    """The function without arguments, on TensorFlow as a graph."""
    if name() == "jax":
        return function
    return tf.function(function, autograph=False).get_concrete_function()


def frozen(function):
    """A concrete function of TensorFlow whose variables are constants."""
    freeze = convert_to_constants.convert_variables_to_constants_v2
    return freeze(function, lower_control_flow=False)


def two_replicas():
    """A strategy of two replicas: GPUs, or a CPU split in two if nothing ran before."""
    with contextlib.suppress(RuntimeError):
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, halves)
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus if len(gpus) > 1 else tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        raise ValueError(
            "replicas need two devices: call "
            "`tf.config.set_logical_device_configuration` before anything else"
        )
    return tf.distribute.MirroredStrategy([x.name for x in devices[:2]])


def take_from_rows(inputs, positions):
    """The elements of `(batch, size, ...)` at int32 positions `(batch, count)`."""
    if name() == "jax":
        return jax.vmap(lambda row, at: row[at])(inputs, positions)
    return tf.gather(inputs, positions, batch_dims=1)


def on_matrix(function, inputs):
    """`function` of inputs of unknown rank, which it receives as a matrix."""
    shape = tf.shape(inputs)
    return tf.reshape(function(tf.reshape(inputs, (shape[0], -1))), shape)


def checked(tensor, conditions, message):
    """The tensor, if these boolean scalars hold at run time; else it raises."""
    checks = [tf.debugging.Assert(each, [message]) for each in conditions]
    with tf.control_dependencies(checks):
        return tf.identity(tensor)


def with_equal_rows(rows, inputs, message):
    """`rows`, if the inputs have as many at run time."""
    return checked(rows, [tf.shape(inputs)[0] == tf.shape(rows)[0]], message)


def strategy_scope(model):
    """The scope of the `tf.distribute` strategy that a model was made under."""
    if name() != "tensorflow" or tf.distribute.has_strategy():
        return contextlib.nullcontext()
    return model.distribute_strategy.scope()


def first_row(inputs):
    """uint32 scalar: the row of the global batch that is this replica's first."""
    replica = tf.distribute.get_replica_context() if name() == "tensorflow" else None
    if replica is None or replica.num_replicas_in_sync == 1:
        return np.zeros((), "uint32")
    batch = tf.shape(inputs)[0] if inputs.shape.rank != 0 else 1
    number, count = replica.replica_id_in_sync_group, replica.num_replicas_in_sync
    try:
        size = tf.one_hot(number, count, dtype="int64") * tf.cast(batch, "int64")
        sizes = replica.all_reduce(tf.distribute.ReduceOp.SUM, size)
    except RuntimeError:
        # Replicas cannot communicate inside a nested function, such as a loop over
        # time: equal sizes are assumed there.
        return tf.cast(number * batch, "uint32")
    return tf.cast(tf.cumsum(sizes, exclusive=True)[number], "uint32")
