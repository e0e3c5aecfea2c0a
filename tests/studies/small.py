"""A study of seconds."""

from dataclasses import replace

from kdrop.training.experiment import Experiment
from studies.study import ERRORS, Arm, Study

SMALL = Experiment.preset(
    "spiral", dropout="none", train_size=300, epochs=3, steps_per_epoch=10,
    batch_size=50, hidden=16,
)  # fmt: skip
RATES = tuple(
    replace(SMALL, dropout="InvertedDropout", rate=(rate,)) for rate in (0.9, 0.1)
)
ARMS = [Arm("none", (SMALL,)), Arm("dropout", RATES)]


def tiny(quick):
    return Study("Does a tiny study end?", ARMS, 2, ERRORS)
