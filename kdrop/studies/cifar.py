"""The studies on CIFAR-10."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kdrop import figures
from kdrop.data import Data
from kdrop.experiment import EVALUATION_BATCH, Experiment, Run
from kdrop.pipeline import batches
from kdrop.studies.runner import Metrics
from kdrop.studies.spiral import UNITS
from kdrop.studies.study import (
    ERRORS,
    Arm,
    Results,
    Study,
    arms,
    better,
    beyond,
    metric,
    said,
    test_error,
)
from kdrop.voting import MEASURES

MAPS = ["SpatialDropout2D", "DropBlock2D", "DropConnectConv2D"]
LEARNED = ["ConcreteDropout", "StandoutDropout", "VariationalDropout"]


def family(size: str) -> Study:
    """Every layer that `alexnet32` has a place for."""
    examples, width, epochs, seeds = {
        "quick": (500, 8, 6, 2),
        "default": (2500, 12, 20, 3),
        "full": (50000, 32, 100, 5),
    }[size]
    base = partial(
        Experiment, data="cifar10", width=width, hidden=(32 * width,), mirror=False,
        train_size=examples, validation=0.2, epochs=epochs, batch_size=64,
    )  # fmt: skip
    few = slice(1, 2) if size == "quick" else slice(3)
    paces = [{"learning_rate": pace} for pace in (3e-4, 1e-3, 3e-3)][few]
    rates = [{"rate": (n / 2, n / 2, n, 2.5 * n)} for n in (0.1, 0.2, 0.3)][few]
    rated = [f"{name}Dropout" for name in UNITS] + MAPS + ["DropConnectDense"]
    searched = {**dict.fromkeys(rated, rates), **dict.fromkeys(LEARNED, paces)}
    changes = {
        name: [{"dropout": name, **each} for each in candidates]
        for name, candidates in {"none": paces, **searched}.items()
    }
    return Study(
        f"CIFAR-10, {examples:,} images, alexnet32: what does each layer do?",
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
    """Calibration on the test part, and the median time of a step."""
    test = batches(data.test, EVALUATION_BATCH, passes=1)
    assert run.model is not None
    predicted = run.model.predict(test, verbose=0)
    name = "expected_calibration_error"
    epochs, seconds = (run.history[column] for column in ("epoch", "seconds"))
    steps = -(-len(data.train.targets) // run.experiment.resolved().batch_size)
    taken = np.diff(seconds) / np.diff(epochs) / steps
    return {
        name: MEASURES[name](predicted, data.test.targets),
        "step": float(np.median(taken)),
    }


def _draw_family(path: Path, results: Results) -> str:
    plain, *others = results
    ordered = sorted(others, key=lambda result: result.mean(test_error))
    best, worst = ordered[0], ordered[-1]
    title = f"{better(plain, others)}:\n{said(best)}, {said(worst)}, {said(plain)}"
    groups = {"": {r.arm.name: r.values(test_error) for r in [plain, *ordered[::-1]]}}
    figures.dots(path, title, groups, "Test error (%)")
    return title


def alexnet(size: str) -> Study:
    """Srivastava et al. (2014), table 4, and none of its augmentation either."""
    sizes, epochs, seeds = {
        "quick": ((1000,), 8, 2),
        "default": ((5000, 10000), 30, 3),
        "full": ((50000,), 100, 3),
    }[size]
    network: dict[str, Any] = dict(model="alexnet32", width=16, hidden=(512,))
    places = {"in the classifier": (0.0, 0.0, 0.0, 0.5), "everywhere": None}
    if size == "full":
        network = dict(model="srivastava_cnn")
        places["in the classifier"] = (0.0, 0.0, 0.0, 0.5, 0.5)
    compared = []
    for examples in sizes:
        base = partial(
            Experiment, data="cifar10", train_size=examples, mirror=False,
            epochs=epochs, **network,
        )  # fmt: skip
        series = f"{examples:,} images"
        compared.append(Arm("none", (base(dropout="none"),), series))
        for name, rates in places.items():
            own = {"input_rate": 0.0} if rates else {}
            compared.append(Arm(name, (base(rate=rates, **own),), series))
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
        arms = groups.setdefault(result.arm.series, {})
        arms[result.arm.name] = result.values(test_error)
    found = []
    for series in groups:
        mine = [result for result in results if result.arm.series == series]
        steps = [beyond(a, b, test_error) for a, b in pairwise(mine)]
        words = {0: "neither step", 1: "one step", 2: "both steps"}[sum(steps)]
        found.append(
            f"{series}: {', '.join(map(said, mine))}:\n"
            f"{words} down beyond two standard errors"
        )
    title = "\n".join(found)
    figures.dots(path, title, groups, "Test error (%)")
    return title
