"""What a vote says: summaries of samples, and how far probabilities can be trusted.

Probabilities are arrays `(..., classes)`, or `(..., 1)` where a sigmoid gives that of
the second of two classes. All is computed in float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from kdrop.ensemble.sampling import sample
from kdrop.ensemble.split import stochastic

TASKS = ("classification", "regression")


class Classification(NamedTuple):
    """How the passes of a classifier agree; entropies in nats."""

    mean: np.ndarray  # (examples, classes): the vote
    std: np.ndarray  # (examples, classes): over the passes
    entropy: np.ndarray  # (examples,): of the mean, the whole uncertainty
    expected_entropy: np.ndarray  # (examples,): mean of the passes', that of the data
    mutual_information: np.ndarray  # (examples,): their difference, that of the model
    variation_ratio: np.ndarray  # (examples,): passes that do not name the mode's class


class Regression(NamedTuple):
    """How the passes of a regression spread."""

    mean: np.ndarray  # (examples, ...)
    std: np.ndarray  # (examples, ...): over the passes
    quantiles: np.ndarray  # (quantiles, examples, ...)


class Reliability(NamedTuple):
    """What a reliability diagram shows: examples in bins of their confidence."""

    confidence: np.ndarray  # (bins,): mean probability of the class named; NaN if empty
    accuracy: np.ndarray  # (bins,): fraction of examples named right; NaN if empty
    count: np.ndarray  # (bins,): examples


def summarise(
    samples: np.ndarray,
    task: str = "classification",
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
) -> Classification | Regression:
    """The vote of stochastic passes and its uncertainty.

    Args:
        samples: Array `(passes, examples, ...)` from `kdrop.sample`; for a
            classification probabilities, with the classes in the last dimension.
        task: `"classification"` or `"regression"`.
        quantiles: For a regression, the fractions of passes below each quantile.

    Returns:
        `Classification` or `Regression`, a named tuple. The standard deviation is that
        of the passes drawn, not an estimate for more of them.

    Raises:
        ValueError: If the task is another, the samples have fewer than two dimensions,
            or those of a classification are no probabilities.

    Reference: [Gal, 2016](https://www.cs.ox.ac.uk/people/yarin.gal/website/thesis/thesis.pdf),
    section 3.3
    """
    if task not in TASKS:
        raise ValueError(f"`task` must be one of {TASKS}. Received: {task!r}")
    samples = np.asarray(samples, "float64")
    if samples.ndim < 2 or not len(samples):
        raise ValueError(
            "`samples` must be an array (passes, examples, ...) with at least one "
            f"pass. Received: an array of shape {samples.shape}"
        )
    mean, std = samples.mean(axis=0), samples.std(axis=0)
    if task == "regression":
        return Regression(mean, std, np.quantile(samples, quantiles, axis=0))
    classes = _distributions(samples)
    vote = classes.mean(axis=0)
    named = classes.argmax(axis=-1)
    votes = (named[..., None] == np.arange(classes.shape[-1])).sum(axis=0)
    return Classification(
        mean,
        std,
        entropy=_entropy(vote),
        expected_entropy=_entropy(classes).mean(axis=0),
        mutual_information=_information(classes, vote),
        variation_ratio=1 - votes.max(axis=-1) / len(samples),
    )


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `-log` of the probability that each example's own class has, in nats.

    A probability of 0 counts as 1.2e-38, the smallest of float32.

    Args:
        probabilities: Array `(examples, classes)`.
        labels: Integer array `(examples,)`.
    """
    classes = _distributions(probabilities)
    own = np.take_along_axis(classes, np.asarray(labels)[:, None], axis=-1)
    return float(-np.log(np.maximum(own, np.finfo("float32").tiny)).mean())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the true classes, in [0, 2].

    Args:
        probabilities: Array `(examples, classes)`.
        labels: Integer array `(examples,)`.

    Reference: [Brier, 1950](https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2)
    """
    classes = _distributions(probabilities)
    truth = np.eye(classes.shape[-1])[labels]
    return float(((classes - truth) ** 2).sum(axis=-1).mean())


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> float:
    """Mean distance of the bins' accuracy from their confidence, by their examples.

    Args:
        probabilities: Array `(examples, classes)`.
        labels: Integer array `(examples,)`.
        bins: Number of bins of equal width.

    Reference: [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 2
    """
    confidence, accuracy, count = reliability(probabilities, labels, bins)
    filled = count > 0
    gap = np.abs(accuracy - confidence)[filled]
    return float((gap * count[filled]).sum() / count.sum())


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> Reliability:
    """Accuracy and confidence of the examples whose confidence lies in each bin.

    Args:
        probabilities: Array `(examples, classes)`.
        labels: Integer array `(examples,)`.
        bins: Number of bins of equal width, each open at its lower end.
    """
    classes = _distributions(probabilities)
    confidence = classes.max(axis=-1)
    right = classes.argmax(axis=-1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count, confident, correct = (
        np.bincount(place, weights, bins) for weights in (None, confidence, right)
    )
    with np.errstate(invalid="ignore"):  # an empty bin is 0 / 0
        return Reliability(confident / count, correct / count, count)


def two_columns(probabilities: np.ndarray) -> np.ndarray:
    """A column of the second class's probabilities with that of the first before it."""
    if probabilities.shape[-1] != 1:
        return probabilities
    return np.concatenate([1 - probabilities, probabilities], axis=-1)


def are_probabilities(values: np.ndarray) -> bool:
    """Whether the values are distributions, but for the rounding of half precision."""
    classes = two_columns(values)
    sums = classes.sum(axis=-1)
    return bool((classes >= 0).all() and (np.abs(sums - 1) < 0.02).all())


def _distributions(probabilities: np.ndarray) -> np.ndarray:
    values = np.asarray(probabilities, "float64")
    if not values.ndim or not are_probabilities(values):
        raise ValueError(
            "Probabilities must be 0 or more and sum to 1 over the last dimension, or "
            f"lie between 0 and 1 if it is 1. Received: {values}"
        )
    return two_columns(values)


def _entropy(classes: np.ndarray) -> np.ndarray:
    logarithm = np.log(np.where(classes > 0, classes, 1))
    return np.maximum(-(classes * logarithm).sum(axis=-1), 0)


def _information(classes: np.ndarray, vote: np.ndarray) -> np.ndarray:
    """Mean divergence of the passes from the vote, in nats.

    The difference of the two entropies is the same, but loses all digits where the
    passes nearly agree. What is subtracted here sums to 0; without it, the rounding of
    the vote would count.
    """
    excess = classes - vote
    share = np.where(classes > 0, classes, 1) / np.where(classes > 0, vote, 1)
    near = np.where(classes > 0, excess, 0) / np.where(vote > 0, vote, 1)
    # Of a share below 1e-16, the excess is the whole vote: `log1p` is infinite there.
    logarithm = np.where(near > -0.5, np.log1p(np.maximum(near, -0.5)), np.log(share))
    return (classes * logarithm - excess).sum(axis=-1).mean(axis=0)


WAYS = {"weight_scaling": "weight scaling", "vote": "vote"}


def accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean(probabilities.argmax(axis=-1) == targets))


MEASURES = {
    "accuracy": accuracy,
    "negative_log_likelihood": negative_log_likelihood,
    "expected_calibration_error": expected_calibration_error,
    "brier_score": brier_score,
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
    if not are_probabilities(scaled):
        return None
    samples = sample(model, inputs, passes, seed=seed, verbose=verbose)
    return Vote(scaled, samples) if are_probabilities(samples) else None
