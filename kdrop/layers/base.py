"""The base of every drop layer: its rate, its draws, and when it drops."""

import contextlib
import numbers
import random
import threading
import zlib
from pathlib import Path

import keras
import numpy as np
from keras import ops

from kdrop import backend, keras_internals
from kdrop.layers.sampling_context import NOT_BY_EXAMPLE, occurrences, sampling
from kdrop.masks import bits, kernels


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


def check_tensor(name, inputs):
    """Raise `ValueError` unless the inputs of a layer are one tensor, not ragged."""
    if inputs is None or isinstance(inputs, list | tuple | dict):
        received = "None" if inputs is None else f"a {type(inputs).__name__}"
        raise ValueError(f"Layer {name!r} takes one tensor. Received: {received}.")
    if getattr(inputs, "ragged", False) or hasattr(inputs, "row_splits"):
        raise ValueError(
            f"Layer {name!r} takes no ragged tensors. Received: inputs of shape "
            f"{inputs.shape}; make them dense first, with `.to_tensor()`."
        )


def dense_unless_matrix(inputs):
    """The inputs, dense unless they are a matrix, which Keras multiplies if sparse."""
    sparse = None if len(inputs.shape) == 2 else False
    return ops.convert_to_tensor(inputs, sparse=sparse)


def refuse_quantization(layer, *args, **kwargs):
    """In the place of `quantize`, for a layer whose weights stay in float."""
    raise NotImplementedError(layer.draws.stays_float)


class Draws(keras.Layer):
    """What makes a drop layer's masks: seed, hash of the name, draw count, threshold.

    A layer of its own, so that a weights file has a place for them that the files of
    `keras.layers.Dropout` simply lack. They are the state of a seed generator and not
    weights: `get_weights()` is as long as with Keras's layers.

    What resuming needs is in every file: the draw count, and the hash of the name, so
    that a model with other automatic names resumes. A seed is in `.keras` files and in
    checkpoints, which restore a model, but not in weights files: models that load the
    same pretrained weights have seeds of their own.
    """

    def __init__(self, seed, name_hash, threshold):
        super().__init__(name="draws")
        # As Python numbers too, to compare layers with each other in a trace.
        self.seed, self.name_hash = seed, name_hash
        self.generator = keras.random.SeedGenerator(seed)
        # Signed 64 bits on TensorFlow, where uint32 variables lack kernels on devices;
        # only the low 32 count. "none": each replica advances its own copy.
        # In eager mode, where a function that is traced makes the layer, too.
        with keras.name_scope(self.generator.name), backend.init_scope():
            self.generator.state = keras.Variable(
                [seed, name_hash, 0, threshold],
                dtype=self.generator.state.dtype,
                trainable=False,
                aggregation="none",
                name="draws",
            )
        self._one = np.array([0, 0, 1, 0], dtype=self.generator.state.dtype)
        self.steps = 0  # training steps of a `StepClock` that are running
        self.occurrence = None  # in the training step that is running
        self.sampled = False  # whether it has drawn for a `Sampling` without rows
        self.built = True

    # A sentence, where the weights of the layer are not quantized.
    stays_float = None

    def quantize(self, mode=None, type_check=True, config=None):
        # `Model.quantize` asks the innermost layers, and so this one for its owner.
        if self.stays_float is not None:
            raise NotImplementedError(self.stays_float)

    def next(self, occurrence):
        """The vector `[seed, name hash, number, threshold, occurrence]` of a new draw.

        Args:
            occurrence: Integer that tells layers of one seed and name apart.
        """
        active, state = sampling.get(), self.generator.state
        if active is not None and active.rows is not None:
            return active.draw(self, ops.convert_to_tensor(state))
        if active is not None:
            active.note(self)
        draw = self.advance() if active or not self.steps else state.value + 0
        last = np.array([occurrence], dtype=state.dtype)
        return ops.concatenate([draw, last])

    def advance(self):
        """Count a draw, and return the state after it."""
        # Threads that call a layer in eager mode must not get the same number.
        with contextlib.nullcontext() if backend.is_traced() else _COUNTING:
            state = self.generator.state.value + self._one
            self.generator.state.assign(state)
        return state

    def resume(self, other):
        """Draw from now on what `other` would draw."""
        self.seed, self.name_hash = other.seed, other.name_hash
        for place, value in enumerate(other._values()[:3]):
            self._set(place, value)

    def trace_state(self):
        """What a trace depends on."""
        return {"name_hash": self.name_hash}

    def kept(self, dtype):
        """The fraction that is kept, `1 - rate`, as a scalar tensor."""
        return kernels.kept(ops.convert_to_tensor(self.generator.state), dtype)

    def count(self):
        """How many draws there were, modulo 2^32."""
        return self._values()[2] % 2**32

    def set_count(self, count):
        """Go on as if there had been so many draws."""
        self._set(2, count)

    def set_threshold(self, threshold):
        """Change the rate of this and all later draws, in traced functions too."""
        self._set(3, threshold)

    def _values(self):
        return [int(v) for v in ops.convert_to_numpy(self.generator.state)]

    def _set(self, place, value):
        values = self._values()
        values[place] = value
        dtype = self.generator.state.dtype
        self.generator.state.assign(ops.convert_to_tensor(values, dtype=dtype))

    # The rate belongs to the configuration: no file carries the threshold.
    def save_own_variables(self, store):
        store["draws"] = [self.name_hash, self.count()]

    def load_own_variables(self, store):
        # A file of Keras's layers has nothing here.
        if "draws" in store.keys():
            self.name_hash, count = (int(v) for v in store["draws"])
            self._set(1, self.name_hash)
            self.set_count(count)

    # Keras calls these for `.keras` files alone.
    def save_assets(self, folder):
        Path(folder, "seed.txt").write_text(f"{self.seed}\n")

    def load_assets(self, folder):
        if folder is not None:
            self.seed = int(Path(folder, "seed.txt").read_text())
            self._set(0, self.seed)

    # `tf.train.Checkpoint` asks each object on its way, in graphs too.
    def _serialize_to_tensors(self):
        if backend.in_saved_model():
            return {}  # it has the state as a whole
        return {"draws": self.generator.state.value[:3]}

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        children = super()._trackable_children(save_type, **kwargs)
        if save_type == "savedmodel":
            children["state"] = self.generator.state.value
        return children

    def _restore_from_tensors(self, restored):
        state = self.generator.state
        state.assign(ops.concatenate([restored["draws"], state.value[3:]]))
        if not backend.is_traced():
            self.seed, self.name_hash, *_ = self._values()


