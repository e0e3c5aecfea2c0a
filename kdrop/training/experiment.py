"""One training run: its settings, and how it is trained, kept and evaluated."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kdrop import layers, schedules
from kdrop.ensemble.calibration import Vote
from kdrop.errors import UserError, check_choice
from kdrop.layers.rate_schedule import RateSchedule, rated_layers
from kdrop.models import MODELS
from kdrop.schedules import Schedule
from kdrop.training.data import SETS, Data, Part, load
from kdrop.training.devices import Devices
from kdrop.training.pipeline import batches
from kdrop.training.progress import Recorder, Unfinished

REPORT_STEPS = 100  # about so many optimiser steps, or an epoch, from line to line
EVALUATION_BATCH = 500
# Steps that one call of the training function takes, at most: they share a rate.
EXECUTION_STEPS, SCHEDULED_STEPS = 50, 5
ALONE = Devices()

# Of the rate that the network or --rate gives to a place.
SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    "constant": schedules.constant,
    "linear": lambda rate: schedules.linear(rate, 0.0),
    "cosine": lambda rate: schedules.cosine(rate, 0.0),
    "early": schedules.early,
    "late": schedules.late,
    "curriculum": schedules.curriculum,
    "annealed": schedules.annealed,
    "scheduled_drop_path": schedules.scheduled_drop_path,
}
# Layers for feature maps, with what else they need: the places behind dense layers
# take InvertedDropout then.
MAPS = {
    "SpatialDropout2D": {},
    "DropBlock2D": {"block_size": 3},
    "DropConnectConv2D": {},
}
# What the others drop that no network of `models` has.
FOREIGN = {
    "DropPath": "residual branches",
    "StochasticDepth": "residual branches",
    "TokenDropout": "tokens",
    "SpatialDropout1D": "the channels of sequences",
    "DropBlock1D": "parts of sequences",
    "SpatialDropout3D": "the channels of volumes",
    "DropBlock3D": "parts of volumes",
}


@dataclass(frozen=True)
class Experiment:
    """One training run, told in full."""

    data: str = "spiral"  # spiral, cifar10 or mnist
    dropout: str = "InvertedDropout"  # a layer of kdrop, or none
    rate: tuple[float, ...] | None = None  # one for all drop layers, or one for each
    input_rate: float | None = None  # fraction of the inputs to drop
    # constant, linear or cosine (from the rate to 0), early, late, curriculum,
    # annealed or scheduled_drop_path: how the rate changes from step to step
    schedule: str | None = None
    # spiral_mlp, mnist_mlp, concat_mlp, alexnet, alexnet32 or srivastava_cnn
    model: str | None = None
    hidden: tuple[int, ...] | None = None  # widths of the dense layers
    width: int | None = None  # filters of alexnet32's first convolution
    train_size: int | None = None  # examples, those to validate on included
    validation: float | None = None  # fraction of them to validate on
    mirror: bool | None = None  # mirror half of the images
    shift: int = 0  # shift images by up to so many pixels
    epochs: int | None = None  # passes over the training set
    batch_size: int | None = None  # examples in a step
    learning_rate: float | None = None  # Adam's, at the start
    decay: float | None = None  # of the learning rate, to 1 / (1 + decay * step) of it
    l1: float = 0.0  # weight of the hidden layers' absolute weights and biases
    l2: float = 0.0  # weight of their squares
    max_norm: float | None = None  # bound of the length of a hidden unit's weights
    norm_penalty: float = 0.0  # weight of the L1 and L2 norms of every parameter
    jit_compile: bool = False  # compile the training step with XLA
    seed: int = 0  # of initial weights, shuffling and masks
    data_seed: int = 0  # of the examples chosen: the same for all runs

    def __post_init__(self):
        check_choice("data set", self.data, SETS)
        check_choice("layer", self.dropout, ["none", *layers.__all__])
        if self.model is not None:
            check_choice("model", self.model, MODELS)
        if self.schedule is not None:
            check_choice("schedule", self.schedule, SCHEDULES)
        rate = getattr(getattr(layers, self.dropout, None), "rate", None)
        for name in ("rate", "input_rate", "schedule"):
            if getattr(self, name) and getattr(rate, "fset", None) is None:
                raise UserError(
                    f"{_option(name)} is given, but --dropout {self.dropout} has no "
                    "rate to set."
                )
        rates = {"rate": self.rate or (), "input_rate": (self.input_rate or 0.0,)}
        for name, values in rates.items():
            for value in values:
                if not 0 <= value < 1:
                    raise UserError(
                        f"{_option(name)} is {value}, but must be in [0, 1)."
                    )
        for name in ("width", "epochs", "batch_size", "learning_rate", "max_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{_option(name)} is {value}, but must be above 0.")
        for name in ("l1", "l2", "norm_penalty", "decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{_option(name)} is {value}, but must not be below 0.")
        for name in ("seed", "data_seed"):
            if not 0 <= getattr(self, name) < 2**32:
                value = getattr(self, name)
                raise UserError(
                    f"{_option(name)} is {value}, but must be in [0, 2^32)."
                )

    def resolved(self) -> Any:
        """An `Experiment` with the data set's own settings where nothing was said."""
        own = DEFAULTS[self.data].items()
        return replace(self, **{k: v for k, v in own if getattr(self, k) is None})

    def slug(self) -> str:
        """Data set and layer, as in `spiral-inverted-dropout`."""
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", self.dropout)
        return f"{self.data}-{words.lower()}"

    def key(self) -> str:
        """A name that no other settings share."""
        settings = json.dumps(asdict(self.resolved())).encode()
        digest = hashlib.sha256(settings).hexdigest()[:8]
        return f"{self.slug()}-seed{self.seed}-{digest}"


