"""Layers that learn how much noise they make."""

import math
import numbers

import keras
from keras import ops

from kdrop import keras_internals
from kdrop.layers.base import Noise
from kdrop.layers.checks import dense_unless_matrix, refuse_quantization
from kdrop.masks import kernels


def _noise(words_to_noise):
    """A kernel whose output is float32 noise of its input's shape, of gradient 0."""
    return kernels.Kernel(lambda words, draw: words_to_noise(words), _itself, _zeros)


def _itself(inputs, noise, draw):
    return noise


def _zeros(inputs, noise, draw):
    return ops.zeros_like(inputs)


def _unit(words):
    """Words as float32 numbers in [2^-33, 1], the lowest words as the greatest."""
    return (ops.cast(ops.bitwise_not(words), "float32") + 0.5) * 2.0**-32


def _logistic(words):
    """`logit(u)` of a uniform u."""
    x = kernels.uniform(words)
    return ops.log((1 + x) / (1 - x))


_UNIT, _LOGISTIC, _NORMAL = map(_noise, (_unit, _logistic, kernels.normal))


def _check_number(name, value, lowest=-math.inf, above=False):
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if number and math.isfinite(value):
        if value > lowest or (value == lowest and not above):
            return float(value)
    allowed = f" {'above' if above else 'of at least'} {lowest}"
    raise ValueError(
        f"Argument `{name}` must be a finite number"
        f"{allowed if math.isfinite(lowest) else ''}. Received: {name}={value!r}"
    )


_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def _float_kernel(layer):
    """The kernel that a layer computes with, in float where it is quantized."""
    mode = layer.quantization_mode
    if mode in (None, "float8"):
        return layer.kernel
    if mode not in ("int8", "int4"):
        raise ValueError(
            "ConcreteDropout has no loss for the weights of layer "
            f"{layer.name!r}, which are quantized as {mode!r}. Allowed: 'int8', "
            "'int4', 'float8'."
        )
    kernel, scale = layer._kernel, layer.kernel_scale
    if mode == "int4":
        kernel = keras.quantizers.unpack_int4(kernel, layer.units, axis=-1)
    kernel = ops.cast(kernel, scale.dtype)
    if hasattr(layer, "kernel_zero"):  # each block of inputs has a zero and a scale
        block = ops.cast(layer.g_idx, "int32")
        zero = ops.cast(ops.take(layer.kernel_zero, block, axis=0), kernel.dtype)
        kernel = (kernel - zero) * ops.take(scale, block, axis=0)
    else:
        kernel = kernel / scale
    if layer.lora_enabled:
        update = ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
        kernel = kernel + (layer.lora_alpha / layer.lora_rank) * update
    return kernel


