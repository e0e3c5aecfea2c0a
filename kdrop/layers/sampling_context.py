"""What the drop layers draw while a model is sampled at inference."""

import collections
import contextvars
import warnings
from typing import Any

from keras import ops

from kdrop import backend, keras_internals

# The active `Sampling` or `PrefixContext`, or `None`. It is set while a function is
# traced, never around one that was traced before.
sampling: contextvars.ContextVar[Any] = contextvars.ContextVar("sampling", default=None)

# In the error messages for layers whose inputs have another first axis.
NOT_BY_EXAMPLE = "the first axis of its inputs is not that of the examples"


class _Context:
    """A context that drop layers find in `sampling`, with traces for one key."""

    rows: Any = None

    def __init__(self, key):
        self._key = key

    def __enter__(self):
        self._token = sampling.set(self)
        self._traces = backend.retraced_for(self._key)
        self._traces.__enter__()
        return self

    def __exit__(self, *error):
        self._traces.__exit__(None, None, None)
        sampling.reset(self._token)


class PrefixContext(_Context):
    """A context for the prefix of a model, in which no drop layer may draw.

    Raises:
        ValueError: If a drop layer with a rate above 0 is called.
    """

    _KEY = backend.new_trace_key()

    def __init__(self):
        super().__init__(self._KEY)

    def samples(self, layer):
        if layer.drops:
            raise ValueError(f"Layer {layer.name!r} is not shared: {NOT_BY_EXAMPLE}.")
        return False


class Sampling(_Context):
    """A context in which a model's drop layers drop at inference.

    Args:
        layers: The drop layers of the model that is sampled, in its order.
        rows: uint32 tensor `(batch, 3)`: number of the sample, example and seed of each
            row. That seed replaces the layers' seeds. Without it the layers draw from
            their own seeds and draw counts.

    Raises:
        ValueError: At the end of the context, if no layer with a rate above 0 was
            called. If only some were, it warns.
    """

    # Traces for the layers' own seeds can be reused; those that capture rows cannot.
    _KEY_WITHOUT_ROWS = backend.new_trace_key()

    def __init__(self, layers, rows=None):
        key = self._KEY_WITHOUT_ROWS if rows is None else backend.new_trace_key()
        super().__init__(key)
        self.rows, self._layers = rows, layers
        self._occurrence = occurrences(layers, lambda draws: draws.name_hash)
        self._trace, self._calls = backend.current_trace(), collections.Counter()
        self._counter = None
        self._called, self._error_message = set(), None

    def __exit__(self, *error):
        super().__exit__(*error)
        if self._error_message is not None:
            # Without the traced lines that TensorFlow puts before the message.
            raise ValueError(self._error_message) from None
        if error[0] is None:
            self._check_called()

    def _check_called(self):
        # A reused trace does not call its layers again, so they remember an old call.
        called = {
            layer.draws
            for layer in self._layers
            if layer.draws in self._called
            or (self.rows is None and layer.draws.was_sampled)
        }
        missing = [x for x in self._layers if x.drops and x.draws not in called]
        # Some models hold layers that they never call.
        used = [layer for layer in missing if keras_internals.was_called(layer)]
        if not missing or (called and not used):
            return
        names = [layer.name for layer in (used if called else missing)]
        message = (
            f"The drop layers {names} were not called while the model was sampled: "
            "they drop nothing. Call them at inference too, not only under `if "
            "training`, and through the `tf.function` itself, because "
            "`get_concrete_function()` returns what was traced at inference."
        )
        if not called:
            raise ValueError(message)
        warnings.warn(message, stacklevel=3)

    def samples(self, layer):
        """Whether a layer drops."""
        return True

    def record_call(self, draws):
        """Record that a layer draws from its own seed."""
        self._check_trace()
        draws.was_sampled = True
        self._called.add(draws)

    def draw(self, draws, state):
        """The draw of a layer's next call; no other call or layer has the same one."""
        self._called.add(draws)
        number = ops.cast(self._call_number(draws), state.dtype)
        occurrence = ops.full_like(number, self._occurrence.get(draws, 0))
        zero = ops.zeros_like(number)  # the rows hold the seeds
        return ops.stack([zero, state[1], number, state[3], occurrence])

    def _call_number(self, draws):
        """A number for a layer's call that none of its other calls has."""
        if backend.current_trace() == self._trace:
            number = self._calls[draws]
            self._calls[draws] += 1
            return number
        self._check_trace()
        # In a loop or nested function, traced once and run often, the graph counts.
        # Its numbers start at 2^31, above those counted here.
        return 2**31 + self._count_in_graph(draws)

    def _check_trace(self):
        if backend.name() == "jax" and backend.current_trace() != self._trace:
            self._refuse(
                "A drop layer was called inside a loop, a branch, `keras.remat` or a "
                "jitted function while its model was sampled: on JAX all its calls may "
                "have one mask. Unroll the loop (`unroll=True`), or call the layer "
                "outside."
            )

    def _refuse(self, message):
        self._error_message = message
        raise ValueError(message)

    def _count_in_graph(self, draws):
        if not backend.CallCounter.is_possible():
            self._refuse(
                "A drop layer was called inside a loop or a nested function that XLA "
                "compiles while its model was sampled: its calls cannot be counted "
                "there. Compile without `jit_compile=True`."
            )
        if self._counter is None:
            self._counter = backend.CallCounter(self._trace)
        numbers = {layer.draws: number for number, layer in enumerate(self._layers)}
        if draws not in numbers:
            self._refuse(
                "A drop layer that Keras does not track was called in a loop or a "
                "nested function while its model was sampled: make it an attribute of "
                "the layer that calls it."
            )
        return self._counter.next(numbers[draws])


def occurrences(layers, key):
    """The rank of each layer's draws among those with the same `key(draws)`."""
    counts, ranks = collections.Counter(), {}
    for layer in layers:
        equal = key(layer.draws)
        ranks[layer.draws] = counts[equal]
        counts[equal] += 1
    return ranks
