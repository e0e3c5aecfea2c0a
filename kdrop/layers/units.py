"""Layers that drop single units, or multiply them by noise."""

import keras
from keras import ops

from kdrop import keras_internals
from kdrop.layers.base import Drop
from kdrop.masks import kernels, run


class UnitNoise(Drop):
    """Noise for single units, or groups of units. A subclass sets `kernel`."""

    config_arguments = ("noise_shape",)

    def __init__(self, rate, noise_shape=None, seed=None, **kwargs):
        super().__init__(rate, seed=seed, **kwargs)
        self.noise_shape = keras_internals.check_noise_shape(noise_shape)

    def check(self, inputs):
        super().check(inputs)
        run.check_broadcast(self.noise_shape, inputs.shape)

    def shares_batch(self, inputs):
        shape = self.noise_shape
        return shape is not None and (len(shape) < len(inputs.shape) or shape[0] == 1)

    def drop(self, inputs, draw, rows):
        return run.apply(self.kernel, inputs, draw, rows, self.noise_shape)


@keras.saving.register_keras_serializable("kdrop")
class InvertedDropout(UnitNoise):
    """Drop units and scale the others by `1 / (1 - rate)`. Inference changes nothing.

    The common form of dropout, and that of `keras.layers.Dropout`. The scaling keeps
    the expectation of each unit in training, so inference needs none.

    Args:
        rate: Fraction of units to drop, in [0, 1). It can be set at any time.
        noise_shape: Shape of the mask, which broadcasts to the inputs: 1 along a
            dimension whose positions share one value, `None` for the inputs' size.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks;
            `None` draws a seed.
        **kwargs: Those of `keras.layers.Layer`.

    Input shape: `(batch, ...)` of a float dtype. Output shape: the same.

    Raises:
        ValueError: For an invalid argument, inputs that are not one dense tensor of a
            float dtype, or a `noise_shape` that does not broadcast to their shape.

    >>> layer = kdrop.InvertedDropout(0.5, seed=1, name="drop")
    >>> print(numpy.asarray(layer(keras.ops.ones((2, 6)), training=True)))
    [[2. 0. 0. 2. 0. 0.]
     [2. 2. 2. 0. 0. 0.]]

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
    section 10
    """

    kernel = kernels.INVERTED


@keras.saving.register_keras_serializable("kdrop")
class VanillaDropout(UnitNoise):
    """Drop units in training. At inference scale all units by `1 - rate`.

    Dropout as it was first published, called weight scaling: inference scales each unit
    to its expectation, as scaling the next layer's weights would. Arguments, shapes and
    errors as in `InvertedDropout`.

    >>> layer = kdrop.VanillaDropout(0.25, seed=1, name="drop")
    >>> print(keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 4)))))
    [[0.75 0.75 0.75 0.75]]

    Reference: [Hinton et al., 2012](https://arxiv.org/abs/1207.0580);
    [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 4
    """

    kernel = kernels.VANILLA

    def infer(self, inputs):
        if run.exporting.get():
            return kernels.scale(inputs, 1 - self.threshold(self.rate) / 2**32)
        state = ops.convert_to_tensor(self.draws.generator.state)
        keep = kernels.keep_fraction(state, kernels.wide(inputs.dtype))
        return kernels.scale(inputs, keep)


@keras.saving.register_keras_serializable("kdrop")
class GaussianDropout(UnitNoise):
    """Multiply units by Gaussian noise of mean 1 and variance `rate / (1 - rate)`.

    `InvertedDropout` of this rate has the same mean and variance, and the same
    arguments, shapes and errors. No unit is dropped.

    >>> layer = kdrop.GaussianDropout(0.2, seed=1, name="drop")
    >>> noise = layer(keras.ops.ones((1000, 1000)), training=True)
    >>> print(f"{keras.ops.mean(noise):.2f} {keras.ops.var(noise):.2f}")
    1.00 0.25

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
    section 10
    """

    kernel = kernels.GAUSSIAN


@keras.saving.register_keras_serializable("kdrop")
class UniformDropout(UnitNoise):
    """Multiply units by `1 + u`, with u uniform in (-rate, rate).

    The paper calls it Uout. Its variance, `rate^2 / 3`, barely changes the statistics
    of a following batch normalisation. No unit is dropped. Inference changes nothing.
    Arguments, shapes and errors as in `InvertedDropout`.

    >>> layer = kdrop.UniformDropout(0.1, seed=1, name="drop")
    >>> noise = layer(keras.ops.ones((100, 100)), training=True)
    >>> print(f"{keras.ops.min(noise):.2f} {keras.ops.max(noise):.2f}")
    0.90 1.10

    Reference: [Li et al., 2019](https://arxiv.org/abs/1801.05134), section 5
    """

    kernel = kernels.UNIFORM


@keras.saving.register_keras_serializable("kdrop")
class AlphaDropout(UnitNoise):
    """Set dropped units to the limit of SELU and keep mean 0 and variance 1.

    For `selu` units with `lecun_normal` weights. SELU falls to about -1.758; an affine
    map then restores mean and variance. Inference changes nothing. Arguments, shapes
    and errors as in `InvertedDropout`.

    >>> layer = kdrop.AlphaDropout(0.5, seed=1, name="drop")
    >>> outputs = layer(keras.random.normal((1000, 1000), seed=1), training=True)
    >>> print(f"{abs(keras.ops.mean(outputs)):.2f} {keras.ops.var(outputs):.2f}")
    0.00 1.00

    Reference: [Klambauer et al., 2017](https://arxiv.org/abs/1706.02515), section 2
    """

    kernel = kernels.ALPHA
