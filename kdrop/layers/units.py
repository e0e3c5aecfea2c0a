"""Layers that drop single units."""

import keras

from kdrop.layers.base import Drop
from kdrop.layers.checks import check_noise_shape
from kdrop.masks import kernels


class _Units(Drop):
    """A layer whose mask has a shape of its own that broadcasts to the inputs."""

    def __init__(self, rate, noise_shape=None, seed=None, **kwargs):
        super().__init__(rate, seed=seed, **kwargs)
        self.noise_shape = check_noise_shape(noise_shape)

    def check(self, inputs):
        super().check(inputs)
        kernels.check_broadcast(self.noise_shape, inputs.shape)

    def shares_batch(self, inputs):
        shape = self.noise_shape
        return shape is not None and (len(shape) < len(inputs.shape) or shape[0] == 1)

    def drop(self, inputs, draw, rows):
        return kernels.apply(self.kernel, inputs, draw, rows, self.noise_shape)

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

    kernel = kernels.INVERTED


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

    kernel = kernels.VANILLA

    def infer(self, inputs):
        return kernels.scale(inputs, self.keep_fraction(kernels.wide(inputs.dtype)))


@keras.saving.register_keras_serializable("kdrop")
class GaussianDropout(_Units):
    """Multiply units by Gaussian noise of mean 1 and variance `rate / (1 - rate)`.

    The noise has the mean and variance that inverted dropout of the same rate has.
    Nothing is dropped, and at rest nothing is done.

    Args:
        rate: In [0, 1): the rate of the inverted dropout that it stands for.
        noise_shape: Shape of the noise: 1 where the positions of a dimension share
            it, `None` for the inputs' own size.
        seed: Integer in [0, 2^32). The same seed and layer name give the same noise.

    Input shape: any, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, the inputs are not of a float dtype, or
            `noise_shape` does not broadcast to their shape.

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
    section 10
    """

    kernel = kernels.GAUSSIAN


@keras.saving.register_keras_serializable("kdrop")
class UniformDropout(_Units):
    """Multiply units by `1 + u`, with u uniform in (-rate, rate); at rest do nothing.

    "Uout": noise whose variance, `rate^2 / 3`, hardly shifts that which a batch
    normalisation behind it learns.

    Args:
        rate: Largest relative change of a unit, in [0, 1).
        noise_shape: Shape of the noise: 1 where the positions of a dimension share
            it, `None` for the inputs' own size.
        seed: Integer in [0, 2^32). The same seed and layer name give the same noise.

    Input shape: any, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, the inputs are not of a float dtype, or
            `noise_shape` does not broadcast to their shape.

    Reference: [Li et al., 2019](https://arxiv.org/abs/1801.05134), section 5
    """

    kernel = kernels.UNIFORM


@keras.saving.register_keras_serializable("kdrop")
class AlphaDropout(_Units):
    """Set units to the limit of SELU, and keep mean 0 and variance 1; at rest nothing.

    Dropout for networks of `selu` units with `lecun_normal` weights: a dropped unit
    takes the value to which SELU falls, about -1.758, and an affine map restores mean
    and variance. With a `noise_shape` of 1 along the positions it drops whole channels.

    Args:
        rate: Fraction of units to drop, in [0, 1).
        noise_shape: Shape of the mask: 1 where the positions of a dimension share
            their fate, `None` for the inputs' own size.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: any, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, the inputs are not of a float dtype, or
            `noise_shape` does not broadcast to their shape.

    Reference: [Klambauer et al., 2017](https://arxiv.org/abs/1706.02515), section 2
    """

    kernel = kernels.ALPHA
