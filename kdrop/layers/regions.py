"""Layers that drop regions: channels, blocks of a map, tokens of a sequence."""

import math
import numbers
import warnings

import keras
from keras import ops

from kdrop import keras_internals
from kdrop.layers.base import Drop
from kdrop.layers.units import InvertedDropout
from kdrop.masks import kernels


def _check_data_format(data_format):
    """The data format, Keras's default for `None`; anything unknown raises."""
    if data_format is None:
        return keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            "Argument `data_format` must be 'channels_last', 'channels_first' or None. "
            f"Received: data_format={data_format!r}"
        )
    return data_format


def _over_map(data_format, channels, size, dimensions):
    """A tuple for the dimensions after the batch: of the channels, and of the map."""
    over_map = (size,) * dimensions
    if data_format == "channels_first":
        return (channels, *over_map)
    return (*over_map, channels)


class _Spatial(InvertedDropout):
    """Inverted dropout in which the positions of a channel share their fate."""

    place = "feature maps"

    def __init__(self, rate, data_format=None, seed=None, **kwargs):
        self.data_format = _check_data_format(data_format)
        noise_shape = (None, *_over_map(self.data_format, None, 1, self.dimensions))
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=self.dimensions + 2)

    def get_config(self):
        config = {**super().get_config(), "data_format": self.data_format}
        del config["noise_shape"]
        return config


@keras.saving.register_keras_serializable("kdrop")
class SpatialDropout1D(_Spatial):
    """Drop whole channels of a sequence: all its steps share one decision.

    What is kept is scaled by `1 / (1 - rate)`; at rest nothing is done.

    Args:
        rate: Fraction of channels to drop, in [0, 1).
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: `(batch, steps, channels)`, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, or the inputs are not as said.

    Reference: [Tompson et al., 2015](https://arxiv.org/abs/1411.4280), section 3.2
    """

    place = "the channels of sequences"

    dimensions = 1

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(rate, data_format="channels_last", seed=seed, **kwargs)

    def get_config(self):
        config = super().get_config()
        del config["data_format"]
        return config


@keras.saving.register_keras_serializable("kdrop")
class SpatialDropout2D(_Spatial):
    """Drop whole feature maps: all positions of a channel share one decision.

    What is kept is scaled by `1 / (1 - rate)`; at rest nothing is done.

    Args:
        rate: Fraction of channels to drop, in [0, 1).
        data_format: `"channels_last"` or `"channels_first"`; Keras's default if `None`.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: `(batch, height, width, channels)` or `(batch, channels, height,
    width)`, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, or the inputs are not as said.

    Reference: [Tompson et al., 2015](https://arxiv.org/abs/1411.4280), section 3.2
    """

    dimensions = 2


@keras.saving.register_keras_serializable("kdrop")
class SpatialDropout3D(_Spatial):
    """Drop whole channels of a volume: all its positions share one decision.

    What is kept is scaled by `1 / (1 - rate)`; at rest nothing is done.

    Args:
        rate: Fraction of channels to drop, in [0, 1).
        data_format: `"channels_last"` or `"channels_first"`; Keras's default if `None`.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: `(batch, depth, height, width, channels)` or `(batch, channels, depth,
    height, width)`, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, or the inputs are not as said.

    Reference: [Tompson et al., 2015](https://arxiv.org/abs/1411.4280), section 3.2
    """

    place = "the channels of volumes"

    dimensions = 3


