"""Layers that drop connections: single weights instead of units."""

import functools

import keras
from keras import ops

from kdrop.errors import check_bool
from kdrop.layers.base import Drop, dense_unless_matrix, refuse_quantization
from kdrop.masks import connections, kernels, run


@functools.cache
def _convolution(strides, padding, data_format, dilation):
    """The convolution of inputs with filters; the same function for equal settings."""

    def last(inputs, kernel):
        return ops.conv(inputs, kernel, strides, padding, "channels_last", dilation)

    def first(inputs, kernel):
        # Inside a loop, TensorFlow has no gradient for channels first on a CPU.
        outputs = last(ops.transpose(inputs, (0, 2, 3, 1)), kernel)
        return ops.transpose(outputs, (0, 3, 1, 2))

    return last if data_format == "channels_last" else first


class Connections(Drop):
    """Drops entries of a kernel and a bias: the base beside a layer of Keras.

    A subclass has the layer's `product` of inputs and kernel.
    """

    config_arguments = ("per_example",)

    def __init__(self, rate, per_example=True, **kwargs):
        super().__init__(rate, **kwargs)
        self.per_example = check_bool("per_example", per_example)

    def shares_batch(self, inputs):
        return not self.per_example

    def drop(self, inputs, draw, rows):
        # A tensor: functions with a custom gradient take no variables.
        kernel = ops.reshape(self.kernel, self.kernel.shape)
        shared = run.is_shared(rows)
        if shared:
            kernel = connections.thin(kernel, draw, rows)
        if shared or 0 in (inputs.shape[0], *kernel.shape):
            outputs = self.product(inputs, kernel)
        else:
            outputs = connections.connect(self.product, inputs, kernel, draw, rows)
        if self.use_bias:
            outputs = outputs + self._thin_bias(outputs, draw, rows)
        return outputs if self.activation is None else self.activation(outputs)

    def _thin_bias(self, outputs, draw, rows):
        # Another name hash, so that the bias does not share the kernel's words.
        draw = draw + ops.convert_to_tensor([0, 1, 0, 0, 0], dtype=draw.dtype)
        count = 1 if run.is_shared(rows) else ops.shape(outputs)[0]
        size = self.bias.shape[0]
        bias = ops.broadcast_to(self.bias, (count, size))
        bias = run.apply(kernels.INVERTED, bias, draw, rows)
        inner = (1,) * (len(outputs.shape) - 2)
        first = getattr(self, "data_format", "") == "channels_first"
        shape = (size, *inner) if first else (*inner, size)
        return ops.reshape(bias, (count, *shape))


@keras.saving.register_keras_serializable("kdrop")
class DropConnectDense(keras.layers.Dense, Connections):
    """A dense layer that drops single weights, different ones in each example.

    In training weights and, as in the paper, entries of the bias are dropped with
    probability `rate`, and the others scaled by `1 / (1 - rate)`. At inference the
    layer is `keras.layers.Dense`, whose weights it has, and before the activation the
    outputs are the mean of those in training. (The paper samples a Gaussian of the same
    mean and variance instead.)

    Masks are drawn again for each gradient, each time at a cost of
    `batch * inputs * units` random words. All positions of an example share its mask.

    Args:
        units: Size of the outputs' last dimension.
        rate: Fraction of weights to drop, in [0, 1). It can be set at any time.
        per_example: Whether each example has its own mask. If not, the batch shares one
            mask, at nearly the cost of `Dense`.
        *args: Those of `keras.layers.Dense` after `units`.
        **kwargs: Those of `keras.layers.Dense`; `seed`, the errors and the inputs'
            dtype are those of `InvertedDropout`.

    Input shape: `(batch, ..., size)`. Output shape: `(batch, ..., units)`.

    >>> layer = kdrop.DropConnectDense(
    ...     3, 0.5, seed=1, name="drop", kernel_initializer="ones")
    >>> print(keras.ops.convert_to_numpy(layer(keras.ops.ones((2, 4)), training=True)))
    [[8. 2. 4.]
     [4. 4. 6.]]

    Reference: [Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html)
    """

    place = "dense layer"
    product = staticmethod(ops.matmul)
    call = Drop.call
    quantize = quantized_build = refuse_quantization

    def __init__(self, units, rate, *args, per_example=True, seed=None, **kwargs):
        settings = {"rate": rate, "per_example": per_example, "seed": seed}
        super().__init__(units, *args, **settings, **kwargs)

    def infer(self, inputs):
        return super().call(dense_unless_matrix(inputs))


@keras.saving.register_keras_serializable("kdrop")
class DropConnectConv2D(keras.layers.Conv2D, Connections):
    """A convolution that drops single weights of its filters; see `DropConnectDense`.

    At inference the layer is `keras.layers.Conv2D`, whose weights it has. With a mask
    for each example, examples are convolved one after the other. Arguments, shapes and
    errors as in `keras.layers.Conv2D`, with `rate` after `kernel_size`, and
    `DropConnectDense`.

    >>> layer = kdrop.DropConnectConv2D(8, 3, 0.5, activation="relu")
    >>> print(layer(keras.ops.ones((2, 28, 28, 1)), training=True).shape)
    (2, 26, 26, 8)

    Reference: [Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html), who
    drop weights of dense layers
    """

    place = "convolution"
    call = Drop.call
    quantize = quantized_build = refuse_quantization

    def __init__(
        self, filters, kernel_size, rate, *args, per_example=True, seed=None, **kwargs
    ):
        settings = {"rate": rate, "per_example": per_example, "seed": seed}
        super().__init__(filters, kernel_size, *args, **settings, **kwargs)
        # As in Conv2D: a mask of the inputs does not fit the outputs.
        self.supports_masking = False

    def infer(self, inputs):
        return super().call(dense_unless_matrix(inputs))

    @property
    def product(self):
        settings = self.strides, self.padding, self.data_format, self.dilation_rate
        return _convolution(*settings)
