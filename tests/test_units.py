"""The laws of the units layers, against the algorithms in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdrop import InvertedDropout, VanillaDropout, reference

INPUTS = np.random.default_rng(0).normal(size=(32, 100))
UPSTREAM = np.random.default_rng(1).normal(size=(32, 100))


def mask_of(layer_class, rate):
    """What the first draw keeps."""
    ones = layer_class(rate, seed=3, name="drop")(tf.ones((32, 100)), training=True)
    return ones.numpy() != 0


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
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


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_vanilla_is_the_algorithm_forward_backward_and_at_rest(rate, dtype):
    layer = VanillaDropout(rate, seed=3, name="drop", dtype=dtype)
    mask = mask_of(VanillaDropout, rate)
    inputs = tf.constant(INPUTS, dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    upstream = tf.constant(UPSTREAM, dtype)
    # Nothing is scaled in training: to the bit.
    np.testing.assert_array_equal(outputs, reference.vanilla(inputs.numpy(), mask))
    np.testing.assert_array_equal(
        tape.gradient(outputs, inputs, upstream),
        reference.vanilla_backward(upstream.numpy(), mask),
    )
    tolerance = max(8 * np.finfo(dtype).eps, 2.0**-32 / (1 - rate))
    expected = reference.vanilla_rest(INPUTS, rate)
    np.testing.assert_allclose(layer(inputs), expected, rtol=tolerance)


def test_both_draw_the_same_masks():
    np.testing.assert_array_equal(
        mask_of(InvertedDropout, 0.3), mask_of(VanillaDropout, 0.3)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_half_precision_is_scaled_in_float32_and_rounded_once(dtype, rate):
    inputs = tf.cast(INPUTS, dtype)
    mask = mask_of(InvertedDropout, rate)
    inverted = InvertedDropout(rate, seed=3, name="drop", dtype=dtype)
    wide = tf.cast(inputs, "float32").numpy()
    expected = tf.cast(np.where(mask, wide * np.float32(1 / (1 - rate)), 0), dtype)
    np.testing.assert_array_equal(inverted(inputs, training=True), expected)
    at_rest = VanillaDropout(rate, dtype=dtype)(inputs)
    expected = tf.cast(wide * np.float32(1 - rate), dtype)
    np.testing.assert_array_equal(at_rest, expected)


def test_at_rest_the_inputs_themselves_come_out():
    inputs = tf.constant(INPUTS, "float32")
    assert InvertedDropout(0.5)(inputs) is inputs


def test_vanilla_follows_its_rate_at_rest():
    layer = VanillaDropout(0.5)
    at_rest = tf.function(lambda x: layer(x))
    inputs = tf.ones((2, 2))
    np.testing.assert_allclose(at_rest(inputs), 0.5)
    layer.rate = 0.9
    np.testing.assert_allclose(at_rest(inputs), 0.1, rtol=1e-6)


def test_vanilla_equals_inverted_with_scaled_weights():
    """Trained vanilla and inverted networks differ by a scale of the next weights."""
    rate, dense = 0.25, keras.layers.Dense(5, use_bias=False)
    inputs = tf.constant(INPUTS, "float32")
    vanilla = dense(VanillaDropout(rate, seed=1, name="d")(inputs, training=True))
    inverted = InvertedDropout(rate, seed=1, name="d")(inputs, training=True)
    dense.kernel.assign(dense.kernel * (1 - rate))
    np.testing.assert_allclose(dense(inverted), vanilla, rtol=1e-4, atol=1e-5)
