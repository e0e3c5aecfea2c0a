"""Layers that drop regions of a map: whole channels, or blocks of positions."""

import keras

from kdrop.layers.base import Drop
from kdrop.layers.checks import check_integer
from kdrop.layers.units import UnitNoise
from kdrop.masks import kernels, run


def _check_data_format(data_format):
    """The data format, Keras's default if it is `None`."""
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


class SpatialDropout(UnitNoise):
    """Inverted dropout of whole channels. A subclass sets the maps' `dimensions`."""

    kernel = kernels.INVERTED
    place = "feature maps"

    def __init__(self, rate, data_format=None, seed=None, **kwargs):
        """Channels that are not dropped are scaled by `1 / (1 - rate)` in training.

        Args:
            rate: Fraction of channels to drop, in [0, 1). It can be set at any time.
            data_format: `"channels_last"`, `"channels_first"` or `None` for Keras's
                default. `SpatialDropout1D` takes channels last and no `data_format`.
            seed: Integer in [0, 2^32). The same seed and layer name give the same
                masks; `None` draws a seed.

        Raises:
            ValueError: For an invalid argument, or inputs that are not of a float dtype
                or not of the layer's rank.

        Reference: [Tompson et al., 2015](https://arxiv.org/abs/1411.4280), section 3.2
        """
        self.data_format = _check_data_format(data_format)
        noise_shape = (None, *_over_map(self.data_format, None, 1, self.dimensions))
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=self.dimensions + 2)

    def get_config(self):
        config = {**super().get_config(), "data_format": self.data_format}
        del config["noise_shape"]
        return config


@keras.saving.register_keras_serializable("kdrop")
class SpatialDropout1D(SpatialDropout):
    """Drop whole channels of a sequence: all its steps share one decision.

    Input shape: `(batch, steps, channels)`. Output shape: the same.

    >>> import keras, kdrop
    >>> layer = kdrop.SpatialDropout1D(0.5, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 2, 6)), training=True)
    >>> print(keras.ops.convert_to_numpy(outputs[0]))
    [[2. 0. 0. 2. 0. 0.]
     [2. 0. 0. 2. 0. 0.]]
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
class SpatialDropout2D(SpatialDropout):
    """Drop whole feature maps: all positions of a channel share one decision.

    Input shape: `(batch, height, width, channels)` or, if channels come first,
    `(batch, channels, height, width)`. Output shape: the same.

    >>> import keras, kdrop
    >>> layer = kdrop.SpatialDropout2D(0.5, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 8, 8, 6)), training=True)
    >>> print(keras.ops.convert_to_numpy(keras.ops.mean(outputs, axis=(1, 2))))
    [[2. 0. 0. 2. 0. 0.]]
    """

    dimensions = 2


@keras.saving.register_keras_serializable("kdrop")
class SpatialDropout3D(SpatialDropout):
    """Drop whole channels of a volume: all its positions share one decision.

    Input shape: `(batch, depth, height, width, channels)` or, if channels come first,
    `(batch, channels, depth, height, width)`. Output shape: the same.

    >>> import keras, kdrop
    >>> layer = kdrop.SpatialDropout3D(0.5, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 4, 4, 4, 6)), training=True)
    >>> print(keras.ops.convert_to_numpy(keras.ops.mean(outputs, axis=(1, 2, 3))))
    [[2. 0. 0. 2. 0. 0.]]
    """

    place = "the channels of volumes"
    dimensions = 3


class DropBlock(Drop):
    """Drop blocks of positions. A subclass sets the maps' `dimensions`."""

    place = "feature maps"

    @classmethod
    def at_place(cls, rate, examples=1, **arguments):
        return cls(rate=rate, block_size=3, **arguments)

    def __init__(self, rate, block_size, data_format=None, seed=None, **kwargs):
        """Units that are not dropped are scaled by `1 / (1 - rate)` in training.

        Args:
            rate: Fraction of units to drop, in [0, 1). It can be set at any time.
            block_size: Side of a block, in positions: an integer from 1 to the
                smallest side of the map.
            data_format: `"channels_last"`, `"channels_first"` or `None` for Keras's
                default.
            seed: Integer in [0, 2^32). The same seed and layer name give the same
                masks; `None` draws a seed.

        Raises:
            ValueError: For an invalid argument, or inputs that are not of a float
                dtype, not of the layer's rank or smaller than a block.

        Reference: [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890), section 3
        """
        self.block_size = check_integer("block_size", block_size, 1)
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
        return run.apply(kernels.blocks(block), inputs, draw, rows)

    def get_config(self):
        return {
            **super().get_config(),
            "block_size": self.block_size,
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable("kdrop")
class DropBlock1D(DropBlock):
    """Drop runs of consecutive steps, other runs in each channel. See `DropBlock2D`.

    Input shape: `(batch, steps, channels)` or, if channels come first,
    `(batch, channels, steps)`. Output shape: the same.

    >>> import keras, kdrop
    >>> layer = kdrop.DropBlock1D(0.5, block_size=3, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 12, 1)), training=True)
    >>> print(keras.ops.convert_to_numpy(outputs[0, :, 0]))
    [2. 2. 0. 0. 0. 2. 2. 2. 2. 2. 0. 0.]
    """

    place = "regions of sequences"
    dimensions = 1


@keras.saving.register_keras_serializable("kdrop")
class DropBlock2D(DropBlock):
    """Drop square blocks of feature maps; each example and channel has other blocks.

    Each unit is dropped with probability `rate`, exactly, wherever it lies. A block may
    start anywhere and is clipped at the border, so each unit can be dropped by
    `block_size^2` seeds. A seed has the probability
    `1 - (1 - rate)^(1 / block_size^2)`. The paper drops less than the rate: its
    probability of a seed ignores that blocks overlap, and it places only whole blocks,
    so that the border is rarely dropped. It also scales by `units / units not dropped`
    of each draw. Here the scale is constant, so the expectation of each unit is its
    value and the layer is linear.

    Input shape: `(batch, height, width, channels)` or, if channels come first,
    `(batch, channels, height, width)`. Output shape: the same.

    >>> import keras, kdrop
    >>> layer = kdrop.DropBlock2D(0.5, block_size=2, seed=2, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 4, 6, 1)), training=True)
    >>> print(keras.ops.convert_to_numpy(outputs[0, :, :, 0]))
    [[2. 2. 2. 2. 0. 0.]
     [0. 2. 2. 2. 2. 2.]
     [0. 0. 0. 2. 2. 2.]
     [2. 0. 0. 2. 2. 2.]]
    """

    dimensions = 2


@keras.saving.register_keras_serializable("kdrop")
class DropBlock3D(DropBlock):
    """Drop cubic blocks of volumes, other blocks in each channel. See `DropBlock2D`.

    Input shape: `(batch, depth, height, width, channels)` or, if channels come first,
    `(batch, channels, depth, height, width)`. Output shape: the same.

    >>> import keras, kdrop
    >>> layer = kdrop.DropBlock3D(0.25, block_size=2, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((8, 8, 8, 8, 32)), training=True)
    >>> print(f"{keras.ops.mean(keras.ops.cast(outputs == 0, 'float32')):.2f}")
    0.25
    """

    place = "regions of volumes"
    dimensions = 3
