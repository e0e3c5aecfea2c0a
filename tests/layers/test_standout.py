"""The laws of StandoutDropout."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import DEVIATIONS

from examples import dropout_in_numpy as reference
from kdrop import InvertedDropout, StandoutDropout


@pytest.mark.parametrize("beta", [-1.0, 0.0, 2.0])
def test_standout_at_alpha_zero_is_inverted_dropout(beta):
    rate = 1 - float(reference.sigmoid(np.float64(beta)))
    inputs = tf.constant(np.random.default_rng(0).normal(size=(64, 256)), "float32")
    inverted = InvertedDropout(rate, seed=3, name="drop")
    standout = StandoutDropout(alpha=0.0, beta=beta, seed=3, name="drop")
    for _ in range(2):
        expected = inverted(inputs, training=True).numpy()
        outputs = standout(inputs, training=True).numpy()
        np.testing.assert_array_equal(outputs == 0, expected == 0)
        np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    np.testing.assert_array_equal(standout(inputs), inputs)


def test_standout_keeps_by_the_sigmoid_of_its_inputs():
    keras.utils.set_random_seed(0)
    row = np.random.default_rng(0).normal(size=(1, 6))
    inputs = tf.constant(row.repeat(20000, axis=0), "float32")
    layer = StandoutDropout(alpha=1.5, beta=0.5, seed=3)
    outputs = layer(inputs, training=True).numpy()
    keep = reference.standout_keep_prob(row, layer.kernel.numpy(), 1.5, 0.5)[0]
    assert np.ptp(keep) > 0.2
    mask = outputs != 0
    bound = DEVIATIONS * np.sqrt(keep * (1 - keep) * len(mask))
    assert (abs(mask.sum(0) - keep * len(mask)) < bound).all()
    expected = np.where(mask, inputs / keep, 0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("logit", [-1e30, -120.0, -88.0, 88.0, 1e30])
def test_standout_is_finite_for_extreme_logits(logit):
    layer = StandoutDropout(seed=3)
    layer.build((None, 1))
    layer.kernel.assign([[1.0]])
    inputs = tf.fill((1000, 1), np.float32(logit))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    d_inputs, d_kernel = tape.gradient(outputs, [inputs, layer.kernel.value])
    np.testing.assert_array_equal(outputs, inputs if logit > 0 else tf.zeros((1000, 1)))
    assert np.isfinite(d_inputs).all() and np.isfinite(d_kernel).all()


def test_standout_learns_through_the_expectation_of_its_mask():
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(size=(16, 6)), "float64")
    upstream = rng.normal(size=(16, 6))
    layer = StandoutDropout(alpha=1.5, beta=0.5, seed=3, dtype="float64")
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    d_inputs, d_kernel = tape.gradient(
        outputs, [inputs, layer.kernel.value], tf.constant(upstream)
    )
    x, kernel = inputs.numpy(), layer.kernel.numpy()
    keep = reference.standout_keep_prob(x, kernel, 1.5, 0.5)
    mask = outputs.numpy() != 0
    # outputs = x * mask / keep, with the derivative of `keep` as that of `mask`
    d_keep = upstream * x * (1 / keep - mask / keep**2)
    through_keep, expected = reference.standout_keep_prob_backward(
        d_keep, keep, x, kernel, 1.5
    )
    np.testing.assert_allclose(d_kernel, expected, rtol=1e-9, atol=1e-12)
    direct = reference.inverted(upstream, mask, 1 - keep)
    np.testing.assert_allclose(d_inputs, direct + through_keep, rtol=1e-9, atol=1e-12)
