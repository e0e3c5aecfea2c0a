"""Summaries of Monte Carlo samples against closed forms."""

import numpy as np
import pytest

import kdrop
from kdrop.ensemble.uncertainty import measures

LN2 = np.log(2)


def stack(*distributions, examples=2):
    """The same distributions for each example, one in each sample."""
    return np.repeat(np.array(distributions)[:, None], examples, axis=1)


@pytest.mark.parametrize(
    "samples, entropy, expected_entropy, information, ratio",
    [
        (stack([1.0, 0, 0], [1.0, 0, 0]), 0, 0, 0, 0),
        (stack([1.0, 0], [0, 1.0]), LN2, 0, LN2, 0.5),
        (stack([0.25] * 4, [0.25] * 4), 2 * LN2, 2 * LN2, 0, 0),
        (stack([0.5, 0.5, 0], [0, 0, 1.0]), 1.5 * LN2, LN2 / 2, LN2, 0.5),
        (stack([1.0], [0.0], [1.0], [1.0]), 2 * LN2 - 0.75 * np.log(3), 0, None, 0.25),
        (stack([0.2], [0.2]), -0.2 * np.log(0.2) - 0.8 * np.log(0.8), None, 0, 0),
    ],
)
def test_entropies_in_closed_form(
    samples, entropy, expected_entropy, information, ratio
):
    summary = kdrop.summarise(samples)
    expected_entropy = entropy if expected_entropy is None else expected_entropy
    information = entropy - expected_entropy if information is None else information
    np.testing.assert_allclose(summary.entropy, [entropy] * 2, atol=1e-15)
    np.testing.assert_allclose(summary.expected_entropy, expected_entropy, atol=1e-15)
    np.testing.assert_allclose(summary.mutual_information, information, atol=1e-15)
    np.testing.assert_allclose(summary.variation_ratio, ratio, atol=1e-15)
    np.testing.assert_allclose(summary.mean, samples.mean(axis=0))
    np.testing.assert_allclose(summary.std, samples.std(axis=0))


def test_information_is_the_difference_of_the_entropies():
    samples = np.random.default_rng(0).dirichlet(np.ones(5), size=(20, 30))
    summary = kdrop.summarise(samples.astype("float32"))
    difference = summary.entropy - summary.expected_entropy
    np.testing.assert_allclose(summary.mutual_information, difference, rtol=1e-6)


def test_information_is_exact_where_samples_nearly_agree():
    """At .5 + d and .5 - d it is 2 d^2 to the second order: lost in a difference."""
    d = 1e-7
    summary = kdrop.summarise(stack([0.5 + d, 0.5 - d], [0.5 - d, 0.5 + d]))
    np.testing.assert_allclose(summary.mutual_information, 2 * d**2, rtol=1e-6)


def test_information_keeps_its_digits_in_the_float32_of_exported_models():
    """Rounded shares alone, 2^-24 off, would have an error as large as the result."""
    changes = 1e-4 * np.random.default_rng(0).normal(size=(50, 5, 3))
    samples = np.array([0.7, 0.2, 0.1]) * (1 + changes)
    samples = np.float32(samples / samples.sum(axis=-1, keepdims=True))
    exact = kdrop.summarise(samples).mutual_information
    assert (exact < 1e-8).all()
    single = measures(samples, "classification")["mutual_information"]
    assert single.dtype == "float32"
    np.testing.assert_allclose(single, exact, rtol=0.01)


@pytest.mark.parametrize("small", [1e-3, 1e-20, 5e-324])
def test_information_of_a_class_that_a_sample_nearly_rules_out(small):
    """Of two distributions p and q it is the Jensen-Shannon divergence."""
    summary = kdrop.summarise(stack([small, 1 - small], [0.5, 0.5]))
    mean = small / 2 + 0.25
    first = small * np.log(small / mean) + (1 - small) * np.log1p(-small)
    first -= (1 - small) * np.log1p(-mean)
    second = -0.5 * np.log(4 * mean * (1 - mean))
    np.testing.assert_allclose(
        summary.mutual_information, (first + second) / 2, rtol=1e-12
    )


def test_a_regression_is_summarised_by_quantiles():
    samples = np.arange(101.0)[::-1, None] * np.array([1.0, -2.0])
    summary = kdrop.summarise(samples, task="regression", quantiles=(0.1, 0.5))
    np.testing.assert_allclose(summary.mean, [50, -100])
    std = np.sqrt((101**2 - 1) / 12)
    np.testing.assert_allclose(summary.std, [std, 2 * std])
    np.testing.assert_allclose(summary.quantiles, [[10, -180], [50, -100]])


@pytest.mark.parametrize(
    "samples, task, message",
    [
        (
            np.ones((2, 3)),
            "ranking",
            "`task` must be one of .* Received: task='ranking'",
        ),
        (np.ones(3), "regression", r"at least one sample.* shape \(3,\)"),
        (np.ones((0, 3)), "regression", r"at least one sample.* shape \(0, 3\)"),
        (np.full((2, 2, 2), 0.7), "classification", "sum to 1"),
        (
            [[[1, 0], [0, 3]]],
            "classification",
            r"logits need .* Received: \[0.0, 3.0\]$",
        ),
        (np.full((2, 2, 1), 1.2), "classification", "lie between 0 and 1"),
        (np.full((2, 2, 2), np.nan), "classification", "sum to 1"),
    ],
)
def test_wrong_samples_are_refused(samples, task, message):
    with pytest.raises(ValueError, match=message):
        kdrop.summarise(samples, task)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("structure", [list, tuple, lambda x: dict(enumerate(x))])
def test_several_outputs_are_refused(structure, task):
    outputs = structure([np.full((4, 3, 1), 0.5), np.full((4, 3, 1), 0.25)])
    with pytest.raises(ValueError, match="one array.* each output.* Received: a .* of"):
        kdrop.summarise(outputs, task)


def test_half_precision_is_accepted():
    samples = np.random.default_rng(0).dirichlet(np.ones(10), size=(2, 30))
    kdrop.summarise(samples.astype("float16"))


@pytest.mark.parametrize("classes", [1, 5])
def test_tensors_are_summarised_as_arrays(classes):
    if classes == 1:
        samples = np.random.default_rng(0).uniform(size=(20, 30, 1)).astype("float32")
    else:
        samples = np.random.default_rng(0).dirichlet(np.ones(5), size=(20, 30))
    import tensorflow as tf

    for task in ("classification", "regression"):
        expected = kdrop.summarise(samples, task)
        summary = measures(tf.constant(samples), task, tf.experimental.numpy)
        assert len(summary) == (4 if task == "classification" else 2)
        for name, values in summary.items():
            np.testing.assert_allclose(values, getattr(expected, name), rtol=1e-4)
