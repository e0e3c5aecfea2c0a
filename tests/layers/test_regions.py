"""The laws of the layers that drop regions."""

import itertools
import math
import zlib
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import layers as keras_layers
from keras.src.layers.regularization import spatial_dropout_test

from kdrop.layers.regions import (
    DropBlock1D,
    DropBlock2D,
    DropBlock3D,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
    TokenDropout,
)
from kdrop.layers.units import InvertedDropout
from kdrop.masks import bits, kernels

SPATIAL = [SpatialDropout1D, SpatialDropout2D, SpatialDropout3D]
BLOCKS = [DropBlock1D, DropBlock2D, DropBlock3D]
MAPS = {1: (13,), 2: (9, 14), 3: (8, 11, 7)}  # oblong, so that no two sizes are equal
DEVIATIONS = 5  # a normal variable is further off in one case of 1.7 million


def dropped(layer, shape):
    """Which elements the layer's next draw drops, as a NumPy mask."""
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
def test_the_positions_of_a_channel_share_their_fate(layer_class, data_format):
    settings = {"seed": 1}
    if layer_class is not SpatialDropout1D:
        settings["data_format"] = data_format
    layer = layer_class(0.3, **settings)
    mask = channels_last(dropped(layer, shape_of(layer, 50, 64)), layer)
    positions = tuple(range(1, 1 + layer.dimensions))
    decisions = mask.any(axis=positions)
    np.testing.assert_array_equal(decisions, mask.all(axis=positions))
    deviation = np.sqrt(0.3 * 0.7 * decisions.size)
    assert abs(decisions.sum() - 0.3 * decisions.size) < DEVIATIONS * deviation


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
        assert layer(inputs) is inputs


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


@pytest.mark.parametrize("layer_class", SPATIAL)
def test_trainable_is_taken_and_kept(layer_class):
    layer = layer_class(0.5, seed=2, trainable=False)
    config = layer.get_config()
    assert config["trainable"] is False and "noise_shape" not in config
    assert layer_class.from_config(config).get_config() == config


@pytest.mark.parametrize("layer_class", [SpatialDropout3D, DropBlock2D])
def test_unknown_data_formats_are_refused(layer_class):
    settings = {"block_size": 2} if layer_class in BLOCKS else {}
    with pytest.raises(ValueError, match="data_format='NHWC'"):
        layer_class(0.5, data_format="NHWC", **settings)
    default = keras.config.image_data_format()
    assert layer_class(0.5, **settings).data_format == default


# DropBlock


def seeds_by_hand(layer, shape, block, rate):
    """The seeds of the first draw, from the words, in a map with a rim before it."""
    sizes = [n + b - 1 for n, b in zip(shape[1:], block, strict=True)]
    numbers = (tf.constant(n, "uint32") for n in (7, zlib.crc32(b"drop"), 1))
    rows = np.stack([np.arange(shape[0]), np.zeros(shape[0])], axis=1)
    words = bits.words(
        bits.fold(*numbers), tf.constant(rows, "uint32"), math.prod(sizes)
    )
    probability = 1 - (1 - rate) ** (1 / math.prod(block))
    return (words.numpy() < round(probability * 2**32)).reshape(shape[0], *sizes)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("block_size", [2, 3, 7])
@pytest.mark.parametrize("layer_class", BLOCKS)
def test_blocks_are_laid_from_every_seed(layer_class, block_size, data_format):
    layer = layer_class(0.3, block_size, data_format, seed=7, name="drop")
    shape, block = shape_of(layer, 3, 6), [block_size] * layer.dimensions
    block.insert(0 if data_format == "channels_first" else layer.dimensions, 1)
    expected = np.zeros(shape, bool)
    for example, *place in np.argwhere(seeds_by_hand(layer, shape, block, 0.3)):
        laid = (
            slice(max(0, p + 1 - b), p + 1) for p, b in zip(place, block, strict=True)
        )
        expected[(example, *laid)] = True
    np.testing.assert_array_equal(dropped(layer, shape), expected)


