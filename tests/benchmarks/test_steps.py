"""The steps that the benchmarks time, at a small size on both backends."""

import os

import keras
import numpy as np
import pytest
from keras import ops

from benchmarks import layers, training
from kdrop import InvertedDropout
from kdrop.errors import UserError
from kdrop.masks import bits

on_jax = pytest.mark.skipif(not layers.JAX, reason="measured on JAX alone")


def check(variants, *names):
    assert set(names) < set(variants)
    assert all(measure() > 0 for measure in variants.values())


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_dropout_in_each_mode(mode):
    check(layers.steps((4, 8), ("copy", *layers.PAIR), mode, "bfloat16"), "copy")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param("maps", (2, 8, 8, 3), marks=pytest.mark.slow),
        pytest.param("connections", (2, 4), marks=pytest.mark.slow),
        ("tokens", (2, 9, 4)),
    ],
)
def test_layers_against_their_baseline(name, shape):
    comparison = layers.LAYERS[name]
    variants = layers.steps(shape, comparison.variants.args[1])
    check(variants, comparison.baseline)
    if name != "tokens":
        assert set(comparison.limits) < set(variants)


@pytest.mark.slow
def test_connections_against_their_words():
    comparison = layers.LAYERS["connections-words"]
    variants = comparison.variants()
    check(variants, comparison.baseline)
    assert set(comparison.limits) < set(variants)


def test_the_words_of_every_row_and_position_are_drawn():
    rows = ops.cast(np.indices((8, 2))[0], "uint32")
    key = bits.fold(*(ops.cast(n, "uint32") for n in range(3)))
    words = ops.convert_to_numpy(bits.words(key, rows, 16))
    expected = np.bitwise_xor.reduce(words) ^ np.arange(16, dtype="uint32")
    np.testing.assert_array_equal(layers.xor_of_words(8, 16), expected)


def test_a_step_goes_both_ways_through_the_layer():
    inputs, upstream = ops.full((64, 64), 3.0), ops.full((64, 64), 5.0)
    step = layers.both_ways(InvertedDropout(0.5, seed=1))
    outputs, gradients, *_ = step(inputs, upstream)
    mask = ops.convert_to_numpy(outputs) != 0
    np.testing.assert_array_equal(outputs, 6.0 * mask)
    np.testing.assert_array_equal(gradients[0], 10.0 * mask)
    # 4,096 fair coins: 6 standard deviations are 192.
    assert abs(np.sum(mask) - 2048) < 192


def test_a_step_goes_back_to_the_weights():
    inputs, upstream = layers.normal((4, 3)), layers.normal((4, 1024), 1)
    layer = layers.drop_layer(layers.DENSE)
    layer.build((4, 3))
    _, gradients, *_ = layers.both_ways(layer)(inputs, upstream)
    d_inputs, d_kernel, d_bias = keras.tree.flatten(gradients)
    for gradient, expected in (
        (d_inputs, upstream @ ops.transpose(layer.kernel)),
        (d_kernel, ops.transpose(inputs) @ upstream),
        (d_bias, ops.sum(upstream, axis=0)),
    ):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@on_jax
def test_a_compiled_step_reads_the_state_of_the_layer():
    # As a constant it would let the compiler draw the mask in advance.
    step, ones = layers.both_ways(InvertedDropout(0.5, seed=1)), ops.ones((8, 8))
    outputs, _, state = step(ones, ones)
    assert np.any(outputs != step.func([], state, ones, ones)[0])


def test_a_size_that_does_not_fit_is_refused(monkeypatch):
    # Twelve float32 tensors of 32 elements are 1,536 bytes.
    monkeypatch.setattr(os, "sysconf", lambda name: 39)
    with pytest.raises(UserError, match=r"\(4, 8\) float32 does not fit"):
        layers.steps((4, 8), ("copy",))
    layers.steps((4, 8), ("copy",), dtype="bfloat16")
    monkeypatch.setattr(os, "sysconf", lambda name: 40)
    layers.steps((4, 8), ("copy",))


def test_large_tensors_are_as_large_as_their_names_say():
    for name, comparison in layers.GPU.items():
        dtype, power = name.split("-2^")
        assert np.prod(comparison.variants.args[0]) == 2 ** int(power)
        assert comparison.variants.keywords["dtype"] == dtype


@on_jax
def test_dropout_of_pytorch():
    pytest.importorskip("torch")
    check(layers.steps((4, 8), ("copy", *layers.TORCH), dtype="bfloat16"), "copy")


def test_a_training_step_trains():
    model = keras.Sequential(
        [keras.Input((2,)), InvertedDropout(0.1), keras.layers.Dense(512)]
    )
    model.compile("adam", "mse")
    batch = np.ones((4, 2), "float32"), np.ones((4, 512), "float32")
    for _ in range(2):  # a second one of the same model, too
        step = training.training_step(model, batch)
        # Each a mean since the first.
        losses = [float(step()["loss"]) for _ in range(20)]
        assert losses[-1] < losses[0]


@on_jax
def test_the_planned_memory_has_the_masks_of_keras():
    kilobytes = 4 * 64 * 64 / 1024  # of a float32 tensor
    none, ours, keras_bytes = (
        layers.peak_bytes(name, (64, 64), depth=2) / 1024
        for name in ("none", layers.INVERTED, layers.KERAS)
    )
    assert ours - none < kilobytes < keras_bytes - none
