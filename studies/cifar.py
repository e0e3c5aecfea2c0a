"""CIFAR-10: what does each layer do, and where in the network?"""

from functools import partial
from typing import Any

from kdrop.training.experiment import Experiment
from studies import study
from studies.spiral import UNITS
from studies.study import Study, draw_pairs, grid, metric

MAPS = ("SpatialDropout2D", "DropBlock2D", "DropConnectConv2D")
LEARNED = ("ConcreteDropout", "StandoutDropout", "VariationalDropout")

PLAIN: dict[str, Any] = dict(
    optimizer="adam", warmup=0.0, weight_decay=0.0, label_smoothing=0.0,
    mirror=False, shift=0,
)  # fmt: skip
COLUMNS = {
    "test accuracy %": metric("test_accuracy", 100),
    "calibration error": metric("test_calibration_error"),
    "test loss": metric("test_loss"),
}


def recipe(quick: bool) -> Study:
    """The preset of `train.py cifar10`, without dropout and with it at two places."""
    examples, epochs = (500, 4) if quick else (5000, 40)
    base = partial(
        Experiment.preset, "cifar10", epochs=epochs, weight_decay=0.005,
        **study.split(examples, examples),
    )  # fmt: skip
    none = {"dropout": "none"}
    in_classifier, everywhere = (0.0, 0.0, 0.0, 0.5), (0.05, 0.05, 0.1, 0.25)
    changes = {
        "none": [
            *grid(none, weight_decay=(0.005, 0.01), shift=(2, 4)),
            *grid(none, weight_decay=(0.02,), shift=(2, 4, 6)),
            *grid(none, weight_decay=(0.04, 0.08), shift=(4,)),
            *grid(none, weight_decay=(0.01, 0.04), shift=(6,)),
        ],
        "InvertedDropout": [
            *grid(rate=(in_classifier, everywhere), shift=(2, 4)),
            *grid(rate=(in_classifier,), shift=(6,)),
            *grid(rate=(in_classifier, everywhere), weight_decay=(0.02, 0.04)),
            *grid(rate=(in_classifier,), weight_decay=(0.01, 0.08)),
        ],
    }
    question = f"CIFAR-10, {examples:,} training images: does dropout pay in a recipe?"
    compared = study.arms(base, changes)
    return Study(question, compared, 2 if quick else 5, COLUMNS, draw_pairs)


def residual(quick: bool) -> Study:
    """The same recipe for `resnet32`, with layers that it has places for."""
    examples, epochs = (500, 4) if quick else (5000, 40)
    base = partial(
        Experiment.preset, "cifar10", model="resnet32", epochs=epochs,
        **study.split(examples, examples),
    )  # fmt: skip
    changes = {"none": grid({"dropout": "none"}, weight_decay=(0.01, 0.02, 0.04))}
    for name in ("DropPath", "StochasticDepth", "DropBlock2D"):
        layer = {"dropout": name}
        changes[name] = grid(layer, rate=(0.025, 0.05))
        changes[name] += grid(layer, rate=(0.05,), weight_decay=(0.01,))
    question = f"CIFAR-10, {examples:,} training images: what pays in resnet32?"
    return Study(question, study.arms(base, changes), 2 if quick else 3, COLUMNS)


def family(quick: bool) -> Study:
    """Every layer that `alexnet32` has a place for.

    Layers for feature maps leave its dense layer to `InvertedDropout`.
    """
    examples, epochs = (500, 6) if quick else (2000, 16)
    base = partial(
        Experiment.preset, "cifar10", width=8, hidden=256, epochs=epochs,
        batch_size=64, learning_rate=0.01, **PLAIN,
        **study.split(examples, examples // 2),
    )  # fmt: skip
    scales = [0.1] if quick else [0.0125, 0.025, 0.05, 0.1, 0.2]
    rates = [(n / 2, n / 2, n, 2.5 * n) for n in scales]
    learning_rates = [1e-2] if quick else [2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2]
    changes = {"none": grid({"dropout": "none"}, learning_rate=learning_rates)}
    for name in (*UNITS, *MAPS, "DropConnectDense"):
        arm = name + " + Inverted" * (name in MAPS)
        changes[arm] = grid({"dropout": name}, rate=rates)
    for name in LEARNED:
        changes[name] = grid({"dropout": name}, learning_rate=learning_rates)
    return Study(
        f"CIFAR-10, {examples:,} training images, alexnet32: what does each layer do?",
        study.arms(base, changes),
        2 if quick else 3,
        COLUMNS,
    )


def alexnet(quick: bool) -> Study:
    """Dropout nowhere, in the classifier, everywhere: table 4 of Srivastava et al."""
    examples, epochs = (1000, 8) if quick else (5000, 40)
    base = partial(
        Experiment.preset, "cifar10", width=12, hidden=512, epochs=epochs,
        **PLAIN, **study.split(examples, examples // 5),
    )  # fmt: skip
    places: dict[str, dict[str, Any]] = {
        "none": {"dropout": "none"},
        "in the classifier": {"rate": (0.0, 0.0, 0.0, 0.5)},
        "everywhere": {"rate": (0.1, 0.1, 0.2, 0.5)},
    }
    rates = (1e-3, 2e-3, 5e-3, 1e-2)
    changes = {name: grid(place, learning_rate=rates) for name, place in places.items()}
    question = f"CIFAR-10, {examples:,} training images: does dropout help more "
    question += "after convolutions too?"
    return Study(question, study.arms(base, changes), 2 if quick else 5, study.ERRORS)
