"""The laws of the units layers, against the algorithms in NumPy."""

from statistics import NormalDist

import numpy as np
import pytest
import tensorflow as tf

from examples import dropout_in_numpy as reference
from kdrop import (
    AlphaDropout,
    GaussianDropout,
    InvertedDropout,
    StochasticDepth,
    UniformDropout,
    VanillaDropout,
)

INPUTS = np.random.default_rng(0).normal(size=(32, 100))
UPSTREAM = np.random.default_rng(1).normal(size=(32, 100))


def mask_of(layer_class, rate):
    """True where the first mask keeps a unit."""
    ones = layer_class(rate, seed=3, name="drop")(tf.ones((32, 100)), training=True)
    return ones.numpy() != 0


@pytest.mark.parametrize(("rate", "dtype"), [(0.1, "float32"), (0.99, "float64")])
def test_inverted_is_the_algorithm_forward_and_backward(rate, dtype):
    layer = InvertedDropout(rate, seed=3, name="drop", dtype=dtype)
    mask = mask_of(InvertedDropout, rate)
    inputs = tf.constant(INPUTS, dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    gradient = tape.gradient(outputs, inputs, tf.constant(UPSTREAM, dtype))
    tolerance = 8 * np.finfo(dtype).eps  # the threshold is within 2^-33 of the rate
    tolerance = max(tolerance, 2.0**-32 / (1 - rate))
    expected = reference.inverted(INPUTS, mask, rate)
    np.testing.assert_allclose(outputs, expected, rtol=tolerance)
    expected = reference.inverted_backward(UPSTREAM, mask, rate)
    np.testing.assert_allclose(gradient, expected, rtol=tolerance)
    np.testing.assert_array_equal(layer(inputs), inputs)


@pytest.mark.parametrize(("rate", "dtype"), [(0.1, "float32"), (0.99, "float64")])
def test_vanilla_is_the_algorithm_forward_backward_and_at_inference(rate, dtype):
    layer = VanillaDropout(rate, seed=3, name="drop", dtype=dtype)
    mask = mask_of(VanillaDropout, rate)
    inputs = tf.constant(INPUTS, dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    upstream = tf.constant(UPSTREAM, dtype)
    # Equal to the bit: training does not scale.
    np.testing.assert_array_equal(outputs, reference.vanilla(inputs.numpy(), mask))
    np.testing.assert_array_equal(
        tape.gradient(outputs, inputs, upstream),
        reference.vanilla_backward(upstream.numpy(), mask),
    )
    tolerance = max(8 * np.finfo(dtype).eps, 2.0**-32 / (1 - rate))
    expected = reference.vanilla_inference(INPUTS, rate)
    np.testing.assert_allclose(layer(inputs), expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_half_precision_is_scaled_in_float32_and_rounded_once(dtype, rate):
    inputs = tf.cast(INPUTS, dtype)
    mask = mask_of(InvertedDropout, rate)
    inverted = InvertedDropout(rate, seed=3, name="drop", dtype=dtype)
    wide = tf.cast(inputs, "float32").numpy()
    at_inference = VanillaDropout(rate, dtype=dtype)(inputs)
    for outputs, exact in [
        (inverted(inputs, training=True), np.where(mask, wide / (1 - rate), 0)),
        (at_inference, wide * (1 - rate)),
    ]:
        # A value halfway between two numbers goes up or down, as float32 rounds.
        error = 4 * np.finfo("float32").eps
        ends = [tf.cast(exact * (1 + sign * error), dtype) for sign in (-1, 1)]
        assert np.logical_or(outputs == ends[0], outputs == ends[1]).all()
        assert np.mean(ends[0] == ends[1]) > 0.9  # few are halfway between two


@pytest.mark.parametrize("layer_class", [VanillaDropout, StochasticDepth])
def test_scaling_at_inference_follows_the_rate(layer_class):
    layer = layer_class(0.5)
    at_inference = tf.function(lambda x: layer(x))
    inputs = tf.ones((2, 2))
    np.testing.assert_allclose(at_inference(inputs), 0.5)
    layer.rate = 0.9
    np.testing.assert_allclose(at_inference(inputs), 0.1, rtol=1e-6)


def variance_bound(variance, fourth, count, deviations=5):
    """The largest likely error of a sample's variance, from the fourth moment."""
    return deviations * np.sqrt((fourth - variance**2) / count)


@pytest.mark.parametrize("rate", [0.01, 0.9])
def test_gaussian_noise_has_mean_one_and_variance_rate_over_keep(rate):
    layer = GaussianDropout(rate, seed=1, name="drop")
    noise = layer(tf.ones((1000, 1000)), training=True).numpy().astype("float64")
    variance = rate / (1 - rate)
    assert abs(noise.mean() - 1) < 5 * np.sqrt(variance / noise.size)
    bound = variance_bound(variance, 3 * variance**2, noise.size)
    assert abs(noise.var() - variance) < bound
    # Kolmogorov and Smirnov: above 1.95 / sqrt(n) in one case of a thousand.
    z = np.sort((noise - 1).ravel() / np.sqrt(variance))[::10]
    cdf = np.array([NormalDist().cdf(value) for value in z])
    assert np.max(np.abs(cdf - (np.arange(z.size) + 0.5) / z.size)) < 1.95 / 1000


@pytest.mark.parametrize("rate", [0.01, 0.9])
def test_uniform_noise_stays_within_the_rate(rate):
    layer = UniformDropout(rate, seed=1, name="drop")
    noise = layer(tf.ones((1000, 1000)), training=True).numpy().astype("float64") - 1
    assert np.abs(noise).max() <= rate + 1e-6
    counts, _ = np.histogram(noise, 20, (-rate, rate))
    expected = noise.size / 20
    # Chi-squared with 19 degrees of freedom: above 60 in three cases of a million.
    assert np.sum((counts - expected) ** 2 / expected) < 60


def test_alpha_keeps_mean_and_variance_of_one_layer():
    inputs = tf.constant(np.random.default_rng(0).normal(size=(1000, 1000)), "float32")
    for rate in (0.05, 0.5, 0.9):
        layer = AlphaDropout(rate, seed=1, name="drop")
        values = layer(inputs, training=True).numpy().astype("float64")
        fourth = np.mean((values - values.mean()) ** 4)
        assert abs(values.mean()) < 5 / np.sqrt(values.size)
        assert abs(values.var() - 1) < variance_bound(1, fourth, values.size)


def test_dropout_on_linear_regression_is_ridge_regression():
    """By training on the average over masks: Srivastava et al., 2014, section 9.1."""
    rng = np.random.default_rng(0)
    inputs, rate = rng.normal(size=(200, 5)) * [1, 2, 3, 1, 0.5], 0.3
    targets = inputs @ [1, -2, 0.5, 3, 1] + rng.normal(size=200)
    gamma = np.diag(np.diag(inputs.T @ inputs))
    ridge = np.linalg.solve(
        inputs.T @ inputs + rate / (1 - rate) * gamma, inputs.T @ targets
    )
    layer = InvertedDropout(rate, seed=1, name="drop")
    many = layer(np.tile(inputs, (5000, 1)).astype("float32"), training=True)
    many = many.numpy().astype("float64")
    fitted = np.linalg.lstsq(many, np.tile(targets, 5000), rcond=None)[0]
    # A million rows: the standard error of a weight is about 1e-3 of its size.
    np.testing.assert_allclose(fitted, ridge, rtol=0.02, atol=0.01)
