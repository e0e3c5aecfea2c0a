"""The base classes of the drop layers: what they do in training and at inference."""

import random
import zlib
from numbers import Integral

import keras
from keras import ops

from kdrop import backend, keras_internals
from kdrop.errors import check, check_seed, is_number
from kdrop.layers.draws import COUNT, THRESHOLD, Draws
from kdrop.layers.sampling_context import mask_rows, occurrences, sampling
from kdrop.masks import kernels


class Noise(keras.Layer):
    """A layer that is random in training, and when it is sampled at inference.

    A subclass defines `drop(inputs, draw, rows)`, its output in training, and, where
    that is not the inputs themselves, `infer(inputs)`, its output at inference.
    `threshold` is the integer that stands for the rate in each draw.
    """

    # Where in a network the layer belongs; the builders of `kdrop.models` ask for it.
    # "units": after any layer. "feature maps": after convolutions. "dense units": after
    # dense layers. "dense layer", "convolution": in place of such a layer. "residual
    # branches": last in them. Others, such as "tokens": nowhere in those networks.
    place = "units"
    # The arguments of a subclass that its configuration holds, as attributes.
    config_arguments = ()
    drops = True  # whether the layer changes its inputs in training at all
    once_per_step = True  # whether its calls share a mask in a step of `StepClock`

    @classmethod
    def at_place(cls, rate, examples=1, **arguments):
        """Create a layer for a place in a network.

        Layers that learn their rate start near `rate` or ignore it. The number of
        training `examples` scales a layer's losses. `arguments` are `seed`, `name`, and
        those of a layer whose place it takes.
        """
        return cls(rate=rate, **arguments)

    def __init__(self, seed=None, threshold=0, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.seed = check_seed(seed)
        drawn = random.randrange(2**32) if self.seed is None else self.seed
        self.draws = Draws(drawn, zlib.crc32(self.name.encode()), threshold)
        if type(self).quantize is refuse_quantization:
            # `Model.quantize` asks only the innermost layers.
            self.draws.quantize = self.quantize
        self.built = type(self).build is keras.Layer.build

    def check(self, inputs):
        """Raise `ValueError` unless the layer takes such inputs, symbolic or not."""
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                f"Layer {self.name!r} drops floating-point inputs only. Received: "
                f"inputs of dtype {dtype}; cast them to a float dtype first."
            )

    def __call__(self, inputs, *args, **kwargs):
        if inputs is None or isinstance(inputs, list | tuple | dict):
            kind = "None" if inputs is None else f"a {type(inputs).__name__}"
            raise ValueError(f"Layer {self.name!r} takes one tensor. Received: {kind}.")
        if getattr(inputs, "ragged", False) or hasattr(inputs, "row_splits"):
            raise ValueError(
                f"Layer {self.name!r} takes no ragged tensors. Received: inputs of "
                f"shape {inputs.shape}; make them dense first, with `.to_tensor()`."
            )
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs, training=False):
        inputs = ops.convert_to_tensor(inputs)
        self.check(inputs)
        if self.active(training):
            inputs = ops.convert_to_tensor(inputs, sparse=False)
            draw, rows = self.next_draw(inputs)
            with backend.shared_traces():
                return self.drop(inputs, draw, rows)
        return self.infer(inputs)

    def active(self, training):
        """Whether a call is random: in training, and when the layer is sampled."""
        context = sampling.get()
        return training or (context is not None and context.samples(self))

    def next_draw(self, inputs):
        """The draw and the mask's rows for a call with these inputs."""
        return self.draws.next(self._occurrence()), mask_rows(self, inputs)

    def infer(self, inputs):
        return inputs

    def shares_batch(self, inputs):
        """Whether all rows of the batch share one mask."""
        return False

    def trace_state(self):
        """What a trace depends on. Of the rate that is only whether it is 0."""
        return {**keras_internals.attributes(self), "_rate": self.drops}

    @property
    def draw_count(self):
        """Number of masks that the layer has drawn, modulo 2^32. It can be set."""
        return self.draws.values()[COUNT] % 2**32

    @draw_count.setter
    def draw_count(self, count):
        fits = is_number(count, Integral) and 0 <= count < 2**32
        check("draw_count", count, fits, "an integer in [0, 2^32)")
        self._set_draws(COUNT, int(count), "draw_count")

    def _set_draws(self, index, value, attribute):
        if backend.is_traced():
            raise RuntimeError(
                f"`{attribute}` of layer {self.name!r} cannot be set inside a traced "
                "function: set it outside, as in a callback (`kdrop.RateSchedule`)."
            )
        self.draws.set_value(index, value)

    def _occurrence(self):
        """The layer's index among those of equal seed and name; 0 outside a model."""
        draws = self.draws
        if draws.active_clocks and draws.step_occurrence is not None:
            # A call that is recomputed in the backward pass is outside of the model.
            return draws.step_occurrence
        context, rank = keras_internals.call_context(), 0
        if context is not None and context.entry_layer is not self:
            ranks = context.get_value("kdrop_occurrences")
            if ranks is None:
                layers = drop_layers(context.entry_layer)
                ranks = occurrences(layers, lambda draws: (draws.seed, draws.name_hash))
                context.set_value("kdrop_occurrences", ranks)
            rank = ranks.get(draws, 0)
        draws.step_occurrence = rank
        return rank

    def compute_output_spec(self, inputs, **kwargs):
        self.check(inputs)
        return super().compute_output_spec(inputs, **kwargs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        arguments = {name: getattr(self, name) for name in self.config_arguments}
        return {**super().get_config(), "seed": self.seed, **arguments}


class Drop(Noise):
    """Noise with a rate that the user sets."""

    def __init__(self, rate, seed=None, **kwargs):
        rate = check_rate(rate)
        super().__init__(seed=seed, threshold=self.threshold(rate), **kwargs)
        self._rate = rate

    @property
    def rate(self):
        """Fraction to drop, in [0, 1). It can be set."""
        return self._rate

    @rate.setter
    def rate(self, rate):
        rate = check_rate(rate)
        self._set_draws(THRESHOLD, self.threshold(rate), "rate")
        self._rate = rate

    @property
    def drops(self):
        return self.rate > 0

    def threshold(self, rate):
        return kernels.threshold(rate)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


def check_rate(rate):
    """The rate as a float; raises, in Keras's words, if it is not in [0, 1)."""
    if is_number(rate) and 0 <= rate < 1:
        return float(rate)
    raise ValueError(
        "Invalid value received for argument `rate`. Expected a float value between 0 "
        f"and 1. Received: rate={rate!r}. Allowed: 0 <= rate < 1."
    )


def drop_layers(model):
    """List the drop layers of kdrop in a model or another layer, itself included.

    They are in the order in which Keras saves them, which survives a save and a load.
    Raises `ValueError` for what is no layer.

    >>> model = keras.Sequential([kdrop.InvertedDropout(0.2), keras.layers.Dense(3)])
    >>> [layer.rate for layer in kdrop.drop_layers(model)]
    [0.2]
    """
    fits = isinstance(model, keras.Layer)
    check("model", model, fits, "a keras.Model or another layer")
    return [x for x in keras_internals.layers_of(model) if isinstance(x, Noise)]


def check_model(model):
    check("model", model, isinstance(model, keras.Model), "a keras.Model")


def active_drop_layers(operation):
    """The drop layers with a rate above 0 in a layer, a model or another operation."""
    layers = drop_layers(operation) if isinstance(operation, keras.Layer) else []
    return [layer for layer in layers if layer.drops]


def dense_unless_matrix(inputs):
    """Make sparse inputs dense, except matrices, which Keras multiplies as they are."""
    sparse = None if len(inputs.shape) == 2 else False
    return ops.convert_to_tensor(inputs, sparse=sparse)


def refuse_quantization(layer, *args, **kwargs):
    """Replacement of `quantize` in a layer whose weights are not quantized."""
    raise NotImplementedError(
        f"Layer {layer.name!r} of type {type(layer).__name__} has no quantized form: "
        "it stays in float."
    )
