"""A dense layer with Gaussian noise on its weights, whose strength is learned."""

import math

import keras
from keras import ops

from kdrop.errors import check, check_number
from kdrop.layers.base import Noise, dense_unless_matrix, refuse_quantization
from kdrop.masks import kernels, run

# Coefficients of the divergence of N(w, alpha w^2) from the log-uniform prior: Kingma,
# Salimans and Welling, 2015, section 3.3 and appendix C
_DIVERGENCE = (1.16145124, -1.50204118, 0.58629921)


@keras.saving.register_keras_serializable("kdrop")
class VariationalDropout(Noise, keras.layers.Dense):
    """A dense layer with Gaussian noise on its weights, whose strength is learned.

    Each weight w has the distribution N(w, alpha w^2). Instead of the weights the layer
    samples the outputs of each example, before the activation, from
    N(inputs W + bias, inputs^2 (alpha W^2)). Inference uses the means.

    The layer adds a loss: the divergence of the weights' distribution from the
    log-uniform prior, up to a constant, by the paper's polynomial in alpha. Its error
    for a weight is at most 0.006 for alpha from 0.1 to 1, and 0.04 below. Alpha is
    clipped at 1, above which the polynomial does not hold.

    Args:
        units: Number of outputs.
        divergence_weight: Weight of the added loss, at least 0. It is 1 / N if the
            training loss is a log likelihood, averaged over N training examples.
        per: What has a separate alpha: the `"layer"`, each input `"unit"` or each
            `"weight"`.
        **kwargs: Those of `keras.layers.Dense`, with its shapes; `seed` and errors as
            in `InvertedDropout`.

    >>> layer = kdrop.VariationalDropout(2, divergence_weight=1e-3, per="layer")
    >>> outputs = layer(keras.ops.ones((3, 4)), training=True)
    >>> print(outputs.shape, layer.rate.round(2), len(layer.losses))
    (3, 2) 0.09 1

    Reference: [Kingma, Salimans and Welling, 2015](https://arxiv.org/abs/1506.02557),
    sections 2.3, 3.1, 3.3 and 3.4
    """

    place = "dense layer"
    config_arguments = ("divergence_weight", "per")

    @classmethod
    def at_place(cls, rate, examples=1, **arguments):
        return cls(divergence_weight=1 / examples, **arguments)

    quantize = quantized_build = refuse_quantization
    compute_output_shape = keras.layers.Dense.compute_output_shape

    def __init__(self, units, divergence_weight=1.0, per="unit", seed=None, **kwargs):
        super().__init__(units=units, seed=seed, **kwargs)
        self.divergence_weight = check_number(
            "divergence_weight", divergence_weight, "[0, inf)"
        )
        choices = ("layer", "unit", "weight")
        self.per = check("per", per, per in choices, f"one of {choices}")

    def build(self, input_shape):
        # Dense locks its state when it adds the weights of LoRA: add them last.
        rank, self.lora_rank = self.lora_rank, None
        super().build(input_shape)
        inputs = input_shape[-1]
        shapes = {"layer": (), "unit": (inputs, 1), "weight": (inputs, self.units)}
        self.log_alpha = self.add_weight(
            shape=shapes[self.per],
            initializer=keras.initializers.Constant(math.log(0.1)),
            regularizer=self._divergence,
            constraint=lambda log_alpha: ops.minimum(log_alpha, 0),
            autocast=False,
            name="log_alpha",
        )
        if rank:
            self.enable_lora(rank, self.lora_alpha)

    @property
    def rate(self):
        """The rates at which inverted dropout adds as much noise, as a NumPy array."""
        return ops.convert_to_numpy(ops.sigmoid(self.log_alpha))

    def _divergence(self, log_alpha):
        alpha, (c1, c2, c3) = ops.exp(log_alpha), _DIVERGENCE
        gain = 0.5 * log_alpha + alpha * (c1 + alpha * (c2 + alpha * c3))
        weights = self.kernel.shape[0] * self.kernel.shape[1]
        return -self.divergence_weight * weights * ops.mean(gain)

    def drop(self, inputs, draw, rows):
        means = ops.matmul(inputs, self.kernel)
        dtype = kernels.wide(means.dtype)
        alpha = ops.cast(ops.exp(self.log_alpha), dtype)
        kernel = ops.cast(self.kernel, dtype)
        squares = ops.square(ops.cast(inputs, dtype))
        variances = ops.matmul(squares, alpha * ops.square(kernel))
        noise = ops.stop_gradient(run.apply(kernels.NORMAL_NOISE, means, draw, rows))
        # The root has no gradient at 0, where there is no noise either.
        noisy = variances > 0
        deviations = ops.sqrt(ops.where(noisy, variances, 1)) * ops.cast(noise, dtype)
        outputs = ops.cast(means, dtype) + ops.where(noisy, deviations, 0)
        outputs = ops.cast(outputs, means.dtype)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def infer(self, inputs):
        return keras.layers.Dense.call(self, dense_unless_matrix(inputs))

    @property
    def variable_serialization_spec(self):
        # As in Dense, which merges the weights of LoRA into the kernel.
        return {None: ["kernel", "bias", "log_alpha"]}
