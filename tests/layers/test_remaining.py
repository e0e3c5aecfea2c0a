"""Layers that still drop by other means are named."""

import keras
import numpy as np
import pytest
from keras_dropout import (
    INPUTS,
    KERAS_LAYERS,
    Twice,
    assert_drops,
    attention,
    chain,
    drop,
    layers_of,
    multi_head,
    value,
)

import kdrop
from kdrop.layers.replace import remaining

# Models with a layer that is replaced and one that is not, whose name follows.
OTHER = {
    "subclass": (lambda: chain(Twice(0.5, name="twice"), drop()), "twice"),
    "LSTM": (
        lambda: chain(keras.layers.LSTM(4, dropout=0.5, name="lstm"), drop()),
        "lstm",
    ),
    "SimpleRNN": (
        lambda: chain(
            keras.layers.Bidirectional(
                keras.layers.SimpleRNN(4, recurrent_dropout=0.5, name="simple"),
                name="both",
            ),
            drop(),
        ),
        "both/backward_simple', 'both/forward_simple",
    ),
    "stacked cells": (
        lambda: chain(
            keras.layers.RNN(
                [keras.layers.LSTMCell(4), keras.layers.GRUCell(4, dropout=0.5)],
                name="rnn",
            ),
            drop(),
        ),
        "rnn",
    ),
    "Attention": (
        lambda: attention(keras.layers.Attention(dropout=0.5, name="attention")),
        "attention",
    ),
}


@pytest.mark.parametrize(
    ("place", "in_place"), [*((place, True) for place in OTHER), ("LSTM", False)]
)
@pytest.mark.filterwarnings("ignore:These layers of model .* stay at inference")
def test_one_warning_names_the_layers_that_are_not_replaced(place, in_place):
    build, name = OTHER[place]
    model = build()
    count = len(remaining(model))
    expected = value(model(INPUTS, training=False))
    with pytest.warns(UserWarning, match=f"does not sample: '{name}'") as warnings:
        replaced = kdrop.replace(model, in_place=in_place)
    assert len(warnings) == 1
    assert warnings[0].filename == __file__
    np.testing.assert_array_equal(value(replaced(INPUTS, training=False)), expected)
    assert not [x for x in layers_of(replaced) if type(x) in KERAS_LAYERS]
    assert_drops(replaced)
    assert ", ".join(map(repr, remaining(replaced))) == f"'{name}'"
    assert count == len(remaining(replaced)) + 1


class Path(keras.layers.Layer):
    """Draws from Keras's global generator, as some layers of KerasHub do."""

    def __init__(self, drop_prob, **kwargs):
        super().__init__(**kwargs)
        self.drop_prob = drop_prob

    def call(self, inputs, training=False):
        return keras.random.dropout(inputs, self.drop_prob) if training else inputs


class DropPath(Path):
    pass


def test_remaining_recognises_paths_by_their_names():
    assert remaining(chain(DropPath(0.5, name="path"), DropPath(0.0))) == ["path"]


class DropoutBlock(keras.layers.Layer):
    """Has the name and the rate of a dropout layer, but only calls another one."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.drop = rate, drop(rate, name="inner")

    def call(self, inputs, training=False):
        return self.drop(inputs, training=training)


def test_remaining_names_the_layer_that_drops_not_its_holder():
    model = chain(DropoutBlock(0.5, name="block"))
    assert remaining(model) == ["block/inner"]
    assert remaining(kdrop.replace(model, in_place=True)) == []


@pytest.mark.parametrize("model", ["x", None, [drop(0.5)]])
def test_only_layers_have_drop_layers(model):
    with pytest.raises(ValueError, match="`model` must be a keras.Model or another"):
        kdrop.drop_layers(model)


def test_layers_that_drop_nothing_are_not_named():
    model = chain(
        Twice(0.0), keras.layers.LSTM(4, return_sequences=True), keras.layers.ReLU()
    )
    assert remaining(model) == []
    assert kdrop.replace(model, in_place=True) is model


def test_remaining_names_layers_before_they_are_replaced():
    assert remaining(chain(drop(0.1, name="a"), drop(0.0), drop(0.2, name="b"))) == [
        "a",
        "b",
    ]
    model = multi_head()
    assert len(remaining(model)) == 1
    kdrop.replace(model, in_place=True)
    assert remaining(model) == []


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
def test_time_steps_that_share_a_mask_are_named():
    model = chain(keras.layers.TimeDistributed(drop(), name="steps"), steps=None)
    with pytest.warns(UserWarning, match="one mask in: 'steps'") as warnings:
        kdrop.replace(model, in_place=True)
    assert len(warnings) == 1
