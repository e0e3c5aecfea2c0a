"""The base of every drop layer: its rate, its draws, and when it drops."""

import collections
import contextvars
import numbers
import random
import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from kdrop import kernels

# What the drop layers draw while a model is sampled at inference: a `Sampling`, or
# `None`. It is set by the function that is traced with it, never around another.
sampling: contextvars.ContextVar[Any] = contextvars.ContextVar("sampling", default=None)


class Sampling:
    """Draws in place of the layers' own, or, without a seed, the layers' own.

    Args:
        seed: Integer or scalar integer tensor in place of the layers' seeds.
        rows: uint32 tensor `(batch, 2)` that names the rows being computed: the first
            word stands for the pass, the second for the example in it.
    """

    def __init__(self, seed=None, rows=None):
        self.seed, self.rows = seed, rows
        self._calls = collections.Counter()

    def draw(self, layer, state):
        """The draw of a layer's next call, and of no other call or layer."""
        number = self._calls[layer]
        self._calls[layer] += 1
        seed = ops.cast(self.seed, state.dtype)
        number = ops.full_like(seed, number)
        return ops.stack([seed, state[1], number, state[3], state[4]])


def check_rate(rate):
    """The rate as a Python float; anything outside [0, 1) raises `ValueError`."""
    if (
        not isinstance(rate, numbers.Real)
        or isinstance(rate, bool)
        or not 0 <= rate < 1
    ):
        raise ValueError(
            "Invalid value received for argument `rate`. "
            "Expected a float value between 0 and 1. "
            f"Received: rate={rate!r}. Allowed: 0 <= rate < 1."
        )
    return float(rate)


def check_seed(seed):
    """The seed as it came; anything but `None` or an integer in [0, 2^32) raises."""
    if seed is None:
        return None
    if (
        not isinstance(seed, numbers.Integral)
        or isinstance(seed, bool)
        or not 0 <= seed < 2**32
    ):
        raise ValueError(
            "Argument `seed` must be an integer in [0, 2^32), or None. "
            f"Received: seed={seed!r}"
        )
    return int(seed)


def check_noise_shape(noise_shape):
    """The noise shape as a tuple of positive integers and `None`, or `None`."""
    if noise_shape is None:
        return None
    invalid = "Invalid value received for argument `noise_shape`. "
    if isinstance(noise_shape, str) or not hasattr(noise_shape, "__iter__"):
        raise ValueError(
            f"{invalid}Expected a tuple or list of integers. "
            f"Received: noise_shape={noise_shape!r}"
        )
    noise_shape = tuple(noise_shape)
    for size in noise_shape:
        if size is None:
            continue
        if not isinstance(size, numbers.Integral) or isinstance(size, bool):
            raise ValueError(
                f"{invalid}Expected all elements to be integers or None. "
                f"Received: noise_shape={noise_shape}"
            )
        if size <= 0:
            raise ValueError(
                f"{invalid}Expected all dimensions to be positive integers or None. "
                f"Received: noise_shape={noise_shape}"
            )
    return tuple(None if size is None else int(size) for size in noise_shape)


class Draws(keras.Layer):
    """The numbers that make a drop layer's masks: seed, salt, draw count, threshold.

    A layer of its own, so that a weights file has a place for them that the files of
    `keras.layers.Dropout` simply lack. They are the state of a seed generator and not
    weights: `get_weights()` is as long as with Keras's layers.
    """

    def __init__(self, seed, salt, threshold):
        super().__init__(name="draws")
        self.generator = keras.random.SeedGenerator(seed)
        # Signed 64 bits on TensorFlow, where uint32 variables lack kernels on devices;
        # only the low 32 count. "none": each replica advances its own copy.
        with keras.name_scope(self.generator.name):  # for a path that no other has
            self.generator.state = keras.Variable(
                [seed, salt, 0, threshold, 0],
                dtype=self.generator.state.dtype,
                trainable=False,
                aggregation="none",
                name="draws",
            )
        self._one = np.array([0, 0, 1, 0, 0], dtype=self.generator.state.dtype)
        # A function and not a variable, which Keras would track as a weight.
        self.clock = None
        self.built = True

    def next(self):
        """The vector `[seed, salt, number, threshold, offset]` of a new draw."""
        active = sampling.get()
        if active is not None and active.seed is not None:
            return active.draw(self, ops.convert_to_tensor(self.generator.state))
        state = self.generator.state.value + self._one
        if self.clock is not None and active is None:
            # However often the step is recomputed, this is the same number.
            number = state[4] + ops.cast(self.clock(), state.dtype) + 1
            state = ops.stack([state[0], state[1], number, state[3], state[4]])
        self.generator.state.assign(state)
        return state

    def kept(self, dtype):
        """The fraction that is kept, `1 - rate`, as a scalar tensor."""
        return kernels.kept(ops.convert_to_tensor(self.generator.state), dtype)

    def align(self, now):
        """Let a clock that shows `now` go on from the draws that there were.

        So a second `fit` does not repeat the masks of the first.
        """
        seed, salt, number, threshold, _ = self._values()
        self._assign(seed, salt, number, threshold, (number - now) % 2**32)

    def count(self):
        """How many draws there were, modulo 2^32."""
        return self._values()[2] % 2**32

    def set_threshold(self, threshold):
        """Change the rate of this and all later draws, in traced functions too."""
        seed, salt, number, _, offset = self._values()
        self._assign(seed, salt, number, threshold, offset)

    def _values(self):
        return [int(v) for v in keras.ops.convert_to_numpy(self.generator.state)]

    def _assign(self, *values):
        dtype = self.generator.state.dtype
        self.generator.state.assign(ops.convert_to_tensor(values, dtype=dtype))

    def _restore(self, seed, salt, number):
        self._assign(seed, salt, number % 2**32, *self._values()[3:])

    # The rate belongs to the configuration: no file of weights carries the threshold.
    def save_own_variables(self, store):
        store["draws"] = self._values()[:3]

    def load_own_variables(self, store):
        # A file of Keras's layers has nothing here.
        if "draws" in store.keys():
            self._restore(*(int(v) for v in store["draws"]))

    # The same for `tf.train.Checkpoint`, which asks each object on its way.
    def _serialize_to_tensors(self):
        return {"draws": self.generator.state.value[:3]}

    def _restore_from_tensors(self, restored):
        self._restore(*(int(v) for v in restored["draws"]))


