"""Summaries of Monte Carlo samples: mean prediction and uncertainty.

Probabilities are arrays `(..., classes)`, or `(..., 1)` for a sigmoid that gives the
probability of the second of two classes. NumPy computes in float64.
"""

from collections.abc import Mapping, Sequence
from reprlib import repr as shortened
from typing import Any, NamedTuple

import numpy as np
from keras import tree

from kdrop.errors import check

TASKS = ("classification", "regression")


class Classification(NamedTuple):
    """Uncertainty of a classifier; entropies in nats."""

    mean: np.ndarray  #: (examples, classes): mean prediction
    std: np.ndarray  #: (examples, classes): over the samples
    entropy: np.ndarray  #: (examples,): of the mean prediction; total uncertainty
    expected_entropy: np.ndarray  #: (examples,): mean over samples; aleatoric part
    mutual_information: np.ndarray  #: (examples,): the difference; epistemic part
    variation_ratio: np.ndarray  #: (examples,): fraction outside the top class


class Regression(NamedTuple):
    """Uncertainty of a regression."""

    mean: np.ndarray  #: (examples, ...)
    std: np.ndarray  #: (examples, ...): over the samples
    quantiles: np.ndarray  #: (quantiles, examples, ...)


def summarise(
    samples: np.ndarray,
    task: str = "classification",
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
) -> Classification | Regression:
    """Compute the mean prediction of Monte Carlo samples and its uncertainty.

    The standard deviation is that of these samples, without Bessel's correction.

    Args:
        samples: Array `(samples, examples, ...)` from `kdrop.sample`, of one output;
            for a classification probabilities, with the classes in the last dimension.
        task: `"classification"` or `"regression"`.
        quantiles: For a regression, the fractions of samples below each quantile.

    Raises:
        ValueError: If the task is unknown, the samples are several arrays or have fewer
            than two dimensions, or those of a classification are no probabilities.

    Reference: [Gal, 2016](https://www.cs.ox.ac.uk/people/yarin.gal/website/thesis/thesis.pdf),
    section 3.3

    >>> samples = numpy.array([[[1.0, 0.0]], [[0.5, 0.5]]])  # two, of one example
    >>> summary = kdrop.summarise(samples)
    >>> summary.mean.tolist(), summary.std.tolist()
    ([[0.75, 0.25]], [[0.25, 0.25]])
    >>> summary.entropy.round(3).tolist(), summary.mutual_information.round(3).tolist()
    ([0.562], [0.216])
    """
    check("task", task, task in TASKS, f"one of {TASKS}")
    arrays = [x for x in tree.flatten(samples) if getattr(x, "shape", ())]
    if isinstance(samples, Mapping) or any(x is not samples for x in arrays):
        raise ValueError(
            "`samples` must be one array (samples, examples, ...): summarise each "
            f"output by itself. Received: a {type(samples).__name__} of arrays"
        )
    samples = np.asarray(samples, "float64")
    if samples.ndim < 2 or not len(samples):
        raise ValueError(
            "`samples` must be an array (samples, examples, ...) with at least one "
            f"sample. Received: an array of shape {samples.shape}"
        )
    if task == "regression":
        bounds = np.quantile(samples, quantiles, axis=0)
        return Regression(**measures(samples, task), quantiles=bounds)
    hint = '; logits need a softmax first, other numbers the task "regression"'
    classes = distributions(samples, hint)
    predicted = classes.argmax(axis=-1)
    votes = (predicted[..., None] == np.arange(classes.shape[-1])).sum(axis=0)
    return Classification(
        **measures(samples, task),
        expected_entropy=_entropy(classes).mean(axis=0),
        variation_ratio=1 - votes.max(axis=-1) / len(samples),
    )


def measures(samples, task: str, xp: Any = np) -> dict:
    """The fields of `summarise` that exported models compute as well.

    `xp` is NumPy or TensorFlow's module of the same functions.
    """
    summary = {"mean": xp.mean(samples, axis=0), "std": xp.std(samples, axis=0)}
    if task == "classification":
        classes = two_columns(samples, xp)
        summary["entropy"] = _entropy(xp.mean(classes, axis=0), xp)
        summary["mutual_information"] = _mutual_information(classes, xp)
    return summary


def _entropy(classes, xp: Any = np):
    logarithm = xp.log(xp.where(classes > 0, classes, 1))
    return xp.maximum(-xp.sum(classes * logarithm, axis=-1), 0)


def _mutual_information(classes, xp: Any = np):
    """Mean divergence of the samples from their mean, in nats.

    The difference of the two entropies is equal, but loses all digits where the samples
    nearly agree. The subtracted excess sums to 0; it cancels the mean's rounding error.
    """
    mean = xp.mean(classes, axis=0)
    excess = classes - mean
    share = xp.where(classes > 0, classes, 1) / xp.where(classes > 0, mean, 1)
    near = xp.where(classes > 0, excess, 0) / xp.where(mean > 0, mean, 1)
    # Logarithm of the share, 1 + near. `share` is rounded, but log(x) / (x - 1) hardly
    # changes near 1. (`log1p` loses digits near -1, and ONNX has none.)
    distance = xp.where(share == 1, 1, share - 1)
    logarithm = xp.where(share == 1, near, xp.log(share) / distance * near)
    return xp.mean(xp.sum(classes * logarithm - excess, axis=-1), axis=0)


def two_columns(probabilities, xp: Any = np):
    """Both classes' probabilities, if only those of the second class were received."""
    if probabilities.shape[-1] != 1:
        return probabilities
    return xp.concatenate([1 - probabilities, probabilities], axis=-1)


def are_probabilities(values: np.ndarray) -> bool:
    """Whether the values are distributions, up to the rounding of half precision."""
    return not len(wrong_rows(values))


def wrong_rows(values: np.ndarray) -> np.ndarray:
    """The rows that are no distributions, those with NaN among them."""
    classes = two_columns(values)
    fits = (classes >= 0).all(axis=-1) & (np.abs(classes.sum(axis=-1) - 1) < 0.02)
    return values[~fits]


def distributions(probabilities: np.ndarray, hint: str = "") -> np.ndarray:
    """Probabilities in float64, the single column of a sigmoid completed to two.

    It raises `ValueError`, with the hint, if the values are not probabilities.
    """
    values = np.asarray(probabilities, "float64")
    wrong = wrong_rows(values) if values.ndim else values[None]
    if len(wrong):
        row = shortened(wrong[0].tolist())
        raise ValueError(
            "Probabilities must be 0 or more and sum to 1 over the last dimension, or "
            f"lie between 0 and 1 if it is 1{hint}. Received: {row}"
        )
    return two_columns(values)