@keras.saving.register_keras_serializable("kdrop")
class ConcreteDropout(Noise, keras.layers.Wrapper):
    """Drop inputs of a layer at a rate that is learned with its weights.

    The mask is relaxed, so that the loss has a gradient for the rate r: an input is
    multiplied by `(1 - z) / (1 - r)` with `z = sigmoid((logit r + logit u) /
    temperature)` and u uniform in (0, 1). What the rate gains by it is in two losses
    that the wrapper adds, from the variational objective:

        weight_decay * sum(kernel^2) / (1 - r)
        entropy_weight * inputs * (r log r + (1 - r) log(1 - r))

    with as many `inputs` as the layer has features or channels. For a mean loss over N
    training examples, the prior's length scale l and the precision of the targets tau
    they are `l^2 / (tau N)` and, for squared errors, `2 / (tau N)`; a loss that is a
    log likelihood takes `l^2 / (2 N)` and `1 / N`. The rate starts at 0.1. At rest the
    layer itself is called.

    Args:
        layer: Dense layer, whose every input has a mask of its own, or Conv1D, 2D or
            3D, where all positions of a channel share theirs.
        weight_decay: Weight of the first loss, at least 0.
        entropy_weight: Weight of the second loss, at least 0.
        temperature: Above 0; near 0 the mask is nearly 0 or 1. The authors take 0.1
            for dense layers and 2/3 for convolutions.
        seed: Integer in [0, 2^32). The same seed and layer name give the same noise.

    Input and output shapes: the layer's.

    Raises:
        ValueError: If an argument is not as said, or the inputs not of a float dtype.

    Reference: [Gal et al., 2017](https://arxiv.org/abs/1705.07832), section 3
    """

    place = "dense layer"

    @classmethod
    def at_place(cls, rate, examples=1, seed=None, name=None, **arguments):
        # The weights of the losses that the paper derives, section 3.
        return cls(
            keras.layers.Dense(**arguments),
            weight_decay=1e-4 / examples,
            entropy_weight=1 / examples,
            seed=seed,
            name=name,
        )

    def __init__(
        self,
        layer,
        weight_decay,
        entropy_weight,
        temperature=0.1,
        seed=None,
        **kwargs,
    ):
        if not isinstance(layer, (keras.layers.Dense, *_CONVOLUTIONS)):
            raise ValueError(
                "ConcreteDropout wraps a Dense, Conv1D, Conv2D or Conv3D layer. "
                f"Received: layer={layer!r}"
            )
        super().__init__(layer=layer, seed=seed, **kwargs)
        self.supports_masking = layer.supports_masking
        self.weight_decay = _check_number("weight_decay", weight_decay, 0)
        self.entropy_weight = _check_number("entropy_weight", entropy_weight, 0)
        self.temperature = _check_number("temperature", temperature, 0, above=True)

    def build(self, input_shape=None):
        super().build(input_shape)
        self.logit = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(math.log(0.1 / 0.9)),
            regularizer=self._regularisation,
            autocast=False,
            name="logit",
        )

    @property
    def rate(self):
        """The rate that has been learned so far, a Python float."""
        return float(ops.convert_to_numpy(ops.sigmoid(self.logit)))

    def _regularisation(self, logit):
        kernel = ops.cast(_float_kernel(self.layer), logit.dtype)
        weights = ops.sum(ops.square(kernel)) / ops.sigmoid(-logit)
        # log r = -softplus(-logit): finite at both ends
        entropy = ops.sigmoid(logit) * ops.softplus(-logit)
        entropy = entropy + ops.sigmoid(-logit) * ops.softplus(logit)
        inputs = kernel.shape[-2] * getattr(self.layer, "groups", 1)
        return self.weight_decay * weights - self.entropy_weight * inputs * entropy

    def drop(self, inputs, draw, rows):
        noise_shape = None
        if isinstance(self.layer, _CONVOLUTIONS):
            shape = [None] + [1] * (len(inputs.shape) - 1)
            shape[1 if self.layer.data_format == "channels_first" else -1] = None
            noise_shape = tuple(shape)
        noise = kernels.apply(_LOGISTIC, inputs, draw, rows, noise_shape)
        noise = ops.cast(ops.stop_gradient(noise), self.logit.dtype)
        kept = ops.sigmoid(-(self.logit + noise) / self.temperature)
        return self.layer(kernels.scale(inputs, kept / ops.sigmoid(-self.logit)))

    def infer(self, inputs):
        if not self.supports_masking and keras_internals.get_mask(inputs) is not None:
            inputs = ops.copy(inputs)  # without the mask: this layer has warned of it
        return self.layer(dense_unless_matrix(inputs))

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "weight_decay": self.weight_decay,
            "entropy_weight": self.entropy_weight,
            "temperature": self.temperature,
        }


@keras.saving.register_keras_serializable("kdrop")
class StandoutDropout(Noise):
    """Keep each unit with a probability that a second network computes from the inputs.

    A unit is kept with probability `keep = sigmoid(alpha * (inputs W) + beta)` and then
    divided by it; at rest nothing is done. So `alpha = 0` is inverted dropout of the
    rate `1 - sigmoid(beta)`. (The paper does not divide, and multiplies by `keep` at
    rest, as vanilla dropout does.)

    W is learned. A sampled mask has no derivative: its gradient is taken to be that of
    its probability, the mask's expectation. Together with the division that gives W no
    gradient on average where the loss is linear in the outputs, which is right: their
    mean does not depend on W. What W learns is where noise harms.

    An example with a NaN has one in each `inputs W`: nothing of it is dropped.

    Args:
        alpha: Scale of the second network, a finite number.
        beta: Its bias, a finite number: the greater, the fewer units are dropped.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.

    Input shape: `(batch, ..., units)`, of a float dtype. Output shape: the same. Weight
    shape: `(units, units)`.

    Raises:
        ValueError: If an argument is not as said, or the inputs are not of a float
            dtype or the number of units is unknown.

    Reference: Ba and Frey, 2013, "Adaptive dropout for training deep neural networks",
    section 3
    """

    place = "dense units"

    @classmethod
    def at_place(cls, rate, examples=1, **arguments):
        # With small weights the keep probability is near sigmoid(beta) = 1 - rate.
        return cls(beta=math.log((1 - rate) / rate), **arguments)

    quantize = quantized_build = refuse_quantization

    def __init__(self, alpha=1.0, beta=0.0, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.alpha = _check_number("alpha", alpha)
        self.beta = _check_number("beta", beta)

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
        # An infinite logit has no difference to itself.
        logits = ops.clip(self.alpha * logits + self.beta, -1e4, 1e4)
        keep, rate = ops.sigmoid(logits), ops.sigmoid(-logits)
        noise = kernels.apply(_UNIT, inputs, draw, rows)
        # What is kept has a probability of at least the least noise: none divides by 0.
        kept = noise <= ops.cast(keep, "float32")
        gain = ops.where(kept, 1 / ops.maximum(keep, 2.0**-33), 0)
        # The derivative of mask / keep, where that of the mask is that of `keep`.
        slope = ops.stop_gradient((1 - gain) * rate)
        moved = slope * (logits - ops.stop_gradient(logits))
        return kernels.scale(inputs, ops.stop_gradient(gain) + moved)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}


