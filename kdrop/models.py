"""Networks with places for dropout, as functions that build them.

A builder takes `(dropout, rate)`, sizes of its own, `classes` and `input_shape`.
`dropout` is called as `dropout(rate, seed=seed, name="drop_1")` for each place: a layer
class of kdrop or Keras, or any function of that form; `None` leaves the places empty.
`dense_dropout`, if given, is called instead at places that are not behind convolutions.
`dense`, if given, makes the hidden dense layers, for layers that drop connections: it
is called with the width, `rate`, `seed`, `name` and what `keras.layers.Dense` takes.
`convolution` likewise makes the convolutions that have a place for dropout behind them,
with the number and size of the filters; those places stay empty then.
`rate` is the fraction dropped: one for all places, or one for each. Further keywords:

    input_rate      fraction of the standardised inputs to drop; 0 adds no layer
    l1, l2          weights of hidden layers' absolute and squared kernels and biases
    max_norm        bound on the length of the weights into a hidden unit, or None
    norm_penalty    coefficient of a `NormPenalty` of every parameter of every layer
    seed            for the drop layers

The models take raw inputs, give probabilities (one, by a sigmoid, for `classes=1`) and
come uncompiled. Their first layer, "standardise", is a `keras.layers.Normalization`
that the caller adapts to the training inputs. A wrong number of rates or a negative
penalty raises `ValueError`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("kdrop")
class NormPenalty(keras.regularizers.L1L2):
    """Penalty on the L1 norm and the Euclidean norm, not its square, of a parameter.

    Args:
        coefficient: Weight of both. At an all-zero parameter their gradient is 0.
        l1, l2: Weights of the absolute and the squared values, added to that.
    """

    def __init__(self, coefficient, l1=0.0, l2=0.0):
        super().__init__(l1=l1, l2=l2)
        self.coefficient = coefficient

    def __call__(self, x):
        square = ops.sum(ops.square(x))
        # The root has an infinite slope at 0, and 0 * inf would be a NaN.
        norm = ops.where(square > 0, ops.sqrt(ops.where(square > 0, square, 1.0)), 0.0)
        return super().__call__(x) + self.coefficient * (ops.sum(ops.abs(x)) + norm)

    def get_config(self):
        return {"coefficient": self.coefficient, **super().get_config()}


@dataclass
class _Parts:
    """The layers that builders put together; what is common to all is said here."""

    dropout: Callable[..., keras.Layer] | None
    rate: Any  # a number or several
    places: int
    dense_dropout: Callable[..., keras.Layer] | None = None
    dense: Callable[..., keras.Layer] | None = None
    convolution: Callable[..., keras.Layer] | None = None
    classes: int = 10
    input_shape: tuple[int, ...] = (32, 32, 3)
    input_rate: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    max_norm: float | None = None
    norm_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self):
        single = isinstance(self.rate, Real)
        rates = [self.rate] * self.places if single else [*self.rate]
        if len(rates) != self.places:
            raise ValueError(
                f"`rate` must be one number, or one for each of this network's "
                f"{self.places} places for dropout. Received: {self.rate}"
            )
        self.rates = {"input": self.input_rate, **dict(enumerate(rates, start=1))}
        for name in ("l1", "l2", "max_norm", "norm_penalty"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"`{name}` must be 0 or more. Received: {value}")

    def inputs(self, flat=False):
        layers = [
            keras.Input(self.input_shape, name="inputs"),
            # In half precision, inputs and means would be rounded before they meet.
            keras.layers.Normalization(dtype="float32", name="standardise"),
        ]
        if flat and len(self.input_shape) > 1:
            layers.append(keras.layers.Flatten())
        if self.input_rate:
            layers += self.drop("input")
        return layers

    def drop(self, place, maps=False):
        """A list of one layer or none; a place is a number from 1 or "input"."""
        dropout = self.dropout if maps else self.dense_dropout or self.dropout
        if dropout is None:
            return []
        return [dropout(self.rates[place], seed=self.seed, name=f"drop_{place}")]

    def hidden(self, units, place):
        """The dense layer next to a place for dropout."""
        weights = {"activation": "relu", **self._weights(0)}
        if self.dense is None:
            return keras.layers.Dense(units, **weights)
        return self.dense(units, **self._drops(place), **weights)

    def conv(self, filters, size, place=None, **arguments):
        """A convolution, and the place for dropout behind it if there is one."""
        if len(self.input_shape) != 3:
            raise ValueError(
                "convolutions take images of (height, width, channels). "
                f"Received: input_shape={self.input_shape}"
            )
        arguments |= self._weights([0, 1, 2])
        if self.convolution is None or place is None:
            return keras.layers.Conv2D(filters, size, **arguments)
        return self.convolution(filters, size, **self._drops(place), **arguments)

    def _drops(self, place):
        return dict(rate=self.rates[place], seed=self.seed, name=f"drop_{place}")

    def _weights(self, axis):
        bound = (
            keras.constraints.MaxNorm(self.max_norm, axis) if self.max_norm else None
        )
        return dict(
            kernel_initializer="he_normal",
            kernel_constraint=bound,
            **self.penalise("kernel", "bias", l1=self.l1, l2=self.l2),
        )

    def penalise(self, *names, l1=0.0, l2=0.0):
        """A layer's arguments for its parameters of these names."""
        penalty = keras.regularizers.L1L2(l1, l2) if l1 or l2 else None
        if self.norm_penalty:
            penalty = NormPenalty(self.norm_penalty, l1, l2)
        return {f"{name}_regularizer": penalty for name in names}

    def head(self):
        return keras.layers.Dense(
            self.classes,
            activation="sigmoid" if self.classes == 1 else "softmax",
            dtype="float32",  # half precision rounds small probabilities to 0
            name="probabilities",
            **self.penalise("kernel", "bias"),
        )