DEFAULTS = {
    "spiral": dict(
        model="spiral_mlp", train_size=3000, validation=0.2, mirror=False,
        epochs=500, batch_size=300, learning_rate=0.005,
    ),
    "cifar10": dict(
        model="alexnet32", train_size=5000, validation=0.1, mirror=True,
        epochs=36, batch_size=64, learning_rate=0.001,
    ),
    "mnist": dict(
        model="mnist_mlp", train_size=60000, validation=0.1, mirror=False,
        epochs=20, batch_size=128, learning_rate=0.001,
    ),
}  # fmt: skip


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    experiment: Experiment
    model: keras.Model | None  # dropped where another seed's is better
    history: dict[str, list[float]]
    # train_, validation_, test_ accuracy and loss, seconds, and those of the vote
    metrics: dict[str, float]
    vote: Vote | None = None  # on the test part; dropped with the model


def load_data(experiment: Experiment, folder: Path | None = None) -> Data:
    """The experiment's data set; raises `UserError` if it cannot be had."""
    settings = experiment.resolved()
    where = {} if settings.data == "spiral" else {"folder": folder}
    return load(
        settings.data,
        train_size=settings.train_size,
        validation=settings.validation,
        seed=settings.data_seed,
        **where,
    )


def network(experiment: Experiment, data: Data) -> keras.Model:
    """The experiment's network before training, not compiled."""
    settings = experiment.resolved()
    if settings.dropout in FOREIGN:
        raise UserError(
            f"{settings.dropout} drops {FOREIGN[settings.dropout]}, which no network "
            "here has: it is for models of your own."
        )
    said = {
        name: getattr(settings, name)
        for name in ("input_rate", "hidden", "width", "max_norm")
        if getattr(settings, name) is not None
    }
    if settings.rate is not None:
        said["rate"] = settings.rate[0] if len(settings.rate) == 1 else settings.rate
    try:
        model = MODELS[settings.model](
            **_dropouts(settings.dropout, len(data.train.targets)),
            classes=len(data.labels),
            input_shape=data.train.inputs.shape[1:],
            l1=settings.l1,
            l2=settings.l2,
            norm_penalty=settings.norm_penalty,
            seed=settings.seed,
            **said,
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The model {settings.model} with dropout {settings.dropout} cannot be "
            f"built: {_reason(error)}"
        ) from error
    if settings.dropout in MAPS:
        kind = getattr(layers, settings.dropout)
        if not any(isinstance(layer, kind) for layer in model.layers):
            raise UserError(
                f"{settings.dropout} takes feature maps, and the model "
                f"{settings.model} has no place for dropout behind a convolution."
            )
    return model


