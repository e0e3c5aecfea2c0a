"""Layers that drop single units."""

import keras

from kdrop import kernels
from kdrop.layers.base import Drop, check_noise_shape


class _Units(Drop):
    """A layer whose mask has a shape of its own that broadcasts to the inputs."""

    def __init__(self, rate, noise_shape=None, seed=None, **kwargs):
        super().__init__(rate, seed=seed, **kwargs)
        self.noise_shape = check_noise_shape(noise_shape)

    def check(self, inputs):
        super().check(inputs)
        kernels.check_broadcast(self.noise_shape, inputs.shape)

    def get_config(self):
        return {**super().get_config(), "noise_shape": self.noise_shape}


@keras.saving.register_keras_serializable("kdrop")
class InvertedDropout(_Units):
    """Drop units and scale what is kept by `1 / (1 - rate)`; at rest do nothing.

    The common form of dropout, and that of `keras.layers.Dropout`: the scaling keeps
    the expectation of each unit in training, so that inference needs none.

    Args:
        rate: Fraction of units to drop, in [0, 1).
        noise_shape: Shape of the mask: 1 where the positions of a dimension share
            their fate, `None` for the inputs' own size.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: any, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, the inputs are not of a float dtype, or
            `noise_shape` does not broadcast to their shape.

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
    section 10
    """

    def drop(self, inputs, draw, rows):
        return kernels.bernoulli(inputs, draw, rows, self.noise_shape)


@keras.saving.register_keras_serializable("kdrop")
class VanillaDropout(_Units):
    """Drop units in training; at rest scale all by `1 - rate`.

    Dropout as it was first published: the network is trained as it is thinned, and at
    inference each unit is scaled to its expectation. That is the same as scaling the
    weights behind it, which is why it is called weight scaling.

    Args:
        rate: Fraction of units to drop, in [0, 1).
        noise_shape: Shape of the mask: 1 where the positions of a dimension share
            their fate, `None` for the inputs' own size.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: any, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, the inputs are not of a float dtype, or
            `noise_shape` does not broadcast to their shape.

    Reference: [Hinton et al., 2012](https://arxiv.org/abs/1207.0580);
    [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 4
    """

    def drop(self, inputs, draw, rows):
        return kernels.bernoulli(inputs, draw, rows, self.noise_shape, inverted=False)

    def rest(self, inputs):
        return kernels.scale(inputs, self.draws.kept(kernels.wide(inputs.dtype)))
