"""The studies on CIFAR-10."""

import math
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kdrop.ensemble.calibration import MEASURES
from kdrop.ensemble.uncertainty import are_probabilities
from kdrop.training.data import Data
from kdrop.training.experiment import EVALUATION_BATCH, Experiment, Run
from kdrop.training.pipeline import batches
from studies import figures
from studies.runner import Metrics
from studies.spiral import UNITS
from studies.study import (
    ERRORS,
    Results,
    Study,
    arms,
    better,
    beyond,
    grid,
    metric,
    split,
    test_error,
)

MAPS = ["SpatialDropout2D", "DropBlock2D", "DropConnectConv2D"]
TIMED = 5  # calls of the training function, of several steps each
LEARNED = ["ConcreteDropout", "StandoutDropout", "VariationalDropout"]


def family(size: str) -> Study:
    """Every layer that `alexnet32` has a place for.

    Behind its dense layers those of feature maps have `InvertedDropout`.
    """
    examples, width, epochs, seeds = {
        "quick": (500, 8, 6, 2),
        "default": (2000, 8, 16, 3),
        "full": (40000, 32, 100, 5),
    }[size]
    base = partial(
        Experiment, data="cifar10", width=width, hidden=(32 * width,), mirror=False,
        epochs=epochs, batch_size=64, learning_rate=0.01,
        **split(examples, min(examples // 2, 10000)),
    )  # fmt: skip
    few = size == "quick"
    shares = (0.1,) if few else (0.05, 0.1, 0.2)
    rates = [{"rate": (n / 2, n / 2, n, 2.5 * n)} for n in shares]
    learning_rates = grid(learning_rate=(1e-2,) if few else (3e-3, 1e-2, 3e-2))
    rated = [f"{name}Dropout" for name in UNITS] + MAPS + ["DropConnectDense"]
    searched = {**dict.fromkeys(rated, rates), **dict.fromkeys(LEARNED, learning_rates)}
    changes = {
        name + " + Inverted" * (name in MAPS): [
            {"dropout": name, **each} for each in candidates
        ]
        for name, candidates in {"none": learning_rates, **searched}.items()
    }
    return Study(
        f"CIFAR-10, {examples:,} training images, alexnet32: what does each layer do?",
        arms(base, **changes),
        seeds,
        {
            "test accuracy %": metric("test_accuracy", 100),
            "calibration error": metric("expected_calibration_error"),
            "test loss": metric("test_loss"),
            "ms a step": metric("step", 1000),
        },
        _draw_family,
        _measure_family,
    )


def _measure_family(run: Run, data: Data) -> Metrics:
    """Calibration on the test part, and the median seconds of further steps."""
    test = batches(data.test, EVALUATION_BATCH, passes=1)
    model = run.model
    assert model is not None
    predicted = model.predict(test, verbose=0)
    name, error = "expected_calibration_error", math.nan
    if are_probabilities(predicted):  # a run that diverged has none
        error = MEASURES[name](predicted, data.test.targets)
    model.make_train_function()  # there is none yet where a finished run went on
    feed = iter(batches(data.train, run.experiment.resolved().batch_size))
    times = []
    for _ in range(TIMED):
        start = time.perf_counter()
        model.train_function(feed)
        times.append((time.perf_counter() - start) / model.steps_per_execution)
    return {name: error, "step": float(np.median(times))}


def _draw_family(path: Path, results: Results) -> str:
    plain, *others = results
    ordered = sorted(others, key=lambda result: result.mean(test_error))
    title = better(plain, others)
    groups = {"": {r.arm.name: r.values(test_error) for r in [plain, *ordered[::-1]]}}
    figures.dots(path, title, groups, "Test error (%)")
    return title


def alexnet(size: str) -> Study:
    """Srivastava et al. (2014), table 4, without augmentation as there."""
    budgets, seeds = {  # epochs by the number of images
        "quick": ({1000: 8}, 2),
        "default": ({5000: 40, 10000: 20}, 3),  # as many steps of both
        "full": ({45000: 100}, 3),
    }[size]
    network: dict[str, Any] = dict(model="alexnet32", width=12, hidden=(512,))
    classifier, learning_rates = (0.0, 0.0, 0.0, 0.5), (2e-3, 5e-3, 1e-2)
    if size == "full":  # without batch normalisation: for lower learning rates
        network = dict(model="srivastava_cnn")
        classifier, learning_rates = (0.0, 0.0, 0.0, 0.5, 0.5), (3e-4, 1e-3, 3e-3)
    places: dict[str, dict[str, Any]] = {
        "none": {"dropout": "none"},
        "in the classifier": {"rate": classifier, "input_rate": 0.0},
        "everywhere": {},
    }
    compared = []
    for examples, epochs in budgets.items():
        held = min(examples // 5, 50000 - examples)
        base = partial(
            Experiment, data="cifar10", mirror=False, epochs=epochs, **network,
            **split(examples, held),
        )  # fmt: skip
        searched = {
            name: grid(place, learning_rate=learning_rates)
            for name, place in places.items()
        }
        series = f"{examples:,} training images"
        compared += [replace(arm, series=series) for arm in arms(base, **searched)]
    return Study(
        "CIFAR-10: does dropout help more where it is behind convolutions too?",
        compared,
        seeds,
        ERRORS,
        _draw_alexnet,
    )


def _draw_alexnet(path: Path, results: Results) -> str:
    groups: dict[str, dict] = {}
    for result in results:
        group = groups.setdefault(result.arm.series, {})
        group[result.arm.name] = result.values(test_error)
    found = []
    for series in groups:
        mine = [result for result in results if result.arm.series == series]
        words = ", ".join(
            f"{word} {b.arm.name}"
            for a, b in pairwise(mine)
            for word, larger, smaller in (("less", a, b), ("more", b, a))
            if beyond(larger, smaller, test_error)
        )
        means = ", ".join(f"{r.arm.name} {r.mean(test_error):.2f} %" for r in mine)
        steps = f"beyond two standard errors of the one before: {words or 'neither'}"
        found.append(f"{series}: {means}\n{steps}")
    title = "\n".join(found)
    figures.dots(path, title, groups, "Test error (%)")
    return title
