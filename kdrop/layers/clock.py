"""Reuse one mask per training step, so that recomputed calls see the same mask."""

import contextlib

import keras

from kdrop import backend
from kdrop.layers.base import drop_layers


class StepClock(keras.callbacks.Callback):
    """Make all calls of a layer within one training step share one mask.

    A drop layer draws a new mask at each call. Where the backward pass computes a call
    again (`keras.remat`, `tf.recompute_grad`), that would be another mask and so a
    wrong gradient. With this callback a layer draws once in each execution of the
    model's `train_step`, whatever optimizers there are, and the recomputed mask is the
    first one:

        model.fit(x, y, callbacks=[kdrop.StepClock()])

    Outside the training step (in other callbacks, after `fit`, when the model is
    sampled) each call draws a new mask. In a custom training loop one line inside the
    step, traced or not, does the same for what it encloses:

        @tf.function
        def train_step(x, y):
            with kdrop.StepClock().start(model):
                ...

    It counts in the layers' own draw counts, so that a resumed run goes on with the
    masks that it would have drawn. On JAX, which recomputes a call from the values that
    it first had, nothing needs to be done, and nothing is.
    """

    def on_train_begin(self, logs=None):
        if backend.name() == "tensorflow":
            self._history = self.model.history
            self._make()

    def _make(self):
        """Make the train function of which each step is one of the clock."""
        model = self.model
        self._beside, train_step = model.train_function, model.train_step

        def clocked(data):
            with self.start(model):
                return train_step(data)

        self._step = clocked
        with _own_step(model, clocked):
            model.make_train_function(force=True)
        self._clocked = model.train_function
        model.train_function = self._beside

    def on_train_batch_begin(self, batch, logs=None):
        if backend.name() != "tensorflow":
            return
        model = self.model
        if model.train_function is not self._beside:  # it was compiled meanwhile
            self._make()
        plain = self._beside

        def once(iterator):
            # For one execution: an interrupted `fit` leaves the model as it was.
            model.train_function = plain
            if model.history is not self._history:  # another `fit`
                return plain(iterator)
            with _own_step(model, self._step):
                return self._clocked(iterator)

        model.train_function = once

    @contextlib.contextmanager
    def start(self, model):
        """A context in which each drop layer of the model draws once.

        It is for one step: enter it anew in each.

        Args:
            model: `keras.Model`, or another layer.
        """
        if backend.name() != "tensorflow":
            yield
            return
        draws = [layer.draws for layer in drop_layers(model)]
        for each in draws:
            each.advance()
            each.steps, each.occurrence = each.steps + 1, None
        # A function that is traced inside shares the draws of these layers. A trace is
        # of use for the same model alone, and for the same clocks around this one.
        keys = vars(model).setdefault("_kdrop_clocked", {})
        key = keys.setdefault(backend.current_key(), backend.apart())
        try:
            with backend.traced_apart(key):
                yield
        finally:
            for each in draws:
                each.steps -= 1


@contextlib.contextmanager
def _own_step(model, step):
    """Put `step` in the place of a model's `train_step`."""
    before = vars(model).get("train_step")
    model.train_step = step
    try:
        yield
    finally:
        del model.train_step
        if before is not None:
            model.train_step = before
