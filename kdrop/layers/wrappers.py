"""Wrappers of layers that drop their weights, or the keys of an attention."""

import fnmatch

import keras
from keras import ops, tree

from kdrop import backend, keras_internals
from kdrop.errors import check
from kdrop.layers.base import Drop
from kdrop.layers.sampling_context import ONE_BY_ONE
from kdrop.masks import connections, kernels, run


class DropWrapper(Drop, keras.layers.Wrapper):
    """A layer that calls another one, which checks the inputs and makes the outputs."""

    __call__ = keras.layers.Wrapper.__call__

    def __init__(self, layer, rate, seed=None, **kwargs):
        if not isinstance(layer, keras.Layer):
            name = type(self).__name__
            raise ValueError(f"{name} wraps a layer. Received: layer={layer!r}")
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer=layer, rate=rate, seed=seed, **kwargs)
        self.supports_masking = layer.supports_masking

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, *args, **kwargs):
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args, training=False, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)


@keras.saving.register_keras_serializable("kdrop")
class WeightDropout(DropWrapper):
    """Drop single weights of a layer: one mask for all examples and steps of a call.

    In training the layer runs with thinned weights: a fraction `rate` of their entries
    is 0, the others are scaled by `1 / (1 - rate)`. So an LSTM or a GRU runs as a
    whole, by cuDNN where Keras uses it. At inference nothing changes. The variables are
    the layer's, and `get_weights` and `set_weights` do not see the wrapper. (Files do.)
    `kdrop.sample` computes one example at a time: each has other weights.

    Args:
        layer: A layer of one input, or one that is built.
        rate: Fraction of the entries to drop, in [0, 1). It can be set at any time.
        weights: Names of weights, or ends of their paths, in which `*` stands for any
            characters: `["recurrent_kernel"]`, `["backward*/kernel"]`. `None`: the
            recurrent kernels or, if the layer has none, the kernels.

    Shapes as in the layer. `seed` as in `InvertedDropout`.

    Raises:
        ValueError: For an invalid argument or a name that matches no float weight; in
            training, if the layer writes to such a weight, or was made in a
            `keras.RematScope` of TensorFlow, which would compute it again unthinned.
            (So would `keras.remat` in its `call`; around the wrapper it is right.)

    >>> lstm = keras.layers.LSTM(4, return_sequences=True)
    >>> layer = kdrop.WeightDropout(lstm, 0.5, seed=1)
    >>> print(layer(keras.ops.ones((2, 5, 3)), training=True).shape)
    (2, 5, 4)

    Reference: [Merity et al., 2017](https://arxiv.org/abs/1708.02182), section 2
    """

    place = "a layer to wrap"

    def __init__(self, layer, rate, weights=None, seed=None, **kwargs):
        super().__init__(layer, rate, seed=seed, **kwargs)
        names = list(weights) if isinstance(weights, list | tuple) else []
        fits = bool(names) and all(isinstance(name, str) for name in names)
        check("weights", weights, weights is None or fits, "a list of names, or None")
        self.weight_names = names or None

    def build(self, input_shape=None):
        super().build(input_shape)
        self._variables()  # raises if a name matches none

    def shares_batch(self, inputs):
        return True

    def call(self, inputs, *args, training=False, **kwargs):
        if not self.active(training):
            return self.layer(inputs, *args, **kwargs)
        if backend.name() == "tensorflow" and keras_internals.recomputes(self.layer):
            raise ValueError(
                f"Layer {self.name!r} wraps one made in a `keras.RematScope`, which "
                "would be computed again with all its weights: make it outside."
            )
        draw, rows = self.next_draw(tree.flatten(inputs)[0])
        if not run.is_shared(rows):
            raise ValueError(
                f"Layer {self.name!r} cannot be sampled for several examples at once: "
                f"its weights are those of one sub-network. {ONE_BY_ONE}"
            )
        with backend.shared_traces():
            values = [
                (variable, _thin(variable.value, draw, rows, number))
                for number, variable in enumerate(self._variables())
            ]
        # A function in the layer that was traced before has other weights.
        traces = backend.retraced_for(backend.TraceKey())
        with traces, keras_internals.Substitution(values) as scope:
            outputs = self.layer(inputs, *args, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def _variables(self):
        """The variables of the wrapped layer that are thinned, in its order."""
        weights = self.layer.weights

        def named(name):
            return [
                w for w in weights if fnmatch.fnmatchcase("/" + w.path, "*/" + name)
            ]

        default = "recurrent_kernel" if named("recurrent_kernel") else "kernel"
        variables = {}
        for name in self.weight_names or [default]:
            chosen = {id(w): w for w in named(name)}
            is_float = (keras.backend.is_float_dtype(w.dtype) for w in chosen.values())
            if not chosen or not all(is_float):
                raise ValueError(
                    f"Layer {self.name!r} drops float weights that `weights` names. "
                    f"Received: {name!r} for a layer with the weights "
                    f"{[w.path for w in weights]}"
                )
            variables |= chosen
        return [w for w in weights if id(w) in variables]

    def get_config(self):
        return {**super().get_config(), "weights": self.weight_names}


def _thin(weights, draw, rows, number):
    # Another name hash for each weight, so that none shares another one's words.
    other_name = ops.convert_to_tensor([0, number, 0, 0, 0], dtype=draw.dtype)
    return connections.thin(weights, draw + other_name, rows)


@keras.saving.register_keras_serializable("kdrop")
class DropKey(DropWrapper):
    """Drop keys of an attention: each query ignores a fraction of them, at random.

    In training dropped keys are masked before the softmax, so the weights of the others
    sum to 1. (`dropout` of Keras's layer drops after it.) A query that would lose all
    its keys keeps them. The heads share the decisions, unlike in the paper: the mask
    that Keras's layer takes has no axis for heads. At inference nothing changes. While
    the layer's own `dropout` is 0, it uses Keras's fused attention, in training too.

    Args:
        layer: `keras.layers.MultiHeadAttention`, `GroupQueryAttention` or a subclass.
        rate: Fraction of the keys to drop, in [0, 1). It can be set at any time.

    Arguments of a call, masks and shapes: those of the layer, for inputs
    `(batch, steps, features)`, else it raises `ValueError`. `seed` and other errors as
    in `InvertedDropout`.

    >>> attention = keras.layers.MultiHeadAttention(2, 4)
    >>> layer, x = kdrop.DropKey(attention, 0.3, seed=1), keras.ops.ones((2, 5, 8))
    >>> print(layer(x, x, use_causal_mask=True, training=True).shape)
    (2, 5, 8)

    Reference: [Li et al., 2022](https://arxiv.org/abs/2208.02646), section 3
    """

    place = "an attention layer to wrap"

    def __init__(self, layer, rate, seed=None, **kwargs):
        attentions = keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention
        if not isinstance(layer, attentions):
            wraps = "DropKey wraps a MultiHeadAttention or GroupQueryAttention layer"
            raise ValueError(f"{wraps}. Received: layer={layer!r}")
        super().__init__(layer, rate, seed=seed, **kwargs)

    # ty: ignore[incompatible-method-override]
    def build(self, query_shape, value_shape, key_shape=None):
        if not self.layer.built:
            self.layer.build(query_shape, value_shape, key_shape)

    # ty: ignore[incompatible-method-override]
    def call(
        self, query, value, key=None, query_mask=None, value_mask=None, key_mask=None,
        attention_mask=None, use_causal_mask=False, training=False, **kwargs
    ):  # fmt: skip
        masks = {"query_mask": query_mask, "value_mask": value_mask}
        masks |= {"key_mask": key_mask, "attention_mask": attention_mask}
        masks["use_causal_mask"] = use_causal_mask
        if self.active(training):
            if len(query.shape) != 3 or len(value.shape) != 3:
                raise ValueError(
                    f"Layer {self.name!r} takes (batch, steps, features). Received: "
                    f"query of shape {query.shape}, value of shape {value.shape}"
                )
            seen = keras_internals.attention_mask(self.layer, query, value, **masks)
            shape = (*ops.shape(query)[:2], ops.shape(value)[1])
            seen = ops.broadcast_to(True if seen is None else seen, shape)
            draw, rows = self.next_draw(query)
            with backend.shared_traces():
                rest = run.apply(kernels.VANILLA, seen, draw, rows)
            any_left = ops.any(rest, axis=-1, keepdims=True)
            masks["attention_mask"] = ops.where(any_left, rest, seen)
        return self.layer(query, value, key, **masks, **kwargs)