# What all threads share.
_COUNTING = threading.Lock()


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

    # Where in a network the layer belongs; the builders of `kdrop.models` ask for it.
    # "units": behind any layer. "feature maps": behind convolutions. "dense units":
    # behind dense layers. "dense layer", "convolution": in place of such a layer.
    # Everything else is what those networks have none of, such as "tokens".
    place = "units"

    @classmethod
    def at_place(cls, rate, examples=1, **arguments):
        """A layer for a place in a network.

        Args:
            rate: Fraction to drop; layers that learn their rate start near it or
                ignore it.
            examples: Training examples, by which losses of the layer are divided.
            **arguments: `seed` and `name`; in place of a dense layer or a convolution
                also the arguments of that layer, by name.
        """
        return cls(rate=rate, **arguments)

    def __init__(self, seed=None, threshold=0, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.seed = check_seed(seed)
        drawn = random.randrange(2**32) if self.seed is None else self.seed
        self.draws = Draws(drawn, zlib.crc32(self.name.encode()), threshold)
        if type(self).quantize is refuse_quantization:
            self.draws.stays_float = (
                f"Layer {self.name!r} of type {type(self).__name__} has no quantized "
                "form: it stays in float."
            )
        self.built = type(self).build is keras.Layer.build

    def check(self, inputs):
        """Raise `ValueError` for inputs, symbolic ones too, that cannot be dropped."""
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                f"Layer {self.name!r} drops floating-point inputs only. Received: "
                f"inputs of dtype {dtype}; cast them to a float dtype first."
            )

    def __call__(self, inputs, *args, **kwargs):
        check_tensor(self.name, inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs, training=False):
        inputs = ops.convert_to_tensor(inputs)
        self.check(inputs)
        active = sampling.get()
        if training or (active is not None and active.samples(self)):
            inputs = ops.convert_to_tensor(inputs, sparse=False)
            draw = self.draws.next(self._occurrence())
            rows = self._rows(inputs)
            with backend.traced_together():
                return self.drop(inputs, draw, rows)
        return self.infer(inputs)

    def infer(self, inputs):
        return inputs

    def shares_batch(self, inputs):
        """Whether one decision holds for all rows of the batch."""
        return False

    @property
    def drops(self):
        """Whether the layer makes any noise."""
        return True

    def trace_state(self):
        """What a trace of the layer depends on: a rate above 0 is read anew."""
        return {**keras_internals.attributes(self), "_rate": self.drops}

    @property
    def draw_count(self):
        """How many masks the layer has drawn, modulo 2^32. It can be set."""
        return self.draws.count()

    @draw_count.setter
    def draw_count(self, count):
        integer = isinstance(count, numbers.Integral) and not isinstance(count, bool)
        if not integer or not 0 <= count < 2**32:
            raise ValueError(
                "`draw_count` must be an integer in [0, 2^32). "
                f"Received: draw_count={count!r}"
            )
        self._refuse_in_graphs("draw_count")
        self.draws.set_count(int(count))

    def _refuse_in_graphs(self, attribute):
        if backend.is_traced():
            raise RuntimeError(
                f"`{attribute}` of layer {self.name!r} cannot be set inside a traced "
                "function, which would set it again in every step: set it outside, for "
                "example in a callback such as `kdrop.RateSchedule`."
            )

    def _occurrence(self):
        """The layer's rank among those of its seed and name in the model being called.

        The model is the outermost one. Outside of a model the rank is 0.
        """
        draws = self.draws
        if draws.steps == 0:
            return self._rank()
        if draws.occurrence is None:  # of the first call in a step of `StepClock`
            draws.occurrence = self._rank()
        return draws.occurrence  # a recomputed call is outside of the model

    def _rank(self):
        calls = keras_internals.calls()
        if calls is None or calls.entry_layer is self:
            return 0
        ranks = calls.get_value("kdrop_occurrences")
        if ranks is None:
            layers = drop_layers(calls.entry_layer)
            ranks = occurrences(layers, lambda draws: (draws.seed, draws.name_hash))
            calls.set_value("kdrop_occurrences", ranks)
        return ranks.get(self.draws, 0)

    def _rows(self, inputs):
        """The rows of the mask, in one of the forms that kernels take."""
        shared, active = self.shares_batch(inputs), sampling.get()
        if active is None or active.rows is None:
            return np.zeros((1, 2), "uint32") if shared else first_row(inputs)
        rows = active.rows
        if shared:  # by each pass, and passes lie side by side in the batch
            rows = rows * np.array([1, 0, 1], "uint32")
        return self._sampled_rows(inputs, rows, shared)

    def _sampled_rows(self, inputs, rows, shared):
        """Rows of which each stands for a row of the inputs."""
        size = 1 if inputs.shape == () else inputs.shape[0]
        count = rows.shape[0]
        if count == 1:
            # All of the inputs are of this one example, whatever they are.
            alone = shared or size == 1
            return rows if alone else _inner_rows(rows, ops.shape(inputs)[0])
        message = (
            f"Layer {self.name!r} cannot be sampled for several examples at once: "
            f"{NOT_BY_EXAMPLE}. `kdrop.sample` computes such a model one by one."
        )
        if size is not None and count is not None:
            if size != count:
                raise ValueError(message)
            return rows
        import tensorflow as tf

        sizes = tf.shape(inputs)[0], tf.shape(rows)[0]
        equal = tf.debugging.assert_equal(*sizes, message)
        with tf.control_dependencies([equal]):
            return tf.identity(rows)

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
        rate = check_rate(rate)
        self._refuse_in_graphs("rate")
        self._rate = rate
        self.draws.set_threshold(self.threshold(self._rate))

    @property
    def drops(self):
        return self.rate > 0

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


def drop_layers(model):
    """The drop layers of kdrop in a model or layer, itself included.

    Args:
        model: A `keras.Model` or another layer.

    Returns:
        List of layers, in the order in which Keras saves them. It is the same for a
        model that was loaded from a file.
    """
    return [
        layer for layer in keras_internals.layers_of(model) if isinstance(layer, Noise)
    ]


def _inner_rows(row, size):
    """Names for `size` rows of one example: the first as it is, the others hashed."""
    inner = ops.cast(ops.arange(size, dtype="int32"), "uint32")
    hashed = bits.threefry((row[:, 0], row[:, 1]), (inner, np.uint32(0x696E6E65)))
    names = [ops.where(inner == 0, row[:, i], hashed[i]) for i in range(2)]
    seeds = ops.broadcast_to(row[:, 2], ops.shape(inner))
    return ops.stack([*names, seeds], axis=1)


def first_row(inputs):
    """uint32 scalar: how many rows of the global batch are on replicas before this."""
    if backend.name() != "tensorflow":
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
