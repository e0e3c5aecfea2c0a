"""Layers that drop connections: single weights instead of units."""

from typing import NamedTuple

import keras
from keras import ops

from kdrop.layers.base import Drop
from kdrop.layers.checks import dense_unless_matrix, refuse_quantization
from kdrop.masks import connections, kernels


class _Convolution(NamedTuple):
    """The product of a convolution, as a function that a kernel can take."""

    strides: tuple
    padding: str
    dilation_rate: tuple
    data_format: str

    def __call__(self, inputs, kernel):
        settings = {**self._asdict(), "data_format": "channels_last"}
        if self.data_format == "channels_last":
            return ops.conv(inputs, kernel, **settings)
        # Inside a loop, TensorFlow has no gradient for channels first on a CPU.
        outputs = ops.conv(ops.transpose(inputs, (0, 2, 3, 1)), kernel, **settings)
        return ops.transpose(outputs, (0, 3, 1, 2))


class _Connections(Drop):
    """A layer that has a kernel and perhaps a bias, and drops entries of both."""

    def __init__(self, rate, per_example=True, **kwargs):
        super().__init__(rate, **kwargs)
        if not isinstance(per_example, bool):
            raise ValueError(
                f"`per_example` is True or False. Received: per_example={per_example!r}"
            )
        self.per_example = per_example

    def shares_batch(self, inputs):
        return not self.per_example

    def drop(self, inputs, draw, rows):
        if inputs.shape[0] == 0:
            return self.infer(inputs)
        # The value: a gradient of one's own does not take a variable.
        kernel = ops.reshape(self.kernel, self.kernel.shape)
        if kernels.is_shared(rows):
            kernel = connections.thin(kernel, draw, rows)
            outputs = self.product()(inputs, kernel)
        elif 0 in kernel.shape:
            outputs = self.product()(inputs, kernel)
        else:
            outputs = self.connect(inputs, kernel, draw, rows)
        if self.use_bias:
            outputs = outputs + self._thinned_bias(outputs, draw, rows)
        return outputs if self.activation is None else self.activation(outputs)

    def connect(self, inputs, kernel, draw, rows):
        """The product with a kernel of which each example drops its own weights."""
        return connections.each(self.product(), inputs, kernel, draw, rows)

    def _thinned_bias(self, outputs, draw, rows):
        # Words of its own: another hash of the name.
        draw = draw + ops.convert_to_tensor([0, 1, 0, 0, 0], dtype=draw.dtype)
        count = 1 if kernels.is_shared(rows) else ops.shape(outputs)[0]
        bias = ops.broadcast_to(self.bias, (count, self.bias.shape[0]))
        bias = kernels.apply(kernels.INVERTED, bias, draw, rows)
        inner = (1,) * (len(outputs.shape) - 2)
        if getattr(self, "data_format", "") == "channels_first":
            return ops.reshape(bias, (count, self.bias.shape[0], *inner))
        return ops.reshape(bias, (count, *inner, self.bias.shape[0]))

    def get_config(self):
        return {**super().get_config(), "per_example": self.per_example}


@keras.saving.register_keras_serializable("kdrop")
class DropConnectDense(keras.layers.Dense, _Connections):
    """A dense layer that drops single weights, in each example others.

    In training a weight is dropped with probability `rate`, and what is kept is scaled
    by `1 / (1 - rate)`; entries of the bias are dropped too, as in the paper. At rest
    the layer is `keras.layers.Dense`, whose outputs are the mean of those in training
    before the activation. (The paper scales at inference instead, and samples a
    Gaussian of the same mean and variance there.) The weights are those of `Dense`.

    A mask for each example is never stored, only drawn, for the outputs and again for
    each gradient; that costs as much as `batch * inputs * units` random words. Inputs
    with inner dimensions, such as `(batch, time, features)`, have one mask for all
    positions of an example.

    Args:
        units: Size of the outputs' last dimension.
        rate: Fraction of weights to drop, in [0, 1).
        *args: As `keras.layers.Dense` takes them after `units`: `activation`, ...
        per_example: Whether each example has a mask of its own; else the batch has one
            mask, at nearly the cost of `Dense`.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.
        **kwargs: As of `keras.layers.Dense`.

    Input shape: `(batch, ..., size)`, of a float dtype. Output shape:
    `(batch, ..., units)`.

    Raises:
        ValueError: If an argument is invalid or the inputs are not of a float dtype.

    Reference: [Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html)
    """

    place = "dense layer"

    call = Drop.call
    quantize = quantized_build = refuse_quantization

    def __init__(self, units, rate, *args, per_example=True, seed=None, **kwargs):
        own = {"rate": rate, "per_example": per_example, "seed": seed}
        super().__init__(units, *args, **own, **kwargs)

    def infer(self, inputs):
        return super().call(dense_unless_matrix(inputs))

    def product(self):
        return ops.matmul

    def connect(self, inputs, kernel, draw, rows):
        if len(inputs.shape) > 2:
            return super().connect(inputs, kernel, draw, rows)
        return connections.connect(inputs, kernel, draw, rows)


@keras.saving.register_keras_serializable("kdrop")
class DropConnectConv2D(keras.layers.Conv2D, _Connections):
    """A convolution that drops single weights of its filters, in each example others.

    `DropConnectDense` for convolutions: the positions of an example share its mask. At
    rest the layer is `keras.layers.Conv2D`, whose weights it has.

    With a mask for each example, examples are convolved one after the other, each with
    filters that are masked for it and masked again for the gradient.

    Args:
        filters: Number of filters.
        kernel_size: Integer or pair of integers, height and width of the filters.
        rate: Fraction of weights to drop, in [0, 1).
        *args: As `keras.layers.Conv2D` takes them after `kernel_size`: `strides`, ...
        per_example: Whether each example has a mask of its own; else the batch has one
            mask, at nearly the cost of `Conv2D`.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks.
        **kwargs: As of `keras.layers.Conv2D`.

    Input and output shapes: as of `keras.layers.Conv2D`, in both data formats.

    Raises:
        ValueError: If an argument is invalid or the inputs are not of a float dtype.

    Reference: [Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html), who
    drop weights of dense layers
    """

    place = "convolution"

    call = Drop.call
    quantize = quantized_build = refuse_quantization

    def __init__(
        self, filters, kernel_size, rate, *args, per_example=True, seed=None, **kwargs
    ):
        own = {"rate": rate, "per_example": per_example, "seed": seed}
        super().__init__(filters, kernel_size, *args, **own, **kwargs)
        self.supports_masking = False  # as of Conv2D: a mask would not fit the outputs

    def infer(self, inputs):
        return super().call(dense_unless_matrix(inputs))

    def product(self):
        return _Convolution(
            self.strides, self.padding, self.dilation_rate, self.data_format
        )