class Noise(keras.Layer):
    """A layer that is random during training, and when it is sampled.

    A subclass says what it does then in `drop(inputs, draw, rows)` and, where it is
    not the identity, what happens at rest in `rest(inputs)`.

    Args:
        seed: Integer in [0, 2^32). The same seed and layer name give the same draws;
            `None` draws a seed.
        threshold: What the draws hand out as the threshold, if the layer has a rate.

    Raises:
        ValueError: If the seed or the inputs are not as said.
    """

    def __init__(self, seed=None, threshold=0, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.seed = check_seed(seed)
        drawn = random.randrange(2**32) if self.seed is None else self.seed
        self.draws = Draws(drawn, zlib.crc32(self.name.encode()), threshold)
        self.built = type(self).build is keras.Layer.build

    def check(self, inputs):
        """Raise `ValueError` for inputs, symbolic ones too, that cannot be dropped."""
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                f"Layer {self.name!r} drops floating-point inputs only. Received: "
                f"inputs of dtype {dtype}; cast them to a float dtype first."
            )

    def call(self, inputs, training=False):
        inputs = ops.convert_to_tensor(inputs)
        self.check(inputs)
        if training or sampling.get() is not None:
            return self.drop(inputs, self.draws.next(), self._rows(inputs))
        return self.rest(inputs)

    def rest(self, inputs):
        return inputs

    def shares_batch(self, inputs):
        """Whether one decision holds for all rows of the batch."""
        return False

    def _rows(self, inputs):
        """The rows of the mask, in one of the forms that kernels take."""
        shared, active = self.shares_batch(inputs), sampling.get()
        if active is not None and active.rows is not None:
            # A pass shares a mask: passes lie side by side in the batch.
            return active.rows * np.array([1, 0], "uint32") if shared else active.rows
        return np.zeros((1, 2), "uint32") if shared else first_row(inputs)

    def compute_output_spec(self, inputs, **kwargs):
        self.check(inputs)
        return super().compute_output_spec(inputs, **kwargs)

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


class Drop(Noise):
    """Noise of a rate that is set, on inputs whose shape it keeps.

    Args:
        rate: Fraction to drop, in [0, 1). It can be set at any time, on a compiled
            and traced model too: `layer.rate = 0.3`.
        seed: Integer in [0, 2^32). The same seed and layer name give the same masks;
            `None` draws a seed.

    Raises:
        ValueError: If the rate, the seed or the inputs are not as said.
    """

    def __init__(self, rate, seed=None, **kwargs):
        rate = check_rate(rate)
        super().__init__(seed=seed, threshold=self.threshold(rate), **kwargs)
        self._rate = rate

    @property
    def rate(self):
        return self._rate

    @rate.setter
    def rate(self, rate):
        self._rate = check_rate(rate)
        self.draws.set_threshold(self.threshold(self._rate))

    def threshold(self, rate):
        """The integer that a draw hands to the kernel for a rate."""
        return kernels.threshold(rate)

    def kept(self, dtype):
        """The fraction that is kept, `1 - rate`; in an export it is a constant."""
        if kernels.plain.get():
            return 1 - self.threshold(self.rate) / 2**32
        return self.draws.kept(dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


def first_row(inputs):
    """uint32 scalar: how many rows of the global batch are on replicas before this."""
    if keras.backend.backend() != "tensorflow":
        return np.zeros((), "uint32")
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return np.zeros((), "uint32")
    batch = tf.shape(inputs)[0] if inputs.shape.rank != 0 else 1
    number, count = replica.replica_id_in_sync_group, replica.num_replicas_in_sync
    try:
        own = tf.one_hot(number, count, dtype="int64") * tf.cast(batch, "int64")
        sizes = replica.all_reduce(tf.distribute.ReduceOp.SUM, own)
    except RuntimeError:
        # Replicas cannot meet inside a function of their own, as in a loop over time:
        # equal shares are assumed there.
        return tf.cast(number * batch, "uint32")
    return tf.cast(tf.cumsum(sizes, exclusive=True)[number], "uint32")
