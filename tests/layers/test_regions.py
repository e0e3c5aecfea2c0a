"""The laws of the layers that drop channels, blocks and whole examples."""

import itertools
import math
import zlib
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import DEVIATIONS, assert_frequency
from keras.src import layers as keras_layers
from keras.src.layers.regularization import spatial_dropout_test

from kdrop import (
    DropBlock1D,
    DropBlock2D,
    DropBlock3D,
    DropPath,
    InvertedDropout,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
    StochasticDepth,
)
from kdrop.masks import bits, kernels

SPATIAL = [SpatialDropout1D, SpatialDropout2D, SpatialDropout3D]
BLOCKS = [DropBlock1D, DropBlock2D, DropBlock3D]
MAPS = {1: (13,), 2: (9, 14), 3: (8, 11, 7)}  # oblong, so that no two sizes are equal


def dropped(layer, shape):
    """Which elements the layer's next mask drops, as a NumPy array."""
    return layer(tf.ones(shape), training=True).numpy() == 0


def channels_last(mask, layer):
    first = getattr(layer, "data_format", None) == "channels_first"
    return np.moveaxis(mask, 1, -1) if first else mask


def shape_of(layer, batch, channels):
    sizes = MAPS[layer.dimensions]
    if layer.data_format == "channels_first":
        return batch, channels, *sizes
    return batch, *sizes, channels


# Spatial dropout


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("layer_class", SPATIAL)
def test_the_positions_of_a_channel_share_one_decision(layer_class, data_format):
    settings = {"seed": 1}
    if layer_class is not SpatialDropout1D:
        settings["data_format"] = data_format
    layer = layer_class(0.3, **settings)
    mask = channels_last(dropped(layer, shape_of(layer, 50, 64)), layer)
    positions = tuple(range(1, 1 + layer.dimensions))
    decisions = mask.any(axis=positions)
    np.testing.assert_array_equal(decisions, mask.all(axis=positions))
    assert_frequency(decisions, 0.3)


def test_spatial_dropout_is_inverted_dropout_with_a_noise_shape():
    inputs = tf.random.stateless_normal((6, 5, 7, 9), seed=(1, 2))
    for data_format, noise_shape in [
        ("channels_last", (None, 1, 1, None)),
        ("channels_first", (None, None, 1, 1)),
    ]:
        layer = SpatialDropout2D(0.4, data_format, seed=1, name="drop")
        inverted = InvertedDropout(0.4, noise_shape, seed=1, name="drop")
        expected = inverted(inputs, training=True)
        np.testing.assert_array_equal(layer(inputs, training=True), expected)
        assert "noise_shape" not in layer.get_config()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n for n in dir(spatial_dropout_test.SpatialDropoutTest) if "test_spatial" in n],
)
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_keras_own_tests_pass(name, monkeypatch):
    for layer_class in SPATIAL:
        monkeypatch.setattr(keras_layers, layer_class.__name__, layer_class)
    result = spatial_dropout_test.SpatialDropoutTest(name).run()
    assert result.wasSuccessful(), (result.failures + result.errors)[0][1]


@pytest.mark.parametrize("layer_class", [SpatialDropout3D, DropBlock2D])
def test_unknown_data_formats_are_rejected(layer_class):
    settings = {"block_size": 2} if layer_class in BLOCKS else {}
    with pytest.raises(ValueError, match="data_format=nhwc"):
        layer_class(0.5, data_format="NHWC", **settings)
    default = keras.config.image_data_format()
    assert layer_class(0.5, **settings).data_format == default


# DropBlock


def seeds_by_hand(layer, shape, block, rate):
    """The seeds of the first draw, computed from the words, with a margin before."""
    sizes = [n + b - 1 for n, b in zip(shape[1:], block, strict=True)]
    numbers = (tf.constant(n, "uint32") for n in (7, zlib.crc32(b"drop"), 1))
    rows = np.stack([np.arange(shape[0]), np.zeros(shape[0])], axis=1)
    words = bits.words(
        bits.fold(*numbers), tf.constant(rows, "uint32"), math.prod(sizes)
    )
    probability = 1 - (1 - rate) ** (1 / math.prod(block))
    return (words.numpy() < round(probability * 2**32)).reshape(shape[0], *sizes)


@pytest.mark.parametrize(
    ("layer_class", "block_size", "data_format"),
    [
        (DropBlock1D, 2, "channels_last"),
        (DropBlock2D, 7, "channels_first"),
        (DropBlock3D, 2, "channels_last"),
        pytest.param(DropBlock1D, 7, "channels_first", marks=pytest.mark.slow),
        pytest.param(DropBlock2D, 2, "channels_last", marks=pytest.mark.slow),
        pytest.param(DropBlock3D, 7, "channels_first", marks=pytest.mark.slow),
    ],
)
def test_a_block_starts_at_every_seed(layer_class, block_size, data_format):
    layer = layer_class(0.3, block_size, data_format, seed=7, name="drop")
    shape, block = shape_of(layer, 3, 6), [block_size] * layer.dimensions
    block.insert(0 if data_format == "channels_first" else layer.dimensions, 1)
    expected = np.zeros(shape, bool)
    for example, *place in np.argwhere(seeds_by_hand(layer, shape, block, 0.3)):
        covered = (
            slice(max(0, p + 1 - b), p + 1) for p, b in zip(place, block, strict=True)
        )
        expected[(example, *covered)] = True
    np.testing.assert_array_equal(dropped(layer, shape), expected)


