"""Measures of a classifier's predictions, with weight scaling and by Monte Carlo vote.

Probabilities are as in `kdrop.ensemble.uncertainty`, labels integers `(examples,)`.
"""

from typing import NamedTuple

import keras
import numpy as np

from kdrop.ensemble.sampling import sample
from kdrop.ensemble.uncertainty import are_probabilities, distributions
from kdrop.layers.base import active_drop_layers


class Reliability(NamedTuple):
    """The values of a reliability diagram, for each bin of confidence."""

    confidence: np.ndarray  # (bins,): mean of the largest probability; NaN if empty
    accuracy: np.ndarray  # (bins,): fraction predicted correctly; NaN if empty
    count: np.ndarray  # (bins,): examples


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of examples whose most probable class is the label."""
    return float(np.mean(distributions(probabilities).argmax(axis=-1) == labels))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `-log` of the probability of each label, in nats.

    A probability below 1e-7 counts as 1e-7, as in the loss of Keras.
    """
    classes = distributions(probabilities)
    of_label = np.take_along_axis(classes, np.asarray(labels)[:, None], axis=-1)
    return float(-np.log(np.maximum(of_label, keras.config.epsilon())).mean())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the one-hot labels, in [0, 2].

    Reference: [Brier, 1950](https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2)
    """
    classes = distributions(probabilities)
    truth = np.eye(classes.shape[-1])[labels]
    return float(((classes - truth) ** 2).sum(axis=-1).mean())


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> float:
    """Mean difference of accuracy and confidence, over bins weighted by their count.

    Reference: [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 2
    """
    bin_confidence, bin_accuracy, count = reliability(probabilities, labels, bins)
    gap = np.abs(bin_accuracy - bin_confidence)  # NaN in empty bins
    return float(np.nansum(gap * count) / count.sum())


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> Reliability:
    """Accuracy and count for equal bins of confidence, each open at its lower end."""
    classes = distributions(probabilities)
    confidence = classes.max(axis=-1)
    correct = classes.argmax(axis=-1) == labels
    indices = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count, confidence_sum, correct_sum = (
        np.bincount(indices, weights, bins) for weights in (None, confidence, correct)
    )
    with np.errstate(invalid="ignore"):  # an empty bin is 0 / 0
        return Reliability(confidence_sum / count, correct_sum / count, count)


MEASURES = {
    "accuracy": accuracy,
    "negative_log_likelihood": negative_log_likelihood,
    "expected_calibration_error": expected_calibration_error,
    "brier_score": brier_score,
}

# The two kinds of prediction, and their names in tables.
PREDICTIONS = {"weight_scaling": "weight scaling", "vote": "vote"}


class Vote(NamedTuple):
    """Predictions of a classifier with weight scaling, and its Monte Carlo samples."""

    weight_scaling: np.ndarray  # (examples, classes)
    samples: np.ndarray  # (samples, examples, classes)

    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """The probabilities `(examples, classes)` of each kind in `PREDICTIONS`."""
        return self.weight_scaling, self.samples.mean(axis=0, dtype="float64")

    def metrics(self, labels: np.ndarray) -> dict[str, float]:
        """Each of `MEASURES`, prefixed with `weight_scaling_` and with `vote_`."""
        return {
            f"{kind}_{name}": measure(probabilities, labels)
            for kind, probabilities in zip(PREDICTIONS, self.predictions(), strict=True)
            for name, measure in MEASURES.items()
        }


def vote(
    model: keras.Model, inputs, scaled: np.ndarray, passes: int, seed: int, verbose=0
) -> Vote | None:
    """Predict with `kdrop.sample`, beside the model's outputs `scaled` at inference.

    Returns `None` if nothing is dropped, or if the outputs are not probabilities.
    """
    if not active_drop_layers(model) or not are_probabilities(scaled):
        return None
    samples = sample(model, inputs, passes, seed=seed, verbose=verbose)
    return Vote(scaled, samples) if are_probabilities(samples) else None
