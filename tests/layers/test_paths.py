"""The laws of the layers that drop residual branches."""

import numpy as np
import pytest
import tensorflow as tf

from kdrop.layers.paths import DropPath, StochasticDepth

DEVIATIONS = 5  # a binomial count is further off in one case of 1.7 million


@pytest.mark.parametrize("rate", [1e-3, 0.2, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_example_is_dropped_whole_or_kept_and_scaled(rate, dtype):
    inputs = tf.cast(tf.random.stateless_uniform((20000, 3, 2), (1, 2), 1, 2), dtype)
    outputs = DropPath(rate, seed=1, dtype=dtype)(inputs, training=True)
    mask = tf.reduce_all(outputs == 0, axis=(1, 2)).numpy()
    deviation = np.sqrt(rate * (1 - rate) * len(mask))
    assert abs(mask.sum() - rate * len(mask)) < DEVIATIONS * deviation
    wide = tf.cast(inputs, "float32").numpy() / np.float32(1 - rate)
    expected = tf.cast(np.where(mask[:, None, None], 0, wide), dtype)
    tolerance = 2 * np.finfo("float32").eps if dtype == "float32" else 2.0**-8
    np.testing.assert_allclose(
        tf.cast(outputs, "float32"), tf.cast(expected, "float32"), rtol=tolerance
    )


def test_a_draw_of_stochastic_depth_decides_for_the_batch_and_scales_at_rest():
    layer = StochasticDepth(0.3, seed=1)
    inputs = tf.random.stateless_uniform((5, 3, 2), (1, 2), 1, 2)
    call = tf.function(lambda x: layer(x, training=True))
    draws, count = 2000, 0
    for _ in range(draws):
        outputs = call(inputs).numpy()
        if outputs.any():
            np.testing.assert_array_equal(outputs, inputs)
        else:
            count += 1
    assert abs(count - 0.3 * draws) < DEVIATIONS * np.sqrt(0.3 * 0.7 * draws)
    np.testing.assert_allclose(layer(inputs), inputs * 0.7, rtol=1e-6)


def test_stochastic_depth_follows_its_rate_at_rest():
    layer = StochasticDepth(0.5)
    at_inference = tf.function(lambda x: layer(x))
    layer.rate = 0.9
    np.testing.assert_allclose(at_inference(tf.ones((2, 2))), 0.1, rtol=1e-6)


def test_replicas_share_the_decision_of_stochastic_depth(strategy):
    with strategy.scope():
        layer = StochasticDepth(0.5, seed=1, name="drop")
    single = StochasticDepth(0.5, seed=1, name="drop")

    @tf.function
    def step():
        outputs = strategy.run(lambda: layer(tf.ones((3, 2)), training=True))
        return tf.concat(strategy.experimental_local_results(outputs), axis=0)

    seen = [step().numpy() for _ in range(20)]
    expected = [single(tf.ones((6, 2)), training=True).numpy() for _ in range(20)]
    np.testing.assert_array_equal(seen, expected)
    assert len({s.sum() for s in seen}) == 2


@pytest.mark.parametrize("layer_class", [DropPath, StochasticDepth])
def test_a_dropped_nan_is_zero_forward_and_backward(layer_class):
    layer = layer_class(0.999999, seed=1)
    inputs = tf.fill((4, 3, 2), np.nan)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    gradient = tape.gradient(outputs, inputs, output_gradients=inputs)
    np.testing.assert_array_equal(outputs, np.zeros((4, 3, 2)))
    np.testing.assert_array_equal(gradient, np.zeros((4, 3, 2)))


@pytest.mark.parametrize("shape", [(), (7,), (3, 2), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("layer_class", [DropPath, StochasticDepth])
def test_inputs_of_any_rank_and_unknown_sizes(layer_class, shape):
    known, unknown = (layer_class(0.5, seed=1, name="drop") for _ in range(2))
    spec = [tf.TensorSpec([None] * len(shape))]
    call = tf.function(lambda x: unknown(x, training=True), input_signature=spec)
    for _ in range(4):
        expected = known(tf.ones(shape), training=True)
        assert expected.shape == shape
        np.testing.assert_array_equal(call(tf.ones(shape)), expected)
