"""The spiral: which layer is near the best classifier, and with how many points?"""

from functools import partial
from pathlib import Path

from kdrop.training.experiment import Experiment
from studies import figures, study
from studies.study import Arm, Results, Study, grid, metric

CALIBRATION = metric("test_calibration_error", 100)
UNITS = [f"{n}Dropout" for n in "Inverted Vanilla Exact Gaussian Uniform Alpha".split()]


def spiral(quick: bool) -> Study:
    """Layers that drop units, in the network of `train.py`."""
    base = partial(
        Experiment.preset, "spiral", dropout="none", train_size=3000,
        learning_rate=0.01, epochs=4 if quick else 20,
    )  # fmt: skip
    layers = {
        name: grid({"dropout": name}, rate=(0.02, 0.05, 0.1, 0.3, 0.5))
        for name in UNITS
    }
    learning_rates = (0.001, 0.0025, 0.005, 0.01, 0.02)
    columns = {
        "test accuracy %": metric("test_accuracy", 100),
        "test loss": metric("test_loss"),
        "train accuracy %": metric("train_accuracy", 100),
    }
    return Study(
        "The spiral: which layers come near an error of 9 %, the least possible?",
        study.arms(base, {"none": grid(learning_rate=learning_rates), **layers}),
        2 if quick else 5,
        columns,
        partial(study.draw_errors, **{"best possible classifier": 9.0}),
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
                    **study.split(size, 600),
                ),
            ),
            dropout,
            size,
        )
        for dropout in ("none", "InvertedDropout")
        for size in sizes
    ]  # fmt: skip
    columns = {**study.ERRORS, "calibration error %": CALIBRATION}
    question = "The spiral: with how many training points does dropout help?"
    return Study(question, compared, 2 if quick else 5, columns, _draw_points)


def _draw_points(path: Path, results: Results) -> str:
    metrics = {"Test error": study.error("test"), "Calibration error": CALIBRATION}
    groups = study.by_series(results)
    panels = {
        heading: {
            series: {int(r.arm.x): r.values(metric) for r in group}
            for series, group in groups.items()
        }
        for heading, metric in metrics.items()
    }
    plain, dropped = panels["Test error"].values()
    ends = [
        (n, figures.summary(plain[n])[0], figures.summary(dropped[n])[0])
        for n in (min(plain), max(plain))
    ]
    verb = "lowers" if all(less < more for _, more, less in ends) else "moves"
    title = f"Dropout {verb} the error from " + " and from ".join(
        f"{without:.1f} to {with_it:.1f} % ({n:,} points)"
        for n, without, with_it in ends
    )
    ticks = {"xscale": "log", "xticks": [*plain], "xticklabels": [*plain]}
    figures.lines(path, title, panels, "Training points", "%", **ticks)
    return title
