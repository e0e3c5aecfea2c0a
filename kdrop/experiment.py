"""One training run: its settings, and how it is trained, kept and evaluated."""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kdrop import layers
from kdrop.data import BadInput, Data, Part, load
from kdrop.models import MODELS
from kdrop.pipeline import batches
from kdrop.progress import Recorder, Unfinished

REPORT_STEPS = 100  # about so many optimiser steps, or an epoch, from line to line
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Experiment:
    """One training run, told in full. What is `None` is the data set's own."""

    data: str = "spiral"  # spiral, cifar10 or mnist
    dropout: str = "InvertedDropout"  # a layer of kdrop, or none
    rate: tuple[float, ...] | None = None  # one, or one a place; own: the network's
    input_rate: float | None = None  # fraction of inputs to drop; own: the network's
    model: str | None = None  # own: spiral_mlp, alexnet32, mnist_mlp
    hidden: tuple[int, ...] | None = None  # dense widths; own: the network's
    train_size: int | None = None  # with the validation part; own: 3000, 5000, 60000
    validation: float | None = None  # fraction to validate on; own: 0.2, 0.1, 0.1
    augment: bool | None = None  # shift and mirror images; own: no, yes, no
    epochs: int | None = None  # passes over the training set; own: 500, 40, 20
    batch_size: int | None = None  # examples in a step; own: 300, 128, 128
    learning_rate: float | None = None  # Adam's first; own: 0.005, 0.001, 0.001
    decay: float | None = None  # rate / (1 + decay * step); own: a cosine to 0
    l1: float = 0.0  # weight of the hidden layers' absolute weights and biases
    l2: float | None = None  # weight of their squares; own: 0, 0, 0
    max_norm: float | None = None  # bound of a hidden unit's weights; own: none
    norm_penalty: float = 0.0  # weight of the L1 and L2 norms of every parameter
    jit_compile: bool = False  # compile the training step with XLA
    seed: int = 0  # of initial weights, shuffling and masks
    data_seed: int = 0  # of the examples chosen: the same for all runs

    def __post_init__(self):
        _check_choice("data set", self.data, DEFAULTS)
        _check_choice("layer", self.dropout, ["none", *layers.__all__])
        if self.model is not None:
            _check_choice("model", self.model, MODELS)
        rates = {"rate": self.rate or (), "input rate": (self.input_rate or 0.0,)}
        for name, values in rates.items():
            for value in values:
                if not 0 <= value < 1:
                    raise BadInput(f"The {name} is {value}, but must be in [0, 1).")
        for name in ("epochs", "batch_size", "learning_rate", "max_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadInput(f"The {name} is {value}, but must be above 0.")
        for name in ("l1", "l2", "norm_penalty", "decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise BadInput(f"The {name} is {value}, but must not be below 0.")
        for name in ("seed", "data_seed"):
            if not 0 <= getattr(self, name) < 2**32:
                value = getattr(self, name)
                raise BadInput(f"The {name} is {value}, but must be in [0, 2^32).")

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
        model="spiral_mlp", train_size=3000, validation=0.2, augment=False,
        epochs=500, batch_size=300, learning_rate=0.005, l2=0.0,
    ),
    "cifar10": dict(
        model="alexnet32", train_size=5000, validation=0.1, augment=True,
        epochs=40, batch_size=128, learning_rate=0.001, l2=0.0,
    ),
    "mnist": dict(
        model="mnist_mlp", train_size=60000, validation=0.1, augment=False,
        epochs=20, batch_size=128, learning_rate=0.001, l2=0.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    experiment: Experiment
    model: keras.Model
    history: dict[str, list[float]]
    metrics: dict[str, float]  # train_, validation_, test_ accuracy and loss, seconds


def load_data(experiment: Experiment, folder: Path | None = None) -> Data:
    """The experiment's data set; raises `BadInput` if it cannot be had."""
    settings = experiment.resolved()
    where = {} if settings.data == "spiral" else {"folder": folder}
    return load(
        settings.data,
        train_size=settings.train_size,
        validation=settings.validation,
        seed=settings.data_seed,
        **where,
    )


def build(experiment: Experiment, data: Data) -> keras.Model:
    """The experiment's network, standardised to the training part and compiled."""
    settings = experiment.resolved()
    keras.utils.set_random_seed(settings.seed)
    said = {
        name: getattr(settings, name)
        for name in ("input_rate", "hidden", "max_norm")
        if getattr(settings, name) is not None
    }
    if settings.rate is not None:
        said["rate"] = settings.rate[0] if len(settings.rate) == 1 else settings.rate
    drops = settings.dropout != "none"
    try:
        model = MODELS[settings.model](
            dropout=getattr(layers, settings.dropout) if drops else None,
            classes=len(data.labels),
            input_shape=data.train.inputs.shape[1:],
            l1=settings.l1,
            l2=settings.l2,
            norm_penalty=settings.norm_penalty,
            seed=settings.seed,
            **said,
        )
    except (TypeError, ValueError) as error:
        raise BadInput(f"The model {settings.model} refuses: {error}") from error
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
        metrics=[
            "accuracy",
            keras.metrics.SparseCategoricalCrossentropy(name="data_loss"),
        ],
        jit_compile=settings.jit_compile,
    )
    return model


def train(
    experiment: Experiment,
    data: Data,
    unfinished: Unfinished,
    recorder: Recorder,
    callbacks: Iterable[keras.callbacks.Callback] = (),
) -> Run:
    """Train the experiment's network, or go on with what `unfinished` holds of it."""
    settings = experiment.resolved()
    model, history = unfinished.load()
    if model is None:
        model = build(settings, data)
    done = int(history["epoch"][-1]) if history else 0
    # A short epoch is not worth a line, nor the milliseconds that `fit` spends on it.
    steps = _steps(settings, data.train)
    stride = _divisor_near(settings.epochs, REPORT_STEPS / steps)
    model.steps_per_execution = _divisor_near(stride * steps, 50) if stride > 1 else 1
    recorder.begin(settings.epochs, stride, stride * steps, history, unfinished)
    validates = len(data.validation.targets) > 0
    model.fit(
        batches(
            data.train,
            settings.batch_size,
            first_pass=done,
            shuffle_seed=settings.seed,
            augment=settings.augment,
        ),
        steps_per_epoch=stride * steps,
        initial_epoch=done // stride,
        epochs=settings.epochs // stride,
        validation_data=_whole(data.validation) if validates else None,
        callbacks=[recorder, *callbacks],
        shuffle=False,  # the batches are
        verbose=0,
    )
    return Run(settings, model, recorder.history, evaluate(model, data, recorder))


def evaluate(model, data, recorder) -> dict[str, float]:
    """Accuracy and data loss at inference on each part that has examples."""
    metrics = {}
    for name in ("train", "validation", "test"):
        part = getattr(data, name)
        if len(part.targets):
            found = model.evaluate(_whole(part), verbose=0, return_dict=True)
            metrics[f"{name}_accuracy"] = found["accuracy"]
            metrics[f"{name}_loss"] = found["data_loss"]
    return {**metrics, "seconds": recorder.history["seconds"][-1]}


def _whole(part: Part) -> tf.data.Dataset:
    return batches(part, EVALUATION_BATCH, passes=1)


def _steps(settings: Any, part: Part) -> int:
    return math.ceil(len(part.targets) / settings.batch_size)


def _divisor_near(number: int, target: float) -> int:
    """The divisor of a number that is nearest to a target, by ratio."""
    divisors = (d for d in range(1, number + 1) if number % d == 0)
    return min(divisors, key=lambda d: abs(math.log(d / max(target, 1))))


def _check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if name in choices:
        return
    lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[near[0]]}?" if near else f"take {', '.join(choices)}."
    raise BadInput(f"There is no {kind} {name!r}: {hint}")


def settings_of(experiment: Experiment) -> dict[str, object]:
    """Every setting, resolved, as plain values."""
    settings = experiment.resolved()
    return {field.name: getattr(settings, field.name) for field in fields(settings)}