def _mlp(name, parts, hidden):
    layers = parts.inputs(flat=True)
    for place, units in enumerate(hidden, start=1):
        layers += [parts.hidden(units, place), *parts.drop(place)]
    return keras.Sequential([*layers, parts.head()], name=name)


def spiral_mlp(
    dropout=None, rate=0.3, *, hidden=(256, 256), classes=3, input_shape=(2,), **common
):
    """ReLU layers of the widths in `hidden`, each followed by a place for dropout."""
    parts = _Parts(
        dropout, rate, len(hidden), classes=classes, input_shape=input_shape, **common
    )
    return _mlp("spiral_mlp", parts, hidden)


def mnist_mlp(
    dropout=None, rate=0.5, *, hidden=(1024, 1024), input_shape=(28, 28, 1), **common
):
    """The same for flattened images, as wide as those of Srivastava et al. (2014)."""
    parts = _Parts(dropout, rate, len(hidden), input_shape=input_shape, **common)
    return _mlp("mnist_mlp", parts, hidden)


def concat_mlp(
    dropout=None, rate=0.5, *, hidden=(512, 512), input_shape=(28, 28, 1), **common
):
    """ReLU layers with dropout; the output layer sees them all side by side."""
    parts = _Parts(dropout, rate, len(hidden), input_shape=input_shape, **common)
    inputs, *before = parts.inputs(flat=True)
    outputs, seen = inputs, []
    for layer in before:
        outputs = layer(outputs)
    for place, units in enumerate(hidden, start=1):
        for layer in [parts.hidden(units, place), *parts.drop(place)]:
            outputs = layer(outputs)
        seen.append(outputs)
    outputs = parts.head()(keras.layers.Concatenate()(seen))
    return keras.Model(inputs, outputs, name="concat_mlp")


