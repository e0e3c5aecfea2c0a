"""One training run: load the data, build the network, train or resume, evaluate."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from kdrop import backend, layers
from kdrop.ensemble.calibration import Vote, expected_calibration_error
from kdrop.ensemble.uncertainty import are_probabilities
from kdrop.errors import UserError
from kdrop.layers.callbacks import RateSchedule, rated_layers
from kdrop.models import MODELS, SmoothedCrossentropy
from kdrop.schedules import Schedule
from kdrop.training.checkpoint import Checkpoint, History
from kdrop.training.data import Data, Part, load
from kdrop.training.devices import ALONE, Devices
from kdrop.training.experiment import SCHEDULES, Experiment
from kdrop.training.pipeline import batches
from kdrop.training.progress import Recorder

EVALUATION_BATCH = 500
# Most training steps in one call of the training function; those of one call share
# a rate.
EXECUTION_STEPS, SCHEDULED_STEPS = 50, 5


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    experiment: Experiment
    model: keras.Model | None  # `None` where only the numbers are still needed
    history: History  # columns of equal length, one row an epoch
    # Accuracy and loss of each part (`test_accuracy`), `test_calibration_error`, the
    # vote's measures, `seconds`.
    metrics: dict[str, float]
    probabilities: Any = None  # array (test examples, classes), at inference
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


def load_data(experiment: Experiment, data_dir: Path | None = None) -> Data:
    """The experiment's data set; `data_dir` is that of `data.load`."""
    sizes = experiment.train_size, experiment.validation
    return load(experiment.data, *sizes, experiment.data_seed, data_dir)


def network(experiment: Experiment, data: Data) -> keras.Model:
    """The experiment's network before training, not compiled.

    It raises `UserError` if the layer or the settings do not fit the network.
    """
    names = ("hidden", "input_rate", "l1", "l2", "max_norm", "norm_penalty")
    settings: dict[str, Any] = {name: getattr(experiment, name) for name in names}
    if rate := experiment.rate:
        settings["rate"] = rate[0] if len(rate) == 1 else rate
    if experiment.width:
        settings["width"] = experiment.width
    builder = MODELS[experiment.model]
    try:
        return builder(
            getattr(layers, experiment.dropout, None),  # `None` for "none"
            classes=len(data.labels),
            input_shape=data.train.inputs.shape[1:],
            examples=len(data.train.targets),
            seed=experiment.seed,
            **settings,
        )
    except (TypeError, ValueError) as error:
        # Keras puts the sentence in bold, between others about the call.
        bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)
        reason = " ".join((bold[1] if bold else str(error)).split())
        raise UserError(
            f"The model {experiment.model} with dropout {experiment.dropout} does not "
            f"fit the data set {experiment.data}: {reason}"
        ) from error


def build(experiment: Experiment, data: Data) -> keras.Model:
    """The experiment's network, standardised to the training part and compiled."""
    keras.utils.set_random_seed(experiment.seed)
    model = network(experiment, data)
    examples = batches(data.train, EVALUATION_BATCH, epochs=1).map(lambda x, _: x)
    model.get_layer("standardise").adapt(examples)
    loss: Any = "sparse_categorical_crossentropy"
    if experiment.label_smoothing:
        loss = SmoothedCrossentropy(label_smoothing=experiment.label_smoothing)
    data_loss = keras.metrics.SparseCategoricalCrossentropy(name="data_loss")
    steps = experiment.epochs * steps_per_epoch(experiment, data)
    model.compile(
        optimizer=_optimizer(experiment, steps),
        loss=loss,
        weighted_metrics=["accuracy", data_loss],
        # Otherwise Keras runs each operation of JAX on its own.
        jit_compile=experiment.jit_compile or backend.name() == "jax",
    )
    return model


def _optimizer(experiment: Experiment, steps: int) -> keras.Optimizer:
    """The optimizer of a run of this many training steps."""
    schedules, rate = keras.optimizers.schedules, experiment.learning_rate
    if experiment.decay == "cosine":
        warmup = int(experiment.warmup * steps)
        rate = schedules.CosineDecay(
            0.0, steps - warmup, warmup_target=rate, warmup_steps=warmup
        )
    else:
        rate = schedules.InverseTimeDecay(rate, 1, experiment.decay)
    kind = keras.optimizers.Adam
    if experiment.optimizer == "sgd":
        kind = partial(keras.optimizers.SGD, momentum=0.9, nesterov=True)
    return kind(rate, weight_decay=experiment.weight_decay or None)


