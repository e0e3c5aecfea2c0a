"""Dropout of a layer's inputs at a rate that is learned."""

import math

import keras
from keras import ops

from kdrop import keras_internals
from kdrop.errors import check_number
from kdrop.layers.base import Noise, dense_unless_matrix
from kdrop.masks import kernels, run

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


@keras.saving.register_keras_serializable("kdrop")
class ConcreteDropout(Noise, keras.layers.Wrapper):
    """Drop inputs of a layer at a rate that is learned with its weights.

    The mask is relaxed so that the loss has a gradient for the rate r. An input is
    multiplied by `(1 - z) / (1 - r)` with u uniform in (0, 1) and
    `z = sigmoid((logit r + logit u) / temperature)`. The wrapper adds two losses, where
    `inputs` is the number of the layer's input features or channels:

        weight_decay * sum(kernel^2) / (1 - r)
        entropy_weight * inputs * (r log r + (1 - r) log(1 - r))

    For a mean loss over N training examples, a prior of length scale l and targets of
    precision tau, the two weights are `l^2 / (tau N)` and, for squared errors,
    `2 / (tau N)`. For a loss that is a log likelihood they are `l^2 / (2 N)` and
    `1 / N`. The rate starts at 0.1. At inference the wrapped layer itself is called.

    Args:
        layer: Dense layer, whose inputs all have separate masks, or Conv1D, Conv2D or
            Conv3D, where all positions of a channel share one.
        weight_decay, entropy_weight: Weights of the two losses, at least 0.
        temperature: Above 0; near 0 the mask is nearly 0 or 1. The paper takes 0.1 for
            dense layers and 2/3 for convolutions.

    Shapes as in the wrapped layer. `seed` and errors as in `InvertedDropout`.

    >>> layer = kdrop.ConcreteDropout(keras.layers.Dense(2), 1e-6, 1e-5, seed=1)
    >>> outputs = layer(keras.ops.ones((3, 4)), training=True)
    >>> print(outputs.shape, f"{layer.rate:.1f}", len(layer.losses))
    (3, 2) 0.1 1

    Reference: [Gal et al., 2017](https://arxiv.org/abs/1705.07832), section 3
    """

    place = "dense layer"
    config_arguments = ("weight_decay", "entropy_weight", "temperature")

    @classmethod
    def at_place(cls, rate, examples=1, seed=None, name=None, **arguments):
        # The weights that section 3 of the paper derives.
        weights = {"weight_decay": 1e-4 / examples, "entropy_weight": 1 / examples}
        return cls(keras.layers.Dense(**arguments), seed=seed, name=name, **weights)

    def __init__(
        self, layer, weight_decay, entropy_weight, temperature=0.1, seed=None, **kwargs
    ):
        if not isinstance(layer, (keras.layers.Dense, *_CONVOLUTIONS)):
            wraps = "ConcreteDropout wraps a Dense, Conv1D, Conv2D or Conv3D layer"
            raise ValueError(f"{wraps}. Received: layer={layer!r}")
        super().__init__(layer=layer, seed=seed, **kwargs)
        self.supports_masking = layer.supports_masking
        self.weight_decay = check_number("weight_decay", weight_decay, "[0, inf)")
        self.entropy_weight = check_number("entropy_weight", entropy_weight, "[0, inf)")
        self.temperature = check_number("temperature", temperature, "(0, inf)")

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
        """The learned rate, a Python float."""
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
        noise = run.apply(kernels.LOGISTIC_NOISE, inputs, draw, rows, noise_shape)
        noise = ops.cast(ops.stop_gradient(noise), self.logit.dtype)
        keep = ops.sigmoid(-(self.logit + noise) / self.temperature)
        return self.layer(kernels.scale(inputs, keep / ops.sigmoid(-self.logit)))

    def infer(self, inputs):
        if not self.supports_masking and keras_internals.get_mask(inputs) is not None:
            # Drops the mask, of which Keras has warned for this layer already.
            inputs = ops.copy(inputs)
        return self.layer(dense_unless_matrix(inputs))

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


def _float_kernel(layer):
    """The kernel that a layer computes with, in float if it is quantized."""
    mode = layer.quantization_mode
    if mode in (None, "float8"):
        return layer.kernel
    if mode not in ("int8", "int4"):
        raise ValueError(
            "ConcreteDropout takes layers quantized as 'int8', 'int4' or 'float8'. "
            f"Received: {layer.name!r}, quantized as {mode!r}"
        )
    scale = layer.kernel_scale
    kernel = ops.cast(keras_internals.quantized_kernel(layer), scale.dtype)
    if hasattr(layer, "kernel_zero"):  # a zero point and a scale for each input block
        block = ops.cast(layer.g_idx, "int32")
        zero = ops.cast(ops.take(layer.kernel_zero, block, axis=0), kernel.dtype)
        kernel = (kernel - zero) * ops.take(scale, block, axis=0)
    else:
        kernel = kernel / scale
    if layer.lora_enabled:
        update = ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
        kernel = kernel + (layer.lora_alpha / layer.lora_rank) * update
    return kernel
