"""Layers that drop the branch of a residual connection as a whole."""

import keras

from kdrop.layers.base import Drop
from kdrop.masks import kernels, run


class PathNoise(Drop):
    """One decision for all units of an example. A subclass sets `_kernel`."""

    place = "residual branches"

    def drop(self, inputs, draw, rows):
        rank = len(inputs.shape)
        noise_shape = (None, *(1,) * (rank - 1))[:rank]
        return run.apply(self._kernel, inputs, draw, rows, noise_shape)


@keras.saving.register_keras_serializable("kdrop")
class DropPath(PathNoise):
    """Drop all units of an example, or scale them by `1 / (1 - rate)`.

    The last layer of a residual branch, `x + DropPath(rate)(branch(x))`: each example
    of a batch skips the branch or goes through it. Inference changes nothing.

    Args:
        rate: Fraction of examples to drop, in [0, 1). It can be set at any time.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: `(batch, ...)`, of a float dtype. Output shape: the same.

    Raises:
        ValueError: For an invalid argument, or inputs that are not of a float dtype.

    >>> import keras, kdrop
    >>> layer = kdrop.DropPath(0.5, seed=2, name="drop")
    >>> print(keras.ops.convert_to_numpy(layer(keras.ops.ones((3, 4)), training=True)))
    [[0. 0. 0. 0.]
     [2. 2. 2. 2.]
     [2. 2. 2. 2.]]

    Reference: [Larsson et al., 2017](https://arxiv.org/abs/1605.07648), section 3, for
    the name. The rule is that of
    [Huang et al., 2016](https://arxiv.org/abs/1603.09382), section 3, with a decision
    for each example and inverted scaling
    """

    _kernel = kernels.INVERTED


@keras.saving.register_keras_serializable("kdrop")
class StochasticDepth(PathNoise):
    """Drop the whole batch in training, or nothing. At inference scale by `1 - rate`.

    Stochastic depth as it was published: in training,
    `x + StochasticDepth(rate)(branch(x))` skips the branch or goes through it, by one
    decision for the batch and unscaled. Replicas share the decision.

    Args:
        rate: Probability of dropping, in [0, 1). It can be set at any time.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shapes and errors: as of `DropPath`.

    >>> import keras, kdrop
    >>> layer = kdrop.StochasticDepth(0.25)
    >>> print(keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 4)))))
    [[0.75 0.75 0.75 0.75]]

    Reference: [Huang et al., 2016](https://arxiv.org/abs/1603.09382), section 3
    """

    _kernel = kernels.VANILLA

    def shares_batch(self, inputs):
        return True

    def infer(self, inputs):
        return kernels.scale(inputs, self.keep_fraction(kernels.wide(inputs.dtype)))
