"""The spiral: which layer is near the best classifier, and with how many points?"""

from functools import partial
from pathlib import Path

from kdrop.training.experiment import Experiment
from studies import figures
from studies.study import (
    ERRORS,
    Arm,
    Results,
    Study,
    arms,
    by_series,
    draw_errors,
    grid,
    metric,
    split,
)

UNITS = [f"{n}Dropout" for n in "Inverted Vanilla Exact Gaussian Uniform Alpha".split()]


def spiral(quick: bool) -> Study:
    """Layers that drop units, in the network of `train.py`."""
    base = partial(
        Experiment.preset, "spiral", dropout="none", train_size=3000,
        learning_rate=0.01, epochs=4 if quick else 20,
    )  # fmt: skip
    layers = {name: grid({"dropout": name}, rate=(0.1, 0.3, 0.5)) for name in UNITS}
    columns = {
        "test accuracy %": metric("test_accuracy", 100),
        "test loss": metric("test_loss"),
        "train accuracy %": metric("train_accuracy", 100),
    }
    return Study(
        "The spiral: which layers come near an error of 9 %, the least possible?",
        arms(base, {"none": grid(learning_rate=(0.005, 0.01, 0.02)), **layers}),
        2 if quick else 5,
        columns,
        partial(draw_errors, **{"best possible classifier": 9.0}),
    )


def points(quick: bool) -> Study:
    """The network of `train.py`, trained on fewer and fewer points."""
    sizes = (150, 600, 2400) if quick else (150, 300, 600, 1200, 2400)
    compared = [
        Arm(
            f"{size:,} points",
            (
                Experiment.preset(
                    "spiral", dropout=dropout, epochs=4 if quick else 20,
                    **split(size, 600),
                ),
            ),
            dropout,
            size,
        )
        for dropout in ("none", "InvertedDropout")
        for size in sizes
    ]  # fmt: skip
    columns = {**ERRORS, "calibration error": metric("test_calibration_error")}
    question = "The spiral: with how many training points does dropout help?"
    return Study(question, compared, 2 if quick else 5, columns, _draw_points)


def _draw_points(path: Path, results: Results) -> str:
    losses = {
        series: {int(r.arm.x): r.values(metric("test_loss")) for r in group}
        for series, group in by_series(results).items()
    }
    sizes = [*losses["none"]]
    mean = {
        name: [figures.summary(losses[name][n])[0] for n in sizes] for name in losses
    }
    title = "; ".join(
        f"{sizes[k]:,} points: loss {mean['none'][k]:.2f} without dropout, "
        f"{mean['InvertedDropout'][k]:.2f} with it"
        for k in (0, -1)
    )
    ticks = {"xscale": "log", "xticks": sizes, "xticklabels": map(str, sizes)}
    figures.lines(path, title, {"": losses}, "Training points", "Test loss", **ticks)
    return title
