"""The layer that drops tokens of a sequence."""

import math
import warnings

import keras
from keras import ops

from kdrop import backend, keras_internals
from kdrop.errors import check_bool, check_integer
from kdrop.layers.base import Drop
from kdrop.masks import bits, run


@keras.saving.register_keras_serializable("kdrop")
class TokenDropout(Drop):
    """Keep a random subset of the tokens of each example. At inference keep all.

    Of the `tokens` after the prefix, `max(1, tokens - floor(rate * tokens + 0.5))`
    stay, in their order and unscaled. All subsets of that size are equally likely. The
    sequence is shorter in training, so dropped tokens cost the following layers
    nothing. Embed positions before this layer.

    A new rate takes effect in eager mode, and when a function is retraced, as after
    `model.compile`, since shapes depend on it; the layer warns if that is needed.

    Args:
        rate: Fraction of the tokens after the prefix to drop, in [0, 1).
        prefix_tokens: Number of tokens at the start that always stay (class tokens).
        return_indices: Whether to return the remaining tokens' indices too, int32
            `(batch, remaining)`.

    Other arguments and errors as in `InvertedDropout`. Inputs need a token after the
    prefix.

    Input shape: `(batch, tokens, features)`. Output shape: `(batch, remaining,
    features)`; `remaining` is `None` in a symbolic shape, as inference keeps all.

    >>> layer = kdrop.TokenDropout(0.5, 1, return_indices=True, seed=1, name="drop")
    >>> outputs, indices = layer(keras.ops.ones((2, 9, 3)), training=True)
    >>> print(tuple(outputs.shape), keras.ops.convert_to_numpy(indices[0]))
    (2, 5, 3) [0 1 4 5 7]

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2208.07220), section 3
    """

    place = "tokens"
    config_arguments = ("prefix_tokens", "return_indices")
    _traced = False

    def __init__(
        self, rate, prefix_tokens=0, return_indices=False, seed=None, **kwargs
    ):
        super().__init__(rate, seed=seed, **kwargs)
        self.prefix_tokens = check_integer("prefix_tokens", prefix_tokens, 0)
        self.return_indices = check_bool("return_indices", return_indices)
        self.input_spec = keras.layers.InputSpec(ndim=3)

    @Drop.rate.setter
    def rate(self, rate):
        before = self.rate
        Drop.rate.fset(self, rate)
        if self._traced and self.rate != before:
            warnings.warn(
                f"Layer {self.name!r} has been traced with rate {before}: traced "
                "functions keep its number of tokens until they are retraced, as after "
                "`model.compile`.",
                stacklevel=2,
            )

    def trace_state(self):
        return {**super().trace_state(), "_rate": self.rate}

    def check(self, inputs):
        super().check(inputs)
        tokens = inputs.shape[1]
        if tokens is not None and tokens <= self.prefix_tokens:
            raise ValueError(self._too_short(f"inputs of {tokens} tokens, "))

    def _too_short(self, received=""):
        return (
            f"Layer {self.name!r} needs inputs with a token after the prefix. "
            f"Received: {received}prefix_tokens={self.prefix_tokens}"
        )

    def call(self, inputs, training=False, mask=None):
        outputs, indices = super().call(inputs, training=training)
        if mask is not None:
            if indices is not None:
                mask = backend.take_from_rows(mask, indices)
            keras_internals.set_mask(outputs, mask)
        return (outputs, indices) if self.return_indices else outputs

    def compute_mask(self, inputs, previous_mask):
        return None  # `call` sets the mask: only it knows which tokens remain

    def drop(self, inputs, draw, rows):
        self._traced = self._traced or backend.is_traced()
        batch, tokens, _ = ops.shape(inputs)
        if inputs.shape[1] is None:
            enough = tokens > self.prefix_tokens
            tokens = backend.checked(tokens, [enough], self._too_short())
        candidates = tokens - self.prefix_tokens
        # The words of an example all differ: sorting them is a random permutation.
        ids = run.row_ids(rows, (batch,))
        words = bits.words(run.draw_key(draw, ids), ids, candidates, distinct=True)
        subset = ops.argsort(words, axis=-1)[:, : _remaining(candidates, self.rate)]
        subset = ops.sort(subset, axis=-1) + self.prefix_tokens
        indices = ops.concatenate([_all(batch, self.prefix_tokens), subset], axis=1)
        return backend.take_from_rows(inputs, indices), indices

    def infer(self, inputs):
        batch, tokens, _ = ops.shape(inputs)
        return inputs, _all(batch, tokens) if self.return_indices else None

    def compute_output_shape(self, input_shape):
        batch, _, features = input_shape
        shape = (batch, None, features)
        return (shape, (batch, None)) if self.return_indices else shape

    def compute_output_spec(self, inputs, **kwargs):
        self.check(inputs)
        batch, _, features = inputs.shape
        outputs = keras.KerasTensor((batch, None, features), inputs.dtype)
        indices = keras.KerasTensor((batch, None), "int32")
        return (outputs, indices) if self.return_indices else outputs


def _remaining(tokens, rate):
    if isinstance(tokens, int):
        return max(1, tokens - math.floor(rate * tokens + 0.5))
    dropped = ops.floor(rate * ops.cast(tokens, "float64") + 0.5)
    return ops.maximum(1, tokens - ops.cast(dropped, tokens.dtype))


def _all(batch, tokens):
    return ops.broadcast_to(ops.arange(tokens, dtype="int32"), (batch, tokens))
