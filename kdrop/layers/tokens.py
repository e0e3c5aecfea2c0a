"""The layer that drops tokens of a sequence."""

import math
import warnings

import keras
from keras import ops

from kdrop import backend, keras_internals
from kdrop.layers.base import Drop
from kdrop.layers.checks import check_bool, check_integer
from kdrop.masks import bits, run


@keras.saving.register_keras_serializable("kdrop")
class TokenDropout(Drop):
    """Keep a random subset of the tokens of each example. At inference keep all.

    The first `prefix_tokens` always stay. Of the `tokens` after them,
    `max(1, tokens - floor(rate * tokens + 0.5))` stay, in their order and unscaled. All
    subsets of that size are equally likely. The sequence is shorter in training, so
    dropped tokens cost the following layers nothing. Embed positions before this layer.

    The number of tokens is part of the shape, so a traced function keeps the number
    that it was traced with. A new rate takes effect in eager mode, and when a function
    is retraced, as after `model.compile`. The layer warns if that is needed.

    Args:
        rate: Fraction of the tokens after the prefix to drop, in [0, 1).
        prefix_tokens: Number of tokens at the start that always stay, such as a class
            token.
        return_indices: Whether to return the indices of the remaining tokens too.
        seed: Integer in [0, 2^32). The same seed and layer name give the same subsets.

    Input shape: `(batch, tokens, features)`, of a float dtype.
    Output shape: `(batch, remaining, features)`, and with `return_indices` also
    `(batch, remaining)` of dtype int32. In a symbolic shape `remaining` is `None`,
    since training and inference differ.

    Raises:
        ValueError: If an argument is invalid; in the call, if the inputs are not of a
            float dtype or have no token after the prefix.

    >>> import keras, kdrop
    >>> layer = kdrop.TokenDropout(0.5, 1, return_indices=True, seed=1, name="drop")
    >>> outputs, indices = layer(keras.ops.ones((2, 9, 3)), training=True)
    >>> print(tuple(outputs.shape), keras.ops.convert_to_numpy(indices[0]))
    (2, 5, 3) [0 1 4 5 7]

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2208.07220), section 3
    """

    place = "tokens"

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
            raise ValueError(
                f"{self._requirement} Received: inputs of {tokens} tokens, "
                f"prefix_tokens={self.prefix_tokens}"
            )

    @property
    def _requirement(self):
        return f"Layer {self.name!r} needs inputs with a token after the prefix."

    def call(self, inputs, training=False, mask=None):
        outputs, indices = super().call(inputs, training=training)
        if mask is not None:
            mask = mask if indices is None else _take(mask, indices)
            keras_internals.set_mask(outputs, mask)
        return (outputs, indices) if self.return_indices else outputs

    def compute_mask(self, inputs, previous_mask):
        return None  # only `call` knows which tokens remain

    def drop(self, inputs, draw, rows):
        self._traced = self._traced or _is_symbolic(inputs)
        batch, tokens, _ = ops.shape(inputs)
        if inputs.shape[1] is None:
            tokens = self._check_at_run_time(tokens)
        candidates = tokens - self.prefix_tokens
        count = _remaining(candidates, self.rate)
        subset = _subset(draw, rows, batch, candidates, count) + self.prefix_tokens
        indices = ops.concatenate([_all(batch, self.prefix_tokens), subset], axis=1)
        return _take(inputs, indices), indices

    def _check_at_run_time(self, tokens):
        """`check` for a number of tokens that was unknown when it ran."""
        import tensorflow as tf

        message = f"{self._requirement} prefix_tokens={self.prefix_tokens}"
        enough = tf.debugging.assert_greater(tokens, self.prefix_tokens, message)
        with tf.control_dependencies([enough]):
            return tf.identity(tokens)

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

    def get_config(self):
        return {
            **super().get_config(),
            "prefix_tokens": self.prefix_tokens,
            "return_indices": self.return_indices,
        }


def _remaining(tokens, rate):
    """How many tokens stay; in float64 also if their number is a tensor."""
    if isinstance(tokens, int):
        return max(1, tokens - math.floor(rate * tokens + 0.5))
    dropped = ops.floor(rate * ops.cast(tokens, "float64") + 0.5)
    return ops.maximum(1, tokens - ops.cast(dropped, tokens.dtype))


def _subset(draw, rows, batch, size, count):
    """`count` of `size` positions for each row, ascending: int32 `(batch, count)`."""
    # No word repeats in a row: their order is a random permutation of the positions.
    ids = run.row_ids(rows, (batch,))
    words = bits.distinct_words(run.draw_key(draw, ids), ids, size)
    order = ops.argsort(words, axis=-1)
    return ops.sort(order[:, :count], axis=-1)


def _take(inputs, positions):
    """The elements of `(batch, size, ...)` at int32 positions `(batch, count)`."""
    if backend.name() == "tensorflow":
        import tensorflow as tf

        return tf.gather(inputs, positions, batch_dims=1)
    positions = ops.reshape(positions, (*positions.shape, *(1,) * (inputs.ndim - 2)))
    return ops.take_along_axis(inputs, positions, axis=1)


def _all(batch, tokens):
    """The indices of all tokens, for each example."""
    return ops.broadcast_to(ops.arange(tokens, dtype="int32"), (batch, tokens))


def _is_symbolic(tensor):
    """Whether a function is being traced, so that the tensor has no value yet."""
    if backend.name() == "tensorflow":
        return backend.is_traced()
    return "Tracer" in type(tensor).__name__