def alexnet(dropout=None, rate=0.5, *, hidden=(4096, 4096), **common):
    """Five convolutions at 224 x 224, then dropout before each layer of `hidden`.

    Images of another size are resized inside the model. The layout is the single
    column of [Krizhevsky, 2014](https://arxiv.org/abs/1404.5997).
    """
    parts = _Parts(dropout, rate, len(hidden), **common)
    layers = parts.inputs()
    if tuple(parts.input_shape[:2]) != (224, 224):
        layers.append(keras.layers.Resizing(224, 224))
    layers += [
        keras.layers.ZeroPadding2D(2),
        parts.conv(64, 11, strides=4, activation="relu"),
        keras.layers.MaxPooling2D(3, strides=2),
        parts.conv(192, 5, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(3, strides=2),
        parts.conv(384, 3, padding="same", activation="relu"),
        parts.conv(256, 3, padding="same", activation="relu"),
        parts.conv(256, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(3, strides=2),
        keras.layers.Flatten(),
    ]
    for place, units in enumerate(hidden, start=1):
        layers += [*parts.drop(place), parts.hidden(units, place)]
    return keras.Sequential([*layers, parts.head()], name="alexnet")


def alexnet32(dropout=None, rate=None, *, width=32, hidden=(1024,), **common):
    """`alexnet` at the scale of 32 x 32 images, with batch normalisation.

    The first convolution has `width` filters, the others 3, 6, 4 and 4 times as many.
    Places for dropout are behind each of the three poolings and each dense layer; the
    rates are 0.1, 0.1 and 0.2, then 0.5, unless they are given.
    """
    rate = (0.1, 0.1, 0.2, *[0.5] * len(hidden)) if rate is None else rate
    parts = _Parts(dropout, rate, 3 + len(hidden), **common)
    layers = parts.inputs()
    place = 0
    for times, pool in [(1, True), (3, True), (6, False), (4, False), (4, True)]:
        place += pool
        filters, behind = times * width, place if pool else None
        layers.append(parts.conv(filters, 3, behind, padding="same", use_bias=False))
        if pool:  # first, for it leaves a quarter of the values to normalise
            layers.append(keras.layers.MaxPooling2D(2))
        layers += [
            keras.layers.BatchNormalization(
                momentum=0.9, **parts.penalise("gamma", "beta")
            ),
            keras.layers.ReLU(),
        ]
        if pool:
            layers += parts.drop(place, maps=True)
    layers.append(keras.layers.Flatten())
    for place, units in enumerate(hidden, start=4):
        layers += [parts.hidden(units, place), *parts.drop(place)]
    return keras.Sequential([*layers, parts.head()], name="alexnet32")


def srivastava_cnn(dropout=None, rate=None, *, hidden=(2048, 2048), **common):
    """Three convolutions, then dense layers, with dropout after each of them all.

    As in [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
    appendix B.2, `input_rate` is 0.1, the rates are 0.25, 0.25 and then 0.5, and
    `max_norm` is 4, unless they are given.
    """
    filters = (96, 128, 256)
    rate = (0.25, 0.25, 0.5, *[0.5] * len(hidden)) if rate is None else rate
    common: dict[str, Any] = {"input_rate": 0.1, "max_norm": 4.0, **common}
    parts = _Parts(dropout, rate, len(filters) + len(hidden), **common)
    layers = parts.inputs()
    for place, count in enumerate(filters, start=1):
        layers += [
            parts.conv(count, 5, place, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(3, strides=2, padding="same"),
            *parts.drop(place, maps=True),
        ]
    layers.append(keras.layers.Flatten())
    for place, units in enumerate(hidden, start=len(filters) + 1):
        layers += [parts.hidden(units, place), *parts.drop(place)]
    return keras.Sequential([*layers, parts.head()], name="srivastava_cnn")


_BUILDERS = (spiral_mlp, mnist_mlp, concat_mlp, alexnet, alexnet32, srivastava_cnn)
MODELS = {builder.__name__: builder for builder in _BUILDERS}
