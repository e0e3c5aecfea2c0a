"""The state from which a drop layer draws its masks, and how it is saved."""

import contextlib
import threading
from pathlib import Path

import keras
import numpy as np
from keras import ops

from kdrop import backend
from kdrop.layers.sampling_context import sampling
from kdrop.masks import kernels

# Threads that call a layer eagerly must not get the same draw count.
_count_lock = threading.Lock()


class Draws(keras.Layer):
    """The state of a drop layer: seed, hash of its name, draw count, threshold.

    It is a layer inside the drop layer, so that it has its own entry in a weights
    file: a file of `keras.layers.Dropout` simply lacks that entry. The state is that
    of a seed generator and no weight, so `get_weights()` is as long as with Keras's
    layers.

    Every file holds what resuming needs: the draw count and the name hash, which lets
    a model resume whose layers have other automatic names. The seed is saved in
    `.keras` files and checkpoints, which restore a model, but not in weights files:
    models that load the same pretrained weights keep seeds of their own.

    Args:
        seed: Integer in [0, 2^32).
        name_hash: Integer in [0, 2^32), a hash of the drop layer's name.
        threshold: Integer in [0, 2^32), for the rate.
    """

    # The error message of `quantize`, if the drop layer's weights are not quantized.
    quantization_error = None

    def __init__(self, seed, name_hash, threshold):
        super().__init__(name="draws")
        # Python numbers too, since a trace compares layers with each other.
        self.seed, self.name_hash = seed, name_hash
        self.generator = keras.random.SeedGenerator(seed)
        # int64 on TensorFlow, where uint32 variables lack kernels on devices; only the
        # low 32 bits count. "none": each replica advances a copy of the count. Created
        # eagerly, also where the layer is created inside a traced function.
        with keras.name_scope(self.generator.name), backend.init_scope():
            self.generator.state = keras.Variable(
                [seed, name_hash, 0, threshold],
                dtype=self.generator.state.dtype,
                trainable=False,
                aggregation="none",
                name="draws",
            )
        self._one = np.array([0, 0, 1, 0], dtype=self.generator.state.dtype)
        self.active_clocks = 0  # `StepClock` contexts that include the running step
        self.step_occurrence = None  # the occurrence of the running step's first call
        self.was_sampled = False  # whether a `Sampling` without rows has called it
        self.built = True

    def quantize(self, mode=None, type_check=True, config=None):
        # `Model.quantize` asks only the innermost layers: this one, not its owner.
        if self.quantization_error is not None:
            raise NotImplementedError(self.quantization_error)

    def next(self, occurrence):
        """The vector `[seed, name hash, draw, threshold, occurrence]` of a new draw.

        Args:
            occurrence: Integer that distinguishes layers of equal seed and name.
        """
        active, state = sampling.get(), self.generator.state
        if active is not None and active.rows is not None:
            return active.draw(self, ops.convert_to_tensor(state))
        if active is not None:
            active.record_call(self)
        reuse = active is None and self.active_clocks
        draw = state.value + 0 if reuse else self.advance()
        return ops.concatenate([draw, np.array([occurrence], dtype=state.dtype)])

    def advance(self):
        """Increment the draw count, and return the new state."""
        with contextlib.nullcontext() if backend.is_traced() else _count_lock:
            state = self.generator.state.value + self._one
            self.generator.state.assign(state)
        return state

    def resume(self, other):
        """Take over the seed, name hash and draw count of other draws."""
        self.seed, self.name_hash = other.seed, other.name_hash
        for index, value in enumerate(other._values()[:3]):
            self._set(index, value)

    def trace_state(self):
        """The values that a trace depends on."""
        return {"name_hash": self.name_hash}

    def keep_fraction(self, dtype):
        """`1 - rate` as a scalar tensor."""
        return kernels.keep_fraction(ops.convert_to_tensor(self.generator.state), dtype)

    def count(self):
        """The number of masks drawn so far, modulo 2^32."""
        return self._values()[2] % 2**32

    def set_count(self, count):
        """Continue from this draw count."""
        self._set(2, count)

    def set_threshold(self, threshold):
        """Change the rate of all later draws, in traced functions too."""
        self._set(3, threshold)

    def _values(self):
        return [int(v) for v in ops.convert_to_numpy(self.generator.state)]

    def _set(self, index, value):
        values = self._values()
        values[index] = value
        dtype = self.generator.state.dtype
        self.generator.state.assign(ops.convert_to_tensor(values, dtype=dtype))

    # No file holds the threshold: the rate is part of the configuration.
    def save_own_variables(self, store):
        store["draws"] = [self.name_hash, self.count()]

    def load_own_variables(self, store):
        if "draws" in store.keys():  # not in a file of Keras's layers
            self.name_hash, count = (int(v) for v in store["draws"])
            self._set(1, self.name_hash)
            self.set_count(count)

    # Keras calls these two for `.keras` files, not for weights files.
    def save_assets(self, folder):
        Path(folder, "seed.txt").write_text(f"{self.seed}\n")

    def load_assets(self, folder):
        if folder is not None:
            self.seed = int(Path(folder, "seed.txt").read_text())
            self._set(0, self.seed)

    # `tf.train.Checkpoint` calls these, inside graphs too.
    def _serialize_to_tensors(self):
        if backend.in_saved_model():
            return {}  # `_trackable_children` adds the whole state there
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
