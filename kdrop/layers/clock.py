"""One draw a training step, for calls that are computed twice."""

import keras
from keras import ops

from kdrop.layers.base import Noise


class StepClock(keras.callbacks.Callback):
    """Make all calls of a layer within one training step share one draw.

    A drop layer draws anew at each call. Where the backward pass computes a call again
    (`keras.remat`, `tf.recompute_grad`), that would be another mask and so a wrong
    gradient. With this callback the draw is a function of the optimizer's step, and
    the recomputed mask is the first one:

        model.fit(x, y, callbacks=[kdrop.StepClock()])

    Outside the training step (in other callbacks, after `fit`, when the model is
    sampled) each call draws anew as ever. In a custom training loop one line before
    the step is traced does the same, until `stop(model)`:

        kdrop.StepClock().start(model, optimizer)

    On JAX, which recomputes a call from the values that it first had, nothing needs
    to be done, and nothing is.
    """

    def on_train_begin(self, logs=None):
        if keras.backend.backend() != "tensorflow":
            return
        model, started = self.model, False
        model.make_train_function(force=True)
        step = model.train_function

        def clocked(iterator):
            nonlocal started
            if not started:  # only now: another callback may have loaded the draws
                _align(model, model.optimizer)
                started = True
            _bind(model, model.optimizer)
            try:
                return step(iterator)
            finally:
                self.stop(model)

        model.train_function = clocked

    def on_train_end(self, logs=None):
        if keras.backend.backend() == "tensorflow":
            self.model.make_train_function(force=True)

    def start(self, model, optimizer):
        """Let the optimizer's steps count the draws of the model's drop layers."""
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise ValueError(
                "StepClock counts the steps of a keras.optimizers.Optimizer. "
                f"Received: optimizer={optimizer!r}"
            )
        if keras.backend.backend() == "tensorflow":
            _align(model, optimizer)
            _bind(model, optimizer)

    def stop(self, model):
        """Let each call of the model's drop layers draw anew again."""
        for layer in _drop_layers(model):
            layer.draws.clock = None


def _align(model, optimizer):
    for layer in _drop_layers(model):
        layer.draws.align(int(ops.convert_to_numpy(_steps(optimizer))))


def _bind(model, optimizer):
    steps = _steps(optimizer)
    for layer in _drop_layers(model):
        layer.draws.clock = lambda: steps.value


def _steps(optimizer):
    # With loss scaling the steps are the inner optimizer's. Under gradient
    # accumulation the public `iterations` stands still between two updates.
    return getattr(optimizer, "inner_optimizer", optimizer)._iterations


def _drop_layers(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, Noise)]
