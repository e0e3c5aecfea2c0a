"""The vote of a trained network's sub-networks, beside weight scaling."""

from typing import NamedTuple

import keras
import numpy as np

from kdrop.ensemble import uncertainty
from kdrop.ensemble.sampling import sample
from kdrop.ensemble.split import stochastic

PASSES = 50
# Test examples to vote on where not all: 50 passes of these take about a minute.
SIZES = {"cifar10": 1000}
WAYS = {"weight_scaling": "weight scaling", "vote": "vote"}


def _accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean(probabilities.argmax(axis=-1) == targets))


MEASURES = {
    "accuracy": _accuracy,
    "negative_log_likelihood": uncertainty.negative_log_likelihood,
    "expected_calibration_error": uncertainty.expected_calibration_error,
    "brier_score": uncertainty.brier_score,
}


class Vote(NamedTuple):
    """What a classifier predicts with all units scaled, and what its passes do."""

    weight_scaling: np.ndarray  # (examples, classes)
    samples: np.ndarray  # (passes, examples, classes)

    def ways(self) -> tuple[np.ndarray, np.ndarray]:
        """The probabilities `(examples, classes)` of each of `WAYS`."""
        return self.weight_scaling, self.samples.mean(axis=0, dtype="float64")

    def metrics(self, targets: np.ndarray) -> dict[str, float]:
        """Each of `MEASURES`, its name behind `weight_scaling_` and behind `vote_`."""
        return {
            f"{way}_{name}": measure(probabilities, targets)
            for way, probabilities in zip(WAYS, self.ways(), strict=True)
            for name, measure in MEASURES.items()
        }


def vote(
    model: keras.Model, inputs, passes: int, seed: int, verbose: int = 0
) -> Vote | None:
    """Let the sub-networks of a classifier vote.

    Args:
        inputs: As `kdrop.sample` takes them.
        passes: Number of passes that vote.
        seed: Integer in [0, 2^32). The same seed gives the same vote.
        verbose: 1 shows a progress bar, 0 does not.

    Returns:
        `None` for a model that drops nothing, or one that diverged and gives no
        probabilities.
    """
    if not stochastic(model):
        return None
    scaled = model.predict(inputs, verbose=0)
    if not uncertainty.are_probabilities(scaled):
        return None
    samples = sample(model, inputs, passes, seed=seed, verbose=verbose)
    return Vote(scaled, samples) if uncertainty.are_probabilities(samples) else None