@pytest.mark.parametrize("block_size", [2, 3, 6])
@pytest.mark.parametrize("layer_class", BLOCKS)
def test_every_dropped_unit_lies_in_a_full_block(layer_class, block_size):
    layer = layer_class(0.4, block_size, seed=1)
    mask = dropped(layer, shape_of(layer, 8, 5))
    # Outside the map all counts as dropped: blocks are clipped there.
    rim = [(0, 0), *[(block_size - 1,) * 2] * layer.dimensions, (0, 0)]
    padded = np.pad(mask, rim, constant_values=True)
    axes = tuple(range(1, 1 + layer.dimensions))
    view = np.lib.stride_tricks.sliding_window_view
    window = (block_size,) * layer.dimensions
    full = view(padded, window, axes).all(axis=tuple(range(-len(axes), 0)))
    covered = view(full, window, axes).any(axis=tuple(range(-len(axes), 0)))
    np.testing.assert_array_equal(covered, mask)
    assert mask.any() and not mask.all()


def deviation_of_the_fraction(rate, block_size, sizes):
    """Of the fraction of one map that is dropped.

    Two units that share `s` of their `c` possible seeds are both kept with probability
    `(1 - rate)^(2 - s / c)`.
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
    [(DropBlock2D, 0.3, size) for size in range(1, 8)]
    + [(DropBlock2D, rate, 3) for rate in (1e-3, 0.01, 0.1, 0.9)]
    + [(c, 0.3, size) for c in (DropBlock1D, DropBlock3D) for size in (4, 7)],
)
def test_the_dropped_fraction_is_the_rate(layer_class, rate, block_size):
    layer = layer_class(rate, block_size, seed=block_size, name="drop")
    sizes, maps = MAPS[layer.dimensions], 32 * 32
    mask = dropped(layer, shape_of(layer, 32, 32))
    deviation = deviation_of_the_fraction(rate, block_size, sizes) / math.sqrt(maps)
    assert abs(mask.mean() - rate) < DEVIATIONS * deviation
    # At each position too, at the border as in the middle. The maps are independent.
    counts = mask.sum(axis=(0, mask.ndim - 1))
    bound = 6 * math.sqrt(maps * rate * (1 - rate)) + 6  # a Poisson tail at .001
    assert abs(counts - maps * rate).max() < bound


def test_the_spread_of_the_fraction_is_that_of_whole_blocks():
    """Blocks one by one would spread less: the closed form is met from both sides."""
    layer = DropBlock2D(0.3, 4, seed=1)
    fractions = dropped(layer, (64, 9, 14, 64)).mean(axis=(1, 2)).ravel()
    expected = deviation_of_the_fraction(0.3, 4, (9, 14))
    # The variance of a variance, from the sample's fourth moment.
    centred = (fractions - 0.3) ** 2
    bound = DEVIATIONS * centred.std() / math.sqrt(len(fractions))
    assert abs(centred.mean() - expected**2) < bound


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("cells", [1, 4, 27, 49, 343])
def test_the_probability_of_a_seed_is_exact_to_its_last_bit(rate, cells):
    seed = Fraction(kernels.block_threshold(rate, cells), 2**32)
    found = 1 - (1 - seed) ** cells
    assert abs(found - Fraction(rate)) <= Fraction(cells, 2**33)


@pytest.mark.parametrize("rate", [1e-3, 0.9, 0.9999])
@pytest.mark.parametrize("block_size", [1, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_kept_keeps_its_expectation(rate, block_size, dtype):
    layer = DropBlock1D(rate, block_size, seed=1, dtype=dtype)
    outputs = layer(tf.ones((16, 4096, 2), dtype), training=True).numpy()
    # The fraction that the threshold gives is not the rate to the last digit.
    seed = Fraction(kernels.block_threshold(rate, block_size), 2**32)
    scale = float(1 / (1 - seed) ** block_size)
    tolerance = 8 * np.finfo(dtype).eps * max(1, math.log(scale))
    kept = outputs[outputs != 0]
    assert kept.size
    np.testing.assert_allclose(kept, scale, rtol=tolerance)


@pytest.mark.parametrize("layer_class", BLOCKS)
def test_gradients_of_both_orders_are_those_of_the_blocks(layer_class):
    layer = layer_class(0.4, 3, seed=1)
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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_dropped_nan_or_inf_is_zero(value):
    layer = DropBlock2D(0.5, 3, seed=1, name="drop")
    mask = dropped(DropBlock2D(0.5, 3, seed=1, name="drop"), (4, 9, 14, 5))
    inputs = tf.fill((4, 9, 14, 5), np.float32(value))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    gradient = tape.gradient(outputs, inputs, output_gradients=inputs)
    for result in (outputs.numpy(), gradient.numpy()):
        np.testing.assert_array_equal(result[mask], 0)
        np.testing.assert_array_equal(result[~mask], value)


@pytest.mark.parametrize("layer_class", [DropBlock1D, DropBlock3D])
def test_the_same_blocks_however_it_is_run(layer_class):
    def layer():
        return layer_class(0.3, 3, seed=7, name="drop")

    shape = shape_of(layer(), 5, 4)
    expected = dropped(layer(), shape)
    unknown = [tf.TensorSpec([None] * len(shape))]
    for settings in ({}, {"jit_compile": True}, {"input_signature": unknown}):
        drop = layer()
        call = tf.function(lambda x, d=drop: d(x, training=True), **settings)
        np.testing.assert_array_equal(call(tf.ones(shape)).numpy() == 0, expected)
    token = kernels.plain.set(True)
    try:
        np.testing.assert_array_equal(dropped(layer(), shape), expected)
    finally:
        kernels.plain.reset(token)


@pytest.mark.parametrize("block_size", [0, -1, 2.0, True, "3", None, (3, 3)])
def test_block_sizes_that_are_none_are_refused(block_size):
    with pytest.raises(ValueError, match="`block_size`") as refusal:
        DropBlock2D(0.5, block_size)
    assert repr(block_size) in str(refusal.value)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_block_larger_than_the_map_is_refused(data_format):
    layer = DropBlock2D(0.5, 10, data_format)
    shape = shape_of(layer, 2, 64)
    for inputs in (np.ones(shape, "float32"), keras.Input(shape[1:])):
        with pytest.raises(ValueError, match=r"sizes \(9, 14\).*block_size=10"):
            layer(inputs)


def test_the_rate_of_blocks_is_alive():
    layer = DropBlock2D(0.0, 3, seed=1)
    call = tf.function(lambda x: layer(x, training=True))
    for rate in (0.0, 0.8, 0.1):
        layer.rate = rate
        assert layer.rate == layer.get_config()["rate"] == rate
        mask = call(tf.ones((64, 9, 14, 64))).numpy() == 0
        deviation = deviation_of_the_fraction(rate, 3, (9, 14)) / 64
        assert abs(mask.mean() - rate) <= DEVIATIONS * deviation


# TokenDropout

TOKENS = np.random.default_rng(0).normal(size=(4, 11, 3)).astype("float32")


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3125, 0.5, 0.99])
def test_the_count_is_exact_and_the_prefix_and_the_order_stay(prefix, rate):
    layer = TokenDropout(rate, prefix, return_indices=True)
    outputs, kept = (t.numpy() for t in layer(TOKENS, training=True))
    behind = 11 - prefix
    count = prefix + max(1, behind - math.floor(rate * behind + 0.5))
    assert outputs.shape == (4, count, 3) and kept.shape == (4, count)
    np.testing.assert_array_equal(
        kept[:, :prefix], np.broadcast_to(range(prefix), (4, prefix))
    )
    assert (np.diff(kept) > 0).all() and kept.max() < 11
    expected = np.take_along_axis(TOKENS, kept[:, :, None], axis=1)
    np.testing.assert_array_equal(outputs, expected)


def test_all_subsets_of_tokens_are_equally_likely():
    layer = TokenDropout(4 / 7, 1, return_indices=True, seed=1, name="drop")
    _, kept = layer(tf.zeros((35 * 400, 8, 1)), training=True)
    subsets, counts = np.unique(kept.numpy(), axis=0, return_counts=True)
    assert len(subsets) == math.comb(7, 3) == 35
    chi2 = ((counts - 400) ** 2 / 400).sum()
    assert abs(chi2 - 34) < 6 * math.sqrt(2 * 34)


def test_gradients_reach_the_kept_tokens_alone():
    layer = TokenDropout(0.5, 1, return_indices=True, seed=1)
    inputs = tf.fill((6, 9, 2), np.nan)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs, kept = layer(inputs, training=True)
    upstream = tf.random.stateless_normal(outputs.shape, seed=(1, 2))
    gradient = tape.gradient(outputs, inputs, upstream)
    expected = np.zeros((6, 9, 2), "float32")
    np.put_along_axis(expected, kept.numpy()[:, :, None], upstream.numpy(), axis=1)
    np.testing.assert_array_equal(gradient, expected)


def test_at_rest_all_tokens_stay():
    inputs = tf.constant(TOKENS)
    assert TokenDropout(0.5)(inputs) is inputs
    outputs, kept = TokenDropout(0.5, return_indices=True)(inputs)
    assert outputs is inputs
    np.testing.assert_array_equal(kept, np.broadcast_to(range(11), (4, 11)))


def test_the_same_tokens_however_it_is_run():
    def layer():
        return TokenDropout(0.5, 1, return_indices=True, seed=7, name="drop")

    expected, kept = layer()(TOKENS, training=True)
    for settings in (
        {},
        {"jit_compile": True},
        {"input_signature": [tf.TensorSpec((None, None, None))]},
    ):
        drop = layer()
        call = tf.function(lambda x, d=drop: d(x, training=True), **settings)
        outputs, same = call(tf.constant(TOKENS))
        np.testing.assert_array_equal(same, kept)
        np.testing.assert_array_equal(outputs, expected)


def test_masks_follow_their_tokens():
    inputs = np.where(np.arange(11)[:, None] < 6, TOKENS, 0)
    layer = TokenDropout(0.5, 1, return_indices=True, seed=1)
    masked = keras.layers.Masking()(inputs)
    outputs, kept = layer(masked, training=True)
    np.testing.assert_array_equal(outputs._keras_mask, kept.numpy() < 6)
    at_inference, _ = layer(masked)
    np.testing.assert_array_equal(at_inference._keras_mask, masked._keras_mask)


def test_a_network_trains_on_fewer_tokens_and_predicts_on_all():
    class Count(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.sum(keras.ops.ones_like(inputs[:, :, 0]), axis=1)

    inputs = keras.Input((11, 3))
    kept = TokenDropout(0.5, 1)(inputs)
    assert kept.shape == (None, None, 3)
    model = keras.Model(inputs, Count()(keras.layers.Dense(4)(kept)))
    assert model(TOKENS, training=True).numpy().tolist() == [6] * 4
    assert model.predict(TOKENS, verbose=0).tolist() == [11] * 4


def test_a_new_rate_warns_where_the_count_is_traced():
    layer = TokenDropout(0.5)
    assert layer(TOKENS, training=True).shape[1] == 5
    layer.rate = 0.25  # eager mode follows
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
def test_bad_prefixes_are_refused_by_name(prefix):
    with pytest.raises(ValueError, match="prefix_tokens") as refusal:
        TokenDropout(0.5, prefix)
    assert repr(prefix) in str(refusal.value)


@pytest.mark.parametrize("prefix", [11, 12])
def test_inputs_without_a_token_behind_the_prefix_are_refused(prefix):
    for inputs in (TOKENS, keras.Input((11, 3))):
        with pytest.raises(ValueError, match="11 tokens, prefix_tokens=1"):
            TokenDropout(0.5, prefix)(inputs)


@pytest.mark.parametrize("return_indices", [False, True])
def test_symbolic_shapes_leave_the_kept_tokens_open(return_indices):
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
def test_too_few_tokens_are_told_at_run_time_too(tokens):
    layer = TokenDropout(0.5, prefix_tokens=6)
    shape = tf.TensorSpec((None, None, 4))
    call = tf.function(lambda x: layer(x, training=True), input_signature=[shape])
    assert call(tf.ones((2, 8, 4))).shape == (2, 7, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="behind the prefix"):
        call(tf.ones((2, tokens, 4)))
