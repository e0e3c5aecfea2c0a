"""Layers that drop groups of units: channels, blocks of positions, whole examples."""

import keras

from kdrop import keras_internals
from kdrop.errors import check_integer
from kdrop.layers.base import Drop
from kdrop.layers.units import InvertedDropout, VanillaDropout
from kdrop.masks import kernels, run


def _after_batch(data_format, channels, *over_map):
    """The values for the axes after the batch, ordered by `data_format`."""
    first = data_format == "channels_first"
    return (channels, *over_map) if first else (*over_map, channels)


class SpatialDropout(InvertedDropout):
    """Drops whole channels. A subclass sets the maps' `dimensions`."""

    place = "feature maps"
    config_arguments = ("data_format",)

    def __init__(self, rate, data_format=None, seed=None, **kwargs):
        self.data_format = keras_internals.check_data_format(data_format)
        shared = _after_batch(self.data_format, None, *(1,) * self.dimensions)
        super().__init__(rate, noise_shape=(None, *shared), seed=seed, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=self.dimensions + 2)


@keras.saving.register_keras_serializable("kdrop")
class SpatialDropout1D(SpatialDropout):
    """`SpatialDropout2D` of sequences `(batch, steps, channels)`: no `data_format`.

    >>> layer = kdrop.SpatialDropout1D(0.5, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 2, 6)), training=True)
    >>> print(keras.ops.convert_to_numpy(outputs[0]))
    [[2. 0. 0. 2. 0. 0.]
     [2. 0. 0. 2. 0. 0.]]
    """

    place = "the channels of sequences"
    dimensions = 1
    config_arguments = ()

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(rate, data_format="channels_last", seed=seed, **kwargs)


@keras.saving.register_keras_serializable("kdrop")
class SpatialDropout2D(SpatialDropout):
    """Drop whole feature maps: all positions of a channel share one decision.

    Args:
        data_format: `"channels_last"` or `"channels_first"`; Keras's default if `None`.

    Other arguments, scaling and errors as in `InvertedDropout`, without `noise_shape`.
    Input and output shape: `(batch, height, width, channels)` or
    `(batch, channels, height, width)`.

    >>> layer = kdrop.SpatialDropout2D(0.5, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 8, 8, 6)), training=True)
    >>> print(keras.ops.convert_to_numpy(keras.ops.mean(outputs, axis=(1, 2))))
    [[2. 0. 0. 2. 0. 0.]]

    Reference: [Tompson et al., 2015](https://arxiv.org/abs/1411.4280), section 3.2
    """

    dimensions = 2


@keras.saving.register_keras_serializable("kdrop")
class SpatialDropout3D(SpatialDropout):
    """`SpatialDropout2D` of volumes `(batch, depth, height, width, channels)`.

    >>> layer = kdrop.SpatialDropout3D(0.5, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 4, 4, 4, 6)), training=True)
    >>> print(keras.ops.convert_to_numpy(keras.ops.mean(outputs, axis=(1, 2, 3))))
    [[2. 0. 0. 2. 0. 0.]]
    """

    place = "the channels of volumes"
    dimensions = 3


class DropBlock(Drop):
    """Dropout of blocks of positions. A subclass sets the maps' `dimensions`."""

    place = "feature maps"
    config_arguments = ("block_size", "data_format")

    @classmethod
    def at_place(cls, rate, examples=1, **arguments):
        return cls(rate=rate, block_size=3, **arguments)

    def __init__(self, rate, block_size, data_format=None, seed=None, **kwargs):
        self.block_size = check_integer("block_size", block_size, 1)
        self.data_format = keras_internals.check_data_format(data_format)
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
        sides = (self.block_size,) * self.dimensions
        block = _after_batch(self.data_format, 1, *sides)
        return run.apply(kernels.blocks(block), inputs, draw, rows)


