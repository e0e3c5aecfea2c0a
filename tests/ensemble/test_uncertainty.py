"""Summaries of samples against closed forms, and calibration."""

import numpy as np
import pytest

import kdrop
from kdrop.ensemble import uncertainty

LN2 = np.log(2)


def passes(*distributions, examples=2):
    """The same distributions for each example, one in each pass."""
    return np.repeat(np.array(distributions)[:, None], examples, axis=1)


@pytest.mark.parametrize(
    "samples, entropy, expected_entropy, information, ratio",
    [
        (passes([1.0, 0, 0], [1.0, 0, 0]), 0, 0, 0, 0),
        (passes([1.0, 0], [0, 1.0]), LN2, 0, LN2, 0.5),
        (passes([0.25] * 4, [0.25] * 4), 2 * LN2, 2 * LN2, 0, 0),
        (passes([0.5, 0.5, 0], [0, 0, 1.0]), 1.5 * LN2, LN2 / 2, LN2, 0.5),
        (passes([1.0], [0.0], [1.0], [1.0]), 2 * LN2 - 0.75 * np.log(3), 0, None, 0.25),
        (passes([0.2], [0.2]), -0.2 * np.log(0.2) - 0.8 * np.log(0.8), None, 0, 0),
    ],
)
def test_entropies_in_closed_form(
    samples, entropy, expected_entropy, information, ratio
):
    found = kdrop.summarise(samples)
    expected_entropy = entropy if expected_entropy is None else expected_entropy
    information = entropy - expected_entropy if information is None else information
    np.testing.assert_allclose(found.entropy, [entropy] * 2, atol=1e-15)
    np.testing.assert_allclose(found.expected_entropy, expected_entropy, atol=1e-15)
    np.testing.assert_allclose(found.mutual_information, information, atol=1e-15)
    np.testing.assert_allclose(found.variation_ratio, ratio, atol=1e-15)
    np.testing.assert_allclose(found.mean, samples.mean(axis=0))
    np.testing.assert_allclose(found.std, samples.std(axis=0))


def test_information_is_the_difference_of_the_entropies():
    samples = np.random.default_rng(0).dirichlet(np.ones(5), size=(20, 30))
    found = kdrop.summarise(samples.astype("float32"))
    difference = found.entropy - found.expected_entropy
    np.testing.assert_allclose(found.mutual_information, difference, rtol=1e-6)


def test_information_keeps_its_digits_where_passes_nearly_agree():
    """At .5 + d and .5 - d it is 2 d^2 to the second order: lost in a difference."""
    d = 1e-7
    found = kdrop.summarise(passes([0.5 + d, 0.5 - d], [0.5 - d, 0.5 + d]))
    np.testing.assert_allclose(found.mutual_information, 2 * d**2, rtol=1e-6)


@pytest.mark.parametrize("small", [1e-3, 1e-20, 5e-324])
def test_information_of_a_class_that_a_pass_nearly_rules_out(small):
    """Of two distributions p and q it is the Jensen-Shannon divergence."""
    found = kdrop.summarise(passes([small, 1 - small], [0.5, 0.5]))
    vote = small / 2 + 0.25
    first = small * np.log(small / vote) + (1 - small) * np.log1p(-small)
    first -= (1 - small) * np.log1p(-vote)
    second = -0.5 * np.log(4 * vote * (1 - vote))
    np.testing.assert_allclose(
        found.mutual_information, (first + second) / 2, rtol=1e-12
    )


def test_a_regression_is_told_by_its_quantiles():
    samples = np.arange(101.0)[::-1, None] * np.array([1.0, -2.0])
    found = kdrop.summarise(samples, task="regression", quantiles=(0.1, 0.5))
    np.testing.assert_allclose(found.mean, [50, -100])
    np.testing.assert_allclose(found.std, np.sqrt((101**2 - 1) / 12) * np.array([1, 2]))
    np.testing.assert_allclose(found.quantiles, [[10, -180], [50, -100]])


@pytest.mark.parametrize(
    "samples, task, message",
    [
        (np.ones((2, 3)), "ranking", "`task` must be one of .* Received: 'ranking'"),
        (np.ones(3), "regression", r"at least one pass.* shape \(3,\)"),
        (np.ones((0, 3)), "regression", r"at least one pass.* shape \(0, 3\)"),
        (np.full((2, 2, 2), 0.7), "classification", "sum to 1"),
        (np.full((2, 2, 1), 1.2), "classification", "lie between 0 and 1"),
        (np.full((2, 2, 2), np.nan), "classification", "sum to 1"),
    ],
)
def test_what_is_no_vote_is_refused(samples, task, message):
    with pytest.raises(ValueError, match=message):
        kdrop.summarise(samples, task)


def test_half_precision_is_taken():
    samples = np.random.default_rng(0).dirichlet(np.ones(10), size=(2, 30))
    kdrop.summarise(samples.astype("float16"))


# Calibration

PROBABILITIES = np.array([[0.8, 0.2]] * 10 + [[0.05, 0.95]] * 5)
LABELS = np.array([0] * 6 + [1] * 4 + [1] * 4 + [0])


def test_reliability_is_confidence_against_accuracy():
    found = uncertainty.reliability(PROBABILITIES, LABELS, bins=10)
    assert list(found.count) == [0] * 7 + [10, 0, 5]
    np.testing.assert_allclose(found.confidence[[7, 9]], [0.8, 0.95])
    np.testing.assert_allclose(found.accuracy[[7, 9]], [0.6, 0.8])
    assert np.isnan(found.accuracy[0])
    error = uncertainty.expected_calibration_error(PROBABILITIES, LABELS, bins=10)
    np.testing.assert_allclose(error, (10 * 0.2 + 5 * 0.15) / 15)


def test_a_confidence_of_one_lies_in_the_last_bin():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert uncertainty.reliability(certain, [0, 1]).count[-1] == 2
    assert uncertainty.expected_calibration_error(certain, [0, 1]) == 0
    assert uncertainty.expected_calibration_error(certain, [1, 1]) == 0.5


def test_labels_drawn_from_the_probabilities_are_calibrated():
    """The gap of a bin is a mean of independent errors: of 1 / sqrt(4 n) at most."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), size=100_000)
    labels = (rng.random((100_000, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    confidence, accuracy, count = uncertainty.reliability(probabilities, labels)
    filled = count > 0
    gap = abs(confidence - accuracy)[filled]
    assert (gap < 5 / np.sqrt(4 * count[filled])).all()


def test_brier_score_and_likelihood_in_closed_form():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert uncertainty.brier_score(certain, [0, 1]) == 0
    assert uncertainty.brier_score(certain, [1, 0]) == 2
    np.testing.assert_allclose(
        uncertainty.brier_score(PROBABILITIES[:1], [1]), 2 * 0.8**2
    )
    assert uncertainty.negative_log_likelihood(certain, [0, 1]) == 0
    found = uncertainty.negative_log_likelihood(
        PROBABILITIES[[0, 10]], np.array([1, 1])
    )
    np.testing.assert_allclose(found, -(np.log(0.2) + np.log(0.95)) / 2)
    floor = -np.log(np.finfo("float32").tiny)
    np.testing.assert_allclose(
        uncertainty.negative_log_likelihood(certain, [1, 0]), floor
    )


def test_one_column_is_the_second_class():
    second = PROBABILITIES[:, 1:]
    for measure in (
        uncertainty.brier_score,
        uncertainty.negative_log_likelihood,
        uncertainty.expected_calibration_error,
    ):
        np.testing.assert_allclose(
            measure(second, LABELS), measure(PROBABILITIES, LABELS)
        )
