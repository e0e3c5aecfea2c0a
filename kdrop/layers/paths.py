"""Layers that drop the branch of a residual connection as a whole."""

import keras

from kdrop.layers.base import Drop
from kdrop.masks import kernels


@keras.saving.register_keras_serializable("kdrop")
class DropPath(Drop):
    """Drop the whole input of an example, and scale the kept ones by `1 / (1 - rate)`.

    It stands at the end of a residual branch, `x + DropPath(rate)(branch(x))`: each
    example of a batch skips the branch or goes through it. At rest nothing is done.

    Args:
        rate: Fraction of examples to drop, in [0, 1).
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: `(batch, ...)`, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, or the inputs are not of a float dtype.

    Reference: [Larsson et al., 2017](https://arxiv.org/abs/1605.07648), section 3, for
    the name; the rule is that of [Huang et al., 2016](https://arxiv.org/abs/1603.09382),
    section 3, with a decision for each example and inverted scaling
    """

    place = "residual branches"

    def drop(self, inputs, draw, rows):
        return _drop_rows(kernels.INVERTED, inputs, draw, rows)


@keras.saving.register_keras_serializable("kdrop")
class StochasticDepth(Drop):
    """Drop the whole input for all of the batch in training; at rest scale it.

    Stochastic depth as it was published: `x + StochasticDepth(rate)(branch(x))` goes
    through the branch or skips it, by one decision for the batch and unscaled; at rest
    the branch is scaled by `1 - rate`. Replicas share the decision.

    Args:
        rate: Probability of dropping, in [0, 1).
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: `(batch, ...)`, of a float dtype. Output shape: the same.

    Raises:
        ValueError: If an argument is invalid, or the inputs are not of a float dtype.

    Reference: [Huang et al., 2016](https://arxiv.org/abs/1603.09382), section 3
    """

    place = "residual branches"

    def shares_batch(self, inputs):
        return True

    def drop(self, inputs, draw, rows):
        return _drop_rows(kernels.VANILLA, inputs, draw, rows)

    def infer(self, inputs):
        return kernels.scale(inputs, self.keep_fraction(kernels.wide(inputs.dtype)))


def _drop_rows(kernel, inputs, draw, rows):
    rank = len(inputs.shape)
    noise_shape = (None, *(1,) * (rank - 1))[:rank]
    return kernels.apply(kernel, inputs, draw, rows, noise_shape)