def _dropouts(name: str, examples: int) -> dict[str, Any]:
    """What a builder of a network calls at its places for dropout."""
    if name == "none":
        return {}
    layer = getattr(layers, name)
    if name in MAPS:
        place = "convolution" if name == "DropConnectConv2D" else "dropout"
        dense = layers.InvertedDropout
        return {place: partial(layer, **MAPS[name]), "dense_dropout": dense}
    if name == "DropConnectDense":
        return {"dense": layer}
    # The first argument of the others is not a rate: they learn it. The weights of
    # their losses are those that the papers derive for so many examples.
    if name == "StandoutDropout":
        # Not behind convolutions, as in the paper. It begins near the place's rate.
        return {
            "dense_dropout": lambda rate, **named: layer(
                beta=math.log((1 - rate) / rate), **named
            )
        }
    if name == "VariationalDropout":
        weight = {"divergence_weight": 1 / examples}
        return {"dense": lambda units, rate, **rest: layer(units, **weight, **rest)}
    if name == "ConcreteDropout":
        weights = {"weight_decay": 1e-4 / examples, "entropy_weight": 1 / examples}

        def wrapped(units, rate, seed, name, **rest):
            dense = keras.layers.Dense(units, **rest)
            return layer(dense, **weights, seed=seed, name=name)

        return {"dense": wrapped}
    return {"dropout": layer}


def _reason(error: Exception) -> str:
    """An error's sentence without what Keras puts around it."""
    bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)
    return " ".join((bold[1] if bold else str(error)).split())


def build(experiment: Experiment, data: Data) -> keras.Model:
    """The experiment's network, standardised to the training part and compiled."""
    settings = experiment.resolved()
    keras.utils.set_random_seed(settings.seed)
    model = network(settings, data)
    seen = batches(data.train, EVALUATION_BATCH, passes=1).map(lambda x, _: x)
    model.get_layer("standardise").adapt(seen)
    rate, steps = settings.learning_rate, settings.epochs * _steps(settings, data.train)
    if settings.decay is None:
        schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    else:
        schedule = keras.optimizers.schedules.InverseTimeDecay(rate, 1, settings.decay)
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss="sparse_categorical_crossentropy",
        weighted_metrics=[
            "accuracy",
            keras.metrics.SparseCategoricalCrossentropy(name="data_loss"),
        ],
        # Without it Keras runs each operation of JAX by itself.
        jit_compile=settings.jit_compile or keras.backend.backend() == "jax",
    )
    return model


def train(
    experiment: Experiment,
    data: Data,
    unfinished: Unfinished,
    recorder: Recorder,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    devices: Devices = ALONE,
) -> Run:
    """Train the experiment's network, or go on with what `unfinished` holds of it."""
    with devices.scope():
        run = _train(experiment, data, unfinished, recorder, callbacks, devices)
    if devices.count == 1:
        return run
    # As a model of one device, which the file of the last epoch makes of it.
    return replace(run, model=_synchronised(unfinished.load()[0]))


