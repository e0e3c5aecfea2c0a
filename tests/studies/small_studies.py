"""Experiments, arms and results that are small."""

import csv
import time
from dataclasses import replace

from kdrop.training.experiment import Experiment
from studies.study import ERRORS, Arm, Result, Study

SMALL = Experiment.preset(
    "spiral", dropout="none", train_size=300, epochs=3, steps_per_epoch=10,
    batch_size=50, hidden=16,
)  # fmt: skip
RATES = tuple(
    replace(SMALL, dropout="InvertedDropout", rate=(rate,)) for rate in (0.9, 0.1)
)
ARMS = [Arm("none", (SMALL,)), Arm("dropout", RATES)]


def metrics(accuracy=0.5, loss=1.0, test=0.5):
    validation = {"validation_accuracy": accuracy, "validation_loss": loss}
    return {**validation, "test_accuracy": test, "train_accuracy": 1.0}


def result(*errors, arm=ARMS[0]):
    by_seed = {n: metrics(test=1 - each / 100) for n, each in enumerate(errors)}
    return Result(arm, arm.candidates[0], {}, by_seed)


def tiny(quick):
    return Study("Does a tiny study end?", ARMS, 2, ERRORS)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def until(condition):
    for _ in range(2400):
        if result := condition():
            return result
        time.sleep(0.1)
    raise AssertionError("nothing happened for four minutes")
