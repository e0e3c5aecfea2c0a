"""Calibration measures in closed form, and the vote of Monte Carlo samples."""

import keras
import numpy as np
import pytest
from networks import INPUTS

import kdrop
from kdrop.ensemble import calibration
from kdrop.ensemble.calibration import Vote, vote

PROBABILITIES = np.array([[0.8, 0.2]] * 10 + [[0.05, 0.95]] * 5)
LABELS = np.array([0] * 6 + [1] * 4 + [1] * 4 + [0])


def test_reliability_is_confidence_against_accuracy():
    result = calibration.reliability(PROBABILITIES, LABELS, bins=10)
    assert list(result.count) == [0] * 7 + [10, 0, 5]
    np.testing.assert_allclose(result.confidence[[7, 9]], [0.8, 0.95])
    np.testing.assert_allclose(result.accuracy[[7, 9]], [0.6, 0.8])
    assert np.isnan(result.accuracy[0])
    error = calibration.expected_calibration_error(PROBABILITIES, LABELS, bins=10)
    np.testing.assert_allclose(error, (10 * 0.2 + 5 * 0.15) / 15)


def test_a_confidence_of_one_lies_in_the_last_bin():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert calibration.reliability(certain, [0, 1]).count[-1] == 2
    assert calibration.expected_calibration_error(certain, [0, 1]) == 0
    assert calibration.expected_calibration_error(certain, [1, 1]) == 0.5


def test_labels_drawn_from_the_probabilities_are_calibrated():
    """The gap of a bin is a mean of independent errors: of 1 / sqrt(4 n) at most."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), size=100_000)
    labels = (rng.random((100_000, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    confidence, accuracy, count = calibration.reliability(probabilities, labels)
    filled = count > 0
    gap = abs(confidence - accuracy)[filled]
    assert (gap < 5 / np.sqrt(4 * count[filled])).all()


def test_brier_score_and_likelihood_in_closed_form():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert calibration.brier_score(certain, [0, 1]) == 0
    assert calibration.brier_score(certain, [1, 0]) == 2
    np.testing.assert_allclose(
        calibration.brier_score(PROBABILITIES[:1], [1]), 2 * 0.8**2
    )
    assert calibration.negative_log_likelihood(certain, [0, 1]) == 0
    likelihood = calibration.negative_log_likelihood(
        PROBABILITIES[[0, 10]], np.array([1, 1])
    )
    np.testing.assert_allclose(likelihood, -(np.log(0.2) + np.log(0.95)) / 2)
    floor = -np.log(1e-7)
    np.testing.assert_allclose(
        calibration.negative_log_likelihood(certain, [1, 0]), floor
    )


def test_one_column_is_the_second_class():
    second = PROBABILITIES[:, 1:]
    for measure in (
        calibration.brier_score,
        calibration.negative_log_likelihood,
        calibration.expected_calibration_error,
    ):
        np.testing.assert_allclose(
            measure(second, LABELS), measure(PROBABILITIES, LABELS)
        )


# The vote


def test_metrics_in_closed_form():
    """Two samples vote on two examples of class 0, correctly on one of them."""
    scaled = np.array([[0.9, 0.1], [0.6, 0.4]])
    samples = np.array([[[1.0, 0.0], [0.1, 0.9]], [[0.6, 0.4], [0.5, 0.5]]])
    expected = {
        "weight_scaling_accuracy": 1,
        "weight_scaling_negative_log_likelihood": -np.log(0.9 * 0.6) / 2,
        "weight_scaling_expected_calibration_error": (0.1 + 0.4) / 2,
        "weight_scaling_brier_score": (2 * 0.1**2 + 2 * 0.4**2) / 2,
        "vote_accuracy": 0.5,
        "vote_negative_log_likelihood": -np.log(0.8 * 0.3) / 2,
        "vote_expected_calibration_error": (0.2 + 0.7) / 2,
        "vote_brier_score": (2 * 0.2**2 + 2 * 0.7**2) / 2,
    }
    metrics = Vote(scaled, samples).metrics(np.array([0, 0]))
    assert metrics == pytest.approx(expected)


def test_a_vote_is_of_samples_beside_weight_scaling():
    drop, dense = kdrop.InvertedDropout(0.5), keras.layers.Dense(3, "softmax")
    model = keras.Sequential([keras.Input((8,)), drop, dense])
    scaled = model.predict(INPUTS, verbose=0)
    result = vote(model, INPUTS, scaled, passes=7, seed=3)
    samples = kdrop.sample(model, INPUTS, 7, seed=3, verbose=0)
    np.testing.assert_array_equal(result.samples, samples)
    kernel, bias = dense.get_weights()
    exponentials = np.exp(INPUTS @ kernel + bias)
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result.weight_scaling, expected, atol=1e-6)
    drop.rate = 0.0
    assert vote(model, INPUTS, scaled, passes=2, seed=0) is None
    drop.rate = 0.5  # training diverged
    assert vote(model, INPUTS, scaled * np.nan, passes=2, seed=0) is None
