"""The contract: what is saved of a drop layer, and how training resumes."""

import itertools
import random
import zlib

import keras
import numpy as np
import pytest
import words
from family import (
    assert_independent,
    assert_same_weights,
    dropped,
    every_kind,
    fit,
    network,
    numpy,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdrop import InvertedDropout
from kdrop.masks import bits


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, half = network(InvertedDropout), network(InvertedDropout)
    for model in (whole, half):
        model.compile("adam", "mse")
    fit(whole, 2)
    fit(half, 1)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    fit(resumed, 1)
    assert_same_weights(whole, resumed)


@every_kind
@pytest.mark.parametrize("form", ["keras", "weights"])
def test_draw_counts_are_saved_and_the_rate_is_not(case, form, tmp_path):
    def model():
        return keras.Sequential([keras.Input(case.shape[1:]), case.make()])

    saved, fresh = model(), model()
    for _ in range(3):
        case.draw(saved.layers[0])
    if form == "keras":
        saved.save(tmp_path / "model.keras")
        fresh = keras.models.load_model(tmp_path / "model.keras")
        fresh.layers[0].rate = 0.25
    else:
        fresh.layers[0].rate = 0.25
        saved.save_weights(tmp_path / "model.weights.h5")
        fresh.load_weights(tmp_path / "model.weights.h5")
    assert fresh.layers[0].rate == 0.25
    saved.layers[0].rate = 0.25
    np.testing.assert_array_equal(
        case.draw(fresh.layers[0]), case.draw(saved.layers[0])
    )


def train(model, epochs, folder=None):
    """Train to the end of an epoch, from the backup in the folder if there is one."""
    model.compile("adam", "mse")
    callbacks = [keras.callbacks.BackupAndRestore(folder)] if folder else []
    fit(model, epochs, callbacks=[*callbacks, Killed(at=epochs)])
    return model


class Killed(keras.callbacks.Callback):
    """Interrupts training after an epoch, unless it is the last."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.at < 4:
            raise KeyboardInterrupt


def test_a_restored_backup_continues_bit_by_bit(tmp_path):
    def built():
        return network(InvertedDropout, None)  # after `set_random_seed`

    whole = train(built(), 4)
    with pytest.raises(KeyboardInterrupt):
        train(built(), 2, tmp_path)
    assert_same_weights(train(built(), 4, tmp_path), whole)


def test_seeds_are_saved_in_keras_files_alone(tmp_path):
    """A seed that was drawn is restored from `.keras`, and not from weight files."""
    model = network(InvertedDropout, None)
    drop = model.get_layer("drop_1")
    dropped(drop)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras").get_layer("drop_1")
    others = []
    for seed in (1, 2, 3, None, None, None):
        random.seed(None)  # other tests set it
        other = network(InvertedDropout, seed, same=False)
        other.load_weights(tmp_path / "model.weights.h5")
        others.append(other.get_layer("drop_1"))
        assert others[-1].draw_count == 1
        assert others[-1].get_config()["seed"] == seed
    expected = dropped(drop)
    np.testing.assert_array_equal(dropped(loaded), expected)
    masks = [expected, *map(dropped, others)]
    for one, other in itertools.combinations(masks, 2):
        assert_independent(one, other)
    again = InvertedDropout(0.5, seed=2, name="drop_1")
    dropped(again)
    np.testing.assert_array_equal(masks[2], dropped(again))


@given(count=st.integers(0, 2**32 - 1))
@example(count=0)
@example(count=2**32 - 1)
@settings(derandomize=True, deadline=None, max_examples=15)
def test_a_mask_is_a_function_of_the_draw_count(count):
    layer = InvertedDropout(0.3, seed=7, name="drop")
    layer.draw_count = count
    number = (count + 1) % 2**32
    key = bits.fold(*(words.u32(n) for n in (7, zlib.crc32(b"drop"), number)))
    rows = words.u32(np.stack([np.arange(8), np.zeros(8)], axis=1))
    expected = bits.words(key, rows, 16) < np.uint32(round(0.3 * 2**32))
    np.testing.assert_array_equal(dropped(layer, (8, 16)), numpy(expected))
    assert layer.draw_count == number


@pytest.mark.parametrize("count", [-1, 2**32, 1.0, "1", True, None])
def test_invalid_draw_counts_are_rejected(count):
    with pytest.raises(ValueError, match="draw_count") as error:
        InvertedDropout(0.5).draw_count = count
    assert repr(count) in str(error.value)


@keras.saving.register_keras_serializable("test")
class Nested(keras.layers.Layer):
    """A layer that contains a dense layer and a drop layer."""

    def __init__(self, layer_class, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4)
        self.dropout = layer_class(0.5)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs, training=False):
        return self.dropout(self.dense(inputs), training=training)


@pytest.mark.parametrize("nested", [False, True])
def test_weight_files_pass_to_and_from_keras_dropout(nested, tmp_path):
    def build(drop):
        if nested:
            return keras.Sequential([keras.Input((8,)), Nested(drop), Nested(drop)])
        return network(drop)

    kdrop_model, keras_model = build(InvertedDropout), build(keras.layers.Dropout)
    path = tmp_path / "model.weights.h5"
    for source, target in [(kdrop_model, keras_model), (keras_model, kdrop_model)]:
        source.set_weights([w + 1 for w in source.get_weights()])
        source.save_weights(path)
        target.load_weights(path)
        assert_same_weights(source, target)