def steps_per_epoch(experiment: Experiment, data: Data) -> int:
    one_pass = -(-len(data.train.targets) // experiment.batch_size)
    return experiment.steps_per_epoch or one_pass


def train(
    experiment: Experiment,
    data: Data,
    checkpoint: Checkpoint,
    *,
    console: Console | None = None,
    label: str = "",
    callbacks: Iterable[keras.callbacks.Callback] = (),
    devices: Devices = ALONE,
) -> Run:
    """Train the experiment's network, or resume it from `checkpoint`.

    A resumed run ends with the same weights, bit for bit, as an uninterrupted one. The
    console, if there is one, shows the progress in lines that begin with the label.
    """
    with devices.scope():
        # JAX needs equal values in all processes, also of what a checkpoint replaces.
        keras.utils.set_random_seed(experiment.seed)
        model, history = checkpoint.load()
        model = _synchronised(model or build(experiment, data))
        if tf.distribute.has_strategy():
            model.jit_compile = False  # XLA has no sums over replicas
        # Only kernels decay; a saved model does not say so.
        others = [x for x in model.trainable_variables if len(x.shape) < 2]
        model.optimizer.exclude_from_weight_decay(others)
        schedules = _schedules(experiment, data, model)
        recorder = Recorder(
            console or Console(quiet=True), label, experiment.epochs, history,
            checkpoint, list(schedules), devices.agree,
        )  # fmt: skip
        changes = [RateSchedule(schedules[layer], [layer]) for layer in schedules]
        callbacks = [*changes, recorder, *callbacks]
        first_epoch = recorder.resumed_at
        if first_epoch < experiment.epochs:
            with recorder.bar:
                _fit(model, experiment, data, first_epoch, callbacks, devices)
        examples = _evaluation(data.train, devices)
        results: Any = model.evaluate(examples, verbose=0, return_dict=True)
    if devices.count > 1:  # reload it as a model of one device
        model = _synchronised(checkpoint.load()[0])
    metrics = {"train_accuracy": results["accuracy"]}
    metrics["train_loss"] = results["data_loss"]
    if "val_accuracy" in history:  # measured after the last epoch
        metrics["validation_accuracy"] = history["val_accuracy"][-1]
        metrics["validation_loss"] = history["val_data_loss"][-1]
    metrics["seconds"] = history["seconds"][-1]
    inputs, targets = data.test
    probabilities = model.predict(np.float32(inputs), EVALUATION_BATCH, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy()(targets, probabilities)
    metrics["test_accuracy"] = float(np.mean(probabilities.argmax(axis=1) == targets))
    metrics["test_loss"] = float(loss)
    metrics["test_calibration_error"] = math.nan  # of a run that diverged
    if are_probabilities(probabilities):
        error = expected_calibration_error(probabilities, targets)
        metrics["test_calibration_error"] = error
    return Run(experiment, model, history, metrics, probabilities)


def _fit(model, experiment, data, first_epoch, callbacks, devices) -> None:
    steps = steps_per_epoch(experiment, data)
    constant = experiment.schedule == "constant"
    most = min(steps, EXECUTION_STEPS if constant else SCHEDULED_STEPS)
    if devices.count > 1:
        most = 1  # Keras's loop over several steps fails under a strategy
    model.steps_per_execution = max(n for n in range(1, most + 1) if steps % n == 0)
    validates = len(data.validation.targets) > 0
    model.fit(
        batches(
            data.train,
            experiment.batch_size,
            first_step=first_epoch * steps,
            shuffle_seed=experiment.seed,
            mirror=experiment.mirror,
            shift=experiment.shift,
            cutout=experiment.cutout,
            devices=devices,
        ),
        steps_per_epoch=steps,
        initial_epoch=first_epoch,
        epochs=experiment.epochs,
        validation_data=_evaluation(data.validation, devices) if validates else None,
        callbacks=callbacks,
        shuffle=False,  # the batches are
        verbose=0,
    )


def _synchronised(model: Any) -> keras.Model:
    """Let replicas normalise by the statistics of the global batch.

    JAX always does, and rejects models that ask for it.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = tf.distribute.has_strategy()
    return model


def _schedules(experiment, data, model) -> dict[Any, Schedule]:
    """The drop layers whose rates change, each with its schedule."""
    if experiment.schedule == "constant":
        return {}
    # A resumed model has the rates of its last epoch, not the initial ones.
    initial = network(experiment, data)
    return {
        layer: SCHEDULES[experiment.schedule](initial.get_layer(layer.name).rate)
        for layer in rated_layers(model)
    }


def _evaluation(part: Part, devices: Devices) -> tf.data.Dataset:
    examples = batches(part, EVALUATION_BATCH, epochs=1, devices=devices)
    # Weights of 1, and of 0 for repeated examples.
    return examples.map(lambda x, y, *weights: (x, y, *map(tf.sign, weights)))
