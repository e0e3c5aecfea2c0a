"""The laws of ExactDropout."""

import itertools
import math
import zlib
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from examples import dropout_in_numpy as reference
from kdrop import ExactDropout
from kdrop.layers import exact
from kdrop.masks import bits, kernels


def dropped(layer, shape):
    return layer(tf.ones(shape), training=True).numpy() == 0


@pytest.mark.parametrize("units", [1, 2, 3, 7, 10, 50, 64, 200, 4096, 10**6])
def test_the_count_is_the_rounded_share_with_halves_up(units):
    rates = [*(Fraction(hundredths, 100) for hundredths in range(100)), Fraction(1, 3)]
    thresholds = np.array([kernels.threshold(float(r)) for r in rates], "uint32")
    counts = exact._count([0, 0, 0, ops.convert_to_tensor(thresholds), 0], units)
    rules = [math.floor(rate * units + Fraction(1, 2)) for rate in rates]
    expected = np.minimum(rules, units - 1)
    np.testing.assert_array_equal(ops.convert_to_numpy(counts), expected)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((256, 96), -1),
        pytest.param((8, 5, 7, 64), 3, marks=pytest.mark.slow),
        pytest.param((8, 5, 6, 3), 1, marks=pytest.mark.slow),
        ((8, 5, 6, 3), -2),
        # In blocks of 128 units, and where their words are not next to each other.
        ((3, 256), -1),
        ((3, 128, 2), 1),
    ],
)
def test_every_position_drops_the_exact_count(shape, axis):
    layer = ExactDropout(0.5, axis, seed=1, name="drop")
    for rate in (0.0, 0.1, 0.5, 0.999):
        layer.rate = rate
        counts = dropped(layer, shape).sum(axis)
        assert (counts == reference.exact_count(shape[axis], rate)).all()


def test_every_set_of_units_is_equally_likely():
    layer = ExactDropout(0.4, seed=1, name="drop")
    mask = dropped(layer, (1000, 50, 5)).reshape(-1, 5)
    sets = {s: 0 for s in itertools.combinations(range(5), 2)}
    for row in mask:
        sets[tuple(np.flatnonzero(row).tolist())] += 1
    expected = len(mask) / len(sets)
    chi_squared = sum((count - expected) ** 2 / expected for count in sets.values())
    assert chi_squared < 46.5  # 9 degrees of freedom: exceeded in 5 of 10 million


def test_the_lowest_words_are_dropped():
    layer = ExactDropout(0.3, seed=7, name="drop")
    rows = np.stack([np.arange(16), np.zeros(16)], axis=1).astype("uint32")
    numbers = (tf.constant(np.uint32(n)) for n in (7, zlib.crc32(b"drop"), 1))
    words = bits.words(bits.fold(*numbers), tf.constant(rows), 6 * 40, True)
    ranks = words.numpy().reshape(16, 6, 40).argsort(axis=-1).argsort(axis=-1)
    np.testing.assert_array_equal(dropped(layer, (16, 6, 40)), ranks < 12)


def test_the_search_handles_words_that_are_close_or_at_the_ends():
    top = 2**32 - 1
    rows = np.array(
        [
            np.arange(16),
            top - np.arange(16),
            2**31 + np.arange(16),
            [*range(8), *range(top - 7, top + 1)],
            [2 * 4**i % top for i in range(16)],
            [0, *(2**30 + 5 * np.arange(14)), top],
        ],
        "uint32",
    )
    words = ops.convert_to_tensor(rows.reshape(6, 2, 4, 2, 1))
    for count in range(16):
        limit = ops.convert_to_numpy(exact._limit(words, count)).reshape(6, 1)
        np.testing.assert_array_equal(rows < limit, rows.argsort(1).argsort(1) < count)


@pytest.mark.parametrize(
    "dtype", [pytest.param("float64", marks=pytest.mark.slow), "float32", "bfloat16"]
)
def test_other_units_are_scaled_by_units_over_their_count(dtype):
    layer = ExactDropout(0.3, seed=3, name="drop", dtype=dtype)
    inputs = tf.cast(np.random.default_rng(0).normal(size=(32, 7)), dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    gradient = tape.gradient(outputs, inputs, inputs)
    mask = dropped(ExactDropout(0.3, seed=3, name="drop"), (32, 7))
    wide = tf.cast(inputs, "float64").numpy()
    expected = reference.inverted(wide, ~mask, 2 / 7)
    tolerance = {"float64": 1e-15, "float32": 2e-7, "bfloat16": 2.0**-8}[dtype]
    for result in (outputs, gradient):
        result = tf.cast(result, "float64").numpy()
        np.testing.assert_allclose(result, expected, rtol=tolerance)
    assert layer(inputs) is inputs


@pytest.mark.parametrize(
    ("noise_shape", "shape"),
    [
        (None, (8, 8, 64)),
        ((1, None, None), (8, 8, 64)),
        pytest.param((None, 1, None), (8, 8, 64), marks=pytest.mark.slow),
        pytest.param((1, None), (8, 64), marks=pytest.mark.slow),
    ],
)
def test_positions_have_different_sets_unless_they_share_one(noise_shape, shape):
    mask = dropped(ExactDropout(0.5, noise_shape=noise_shape, seed=1), shape)
    shared = [axis for axis, size in enumerate(noise_shape or ()) if size == 1]
    first = mask.take([0], shared[0]) if shared else mask
    assert (mask == first).all() and (mask.sum(-1) == 32).all()
    sets = first.reshape(-1, 64)
    assert len(np.unique(sets, axis=0)) == len(sets)


def test_config_has_axis_and_noise_shape():
    layer = ExactDropout(0.3, axis=1, noise_shape=(1, None, 1), seed=4, name="drop")
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert copy.get_config() == layer.get_config()
    assert (copy.axis, copy.noise_shape) == (1, (1, None, 1))


@pytest.mark.parametrize("axis", [0, -2, 2, -3])
def test_an_axis_that_is_not_of_units_is_rejected(axis):
    with pytest.raises(ValueError, match=f"after the first. Received: axis={axis}"):
        ExactDropout(0.5, axis)(np.ones((4, 8), "float32"))


def test_invalid_arguments_are_rejected():
    for axis in (1.5, None, True, (1, 2)):
        with pytest.raises(ValueError, match="`axis` must be an integer"):
            ExactDropout(0.5, axis)
    with pytest.raises(ValueError, match="known sizes from axis -1"):
        ExactDropout(0.5)(keras.Input((None,)))
    with pytest.raises(ValueError, match="known sizes from axis -1"):
        ExactDropout(0.5, noise_shape=(None, 8))(keras.Input((None,)))
    with pytest.raises(ValueError, match="no 1 on axis -1, that of 8 units. Received"):
        ExactDropout(0.5, noise_shape=(None, 1))(np.ones((4, 8), "float32"))
