"""What the drop layers draw while a model is sampled at inference."""

import collections
import contextvars
import warnings
from typing import Any

from keras import ops

from kdrop import backend, keras_internals

# The `Sampling` that is going on, or `None`. It is set where a function is traced,
# never around one that was.
sampling: contextvars.ContextVar[Any] = contextvars.ContextVar("sampling", default=None)

# For functions that are traced while the layers draw from their own seeds.
_UNSEEDED, _SHARED = backend.apart(), backend.apart()


# In the message of a drop layer whose inputs' first axis is not that of the examples.
NOT_BY_EXAMPLE = "the first axis of its inputs is not that of the examples"


class Shared:
    """A context in which what sub-networks share is computed, without any drop layer.

    Raises:
        ValueError: In a drop layer that is called all the same.
    """

    rows = None

    def __enter__(self):
        self._token = sampling.set(self)
        self._apart = backend.traced_apart(_SHARED)
        self._apart.__enter__()

    def __exit__(self, *error):
        self._apart.__exit__(None, None, None)
        sampling.reset(self._token)

    def samples(self, layer):
        if layer.drops:
            raise ValueError(f"Layer {layer.name!r} is not shared: {NOT_BY_EXAMPLE}.")
        return False


class Sampling:
    """A context in which a model's drop layers drop at inference.

    Args:
        layers: The drop layers of the model that is being sampled, in its order.
        rows: uint32 tensor `(batch, 3)` that names the rows being computed: their pass,
            their example and their seed, which stands for the layers' own seeds.
            Without it the layers draw from their own seeds and draw counts.

    Raises:
        ValueError: At the end of the context, if no layer with a rate above 0 has drawn
            anything. If some have not, it warns.
    """

    def __init__(self, layers, rows=None):
        self.rows, self._layers = rows, layers
        self._occurrence = occurrences(layers, lambda draws: draws.name_hash)
        self._trace, self._calls = backend.current_trace(), collections.Counter()
        self._table: Any = None
        # What captures the rows cannot be used for others.
        self._key = _UNSEEDED if rows is None else backend.apart()

    def __enter__(self):
        self._token = sampling.set(self)
        self._apart = backend.traced_apart(self._key)
        self._apart.__enter__()
        self._drawn, self._refusal = set(), None
        return self

    def __exit__(self, *error):
        self._apart.__exit__(None, None, None)
        sampling.reset(self._token)
        if self._refusal is not None:
            # Without the lines that were traced, which TensorFlow writes before it.
            raise ValueError(self._refusal) from None
        if error[0] is None:
            self._check_drawn()

    def _check_drawn(self):
        # A function that was traced for layers' own seeds is not traced again.
        drawn = {
            layer.draws
            for layer in self._layers
            if layer.draws in self._drawn or (self.rows is None and layer.draws.sampled)
        }
        missing = [x for x in self._layers if x.drops and x.draws not in drawn]
        # Some models have layers that they never call.
        called = [layer for layer in missing if keras_internals.was_called(layer)]
        if not missing or (drawn and not called):
            return
        names = [layer.name for layer in (called if drawn else missing)]
        message = (
            f"The drop layers {names} were not called while the model was sampled: "
            "they drop nothing. Call them at inference too, not under `if training` "
            "alone, and by the `tf.function` itself where a `get_concrete_function()` "
            "keeps what was traced at inference."
        )
        if not drawn:
            raise ValueError(message)
        warnings.warn(message, stacklevel=3)

    def samples(self, layer):
        """Whether a layer drops."""
        return True

    def note(self, draws):
        """Note that a layer draws from its own seed."""
        self._check_trace()
        draws.sampled = True
        self._drawn.add(draws)

    def draw(self, draws, state):
        """The draw of a layer's next call, and of no other call or layer."""
        self._drawn.add(draws)
        number = ops.cast(self._number(draws), state.dtype)
        occurrence = ops.full_like(number, self._occurrence.get(draws, 0))
        zero = ops.zeros_like(number)  # the rows have the seeds
        return ops.stack([zero, state[1], number, state[3], occurrence])

    def _number(self, draws):
        """How often a layer has been called before."""
        if backend.current_trace() == self._trace:
            number = self._calls[draws]
            self._calls[draws] += 1
            return number
        self._check_trace()
        # Traced once, called many times: the graph counts, in numbers of its own.
        return 2**31 + self._count(draws)

    def _check_trace(self):
        if backend.name() == "jax" and backend.current_trace() != self._trace:
            self._refuse(
                "A drop layer was called inside a loop, a branch, `keras.remat` or a "
                "jitted function while its model was sampled: on JAX all its calls may "
                "have one mask. Unroll the loop (`unroll=True`), or call the layer "
                "outside."
            )

    def _refuse(self, message):
        self._refusal = message
        raise ValueError(message)

    def _count(self, draws):
        """How many calls the graph has counted before this one."""
        import tensorflow as tf

        if backend.in_xla(backend.current_trace()):
            self._refuse(
                "A drop layer was called inside a loop or a nested function that XLA "
                "compiles while its model was sampled: its calls cannot be counted "
                "there. Do without `jit_compile=True`."
            )
        if self._table is None:
            # Made by each run of the graph, so that runs at once do not share it.
            where = self._trace.as_default() if self._trace else tf.init_scope()
            with where:
                self._table = tf.raw_ops.AnonymousMutableHashTable(
                    key_dtype=tf.int64, value_dtype=tf.int64
                )
        places = {layer.draws: place for place, layer in enumerate(self._layers)}
        if draws not in places:
            self._refuse(
                "A drop layer that Keras does not track was called in a loop or a "
                "nested function while its model was sampled: make it an attribute of "
                "the layer that calls it."
            )
        key = tf.constant([places[draws]], tf.int64)
        count = tf.raw_ops.LookupTableFindV2(
            table_handle=self._table, keys=key, default_value=tf.constant(0, tf.int64)
        )
        tf.raw_ops.LookupTableInsertV2(
            table_handle=self._table, keys=key, values=count + 1
        )
        return count[0]


def occurrences(layers, key):
    """The rank of each layer's draws among those with the same `key(draws)`."""
    counts, ranks = collections.Counter(), {}
    for layer in layers:
        same = key(layer.draws)
        ranks[layer.draws] = counts[same]
        counts[same] += 1
    return ranks
