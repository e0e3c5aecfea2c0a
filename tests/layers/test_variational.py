"""The laws of VariationalDropout."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import DEVIATIONS

from kdrop import VariationalDropout

# Midpoints of (0, 1): a mean over them is the expectation over a uniform number.
UNIFORM = (np.arange(10**6) + 0.5) / 10**6


@pytest.mark.parametrize("per", ["layer", "unit", "weight"])
def test_variational_outputs_have_the_mean_and_variance_of_the_weights_noise(per):
    rng = np.random.default_rng(0)
    layer = VariationalDropout(3, per=per, seed=1)
    layer.build((None, 4))
    alpha = rng.uniform(0.1, 1, size=layer.log_alpha.shape)
    layer.log_alpha.assign(np.log(alpha))
    layer.bias.assign(rng.normal(size=3))
    row, kernel = rng.normal(size=(1, 4)), layer.kernel.numpy()
    inputs = tf.constant(row.repeat(40000, axis=0), "float32")
    outputs = layer(inputs, training=True).numpy().astype("float64")
    mean = row @ kernel + layer.bias.numpy()
    variance = (row**2 @ (alpha * kernel**2))[0]
    bound = DEVIATIONS * np.sqrt(variance / len(outputs))
    assert (abs(outputs.mean(0) - mean) < bound).all()
    bound = DEVIATIONS * np.sqrt(2 / len(outputs))  # of a normal sample's variance
    assert (abs(outputs.var(0) / variance - 1) < bound).all()
    expected = inputs[:1] @ kernel + layer.bias
    np.testing.assert_allclose(layer(inputs[:1]), expected, rtol=1e-6)


def divergence(alpha):
    """The divergence of N(w, alpha w^2) from p(log |w|) = const, by quadrature.

    Up to a constant it is -log(alpha) / 2 + E log |e| with e of N(1, alpha), by
    appendix C of the paper.
    """
    total = -np.log(alpha) / 2
    for sign in (-1, 1):
        span = 1 + 12 * np.sqrt(alpha)
        e = span * UNIFORM**3  # substituted to remove the pole at 0
        density = np.exp(-((sign * e - 1) ** 2) / (2 * alpha))
        density /= np.sqrt(2 * np.pi * alpha)
        total += np.mean(density * np.log(e) * 3 * span * UNIFORM**2)
    return total


@pytest.mark.parametrize("per", ["layer", "unit", "weight"])
def test_variational_divergence_is_the_integral(per):
    layer = VariationalDropout(3, divergence_weight=0.5, per=per)
    layer.build((None, 4))

    def loss_per_weight(alpha):
        layer.log_alpha.assign(np.full(layer.log_alpha.shape, np.log(alpha)))
        return float(layer.losses[0]) / (0.5 * 12)

    # The error of the polynomial that the class promises, for each weight.
    for alpha, bound in [(0.001, 0.04), (0.1, 0.006), (0.3, 0.006), (0.6, 0.006)]:
        expected = divergence(alpha) - divergence(1.0)
        difference = loss_per_weight(alpha) - loss_per_weight(1.0)
        assert difference == pytest.approx(expected, abs=bound)


def test_variational_alpha_is_at_most_one():
    layer = VariationalDropout(1, divergence_weight=1.0, seed=1)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(np.zeros((32, 4)), np.zeros((32, 1)), epochs=10, verbose=0)
    np.testing.assert_array_equal(layer.log_alpha, np.zeros((4, 1)))
    # For inputs of 0 the noise is 0, and no gradient is NaN.
    assert np.isfinite(layer.kernel.numpy()).all()
    assert (model(tf.zeros((2, 4)), training=True).numpy() == 0).all()
