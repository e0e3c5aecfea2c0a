"""The study on the spiral."""

from functools import partial
from pathlib import Path

from kdrop.training.experiment import Experiment
from studies import figures
from studies.study import (
    Results,
    Study,
    arms,
    better,
    grid,
    metric,
    test_error,
)

BEST_ACCURACY, BEST_LOSS = 0.910, 0.213  # that a classifier of the spiral can have
UNITS = ["Inverted", "Vanilla", "Exact", "Gaussian", "Uniform", "Alpha"]


def spiral(size: str) -> Study:
    """Layers of units, with the network that `train.py` takes."""
    epochs, seeds = {"quick": (100, 2), "default": (500, 5), "full": (2000, 20)}[size]
    base = partial(
        Experiment, data="spiral", dropout="none", epochs=epochs, learning_rate=0.01
    )
    rates = grid(rate=[(0.1,), (0.3,), (0.5,)])
    return Study(
        f"The spiral: does dropout help where at best {BEST_ACCURACY:.1%} are right?",
        arms(
            base,
            none=grid(learning_rate=(0.005, 0.01, 0.02)),
            **{
                f"{name}Dropout": [
                    {"dropout": f"{name}Dropout", **each} for each in rates
                ]
                for name in UNITS
            },
        ),
        seeds,
        {
            "test accuracy %": metric("test_accuracy", 100),
            "test loss": metric("test_loss"),
            "train accuracy %": metric("train_accuracy", 100),
        },
        _draw_spiral,
    )


def _draw_spiral(path: Path, results: Results) -> str:
    plain, *others = results
    title = better(plain, others)
    groups = {"": {r.arm.name: r.values(test_error) for r in results}}
    limit = {"best possible classifier": 100 * (1 - BEST_ACCURACY)}
    figures.dots(path, title, groups, "Test error (%)", limit)
    best = f"{100 * (1 - BEST_ACCURACY):.1f} %, loss {BEST_LOSS}"
    return f"{title}. The best possible classifier: {best}."
