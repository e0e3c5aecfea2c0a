"""Layers of one name in a model have independent masks."""

import keras
import numpy as np
import pytest
from keras import ops
from networks import ONES, assert_equal, assert_variance, drop, sample

import kdrop


def block(seed=None):
    return keras.Sequential([keras.Input((64,)), drop(name="dropout", seed=seed)])


def sum_of(blocks):
    inputs = keras.Input((64,))
    return keras.Model(inputs, ops.sum(ops.stack([b(inputs) for b in blocks]), axis=0))


@pytest.mark.parametrize("seed", [None, 7])
def test_blocks_of_one_class_have_independent_masks(seed):
    model = sum_of([block(seed) for _ in range(8)])
    assert_variance(sample(model, ONES, passes=50), 8)
    many = np.ones((512, 64), "float32")
    assert_variance(kdrop.Sampler(model)(many), 8)
    assert_variance(model(many, training=True), 8)


def test_copies_of_one_file_have_independent_masks(tmp_path):
    block().save(tmp_path / "block.keras")
    copies = [keras.models.load_model(tmp_path / "block.keras") for _ in range(8)]
    for number, copy in enumerate(copies):
        copy.name = f"copy_{number}"
    model = sum_of(copies)
    assert_variance(sample(model, ONES, passes=50), 8)
    assert_variance(model(np.ones((512, 64), "float32"), training=True), 8)


def test_the_first_of_a_name_has_the_masks_that_it_has_alone():
    alone = sample(block(3), ONES)
    assert_equal(sample(keras.Model(*two_outputs()), ONES)[0], alone)


def two_outputs():
    inputs = keras.Input((64,))
    return inputs, [block(3)(inputs), block(3)(inputs)]


def test_samples_are_those_of_the_loaded_model(tmp_path):
    model = sum_of([block() for _ in range(3)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal(sample(loaded, ONES), sample(model, ONES))
    assert_equal(sample(keras.models.clone_model(model), ONES), sample(model, ONES))
