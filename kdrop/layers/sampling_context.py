"""Contexts in which drop layers drop at inference, and the rows of their masks."""

import collections
import contextvars
import warnings
from typing import Any

import numpy as np
from keras import ops

from kdrop import backend, keras_internals
from kdrop.masks import bits

# The active `Sampling` or `PrefixContext`, or `None`. It is set while a function is
# traced, never around one that was traced before.
sampling: contextvars.ContextVar[Any] = contextvars.ContextVar("sampling", default=None)

# The end of the error messages for what cannot be sampled for a batch.
ONE_BY_ONE = "`kdrop.sample` computes such a model one by one."
_NOT_BY_EXAMPLE = "the first axis of its inputs is not that of the examples"


class Sampling:
    """A context in which a model's drop layers drop at inference.

    At its end it raises if no layer with a rate above 0 was called, and warns if only
    some were. `rows`, a uint32 tensor `(batch, 3)`, has the sample, example and seed of
    each row. Without it the layers draw from their own seeds and draw counts.
    """

    # Traces for the layers' own seeds can be reused; those that capture rows cannot.
    _KEY_WITHOUT_ROWS = backend.TraceKey()

    def __init__(self, layers, rows=None):
        key = self._KEY_WITHOUT_ROWS if rows is None else backend.TraceKey()
        self._traces = backend.retraced_for(key)
        self.rows, self._layers = rows, layers
        self._occurrence = occurrences(layers, lambda draws: draws.name_hash)
        self._trace, self._counter = backend.current_trace(), None
        self._calls = collections.Counter()
        self._called, self._error_message = set(), None

    def __enter__(self):
        self._token = sampling.set(self)
        self._traces.__enter__()
        return self

    def __exit__(self, *error):
        self._traces.__exit__(None, None, None)
        sampling.reset(self._token)
        if self._error_message is not None:
            # Without the traced lines that TensorFlow puts before the message.
            raise ValueError(self._error_message) from None
        if error[0] is None:
            self._check_called()

    def _check_called(self):
        # A reused trace does not call its layers again, so they remember an old call.
        called = self._called
        if self.rows is None:
            called = called | {x.draws for x in self._layers if x.draws.was_sampled}
        missing = [x for x in self._layers if x.drops and x.draws not in called]
        if called:  # Some models hold layers that they never call.
            missing = [layer for layer in missing if keras_internals.was_called(layer)]
        message = (
            f"The drop layers {[x.name for x in missing]} were not called while the "
            "model was sampled: they drop nothing. Call them at inference too, without "
            "`if training`, and through the `tf.function` itself, because "
            "`get_concrete_function()` returns what was traced at inference."
        )
        if missing and not called:
            raise ValueError(message)
        if missing:
            warnings.warn(message, stacklevel=3)

    def samples(self, layer):
        return True

    def record_call(self, draws):
        """Record that a layer draws from its own seed."""
        self._check_trace()
        draws.was_sampled = True
        self._called.add(draws)

    def draw(self, draws, state):
        """The draw of a layer's next call; no other call or layer has the same one."""
        self._called.add(draws)
        if backend.current_trace() == self._trace:
            number = self._calls[draws]
            self._calls[draws] += 1
        else:
            self._check_trace()
            # In a loop or nested function, traced once and run often, the graph counts.
            # Its numbers start at 2^31, above those counted here.
            number = 2**31 + self._count_in_graph(draws)
        number = ops.cast(number, state.dtype)
        occurrence = ops.full_like(number, self._occurrence.get(draws, 0))
        zero = ops.zeros_like(number)  # the rows hold the seeds
        return ops.stack([zero, state[1], number, state[3], occurrence])

    def _check_trace(self):
        if backend.name() == "jax" and backend.current_trace() != self._trace:
            self._refuse(
                "A drop layer was called inside a loop, a branch, `keras.remat` or a "
                "jitted function while its model was sampled: on JAX all its calls may "
                "have one mask. Unroll the loop (`unroll=True`), or call it outside."
            )

    def _refuse(self, message):
        self._error_message = message
        raise ValueError(message)

    def _count_in_graph(self, draws):
        if not backend.CallCounter.is_possible():
            self._refuse(
                "A drop layer was called inside a loop or a nested function of XLA, "
                "which cannot count the samples: compile without `jit_compile=True`."
            )
        if self._counter is None:
            self._counter = backend.CallCounter(self._trace)
        numbers = {layer.draws: number for number, layer in enumerate(self._layers)}
        if draws not in numbers:
            self._refuse(
                "A drop layer that Keras does not track is sampled in a loop or a "
                "nested function: make it an attribute of the layer that calls it."
            )
        return self._counter.next(numbers[draws])


class PrefixContext(Sampling):
    """A context for the prefix of a model, which raises if a layer in it would drop."""

    _KEY_WITHOUT_ROWS = backend.TraceKey()

    def __init__(self):
        super().__init__([])

    def samples(self, layer):
        if layer.drops:
            raise ValueError(
                f"Layer {layer.name!r} is not shared: {_NOT_BY_EXAMPLE}. {ONE_BY_ONE}"
            )
        return False


def occurrences(layers, key):
    """The rank of each layer's draws among those with the same `key(draws)`."""
    counts, ranks = collections.Counter(), {}
    for layer in layers:
        equal = key(layer.draws)
        ranks[layer.draws] = counts[equal]
        counts[equal] += 1
    return ranks


def mask_rows(layer, inputs):
    """The rows of the mask for a call of a layer, in a form that kernels take."""
    shared, active = layer.shares_batch(inputs), sampling.get()
    if active is None or active.rows is None:
        return np.zeros((1, 2), "uint32") if shared else backend.first_row(inputs)
    rows = active.rows
    if shared:  # one mask for each sample; a batch holds rows of several samples
        rows = rows * np.array([1, 0, 1], "uint32")
    size = 1 if inputs.shape == () else inputs.shape[0]
    count = rows.shape[0]
    if count == 1:  # a single example, to which all rows of the inputs belong
        return rows if shared or size == 1 else _inner_rows(rows, ops.shape(inputs)[0])
    message = (
        f"Layer {layer.name!r} cannot be sampled for several examples at once: "
        f"{_NOT_BY_EXAMPLE}. {ONE_BY_ONE}"
    )
    if size is None or count is None:
        return backend.with_equal_rows(rows, inputs, message)
    if size != count:
        raise ValueError(message)
    return rows


def _inner_rows(row, size):
    """Rows for `size` parts of one example: the row itself, then hashes of it."""
    inner = ops.cast(ops.arange(size, dtype="int32"), "uint32")
    # "inne" in ASCII, so that these words differ from those of a batch's rows.
    hashed = bits.threefry((row[:, 0], row[:, 1]), (inner, np.uint32(0x696E6E65)))
    words = [ops.where(inner == 0, row[:, i], hashed[i]) for i in range(2)]
    return ops.stack([*words, ops.broadcast_to(row[:, 2], ops.shape(inner))], axis=1)