# Of the divergence of N(w, alpha w^2) from the log-uniform prior: Kingma, Salimans and
# Welling, 2015, section 3.3 and appendix C
_DIVERGENCE = (1.16145124, -1.50204118, 0.58629921)


def _no_more_than_zero(log_alpha):
    return ops.minimum(log_alpha, 0)


@keras.saving.register_keras_serializable("kdrop")
class VariationalDropout(Noise, keras.layers.Dense):
    """A dense layer with Gaussian noise on its weights, whose strength is learned.

    Each weight w has the distribution N(w, alpha w^2). It is not sampled itself, but
    what comes of it, for each example: before the activation the outputs are drawn from
    N(inputs W + bias, inputs^2 (alpha W^2)). The divergence of the weights'
    distribution from the log-uniform prior is added as a loss, up to a constant, as the
    paper's polynomial in alpha: for each weight within 0.006 of the integral for alpha
    from 0.1 to 1, and 0.04 below. Above 1 it does not hold, so alpha stops there. At
    rest it is the dense layer of the means.

    Args:
        units: Number of outputs.
        divergence_weight: Of the added loss. For a log likelihood as a mean over N
            training examples it is 1 / N.
        per: What has an alpha of its own: the `"layer"`, each input `"unit"` or each
            `"weight"`.
        seed: Integer in [0, 2^32). The same seed and layer name give the same noise.
        **kwargs: As in `keras.layers.Dense`.

    Input shape: `(batch, ..., inputs)`. Output shape: `(batch, ..., units)`.

    Raises:
        ValueError: If an argument is not as said, or the inputs not of a float dtype.

    Reference: [Kingma, Salimans and Welling, 2015](https://arxiv.org/abs/1506.02557),
    sections 2.3, 3.1, 3.3 and 3.4
    """

    place = "dense layer"

    @classmethod
    def at_place(cls, rate, examples=1, **arguments):
        return cls(divergence_weight=1 / examples, **arguments)

    quantize = quantized_build = refuse_quantization

    def __init__(self, units, divergence_weight=1.0, per="unit", seed=None, **kwargs):
        super().__init__(units=units, seed=seed, **kwargs)
        self.divergence_weight = _check_number(
            "divergence_weight", divergence_weight, 0
        )
        if per not in ("layer", "unit", "weight"):
            raise ValueError(
                f'Argument `per` must be "layer", "unit" or "weight". Received: {per!r}'
            )
        self.per = per

    def build(self, input_shape):
        # Dense locks its state when it adds those of LoRA: after the last weight here.
        rank, self.lora_rank = self.lora_rank, None
        super().build(input_shape)
        inputs = input_shape[-1]
        shapes = {"layer": (), "unit": (inputs, 1), "weight": (inputs, self.units)}
        self.log_alpha = self.add_weight(
            shape=shapes[self.per],
            initializer=keras.initializers.Constant(math.log(0.1)),
            regularizer=self._divergence,
            constraint=_no_more_than_zero,
            autocast=False,
            name="log_alpha",
        )
        if rank:
            self.enable_lora(rank, self.lora_alpha)

    @property
    def rate(self):
        """The rates of inverted dropout with the noise learned so far, in NumPy."""
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
        variances = ops.matmul(
            ops.square(ops.cast(inputs, dtype)), alpha * ops.square(kernel)
        )
        noise = ops.stop_gradient(kernels.apply(_NORMAL, means, draw, rows))
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
        # What Dense saves, which merges the weights of LoRA into the kernel.
        return {None: ["kernel", "bias", "log_alpha"]}

    def get_config(self):
        return {
            **super().get_config(),
            "divergence_weight": self.divergence_weight,
            "per": self.per,
        }
