"""The layers of a network, from the arguments that all builders share."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import keras
from keras import ops

from kdrop.layers.units import InvertedDropout

# The places of a network that layers of each kind take: themselves, or InvertedDropout.
_PLACES: dict[str, dict[str, bool]] = {
    "units": {"inputs": True, "feature maps": True, "dense units": True},
    "feature maps": {"inputs": False, "feature maps": True, "dense units": False},
    "dense units": {"inputs": True, "dense units": True},
    "convolution": {"inputs": False, "dense units": False},
    "dense layer": {},
}


@keras.saving.register_keras_serializable("kdrop")
class NormPenalty(keras.regularizers.L1L2):
    """Penalty on the L1 norm and the Euclidean norm, not its square, of a parameter.

    Args:
        coefficient: Weight of both norms. At an all-zero parameter their gradient is 0.
        l1, l2: Weights of the absolute and the squared values, which are added.

    >>> import numpy as np
    >>> float(NormPenalty(0.5)(np.array([3.0, -4.0])))
    6.0
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
class Network:
    """Makes the layers of one network; the arguments are those of `kdrop.models`."""

    dropout: Callable[..., keras.Layer] | None
    rate: Any  # a number or several
    places: int
    classes: int = 10
    input_shape: tuple[int, ...] = (32, 32, 3)
    input_rate: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    max_norm: float = 0.0
    norm_penalty: float = 0.0
    examples: int = 1
    seed: int | None = None

    def __post_init__(self):
        rates = [self.rate] * self.places if isinstance(self.rate, Real) else self.rate
        if len(rates) != self.places:
            raise ValueError(
                f"`rate` must be one number, or one for each of this network's "
                f"{self.places} places for dropout. Received: {self.rate}"
            )
        self.rates = {"input": self.input_rate, **dict(enumerate(rates, start=1))}
        for name in ("l1", "l2", "max_norm", "norm_penalty"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"`{name}` must be 0 or more. Received: {getattr(self, name)}"
                )
        self.kind = getattr(self.dropout, "place", "units")
        self.fits = self.dropout is None or self.kind == "units"

    def inputs(self, flat=False):
        layers = [
            keras.Input(self.input_shape, name="inputs"),
            # In half precision, inputs and means would be rounded before subtraction.
            keras.layers.Normalization(dtype="float32", name="standardise"),
        ]
        if flat and len(self.input_shape) > 1:
            layers.append(keras.layers.Flatten())
        return layers + (self.drop("input", "inputs") if self.input_rate else [])

    def drop(self, number, place="dense units"):
        """The drop layer at a place of the network, in a list that may be empty."""
        takes_it = _PLACES.get(self.kind, {}).get(place)
        if self.dropout is None or takes_it is None:
            return []
        if not takes_it:
            return [InvertedDropout(**self._drop_arguments(number))]
        self.fits |= place != "inputs"
        if hasattr(self.dropout, "at_place"):
            return [self._at_place(number)]
        arguments = self._drop_arguments(number)
        return [self.dropout(arguments.pop("rate"), **arguments)]

    def dense(self, units, number):
        """A hidden dense layer, which a place for dropout follows or precedes."""
        arguments = {"units": units, "activation": "relu", **self._weights(0)}
        if self.kind != "dense layer":
            return keras.layers.Dense(**arguments)
        return self._at_place(number, **arguments)

    def conv(self, filters, size, number=None, **arguments):
        """A convolution; `number` is that of the place for dropout behind it."""
        if len(self.input_shape) != 3:
            raise ValueError(
                "convolutions take images of (height, width, channels). "
                f"Received: input_shape={self.input_shape}"
            )
        arguments |= {"filters": filters, "kernel_size": size}
        arguments |= self._weights([0, 1, 2])
        if self.kind != "convolution" or number is None:
            return keras.layers.Conv2D(**arguments)
        return self._at_place(number, **arguments)

    def _at_place(self, number, **arguments):
        """The drop layer of kdrop, made for its place by the layer's own rule."""
        self.fits = True
        dropout: Any = self.dropout
        arguments |= self._drop_arguments(number)
        return dropout.at_place(examples=self.examples, **arguments)

    def _drop_arguments(self, number):
        return dict(rate=self.rates[number], seed=self.seed, name=f"drop_{number}")

    def _weights(self, axis):
        limit = self.max_norm and keras.constraints.MaxNorm(self.max_norm, axis)
        return dict(
            kernel_initializer="he_normal",
            kernel_constraint=limit or None,
            **self.penalties("kernel", "bias", l1=self.l1, l2=self.l2),
        )

    def penalties(self, *names, l1=0.0, l2=0.0):
        """A layer's arguments that penalise its parameters of these names."""
        penalty = keras.regularizers.L1L2(l1, l2) if l1 or l2 else None
        if self.norm_penalty:
            penalty = NormPenalty(self.norm_penalty, l1, l2)
        return {f"{name}_regularizer": penalty for name in names}

    def head(self):
        """The output layer: called last, it rejects a drop layer that fits nowhere."""
        if not self.fits:
            in_place = self.kind in ("dense layer", "convolution")
            needs = f"a {self.kind} to replace" if in_place else self.kind
            name = getattr(self.dropout, "__name__", self.dropout)
            raise ValueError(f"{name} needs {needs}, which this network does not have.")
        return keras.layers.Dense(
            self.classes,
            activation="sigmoid" if self.classes == 1 else "softmax",
            dtype="float32",  # half precision rounds small probabilities to 0
            name="probabilities",
            **self.penalties("kernel", "bias"),
        )
