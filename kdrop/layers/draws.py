"""The state from which a drop layer draws its masks, and how it is saved."""

import contextlib
import threading
from pathlib import Path

import keras
import numpy as np
from keras import ops

from kdrop import backend, keras_internals
from kdrop.layers.sampling_context import sampling

SEED, NAME_HASH, COUNT, THRESHOLD = range(4)

# Threads that call a layer eagerly must not get the same draw count.
_count_lock = threading.Lock()


class Draws(keras.Layer):
    """The state of a drop layer: seed, hash of its name, draw count, threshold.

    It is a layer inside the drop layer, so that it has its own entry in a weights
    file, which a file of Keras's layers lacks. The state is that of a seed generator
    and not a weight, so `get_weights()` is as long as with Keras's layers.

    Every file holds what resuming needs: the draw count and the name hash, since
    automatic names differ. The seed is saved in `.keras` files and checkpoints, but not
    in weights files: models with the same pretrained weights keep different seeds. No
    file holds the threshold: the rate is part of the configuration.
    """

    def __init__(self, seed, name_hash, threshold):
        super().__init__(name="draws")
        # Python numbers too, since a trace compares layers with each other.
        self.seed, self.name_hash = seed, name_hash
        self.generator = keras.random.SeedGenerator(seed)
        # int64 on TensorFlow, where uint32 variables lack kernels on devices; only the
        # low 32 bits count. "none": each replica advances a copy of the count. Eager,
        # also inside a traced function.
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

    def quantize(self, *args, **kwargs):
        """Do nothing: Keras's default would warn."""

    def next(self, occurrence):
        """The vector `[seed, name hash, draw, threshold, occurrence]` of a new draw."""
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
            before = self.generator.state.value
            state = before + self._one
            if backend.escapes(state, before) and not keras_internals.infers_shapes():
                raise RuntimeError(
                    "A drop layer was called inside a loop, a branch, `keras.remat` or "
                    "a jitted function: on JAX it would draw one mask for all calls "
                    "there. Unroll the loop (`unroll=True`), call the layer outside, "
                    "or pass its state along (`stateless_call`)."
                )
            self.generator.state.assign(state)
        return state

    def resume(self, other):
        """Take over the seed, name hash and draw count of other draws."""
        self.seed, self.name_hash, count, _ = other.values()
        for index, value in enumerate((self.seed, self.name_hash, count)):
            self.set_value(index, value)

    def trace_state(self):
        return {"name_hash": self.name_hash}

    def values(self):
        """The state as a list of integers."""
        return [int(v) for v in ops.convert_to_numpy(self.generator.state)]

    def set_value(self, index, value):
        """Change one number of the state, for traced functions too."""
        values = self.values()
        values[index] = value
        self.generator.state.assign(values)

    def save_own_variables(self, store):
        _, name_hash, count, _ = self.values()
        store["draws"] = [name_hash, count % 2**32]

    def load_own_variables(self, store):
        if "draws" in store.keys():  # not in a file of Keras's layers
            self.name_hash, count = (int(v) for v in store["draws"])
            self.set_value(NAME_HASH, self.name_hash)
            self.set_value(COUNT, count)

    # Keras calls these two for `.keras` files, not for weights files.
    def save_assets(self, folder):
        Path(folder, "seed.txt").write_text(f"{self.seed}\n")

    def load_assets(self, folder):
        if folder is not None:
            self.seed = int(Path(folder, "seed.txt").read_text())
            self.set_value(SEED, self.seed)

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
            self.seed, self.name_hash, *_ = self.values()
