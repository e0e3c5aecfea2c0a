"""The laws of the layers that drop residual branches."""

import numpy as np
import pytest
import tensorflow as tf
from family import assert_frequency

from kdrop.layers.paths import DropPath, StochasticDepth


@pytest.mark.parametrize(("rate", "dtype"), [(0.2, "float32"), (0.9, "bfloat16")])
def test_an_example_is_dropped_whole_or_scaled(rate, dtype):
    inputs = tf.cast(tf.random.stateless_uniform((20000, 3, 2), (1, 2), 1, 2), dtype)
    outputs = DropPath(rate, seed=1, dtype=dtype)(inputs, training=True)
    mask = tf.reduce_all(outputs == 0, axis=(1, 2)).numpy()
    assert_frequency(mask, rate)
    wide = tf.cast(inputs, "float32").numpy() / np.float32(1 - rate)
    expected = tf.cast(np.where(mask[:, None, None], 0, wide), dtype)
    tolerance = 2 * np.finfo("float32").eps if dtype == "float32" else 2.0**-8
    np.testing.assert_allclose(
        tf.cast(outputs, "float32"), tf.cast(expected, "float32"), rtol=tolerance
    )


def test_stochastic_depth_decides_for_the_batch_and_scales_at_inference():
    layer = StochasticDepth(0.3, seed=1)
    inputs = tf.random.stateless_uniform((5, 3, 2), (1, 2), 1, 2)
    call = tf.function(lambda x: layer(x, training=True))
    outputs = [call(inputs).numpy() for _ in range(30)]
    dropped = np.array([not each.any() for each in outputs])
    assert_frequency(dropped, 0.3)
    for each in np.array(outputs)[~dropped]:
        np.testing.assert_array_equal(each, inputs)
    np.testing.assert_allclose(layer(inputs), inputs * 0.7, rtol=1e-6)


def test_replicas_share_the_decision_of_stochastic_depth(strategy):
    with strategy.scope():
        layer = StochasticDepth(0.5, seed=1, name="drop")
    single = StochasticDepth(0.5, seed=1, name="drop")

    @tf.function
    def step():
        outputs = strategy.run(lambda: layer(tf.ones((3, 2)), training=True))
        return tf.concat(strategy.experimental_local_results(outputs), axis=0)

    outputs = [step().numpy() for _ in range(20)]
    expected = [single(tf.ones((6, 2)), training=True).numpy() for _ in range(20)]
    np.testing.assert_array_equal(outputs, expected)
    assert len({each.sum() for each in outputs}) == 2


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4, 5)])
@pytest.mark.parametrize("layer_class", [DropPath, StochasticDepth])
def test_inputs_of_any_rank_and_unknown_sizes(layer_class, shape):
    known, unknown = (layer_class(0.5, seed=1, name="drop") for _ in range(2))
    spec = [tf.TensorSpec([None] * len(shape))]
    call = tf.function(lambda x: unknown(x, training=True), input_signature=spec)
    for _ in range(4):
        expected = known(tf.ones(shape), training=True)
        assert expected.shape == shape
        np.testing.assert_array_equal(call(tf.ones(shape)), expected)
