"""The masks of layers that drop connections: who shares one, how much is dropped."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from dropconnect import connected, dense, masks, normal, thinned
from family import DEVIATIONS, assert_frequency

from kdrop import DropConnectConv2D
from kdrop.layers.sampling_context import Sampling
from kdrop.masks import connections


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    """The long loop steps take a second each to compile."""
    monkeypatch.setattr(connections, "_UNROLLED", 3)


@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 6)], ids=len)
def test_one_mask_for_the_batch(shape):
    layer, inputs = dense(per_example=False), normal(*shape)
    outputs = layer(inputs, training=True)
    kernel = masks(layer, 1)[0] * layer.kernel.numpy()
    bias = masks(layer, 1, bias=True)[0] * layer.bias.numpy()
    np.testing.assert_allclose(outputs, inputs.numpy() @ kernel + bias, rtol=1e-12)


def test_one_mask_for_the_batch_of_a_convolution():
    layer = DropConnectConv2D(
        4, 3, 0.25, seed=7, name="conv", dtype="float64", per_example=False
    )
    inputs = normal(5, 6, 7, 2)
    outputs = layer(inputs, training=True)
    expected = layer.convolution_op(inputs, layer.kernel * masks(layer, 1)[0])
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)


def test_masks_differ_between_examples_calls_names_and_seeds():
    layer = connected()
    first, second = thinned(layer), thinned(layer)
    others = [
        second,
        thinned(connected(name="two")),
        thinned(connected(seed=2)),
        np.roll(first, 1, axis=0),
        np.roll(first, 1, axis=1),
    ]
    for other in others:
        bound = DEVIATIONS * np.sqrt(first.size / 4)
        assert abs((first == other).sum() - first.size / 2) < bound
    # The bias has other words than the weights of the first input.
    bias = thinned(
        connected(use_bias=True, kernel_initializer="zeros", bias_initializer="ones")
    )
    assert abs((first == bias).sum() - first.size / 2) < bound


def test_a_dropped_weight_that_is_nan_has_no_effect():
    for inputs in (tf.ones((64, 1)), tf.ones((64, 1, 1))):
        mask = thinned(connected())
        layer = connected(kernel_initializer=keras.initializers.Constant(np.nan))
        outputs = layer(inputs, training=True).numpy().reshape(64, 256)
        np.testing.assert_array_equal(np.isnan(outputs), ~mask)
        np.testing.assert_array_equal(outputs[mask], 0)
    outputs = connected()(tf.fill((64, 1), np.nan), training=True).numpy()
    np.testing.assert_array_equal(np.isnan(outputs), ~mask)


@pytest.mark.parametrize(
    ("rate", "dtype"),
    [(0.0, "float32"), (1e-3, "float64"), (0.5, "bfloat16"), (0.999, "float16")],
)
def test_the_dropped_fraction_is_the_rate_in_every_dtype(rate, dtype):
    layer = connected(rate, dtype=dtype)
    assert_frequency(np.asarray(thinned(layer, (1024, 1))), rate)


def test_replicas_hold_the_rows_of_the_global_batch(strategy):
    shares = (3, 2)
    with strategy.scope():
        mirrored = connected()
        mirrored.build((None, 1))

    @tf.function
    def step(inputs):
        return strategy.run(lambda x: mirrored(x, training=True), args=(inputs,))

    inputs = strategy.experimental_distribute_values_from_function(
        lambda context: tf.ones((shares[context.replica_id_in_sync_group], 1))
    )
    outputs = strategy.experimental_local_results(step(inputs))
    mask = np.concatenate([o.numpy() for o in outputs]) == 0
    np.testing.assert_array_equal(mask, thinned(connected(), (sum(shares), 1)))


@pytest.mark.parametrize("per_example", [True, False])
def test_samples_in_one_batch_have_different_masks(per_example):
    rows = np.array([[0, 0, 5], [0, 1, 5], [1, 0, 5], [1, 1, 5]], "uint32")
    layer = connected(per_example=per_example)
    with Sampling([layer], tf.constant(rows)):
        outputs = layer(tf.ones((4, 1))).numpy()
    same = np.array([[(a == b).all() for a in outputs] for b in outputs])
    samples = rows[:, 0]
    expected = np.eye(4) if per_example else samples[:, None] == samples
    np.testing.assert_array_equal(same, expected)
