"""Reuse one mask per training step, so that recomputed calls see the same mask."""

import contextlib

import keras

from kdrop import backend
from kdrop.layers.base import drop_layers


class StepClock(keras.callbacks.Callback):
    """Make all calls of a layer within one training step share one mask.

    A drop layer draws a new mask at each call. Where the backward pass computes a call
    again (`keras.remat`, `tf.recompute_grad`), a new mask would give a wrong gradient.
    With this callback a layer draws once in each execution of the model's
    `train_step`, whatever optimizers there are, so the recomputed mask is the first
    one. Outside the training step (in other callbacks, after `fit`, when the model is
    sampled) each call draws a new mask.

    In a custom training loop one line inside the step, traced or not, does the same for
    the code that it encloses: `with kdrop.StepClock().start(model):`.

    The clock counts in the layers' draw counts, so that a resumed run has the masks of
    an uninterrupted one. It does nothing on JAX, which keeps the values of the first
    call when it recomputes.

    >>> import keras, numpy, kdrop
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
            # Restored first, so that an interrupted `fit` leaves the model unchanged.
            model.train_function = without_clock
            if model.history is not self._history:  # another `fit`
                return without_clock(iterator)
            with _train_step(model, self._step_with_clock):
                return self._with_clock(iterator)

        model.train_function = execute_once

    @contextlib.contextmanager
    def start(self, model):
        """A context for one step, in which each drop layer of the model draws once.

        Args:
            model: `keras.Model`, or another layer.
        """
        if backend.name() != "tensorflow":
            yield
            return
        draws = [layer.draws for layer in drop_layers(model)]
        for each in draws:
            each.advance()
            each.active_clocks, each.step_occurrence = each.active_clocks + 1, None
        # A function traced here shares the draws of these layers, so its trace is valid
        # for this model and these nested clocks alone.
        keys = vars(model).setdefault("_kdrop_clock_keys", {})
        outer = backend.current_trace_key()
        try:
            with backend.retraced_for(keys.setdefault(outer, backend.new_trace_key())):
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
