"""The spiral: which layer comes near the best possible classifier?"""

from functools import partial

from kdrop.training.experiment import Experiment
from studies.study import Study, arms, draw_errors, grid, metric

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
