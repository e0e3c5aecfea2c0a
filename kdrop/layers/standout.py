"""Dropout whose probabilities a second network computes."""

import math

import keras
from keras import ops

from kdrop.errors import check_number
from kdrop.layers.base import Noise, refuse_quantization
from kdrop.masks import kernels, run


@keras.saving.register_keras_serializable("kdrop")
class StandoutDropout(Noise):
    """Keep each unit with a probability that a second network computes.

    A unit is kept with probability `keep = sigmoid(alpha * (inputs W) + beta)` and then
    divided by it. So `alpha = 0` is inverted dropout of rate `1 - sigmoid(beta)`. At
    inference nothing changes. (The paper multiplies by `keep` there instead.)

    W is learned. A sampled mask has no derivative, so its gradient is taken to be that
    of its mean, `keep`. Where the loss is linear in the outputs, W gets no gradient on
    average, because their mean does not depend on W: W learns where noise does harm.
    A NaN in an example makes all its `inputs W` NaN, and none of its units are dropped.

    Args:
        alpha, beta: Scale and bias of the second network, finite numbers. The greater
            `beta` is, the fewer units are dropped.
        **kwargs: Those of `InvertedDropout`, whose errors hold too.

    Input and output shape: `(batch, ..., units)`, of a known number of units. Weight
    shape: `(units, units)`.

    >>> layer = kdrop.StandoutDropout(alpha=0.0, seed=1, name="drop")
    >>> print(keras.ops.convert_to_numpy(layer(keras.ops.ones((2, 6)), training=True)))
    [[2. 0. 0. 2. 0. 0.]
     [2. 2. 2. 0. 0. 0.]]

    Reference: Ba and Frey, 2013, "Adaptive dropout for training deep neural networks",
    section 3
    """

    place = "dense units"
    config_arguments = ("alpha", "beta")

    @classmethod
    def at_place(cls, rate, examples=1, **arguments):
        if not rate:
            raise ValueError("StandoutDropout starts at a rate above 0. Received: 0.")
        # While W is small, the keep probability is near sigmoid(beta) = 1 - rate.
        return cls(beta=math.log((1 - rate) / rate), **arguments)

    quantize = quantized_build = refuse_quantization

    def __init__(self, alpha=1.0, beta=0.0, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.alpha = check_number("alpha", alpha, "(-inf, inf)")
        self.beta = check_number("beta", beta, "(-inf, inf)")

    def build(self, input_shape):
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(
                f"Layer {self.name!r} takes inputs (batch, ..., units) of a known "
                f"number of units. Received: inputs of shape {tuple(input_shape)}"
            )
        units = input_shape[-1]
        self.kernel = self.add_weight(
            shape=(units, units), initializer="glorot_uniform", name="kernel"
        )

    def drop(self, inputs, draw, rows):
        dtype = kernels.wide(inputs.dtype)
        logits = ops.cast(ops.matmul(inputs, self.kernel), dtype)
        # Finite, because inf - inf is NaN in `change` below.
        logits = ops.clip(self.alpha * logits + self.beta, -1e4, 1e4)
        keep, rate = ops.sigmoid(logits), ops.sigmoid(-logits)
        noise = run.apply(kernels.UNIFORM_NOISE, inputs, draw, rows)
        mask = noise <= ops.cast(keep, "float32")
        # The smallest noise is 2^-33: no smaller probability is ever kept.
        gain = ops.where(mask, 1 / ops.maximum(keep, 2.0**-33), 0)
        # The derivative of mask / keep, if that of the mask is that of `keep`.
        slope = ops.stop_gradient((1 - gain) * rate)
        change = slope * (logits - ops.stop_gradient(logits))
        return kernels.scale(inputs, ops.stop_gradient(gain) + change)
