"""Small runs for the tests of training."""

import keras

from kdrop.training.checkpoint import Checkpoint
from kdrop.training.devices import ALONE
from kdrop.training.experiment import Experiment
from kdrop.training.run import load_data, train


class StopAfter(keras.callbacks.Callback):
    """Interrupts a run at the end of an epoch, as Ctrl-C would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epoch:
            raise KeyboardInterrupt


class Losses(keras.callbacks.Callback):
    """The running loss after each step."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


def small(**settings):
    """An experiment of a second: five steps an epoch on the spiral."""
    usual = {"train_size": 300, "epochs": 6, "steps_per_epoch": 5, "batch_size": 50}
    return Experiment.preset("spiral", **{**usual, "hidden": (16,), **settings})


def run(experiment, folder, callbacks=(), console=None, devices=ALONE):
    """Train the experiment, or resume it from the folder."""
    return train(
        experiment,
        load_data(experiment),
        Checkpoint(folder),
        console=console,
        label=experiment.dropout,
        callbacks=callbacks,
        devices=devices,
    )