def deviation_of_the_fraction(rate, block_size, sizes):
    """The standard deviation of the dropped fraction of one map.

    Of two units that share `s` of their `c` possible seeds, neither is dropped with
    probability `(1 - rate)^(2 - s / c)`.
    """
    variance, cells = 0, block_size ** len(sizes)
    for offset in itertools.product(*(range(1 - n, n) for n in sizes)):
        shared = math.prod(max(0, block_size - abs(d)) for d in offset)
        pairs = math.prod(n - abs(d) for n, d in zip(sizes, offset, strict=True))
        both = (1 - rate) ** (2 - shared / cells)
        variance += pairs * (both - (1 - rate) ** 2)
    return math.sqrt(variance) / math.prod(sizes)


@pytest.mark.parametrize(
    ("layer_class", "rate", "block_size"),
    [(DropBlock2D, 0.3, size) for size in (1, 4, 7)]
    + [(DropBlock2D, rate, 3) for rate in (1e-3, 0.9)]
    + [(c, 0.3, 4) for c in (DropBlock1D, DropBlock3D)],
)
def test_the_dropped_fraction_is_the_rate(layer_class, rate, block_size):
    layer = layer_class(rate, block_size, seed=block_size, name="drop")
    sizes, maps = MAPS[layer.dimensions], 32 * 32
    mask = dropped(layer, shape_of(layer, 32, 32))
    deviation = deviation_of_the_fraction(rate, block_size, sizes) / math.sqrt(maps)
    assert abs(mask.mean() - rate) < DEVIATIONS * deviation
    # At each position, at the border as in the middle. The maps are independent.
    counts = mask.sum(axis=(0, mask.ndim - 1))
    bound = 6 * math.sqrt(maps * rate * (1 - rate)) + 6  # Poisson tail at .001
    assert abs(counts - maps * rate).max() < bound


@pytest.mark.parametrize(
    ("rate", "block_size", "dtype"),
    [(1e-3, 1, "float32"), (0.9, 5, "float64"), (0.9999, 5, "float32")],
)
def test_other_units_keep_their_expectation(rate, block_size, dtype):
    layer = DropBlock1D(rate, block_size, seed=1, dtype=dtype)
    outputs = layer(tf.ones((16, 4096, 2), dtype), training=True).numpy()
    # The threshold rounds the rate.
    seed = Fraction(kernels.block_threshold(rate, block_size), 2**32)
    scale = float(1 / (1 - seed) ** block_size)
    tolerance = 8 * np.finfo(dtype).eps * max(1, math.log(scale))
    nonzero = outputs[outputs != 0]
    assert nonzero.size
    np.testing.assert_allclose(nonzero, scale, rtol=tolerance)


def test_gradients_of_both_orders_are_those_of_the_blocks():
    layer = DropBlock2D(0.4, 3, seed=1)
    shape = shape_of(layer, 4, 5)
    inputs = tf.random.stateless_normal(shape, seed=(1, 2))
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(outputs**2) / 2
        gradient = inner.gradient(loss, inputs)
    second = outer.gradient(gradient, inputs)
    factor = (outputs / inputs).numpy()
    assert np.unique(factor.round(4)).tolist() == [0, np.float32(1 / 0.6).round(4)]
    np.testing.assert_allclose(gradient, factor**2 * inputs, rtol=1e-5)
    np.testing.assert_allclose(second, factor**2, rtol=1e-5)


@pytest.mark.parametrize("block_size", [0, -1, 2.0, True, "3", None, (3, 3)])
def test_invalid_block_sizes_are_rejected(block_size):
    with pytest.raises(ValueError, match="`block_size`") as error:
        DropBlock2D(0.5, block_size)
    assert repr(block_size) in str(error.value)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_block_larger_than_the_map_is_rejected(data_format):
    layer = DropBlock2D(0.5, 10, data_format)
    shape = shape_of(layer, 2, 64)
    for inputs in (np.ones(shape, "float32"), keras.Input(shape[1:])):
        with pytest.raises(ValueError, match=r"sizes \(9, 14\).*block_size=10"):
            layer(inputs)


# Residual branches


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


@pytest.mark.parametrize(
    "shape", [(), pytest.param((7,), marks=pytest.mark.slow), (2, 3, 4, 5)]
)
@pytest.mark.parametrize("layer_class", [DropPath, StochasticDepth])
def test_inputs_of_any_rank_and_unknown_sizes(layer_class, shape):
    known, unknown = (layer_class(0.5, seed=1, name="drop") for _ in range(2))
    spec = [tf.TensorSpec([None] * len(shape))]
    call = tf.function(lambda x: unknown(x, training=True), input_signature=spec)
    for _ in range(4):
        expected = known(tf.ones(shape), training=True)
        assert expected.shape == shape
        np.testing.assert_array_equal(call(tf.ones(shape)), expected)
