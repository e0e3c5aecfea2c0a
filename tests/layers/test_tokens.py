"""The laws of TokenDropout."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdrop import TokenDropout

TOKENS = np.random.default_rng(0).normal(size=(4, 11, 3)).astype("float32")


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("rate", [0.0, 0.3125, 0.99])
def test_the_count_is_exact_and_prefix_and_order_stay(prefix, rate):
    layer = TokenDropout(rate, prefix, return_indices=True)
    outputs, indices = (t.numpy() for t in layer(TOKENS, training=True))
    candidates = 11 - prefix
    count = prefix + max(1, candidates - math.floor(rate * candidates + 0.5))
    assert outputs.shape == (4, count, 3) and indices.shape == (4, count)
    np.testing.assert_array_equal(
        indices[:, :prefix], np.broadcast_to(range(prefix), (4, prefix))
    )
    assert (np.diff(indices) > 0).all() and indices.max() < 11
    expected = np.take_along_axis(TOKENS, indices[:, :, None], axis=1)
    np.testing.assert_array_equal(outputs, expected)


def test_all_subsets_of_tokens_are_equally_likely():
    layer = TokenDropout(4 / 7, 1, return_indices=True, seed=1, name="drop")
    _, indices = layer(tf.zeros((35 * 400, 8, 1)), training=True)
    subsets, counts = np.unique(indices.numpy(), axis=0, return_counts=True)
    assert len(subsets) == math.comb(7, 3) == 35
    chi2 = ((counts - 400) ** 2 / 400).sum()
    assert abs(chi2 - 34) < 6 * math.sqrt(2 * 34)


def test_only_the_remaining_tokens_have_a_gradient():
    layer = TokenDropout(0.5, 1, return_indices=True, seed=1)
    inputs = tf.fill((6, 9, 2), np.nan)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs, indices = layer(inputs, training=True)
    upstream = tf.random.stateless_normal(outputs.shape, seed=(1, 2))
    gradient = tape.gradient(outputs, inputs, upstream)
    expected = np.zeros((6, 9, 2), "float32")
    np.put_along_axis(expected, indices.numpy()[:, :, None], upstream.numpy(), axis=1)
    np.testing.assert_array_equal(gradient, expected)


def test_at_inference_all_tokens_stay():
    inputs = tf.constant(TOKENS)
    assert TokenDropout(0.5)(inputs) is inputs
    outputs, indices = TokenDropout(0.5, return_indices=True)(inputs)
    assert outputs is inputs
    np.testing.assert_array_equal(indices, np.broadcast_to(range(11), (4, 11)))


def test_the_same_tokens_in_eager_mode_and_compiled():
    def layer():
        return TokenDropout(0.5, 1, return_indices=True, seed=7, name="drop")

    expected, indices = layer()(TOKENS, training=True)
    for settings in (
        {},
        {"jit_compile": True},
        {"input_signature": [tf.TensorSpec((None, None, None))]},
    ):
        drop = layer()
        call = tf.function(lambda x, d=drop: d(x, training=True), **settings)
        outputs, same = call(tf.constant(TOKENS))
        np.testing.assert_array_equal(same, indices)
        np.testing.assert_array_equal(outputs, expected)


def test_masks_follow_their_tokens():
    inputs = np.where(np.arange(11)[:, None] < 6, TOKENS, 0)
    layer = TokenDropout(0.5, 1, return_indices=True, seed=1)
    masked = keras.layers.Masking()(inputs)
    outputs, indices = layer(masked, training=True)
    np.testing.assert_array_equal(outputs._keras_mask, indices.numpy() < 6)
    at_inference, _ = layer(masked)
    np.testing.assert_array_equal(at_inference._keras_mask, masked._keras_mask)


def test_a_network_trains_on_fewer_tokens_and_predicts_on_all():
    class Count(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.sum(keras.ops.ones_like(inputs[:, :, 0]), axis=1)

    inputs = keras.Input((11, 3))
    outputs = TokenDropout(0.5, 1)(inputs)
    assert outputs.shape == (None, None, 3)
    model = keras.Model(inputs, Count()(keras.layers.Dense(4)(outputs)))
    assert model(TOKENS, training=True).numpy().tolist() == [6] * 4
    assert model.predict(TOKENS, verbose=0).tolist() == [11] * 4


def test_a_new_rate_warns_where_the_count_is_traced():
    layer = TokenDropout(0.5)
    assert layer(TOKENS, training=True).shape[1] == 5
    layer.rate = 0.25  # takes effect in eager mode
    assert layer(TOKENS, training=True).shape[1] == 8
    call = tf.function(lambda x: layer(x, training=True))
    assert call(TOKENS).shape[1] == 8
    with pytest.warns(UserWarning, match="traced with rate 0.25"):
        layer.rate = 0.5
    assert layer.rate == 0.5
    assert call(TOKENS).shape[1] == 8
    again = tf.function(lambda x: layer(x, training=True))
    assert again(TOKENS).shape[1] == 5


@pytest.mark.parametrize("prefix", [-1, 1.0, True, "1", None])
def test_invalid_prefixes_are_rejected(prefix):
    with pytest.raises(ValueError, match="prefix_tokens") as error:
        TokenDropout(0.5, prefix)
    assert repr(prefix) in str(error.value)


@pytest.mark.parametrize("prefix", [11, 12])
def test_inputs_without_a_token_after_the_prefix_are_rejected(prefix):
    for inputs in (TOKENS, keras.Input((11, 3))):
        with pytest.raises(ValueError, match="11 tokens, prefix_tokens=1"):
            TokenDropout(0.5, prefix)(inputs)


@pytest.mark.parametrize("return_indices", [False, True])
def test_symbolic_shapes_leave_the_number_of_tokens_open(return_indices):
    layer = TokenDropout(0.5, 2, return_indices, seed=3)
    shapes = [(None, None, 3), (None, None)][: 1 + return_indices]
    outputs = layer(keras.Input((11, 3)))
    outputs = outputs if return_indices else [outputs]
    assert [tensor.shape for tensor in outputs] == shapes
    assert [tensor.dtype for tensor in outputs] == ["float32", "int32"][: len(shapes)]
    computed = layer.compute_output_shape((None, 11, 3))
    assert list(computed if return_indices else [computed]) == shapes
    config = layer.get_config()
    assert TokenDropout.from_config(config).get_config() == config


@pytest.mark.parametrize("tokens", [5, 6])
def test_too_few_tokens_are_rejected_at_run_time_too(tokens):
    layer = TokenDropout(0.5, prefix_tokens=6)
    shape = tf.TensorSpec((None, None, 4))
    call = tf.function(lambda x: layer(x, training=True), input_signature=[shape])
    assert call(tf.ones((2, 8, 4))).shape == (2, 7, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="after the prefix"):
        call(tf.ones((2, tokens, 4)))