@keras.saving.register_keras_serializable("kdrop")
class DropBlock1D(DropBlock):
    """`DropBlock2D` of sequences: runs of steps, independently for each channel.

    >>> layer = kdrop.DropBlock1D(0.5, block_size=3, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 12, 1)), training=True)
    >>> print(keras.ops.convert_to_numpy(outputs[0, :, 0]))
    [2. 2. 0. 0. 0. 2. 2. 2. 2. 2. 0. 0.]
    """

    place = "regions of sequences"
    dimensions = 1


@keras.saving.register_keras_serializable("kdrop")
class DropBlock2D(DropBlock):
    """Drop square blocks of feature maps, independently for each channel.

    Each unit is dropped with probability `rate`, exactly, wherever it lies. A block may
    start anywhere and is clipped at the border, so each unit can be dropped by
    `block_size^2` seeds, of probability `1 - (1 - rate)^(1 / block_size^2)`. The paper
    drops less than the rate, because it ignores that blocks overlap, and rarely at the
    border, because it places only whole blocks. It scales by `units / units not
    dropped` of each draw; here the scale is constant, so that the layer is linear.

    Args:
        block_size: Side of a block, in positions: an integer from 1 to the smallest
            side of the map.

    Other arguments, shapes and errors: those of `SpatialDropout2D`.

    >>> layer = kdrop.DropBlock2D(0.5, block_size=2, seed=2, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 4, 6, 1)), training=True)
    >>> print(keras.ops.convert_to_numpy(outputs[0, :, :, 0]))
    [[2. 2. 2. 2. 0. 0.]
     [0. 2. 2. 2. 2. 2.]
     [0. 0. 0. 2. 2. 2.]
     [2. 0. 0. 2. 2. 2.]]

    Reference: [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890), section 3
    """

    dimensions = 2


@keras.saving.register_keras_serializable("kdrop")
class DropBlock3D(DropBlock):
    """`DropBlock2D` of volumes: cubic blocks, independently for each channel.

    >>> layer = kdrop.DropBlock3D(0.25, block_size=2, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((8, 8, 8, 8, 32)), training=True)
    >>> print(f"{keras.ops.mean(keras.ops.cast(outputs == 0, 'float32')):.2f}")
    0.25
    """

    place = "regions of volumes"
    dimensions = 3


@keras.saving.register_keras_serializable("kdrop")
class DropPath(Drop):
    """Drop all units of an example, or scale them by `1 / (1 - rate)`.

    The last layer of a residual branch, `x + DropPath(rate)(branch(x))`: each example
    of a batch skips the branch or goes through it. Inference changes nothing.
    Arguments, shapes and errors as in `InvertedDropout`, without `noise_shape`.

    >>> layer = kdrop.DropPath(0.5, seed=2, name="drop")
    >>> print(keras.ops.convert_to_numpy(layer(keras.ops.ones((3, 4)), training=True)))
    [[0. 0. 0. 0.]
     [2. 2. 2. 2.]
     [2. 2. 2. 2.]]

    Reference: [Larsson et al., 2017](https://arxiv.org/abs/1605.07648), section 3, for
    the name; the rule is that of `StochasticDepth`, for each example and scaled
    """

    place = "residual branches"
    _kernel = kernels.INVERTED

    def drop(self, inputs, draw, rows):
        rank = len(inputs.shape)
        noise_shape = (None, *(1,) * (rank - 1))[:rank]
        return run.apply(self._kernel, inputs, draw, rows, noise_shape)


@keras.saving.register_keras_serializable("kdrop")
class StochasticDepth(DropPath):
    """Drop the whole batch in training, or nothing. At inference scale by `1 - rate`.

    Stochastic depth as it was published: in training,
    `x + StochasticDepth(rate)(branch(x))` skips the branch or goes through it, by one
    decision for the batch and unscaled. Replicas share the decision. Arguments, shapes
    and errors as in `DropPath`.

    >>> layer = kdrop.StochasticDepth(0.25)
    >>> print(keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 4)))))
    [[0.75 0.75 0.75 0.75]]

    Reference: [Huang et al., 2016](https://arxiv.org/abs/1603.09382), section 3
    """

    _kernel = kernels.VANILLA
    infer = VanillaDropout.infer

    def shares_batch(self, inputs):
        return True