def _train(experiment, data, unfinished, recorder, callbacks, devices):
    settings = experiment.resolved()
    if devices.count > 1 and settings.jit_compile:
        raise UserError("--jit-compile works on one device only: take --replicas 1.")
    # JAX wants the same values in all processes, those that are to be replaced too.
    keras.utils.set_random_seed(settings.seed)
    model, history = unfinished.load()
    model = _synchronised(model or build(settings, data))
    scheduled = _scheduled(settings, data, model)
    recorder.begin(
        settings.epochs, history, unfinished, list(scheduled), devices.decide
    )
    validates = len(data.validation.targets) > 0
    steps = _steps(settings, data.train)
    stride = _stride(settings.epochs, steps)
    done = int(history["epoch"][-1]) if history else 0
    whole = settings.epochs // stride * stride
    parts = [(0, whole, stride), (whole, settings.epochs, settings.epochs - whole)]
    parts = [part for part in parts if part[2]]
    together = SCHEDULED_STEPS if scheduled else EXECUTION_STEPS
    if devices.count > 1:  # Keras's loop over steps fails under a strategy
        together = 1
    # The first step of the last execution, in which progress is 1.
    last = settings.epochs * steps - _largest_divisor(parts[-1][2] * steps, together)
    for start, end, passes in parts:
        if done >= end:
            continue
        recorder.report_every(passes, passes * steps)
        model.steps_per_execution = _largest_divisor(passes * steps, together)
        ends = start * steps, end * steps - model.steps_per_execution
        model.train_function = model.test_function = None  # made for another number
        model.fit(
            batches(
                data.train,
                settings.batch_size,
                first_pass=done,
                shuffle_seed=settings.seed,
                mirror=settings.mirror,
                shift=settings.shift,
                **devices.share,
            ),
            steps_per_epoch=passes * steps,
            initial_epoch=(done - start) // passes,
            epochs=(end - start) // passes,
            validation_data=_whole(data.validation, devices) if validates else None,
            callbacks=[
                *(
                    RateSchedule(_stretch(schedule, *ends, last), [layer])
                    for layer, schedule in scheduled.items()
                ),
                recorder,
                *callbacks,
            ],
            shuffle=False,  # the batches are
            verbose=0,
        )
        done = end
    metrics = evaluate(model, data, recorder, devices)
    return Run(settings, model, recorder.history, metrics)


def _synchronised(model: Any) -> Any:
    """Let replicas normalise by the statistics of the global batch.

    JAX does so of itself, and refuses models that ask for it.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = tf.distribute.has_strategy()
    return model


def _scheduled(settings: Any, data: Data, model: keras.Model) -> dict[Any, Schedule]:
    """The drop layers of a run with a schedule, each with its own."""
    if settings.schedule is None:
        return {}
    # A model that goes on after a stop holds the rates of that moment.
    first = network(settings, data)
    return {
        layer: SCHEDULES[settings.schedule](first.get_layer(layer.name).rate)
        for layer in rated_layers(model)
    }


def _stretch(schedule: Schedule, start: int, end: int, last: int) -> Schedule:
    """The schedule of a run up to step `last`, for a `fit` from `start` to `end`."""
    return lambda progress: schedule(
        (start + (end - start) * progress) / last if last else 0.0
    )


def evaluate(model, data, recorder, devices=ALONE) -> dict[str, float]:
    """Accuracy and data loss at inference on each part that has examples."""
    metrics = {}
    for name in ("train", "validation", "test"):
        part = getattr(data, name)
        if len(part.targets):
            found = model.evaluate(_whole(part, devices), verbose=0, return_dict=True)
            metrics[f"{name}_accuracy"] = found["accuracy"]
            metrics[f"{name}_loss"] = found["data_loss"]
    return {**metrics, "seconds": recorder.history["seconds"][-1]}


def _whole(part: Part, devices: Devices) -> tf.data.Dataset:
    examples = batches(part, EVALUATION_BATCH, passes=1, **devices.share)
    # Every example counts as one, and a repeated one as none.
    return examples.map(lambda x, y, *weights: (x, y, *map(tf.sign, weights)))


def _steps(settings: Any, part: Part) -> int:
    return math.ceil(len(part.targets) / settings.batch_size)


def _stride(epochs: int, steps: int) -> int:
    """Epochs from report to report: a short one is not worth what `fit` spends on it.

    But there are twenty reports, so that a slow network with few steps tells too.
    """
    return max(1, min(REPORT_STEPS // steps, epochs // 20))


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number up to a limit."""
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)
