"""One draw a training step, for calls that are computed twice."""

import keras

from kdrop.layers.base import Drop


class StepClock(keras.callbacks.Callback):
    """Make all calls of a layer within one training step share one draw.

    A drop layer draws anew at each call. Where the backward pass computes a call again
    (`keras.remat`, `tf.recompute_grad`), that would be another mask and so a wrong
    gradient. With this callback the draw is a function of the optimizer's step, and
    the recomputed mask is the first one:

        model.fit(x, y, callbacks=[kdrop.StepClock()])

    In a custom training loop one line before the step is traced does the same:

        kdrop.StepClock().start(model, optimizer)

    On JAX, which recomputes a call from the values that it first had, nothing needs
    to be done, and nothing is.
    """

    def on_train_begin(self, logs=None):
        self.start(self.model, self.model.optimizer)
        self.model.make_train_function(force=True)

    def on_train_end(self, logs=None):
        self.stop(self.model)
        self.model.make_train_function(force=True)

    def start(self, model, optimizer):
        """Let the optimizer's steps count the draws of the model's drop layers."""
        if keras.backend.backend() != "tensorflow":
            return
        # With loss scaling the steps are the inner optimizer's. Under gradient
        # accumulation the public `iterations` stands still between two updates.
        steps = getattr(optimizer, "inner_optimizer", optimizer)._iterations
        for layer in _drop_layers(model):
            layer.draws.bind(lambda: steps.value, now=int(steps.value))

    def stop(self, model):
        """Let each call of the model's drop layers draw anew again."""
        for layer in _drop_layers(model):
            layer.draws.unbind()


def _drop_layers(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, Drop)]
