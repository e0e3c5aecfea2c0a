"""Change rates while a model trains."""

from collections.abc import Iterable
from typing import Any

import keras

from kdrop import backend
from kdrop.layers.base import drop_layers
from kdrop.schedules import Schedule


class RateSchedule(keras.callbacks.Callback):
    """Set the rate of a model's drop layers before each step or epoch of `fit`.

    Progress is 0.0 in the first step (or epoch) and 1.0 in the last one according to
    `epochs`; with a single one it is 0.0. So `fit(initial_epoch=...)` and
    `keras.callbacks.BackupAndRestore` continue the schedule. The steps of one execution
    (`steps_per_execution`) share the rate of its first step, and progress is 1.0 in the
    last execution. The last rate remains after training. `history.history["rate"]`
    holds the rate at the end of each epoch, with several schedules that of the last
    one; callbacks that read it from the logs must come after this one.

    Args:
        schedule: Function from progress in [0, 1] to the rate of all the layers.
        layers: The layers to set; all drop layers of the model if `None`.
        by: "step" or "epoch". On JAX each change costs a copy of the model's state.

    Raises:
        ValueError: If `schedule` is no function or `by` is another word; in `fit`, if
            there is no layer to set, or `by="step"` and the number of steps in an epoch
            is unknown.

    >>> import keras, numpy, kdrop
    >>> model = keras.Sequential([kdrop.InvertedDropout(0.5), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> ramp = kdrop.RateSchedule(lambda progress: 0.4 * progress, by="epoch")
    >>> x, y = numpy.ones((4, 3)), numpy.ones((4, 1))
    >>> model.fit(x, y, epochs=3, verbose=0, callbacks=[ramp]).history["rate"]
    [0.0, 0.2, 0.4]
    """

    def __init__(
        self,
        schedule: Schedule,
        layers: Iterable[Any] | None = None,
        by: str = "step",
    ):
        super().__init__()
        if not callable(schedule):
            raise ValueError(
                "`schedule` must be a function from progress to rate. "
                f"Received: schedule={schedule!r}"
            )
        if by not in ("step", "epoch"):
            raise ValueError(f"`by` must be 'step' or 'epoch'. Received: by={by!r}")
        self.schedule = schedule
        self.layers = None if layers is None else list(layers)
        self.by = by

    def on_train_begin(self, logs=None):
        params: Any = self.params
        self._steps, self._epochs = params.get("steps"), params["epochs"]
        if self.by == "step" and not self._steps:
            raise ValueError(
                "RateSchedule cannot know how many steps an epoch of this data set "
                "has: give `steps_per_epoch` to `fit`, or take by='epoch'."
            )
        self._scheduled: Any = self.layers or rated_layers(self.model)
        if not self._scheduled:
            raise ValueError(
                f"RateSchedule found no drop layer of kdrop in {self.model.name!r}."
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
    properties = [
        (layer, getattr(type(layer), "rate", None)) for layer in drop_layers(model)
    ]
    return [layer for layer, rate in properties if getattr(rate, "fset", None)]
