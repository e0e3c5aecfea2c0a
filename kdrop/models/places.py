"""The layers of a network, from the arguments that all builders share."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import keras

from kdrop.errors import check
from kdrop.layers.units import InvertedDropout
from kdrop.models.losses import NormPenalty

# Where each kind of layer goes: True inserts the layer, False an InvertedDropout.
_PLACES: dict[str, dict[str, bool]] = {
    "units": {"inputs": True, "feature maps": True, "dense units": True},
    "feature maps": {"inputs": False, "feature maps": True, "dense units": False},
    "dense units": {"inputs": True, "dense units": True},
    "convolution": {"inputs": False, "dense units": False},
    "residual branches": {
        "inputs": False,
        "residual branches": True,
        "dense units": False,
    },
}


@dataclass
class Network:
    """Makes the layers of one network; `kdrop.models` explains the arguments."""

    dropout: Any
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
            value = getattr(self, name)
            check(name, value, value >= 0, "0 or more")
        # A partial of a layer class has the place of the class.
        layer = getattr(self.dropout, "func", self.dropout)
        self.kind = getattr(layer, "place", "units")
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
        self.fits |= takes_it and place != "inputs"
        dropout: Any = self.dropout if takes_it else InvertedDropout
        if hasattr(dropout, "at_place"):
            return [self._at_place(number, dropout)]
        return [dropout(self.rates[number], seed=self.seed, name=f"drop_{number}")]

    def dense(self, units, number):
        """A hidden dense layer, which a place for dropout follows or precedes."""
        arguments = {"units": units, "activation": "relu"}
        return self._weighted("dense layer", keras.layers.Dense, 0, number, arguments)

    def hidden(self, widths, first=1):
        """Dense layers, each followed by a place for dropout."""
        layers = []
        for number, units in enumerate(widths, start=first):
            layers += [self.dense(units, number), *self.drop(number)]
        return layers

    def conv(self, filters, size, number=None, **arguments):
        """A convolution; `number` is that of the place for dropout after it."""
        if len(self.input_shape) != 3:
            raise ValueError(
                "convolutions take images of (height, width, channels). "
                f"Received: input_shape={self.input_shape}"
            )
        arguments |= {"filters": filters, "kernel_size": size}
        axis, layer = [0, 1, 2], keras.layers.Conv2D
        return self._weighted("convolution", layer, axis, number, arguments)

    def _weighted(self, kind, layer, axis, number, arguments):
        """A layer of Keras or, if it replaces layers of this kind, the drop layer.

        A layer whose `number` is `None` is no place for dropout.
        """
        constraint = keras.constraints.MaxNorm(self.max_norm, axis)
        arguments |= {
            "kernel_initializer": "he_normal",
            "kernel_constraint": constraint if self.max_norm else None,
            **self.penalties("kernel", "bias", l1=self.l1, l2=self.l2),
        }
        if self.kind != kind or number is None:
            return layer(**arguments)
        self.fits = True
        return self._at_place(number, self.dropout, **arguments)

    def _at_place(self, number, dropout, **arguments):
        arguments |= {"rate": self.rates[number], "name": f"drop_{number}"}
        return dropout.at_place(examples=self.examples, seed=self.seed, **arguments)

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

    def sequential(self, name, layers):
        return keras.Sequential([*layers, self.head()], name=name)
