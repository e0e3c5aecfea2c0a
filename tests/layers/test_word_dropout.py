"""The laws of EmbeddingDropout."""

import zlib

import keras
import numpy as np
import pytest
from family import assert_frequency, assert_independent, numpy

import kdrop

VOCABULARY = 500


def embedding(rate=0.3, **settings):
    settings = {"seed": 7, "name": "drop", "embeddings_initializer": "ones", **settings}
    return kdrop.EmbeddingDropout(VOCABULARY, 3, rate, **settings)


def dropped_words(layer, examples=64):
    """Which words a call drops in each example, `(examples, VOCABULARY)`."""
    words = np.broadcast_to(np.arange(VOCABULARY), (examples, VOCABULARY))
    outputs = numpy(layer(words, training=True))
    assert (outputs == outputs[..., :1]).all()
    return outputs[..., 0] == 0


def test_a_fraction_of_the_words_is_dropped_in_each_example():
    layer = embedding()
    first, second = dropped_words(layer), dropped_words(layer)
    assert_frequency(first, 0.3)
    assert_independent(first, second)
    assert_independent(first[:-1], first[1:])
    assert_independent(first[:, :-1], first[:, 1:])
    assert_independent(first, dropped_words(embedding(seed=8)))
    # The same words on each backend
    assert zlib.crc32(np.packbits(first)) == 349037021


def test_all_occurrences_of_a_word_share_one_decision():
    words = np.random.default_rng(0).integers(20, size=(8, 3, 40))
    outputs = numpy(embedding()(words, training=True))[..., 0]
    mask = dropped_words(embedding(), 8)
    expected = np.take_along_axis(mask, words.reshape(8, -1), axis=1)
    np.testing.assert_array_equal(outputs == 0, expected.reshape(words.shape))
    np.testing.assert_allclose(outputs[outputs > 0], 1 / 0.7, rtol=1e-6)


def test_the_batch_can_share_its_decisions():
    layer = embedding(per_example=False)
    masks = np.stack([dropped_words(layer, 2) for _ in range(20)])
    np.testing.assert_array_equal(masks[:, 0], masks[:, 1])
    assert_frequency(masks[:, 0], 0.3)
    assert kdrop.EmbeddingDropout.from_config(layer.get_config()).per_example is False
    with pytest.raises(ValueError, match="`per_example` must be True or False"):
        embedding(per_example=1)


def test_only_words_that_are_not_dropped_learn():
    layer = embedding(mask_zero=True)
    model = keras.Sequential([keras.Input((VOCABULARY,), dtype="int32"), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    words = np.arange(VOCABULARY)[None]
    model.fit(words, np.zeros((1, VOCABULARY, 3)), verbose=0)
    changed = (model.get_weights()[0] != 1).any(axis=1)
    expected = ~dropped_words(embedding(), 1)[0]
    expected[0] = False  # the masked word
    np.testing.assert_array_equal(changed, expected)


def test_masks_are_those_of_keras():
    words = np.array([[3, 0, 5]])
    for training in (False, True):
        outputs = embedding(mask_zero=True)(words, training=training)
        np.testing.assert_array_equal(outputs._keras_mask, words != 0)


def test_it_cannot_be_quantized():
    layer = embedding()
    layer.build((None, 3))
    with pytest.raises(NotImplementedError, match="'drop' of type.*stays in float"):
        layer.quantize("int8")
