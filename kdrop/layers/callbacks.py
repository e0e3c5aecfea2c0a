"""Callbacks for `fit`: one mask per training step, and rates that change."""

import contextlib
from collections.abc import Iterable
from typing import Any

import keras

from kdrop import backend
from kdrop.errors import check
from kdrop.layers.base import Drop, drop_layers
from kdrop.schedules import Schedule


class StepClock(keras.callbacks.Callback):
    """Make all calls of a layer within one training step share one mask.

    A drop layer draws a new mask at each call. Where the backward pass computes a call
    again (`keras.remat`, `tf.recompute_grad`), a new mask would give a wrong gradient.
    With this callback a layer draws once in each execution of `train_step`; outside of
    it (in other callbacks, when the model is sampled) each call draws a new mask.
    In a custom training loop one line inside the step, traced or not, does the same:
    `with kdrop.StepClock().start(model):`.

    On TensorFlow compile such a step with XLA (`jit_compile=True`): in other graphs
    TensorFlow 2.21 may recompute a block with weights that the step has changed.

    A resumed run has the masks of an uninterrupted one. The clock does nothing on JAX,
    where drop layers refuse to be computed again.

    >>> drop = kdrop.InvertedDropout(0.5)
    >>> block = keras.Sequential([keras.layers.Dense(4), drop])
    >>> model = keras.Sequential([block, keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = numpy.ones((8, 4)), numpy.ones((8, 1))
    >>> history = model.fit(x, y, 4, verbose=0, callbacks=[kdrop.StepClock()])
    >>> drop.draw_count
    2
    """

    def on_train_begin(self, logs=None):
        if backend.name() == "tensorflow":
            self._history = self.model.history
            self._make_train_function()

    def _make_train_function(self):
        """Create a second train function, whose steps run in `start`."""
        model = self.model
        self._without_clock, train_step = model.train_function, model.train_step

        def step_with_clock(data):
            with self.start(model):
                return train_step(data)

        self._step_with_clock = step_with_clock
        with _train_step(model, step_with_clock):
            model.make_train_function(force=True)
        self._with_clock = model.train_function
        model.train_function = self._without_clock

    def on_train_batch_begin(self, batch, logs=None):
        if backend.name() != "tensorflow":
            return
        model = self.model
        if model.train_function is not self._without_clock:  # compiled since then
            self._make_train_function()
        without_clock = self._without_clock

        def execute_once(iterator):
            # The ordinary function is put back before it runs: an interrupted `fit`
            # leaves the model unchanged. The next batch installs this one again.
            model.train_function = without_clock
            if model.history is not self._history:  # another `fit`
                return without_clock(iterator)
            with _train_step(model, self._step_with_clock):
                return self._with_clock(iterator)

        model.train_function = execute_once

    @contextlib.contextmanager
    def start(self, model):
        """A context in which each drop layer of a model draws once, for one step."""
        if backend.name() != "tensorflow":
            yield
            return
        layers = [layer for layer in drop_layers(model) if layer.once_per_step]
        draws = [layer.draws for layer in layers]
        for each in draws:
            each.advance()
            each.active_clocks, each.step_occurrence = each.active_clocks + 1, None
        # A function traced here shares the draws of these layers, so its trace is valid
        # for this model and these nested clocks alone.
        keys = vars(model).setdefault("_kdrop_clock_keys", {})
        key = keys.setdefault(backend.current_trace_key(), backend.TraceKey())
        try:
            with backend.retraced_for(key):
                yield
        finally:
            for each in draws:
                each.active_clocks -= 1


@contextlib.contextmanager
def _train_step(model, step):
    """A context in which `step` replaces a model's `train_step`."""
    before = vars(model).get("train_step")
    model.train_step = step
    try:
        yield
    finally:
        del model.train_step
        if before is not None:
            model.train_step = before


class RateSchedule(keras.callbacks.Callback):
    """Set the rate of a model's drop layers before each step or epoch of `fit`.

    Progress is 0.0 in the first step (or epoch) and 1.0 in the last of all `epochs`,
    also after `fit(initial_epoch=...)` or `keras.callbacks.BackupAndRestore`. The steps
    of one execution (`steps_per_execution`) share one rate. The last rate remains.
    The logs hold the rate at the end of each epoch as `"rate"`, for later callbacks.

    Args:
        schedule: Function from progress in [0, 1] to the rate of all the layers.
        layers: The layers to set; all drop layers of the model if `None`.
        by: "step" or "epoch". On JAX each change costs a copy of the model's state.

    Raises:
        ValueError: For an invalid argument; in `fit`, if there is no layer to set, or
            `by="step"` and the number of steps in an epoch is unknown.

    >>> model = keras.Sequential([kdrop.InvertedDropout(0.5), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> ramp = kdrop.RateSchedule(lambda progress: 0.4 * progress, by="epoch")
    >>> x, y = numpy.ones((4, 3)), numpy.ones((4, 1))
    >>> model.fit(x, y, epochs=3, verbose=0, callbacks=[ramp]).history["rate"]
    [0.0, 0.2, 0.4]
    """

    def __init__(
        self, schedule: Schedule, layers: Iterable[Any] | None = None, by: str = "step"
    ):
        super().__init__()
        function = "a function from progress to rate"
        self.schedule = check("schedule", schedule, callable(schedule), function)
        self.by = check("by", by, by in ("step", "epoch"), "'step' or 'epoch'")
        self.layers = None if layers is None else list(layers)

    def on_train_begin(self, logs=None):
        params: Any = self.params
        self._steps, self._epochs = params.get("steps"), params["epochs"]
        if self.by == "step" and not self._steps:
            raise ValueError(
                "RateSchedule cannot know how many steps an epoch of this data set "
                "has: give `steps_per_epoch` to `fit`, or take by='epoch'."
            )
        layers: Any = self.layers
        self._scheduled = rated_layers(self.model) if layers is None else layers
        if not self._scheduled:
            raise ValueError(
                f"RateSchedule finds in model {self.model.name!r} no drop layer of "
                "kdrop with a rate to set."
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self.by == "epoch":
            self._set(epoch, self._epochs - 1)

    def on_train_batch_begin(self, batch, logs=None):
        if self.by == "step":
            per_execution: Any = self.model.steps_per_execution
            last_execution = self._steps - 1 - (self._steps - 1) % per_execution
            last = (self._epochs - 1) * self._steps + last_execution
            self._set(self._epoch * self._steps + batch, last)

    def on_epoch_end(self, epoch, logs: Any = None):
        logs["rate"] = self._scheduled[0].rate

    def _set(self, number, last):
        rate = self.schedule(number / last if last else 0.0)
        changed = [layer for layer in self._scheduled if layer.rate != rate]
        if changed and backend.name() == "jax":
            # Within an epoch the state is outside of the variables, which are empty.
            self.model.jax_state_sync()
        for layer in changed:
            layer.rate = rate


def rated_layers(model: Any) -> list[Any]:
    """The drop layers of a model whose rate can be set."""
    return [layer for layer in drop_layers(model) if isinstance(layer, Drop)]
