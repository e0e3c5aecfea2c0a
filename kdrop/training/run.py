"""One training run: load the data, train or resume, evaluate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kdrop.ensemble.calibration import Vote
from kdrop.errors import UserError
from kdrop.layers.callbacks import RateSchedule, rated_layers
from kdrop.schedules import Schedule
from kdrop.training.checkpoint import Checkpoint, History
from kdrop.training.data import Data, Part, load
from kdrop.training.devices import ALONE, Devices
from kdrop.training.experiment import SCHEDULES, Experiment
from kdrop.training.network import EVALUATION_BATCH, build, network, steps_per_epoch
from kdrop.training.pipeline import batches
from kdrop.training.progress import Recorder

# Most training steps in one call of the training function; those of one call share
# a rate.
EXECUTION_STEPS, SCHEDULED_STEPS = 50, 5


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    experiment: Experiment
    model: keras.Model | None  # `None` where only the numbers are still needed
    history: History  # columns of equal length, one row an epoch
    # Accuracy and loss of each part (`test_accuracy`), the vote's measures, `seconds`.
    metrics: dict[str, float]
    vote: Vote | None = None  # on examples of the test part


@dataclass(frozen=True)
class SeedRuns:
    """The runs of one experiment, one for each seed."""

    runs: Sequence[Run]

    @property
    def name(self) -> str:
        """The layer's name, or none."""
        return self.runs[0].experiment.dropout

    @property
    def best(self) -> Run:
        """The run with the best validation accuracy; without validation, training."""
        validates = "validation_accuracy" in self.runs[0].metrics
        part = "validation" if validates else "train"
        accuracy, loss = f"{part}_accuracy", f"{part}_loss"
        return max(self.runs, key=lambda r: (r.metrics[accuracy], -r.metrics[loss]))


def load_data(experiment: Experiment, folder: Path | None = None) -> Data:
    """The experiment's data set.

    Args:
        folder: Of tensorflow-datasets; `TFDS_DATA_DIR` or its default if `None`.

    Raises:
        UserError: The data set cannot be read, or has too few examples.
    """
    where = {} if experiment.data == "spiral" else {"folder": folder}
    return load(
        experiment.data,
        train_size=experiment.train_size,
        validation=experiment.validation,
        seed=experiment.data_seed,
        **where,
    )


def train(
    experiment: Experiment,
    data: Data,
    checkpoint: Checkpoint,
    recorder: Recorder,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    devices: Devices = ALONE,
) -> Run:
    """Train the experiment's network, or resume it from `checkpoint`.

    A resumed run ends with the same weights, bit for bit, as an uninterrupted one.

    Args:
        data: From `load_data`.
        checkpoint: Where finished epochs are saved. An empty one starts the run.
        recorder: Prints the lines and records the history.
        callbacks: Further callbacks of `fit`.
        devices: Those that share each batch.

    Raises:
        UserError: The settings do not fit the network, the data or the devices, or the
            checkpoint cannot be read.

    >>> import tempfile
    >>> from rich.console import Console
    >>> from kdrop.training.experiment import Experiment
    >>> experiment = Experiment.preset("spiral", epochs=2, steps_per_epoch=10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     recorder = Recorder(Console(quiet=True), "spiral")
    ...     checkpoint = Checkpoint(Path(folder))
    ...     run = train(experiment, load_data(experiment), checkpoint, recorder)
    >>> run.history["epoch"], run.model.output_shape
    ([1, 2], (None, 3))
    """
    if devices.count > 1 and experiment.jit_compile:
        raise UserError("`jit_compile` works on one device only.")
    with devices.scope():
        try:
            model = _fit(experiment, data, checkpoint, recorder, callbacks, devices)
        finally:
            recorder.stop()
        metrics = evaluate(model, data, devices)
    metrics["seconds"] = recorder.history["seconds"][-1]
    if devices.count > 1:  # reload it as a model of one device
        model = _synchronised(checkpoint.load()[0])
    return Run(experiment, model, recorder.history, metrics)


def _fit(experiment, data, checkpoint, recorder, callbacks, devices) -> keras.Model:
    # JAX needs equal values in all processes, also of what a checkpoint replaces.
    keras.utils.set_random_seed(experiment.seed)
    model, history = checkpoint.load()
    model = _synchronised(model or build(experiment, data))
    scheduled = _scheduled(experiment, data, model)
    recorder.begin(
        experiment.epochs, history, checkpoint, list(scheduled), devices.agree
    )
    if recorder.resumed_at >= experiment.epochs:
        return model
    steps = steps_per_epoch(experiment, data)
    limit = SCHEDULED_STEPS if scheduled else EXECUTION_STEPS
    # Keras's loop over several steps fails under a strategy.
    model.steps_per_execution = (
        1 if devices.count > 1 else _largest_divisor(steps, limit)
    )
    validates = len(data.validation.targets) > 0
    model.fit(
        batches(
            data.train,
            experiment.batch_size,
            first_step=recorder.resumed_at * steps,
            shuffle_seed=experiment.seed,
            mirror=experiment.mirror,
            shift=experiment.shift,
            devices=devices,
        ),
        steps_per_epoch=steps,
        initial_epoch=recorder.resumed_at,
        epochs=experiment.epochs,
        validation_data=_evaluation(data.validation, devices) if validates else None,
        callbacks=[
            *(RateSchedule(scheduled[layer], [layer]) for layer in scheduled),
            recorder,
            *callbacks,
        ],
        shuffle=False,  # the batches are
        verbose=0,
    )
    return model


def _synchronised(model: Any) -> keras.Model:
    """Let replicas normalise by the statistics of the global batch.

    JAX always does, and rejects models that ask for it.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = tf.distribute.has_strategy()
    return model


def _scheduled(experiment, data, model) -> dict[Any, Schedule]:
    """The drop layers whose rates change, each with its schedule."""
    if experiment.schedule == "constant":
        return {}
    # A resumed model has the rates of its last epoch, not the initial ones.
    initial = network(experiment, data)
    return {
        layer: SCHEDULES[experiment.schedule](initial.get_layer(layer.name).rate)
        for layer in rated_layers(model)
    }


def evaluate(
    model: keras.Model, data: Data, devices: Devices = ALONE
) -> dict[str, float]:
    """Accuracy and data loss at inference on each part that has examples.

    Returns:
        `train_accuracy`, `train_loss` and so on; losses in nats.
    """
    metrics = {}
    for name in ("train", "validation", "test"):
        part = getattr(data, name)
        if len(part.targets):
            results: Any = model.evaluate(
                _evaluation(part, devices), verbose=0, return_dict=True
            )
            metrics[f"{name}_accuracy"] = results["accuracy"]
            metrics[f"{name}_loss"] = results["data_loss"]
    return metrics


def _evaluation(part: Part, devices: Devices) -> tf.data.Dataset:
    examples = batches(part, EVALUATION_BATCH, epochs=1, devices=devices)
    # Weights of 1, and of 0 for repeated examples.
    return examples.map(lambda x, y, *weights: (x, y, *map(tf.sign, weights)))


def _largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)