class _DropBlock(Drop):
    """A layer that drops cubes of a map, each channel its own."""

    place = "feature maps"

    @classmethod
    def at_place(cls, rate, examples=1, **arguments):
        return cls(rate=rate, block_size=3, **arguments)

    def __init__(self, rate, block_size, data_format=None, seed=None, **kwargs):
        if (
            not isinstance(block_size, numbers.Integral)
            or isinstance(block_size, bool)
            or block_size < 1
        ):
            raise ValueError(
                "Argument `block_size` must be a positive integer. "
                f"Received: block_size={block_size!r}"
            )
        self.block_size = int(block_size)
        self.data_format = _check_data_format(data_format)
        super().__init__(rate, seed=seed, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=self.dimensions + 2)

    def threshold(self, rate):
        return kernels.block_threshold(rate, self.block_size**self.dimensions)

    def check(self, inputs):
        super().check(inputs)
        first = self.data_format == "channels_first"
        sizes = inputs.shape[2:] if first else inputs.shape[1:-1]
        if any(size is not None and size < self.block_size for size in sizes):
            raise ValueError(
                f"`block_size` must not exceed the map's sizes {tuple(sizes)}. "
                f"Received: block_size={self.block_size}"
            )

    def drop(self, inputs, draw, rows):
        block = _over_map(self.data_format, 1, self.block_size, self.dimensions)
        return kernels.apply(kernels.blocks(block), inputs, draw, rows)

    def get_config(self):
        return {
            **super().get_config(),
            "block_size": self.block_size,
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable("kdrop")
class DropBlock1D(_DropBlock):
    """Drop runs of consecutive steps, each channel its own. See `DropBlock2D`.

    Args:
        rate: Fraction of units to drop, in [0, 1).
        block_size: Steps of a run: an integer from 1 to the inputs' steps.
        data_format: `"channels_last"` or `"channels_first"`; Keras's default if `None`.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: `(batch, steps, channels)` or `(batch, channels, steps)`, of a float
    dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, or the inputs are not as said.

    Reference: [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890), section 3
    """

    place = "regions of sequences"

    dimensions = 1


@keras.saving.register_keras_serializable("kdrop")
class DropBlock2D(_DropBlock):
    """Drop square blocks of feature maps; each example and channel has its own.

    What is kept is scaled by `1 / (1 - rate)`; at rest nothing is done.

    The fraction dropped is the rate. In the paper it is less: its probability of a seed
    counts the blocks as if they did not overlap, and seeds lie only where the whole
    block is inside the map, so that the border is hardly dropped. Here a block may
    begin anywhere, is clipped at the border, and seeds have the probability `1 - (1 -
    rate)^(1 / block_size^2)`. So each unit is under `block_size^2` possible seeds, and
    dropped with probability `rate`, exactly, wherever it lies. The scale is that
    probability's too and not, as in the paper, `units / units kept` of the draw at
    hand: the expectation of each unit is its value, and dropping is linear.

    Args:
        rate: Fraction of units to drop, in [0, 1).
        block_size: Side of a block: an integer from 1 to the map's smallest side.
        data_format: `"channels_last"` or `"channels_first"`; Keras's default if `None`.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: `(batch, height, width, channels)` or `(batch, channels, height,
    width)`, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, or the inputs are not as said.

    Reference: [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890), section 3
    """

    dimensions = 2


@keras.saving.register_keras_serializable("kdrop")
class DropBlock3D(_DropBlock):
    """Drop cubic blocks of volumes, each channel its own. See `DropBlock2D`.

    Args:
        rate: Fraction of units to drop, in [0, 1).
        block_size: Side of a block: an integer from 1 to the volume's smallest side.
        data_format: `"channels_last"` or `"channels_first"`; Keras's default if `None`.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: `(batch, depth, height, width, channels)` or `(batch, channels, depth,
    height, width)`, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, or the inputs are not as said.

    Reference: [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890), section 3
    """

    place = "regions of volumes"

    dimensions = 3


@keras.saving.register_keras_serializable("kdrop")
class TokenDropout(Drop):
    """Keep a random subset of the tokens of each example; at rest keep all.

    Behind the first `prefix_tokens`, which always stay, `max(1, tokens - floor(rate *
    tokens + 0.5))` tokens are kept, in their order and unscaled. All subsets of that
    size are equally likely. The tokens that are dropped cost the layers behind nothing:
    the sequence is shorter in training. Positions must have been embedded before.

    The count is a part of the shape, so a function that has been traced keeps the count
    that it was traced with. A new rate holds for calls in eager mode and for what is
    traced from then on, as after `model.compile`; the layer warns where that is needed.

    Args:
        rate: Fraction of the tokens behind the prefix to drop, in [0, 1).
        prefix_tokens: How many tokens at the start, such as a class token, always stay.
        return_indices: Whether to return the kept tokens' indices too.
        seed: Integer in [0, 2^32). The same seed and layer name give the same subsets.

    Input shape: `(batch, tokens, features)`, of a float dtype.
    Output shape: `(batch, kept, features)`, and with `return_indices` also `(batch,
    kept)` of dtype int32. In a symbolic shape `kept` is `None`, since it is not the
    same in training and at rest.

    Raises:
        ValueError: If an argument is invalid, or the inputs are not as said or have no
            token behind the prefix.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2208.07220), section 3
    """

    place = "tokens"

    _traced = False

    def __init__(
        self, rate, prefix_tokens=0, return_indices=False, seed=None, **kwargs
    ):
        super().__init__(rate, seed=seed, **kwargs)
        if (
            not isinstance(prefix_tokens, numbers.Integral)
            or isinstance(prefix_tokens, bool)
            or prefix_tokens < 0
        ):
            raise ValueError(
                "Argument `prefix_tokens` must be an integer, 0 or more. "
                f"Received: prefix_tokens={prefix_tokens!r}"
            )
        if not isinstance(return_indices, bool):
            raise ValueError(
                "Argument `return_indices` is True or False. "
                f"Received: return_indices={return_indices!r}"
            )
        self.prefix_tokens = int(prefix_tokens)
        self.return_indices = return_indices
        self.input_spec = keras.layers.InputSpec(ndim=3)

    @Drop.rate.setter
    def rate(self, rate):
        before = self.rate
        Drop.rate.fset(self, rate)
        if self._traced and self.rate != before:
            warnings.warn(
                f"Layer {self.name!r} has been traced with rate {before}: what is "
                "traced keeps its count of tokens until it is traced anew, as after "
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
                f"{self._needs} Received: inputs of {tokens} tokens, prefix_tokens="
                f"{self.prefix_tokens}"
            )

    @property
    def _needs(self):
        return f"Layer {self.name!r} needs inputs with a token behind the prefix."

    def call(self, inputs, training=False, mask=None):
        outputs, kept = super().call(inputs, training=training)
        if mask is not None:
            mask = mask if kept is None else kernels.take(mask, kept)
            keras_internals.set_mask(outputs, mask)
        return (outputs, kept) if self.return_indices else outputs

    def compute_mask(self, inputs, previous_mask):
        return None  # only the call knows which tokens are kept

    def drop(self, inputs, draw, rows):
        self._traced = self._traced or _is_symbolic(inputs)
        batch, tokens, _ = ops.shape(inputs)
        if inputs.shape[1] is None:
            tokens = self._seen(tokens)
        behind = tokens - self.prefix_tokens
        count = _kept_tokens(behind, self.rate)
        kept = kernels.subset(draw, rows, batch, behind, count) + self.prefix_tokens
        kept = ops.concatenate([_all(batch, self.prefix_tokens), kept], axis=1)
        return kernels.take(inputs, kept), kept

    def _seen(self, tokens):
        """A number that `check` could not know, once it has been seen to be enough."""
        import tensorflow as tf

        message = f"{self._needs} prefix_tokens={self.prefix_tokens}"
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
        kept = keras.KerasTensor((batch, None), "int32")
        return (outputs, kept) if self.return_indices else outputs

    def get_config(self):
        return {
            **super().get_config(),
            "prefix_tokens": self.prefix_tokens,
            "return_indices": self.return_indices,
        }


def _kept_tokens(tokens, rate):
    """How many tokens stay, in float64 also where their number is a tensor."""
    if isinstance(tokens, int):
        return max(1, tokens - math.floor(rate * tokens + 0.5))
    dropped = ops.floor(rate * ops.cast(tokens, "float64") + 0.5)
    return ops.maximum(1, tokens - ops.cast(dropped, tokens.dtype))


def _all(batch, tokens):
    """The indices of all tokens, for each example."""
    return ops.broadcast_to(ops.arange(tokens, dtype="int32"), (batch, tokens))


def _is_symbolic(tensor):
    """Whether a tensor stands for values to come, in a function that is traced."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.executing_eagerly()
    return "Tracer" in type(tensor).__name__
