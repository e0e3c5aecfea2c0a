"""What an audit says of layers that are right, and of those that are not."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdrop


def chain(*inner, shape=(8,), **kwargs):
    return keras.Sequential([keras.Input(shape, **kwargs), *inner])


def row_of(layer, shape=(8,), **kwargs):
    (row,) = kdrop.audit(chain(layer, shape=shape), **kwargs)
    return row


FIRST_KEEPS_ALL = kdrop.InvertedDropout(0.3, (1, None), seed=41, name="keeps")


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("layer", "shape", "together"),
    [
        (layers.Dropout(0.3), (8,), "unit"),
        (layers.Dropout(0.3, noise_shape=(None, 1, 8)), (4, 8), "channel"),
        (layers.SpatialDropout2D(0.3), (4, 4, 3), "channel"),
        (layers.AlphaDropout(0.3), (8,), "unit"),
        (layers.Dropout(0.0), (8,), None),
        (kdrop.InvertedDropout(0.001), (8,), "unit"),
        (kdrop.ExactDropout(0.3), (10,), "unit"),
        (kdrop.TokenDropout(0.25), (8, 2), "token"),
        (kdrop.DropBlock2D(0.3, 3), (8, 6, 2), "block of units"),
        (kdrop.DropPath(0.3), (8,), "row"),
        slow(kdrop.StochasticDepth(0.3), (8,), "batch"),
        slow(kdrop.VanillaDropout(0.3), (8,), "unit"),
        slow(kdrop.AlphaDropout(0.3), (8,), "unit"),
        slow(kdrop.InvertedDropout(0.3), (1, 4, 4), "unit"),
        slow(kdrop.InvertedDropout(0.3, (None, None, 1)), (4, 8), "token"),
        slow(kdrop.InvertedDropout(0.3, (1, None)), (8,), "unit of the batch"),
        # The first call that is measured drops nothing.
        (FIRST_KEEPS_ALL, (8,), "unit of the batch"),
        slow(kdrop.InvertedDropout(0.001, dtype="bfloat16"), (8,), "unit"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_right_layer(layer, shape, together):
    row = row_of(layer, shape)
    assert row.ok, row.problems
    assert (row.layer, row.kind) == (layer.name, type(layer).__name__)
    assert (row.rate, row.together) == (layer.rate, together)
    assert abs(row.dropped - layer.rate) <= row.bound < 0.25
    assert row.quiet and row.saved and row.fresh == (layer.rate > 0 or None)


@pytest.mark.parametrize(
    ("layer", "variance"),
    [
        (layers.GaussianDropout(0.2), 0.25),
        (layers.GaussianDropout(0.2, dtype="bfloat16"), 0.25),
        (layers.GaussianNoise(0.3), 0.09),
        (kdrop.UniformDropout(0.3), 0.03),
        slow(kdrop.GaussianDropout(0.2), 0.25),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_noise_is_right_by_its_mean_and_variance(layer, variance):
    row = row_of(layer)
    assert row.ok, row.problems
    assert row.bound is None and row.together == "unit" and row.fresh
    assert row.mean == pytest.approx(1, abs=0.02)
    assert row.variance == pytest.approx(variance, rel=0.05)


class Drop(layers.Layer):
    """A dropout layer with a fault that a subclass sets."""

    def __init__(self, rate=0.3, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.generator = rate, keras.random.SeedGenerator(1)

    def noise(self, inputs):
        kept = keras.random.uniform(ops.shape(inputs), seed=self.generator) >= self.rate
        return ops.cast(kept, inputs.dtype) / (1 - self.rate)

    def call(self, inputs, training=False):
        return inputs * self.noise(inputs) if training else inputs

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


class Less(Drop):
    def noise(self, inputs):
        either = super().noise(inputs) + super().noise(inputs) > 0
        return ops.cast(either, "float32")


class Unscaled(Drop):
    def noise(self, inputs):
        return super().noise(inputs) * (1 - self.rate)


class WithoutFloor(Drop):
    """KerasHub 0.32's DINOV2DropPath and DINOV3DropPath do this."""

    def noise(self, inputs):
        shape = (ops.shape(inputs)[0], 1)
        keep = 1 - self.rate
        return (keep + keras.random.uniform(shape, seed=self.generator)) / keep


class Repeated(Drop):
    def noise(self, inputs):
        kept = keras.random.uniform(ops.shape(inputs), seed=7) >= self.rate
        return ops.cast(kept, inputs.dtype) / (1 - self.rate)


class Nothing(Drop):
    def noise(self, inputs):
        return ops.ones_like(inputs)


class AtInference(Drop):
    def call(self, inputs):
        return inputs * self.noise(inputs)


class Raises(Drop):
    def noise(self, inputs):
        raise TypeError("wrong on purpose")


class Forgets(Drop):
    """Its configuration loses the rate."""

    def get_config(self):
        return {**super().get_config(), "rate": 0.1}


class RepeatedAlpha(Drop):
    """Sets dropped units to another value than 0, always the same units."""

    def call(self, inputs, training=False):
        kept = keras.random.uniform(ops.shape(inputs), seed=7) >= self.rate
        return ops.where(kept, 1.1 * inputs, -1.0) if training else inputs


WRONG = {
    Less: "drops 0.0",
    Unscaled: r"mean 0\.(69|70).* in training, 1.0000 at inference",
    WithoutFloor: "noise of variance .* that drops nothing",
    Repeated: "calls repeat their masks",
    RepeatedAlpha: "calls repeat their masks",
    Nothing: "drops 0.0000 in place of 0.3",
    AtInference: "random at inference",
    Raises: "cannot be measured .*wrong on purpose",
    Forgets: r"saved and loaded, drops 0\.(09|10).* in place of 0.3",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_layer(kind):
    table = kdrop.audit(chain(kind(), Drop()))
    assert [row.ok for row in table] == [False, True] and not table.ok
    assert re.search(WRONG[kind], str(table))


def test_a_low_rate_at_which_nothing_drops():
    assert row_of(Nothing(0.02)).ok is False
    row = row_of(Nothing(1e-7))
    assert row.dropped == 0 and row.ok is None


def test_drop_paths_without_a_floor_double_the_mean():
    row = row_of(WithoutFloor(0.5), (4,))
    assert row.dropped == 0 and row.mean == pytest.approx(2, abs=0.05)
    assert row.together == "row"


def test_dropout_of_keras_drops_too_much_in_bfloat16():
    row = row_of(layers.Dropout(0.001, dtype="bfloat16"))
    on_tensorflow = keras.backend.backend() == "tensorflow"
    assert row.ok == (not on_tensorflow)
    if on_tensorflow:
        assert 0.007 < row.dropped < 0.009
    row = row_of(layers.Dropout(0.001))
    assert row.ok and row.bfloat16 == (not on_tensorflow)
    assert row_of(kdrop.InvertedDropout(0.001)).bfloat16


def test_layers_that_drop_inside_of_their_code():
    inputs = keras.Input((5, 4))
    x = layers.LSTM(4, dropout=0.3, return_sequences=True, name="lstm")(inputs)
    x = layers.Bidirectional(
        layers.GRU(3, recurrent_dropout=0.2, return_sequences=True)
    )(x)
    x = layers.Attention(dropout=0.3, name="attention")([x, x])
    x = layers.MultiHeadAttention(2, 3, dropout=0.3, name="heads")(x, x)
    x = layers.LSTM(4, name="plain")(layers.BatchNormalization()(x))
    table = kdrop.audit(keras.Model(inputs, x))
    assert table.ok
    lstm, *both, attention, heads = table
    assert (lstm.layer, lstm.rate, lstm.dropped) == ("lstm", 0.3, None)
    assert lstm.fresh and lstm.quiet
    assert [row.rate for row in both] == [0.2, 0.2]
    assert attention.layer == "attention" and attention.fresh
    assert heads.layer.startswith("heads/dropout") and heads.together == "unit"


class OwnCode(layers.Layer):
    """Drops through a layer, and once more in its own code."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dropout(0.5, name="inner")
        self.generator = keras.random.SeedGenerator(1)

    def call(self, inputs, training=False):
        inputs = self.inner(inputs, training=training)
        if training:
            inputs = keras.random.dropout(inputs, 0.5, seed=self.generator)
        return inputs


def test_a_layer_is_told_apart_from_those_in_it():
    rows = kdrop.audit(chain(OwnCode(name="own")))
    measured = {row.layer: row.dropped is not None for row in rows}
    assert measured == {"own": False, "own/inner": True}


def test_augmentation_and_dropped_weights_have_no_dropped_fraction():
    flip = row_of(layers.RandomFlip(), (6, 6, 3))
    dense = row_of(kdrop.DropConnectDense(2, 0.3))
    assert flip.rate is None and dense.rate == 0.3 and dense.saved
    assert all(x.ok and x.dropped is None and x.fresh for x in (flip, dense))


def test_what_is_not_random_has_no_row():
    table = kdrop.audit(chain(layers.Dense(3), layers.BatchNormalization()))
    assert table == () and table.ok and "No layer" in str(table)


def test_a_layer_that_is_never_called_is_neither_right_nor_wrong():
    block = OwnCode()
    block.unused = layers.Dropout(0.5, name="unused")
    row = kdrop.audit(chain(block))[-1]
    assert row.layer.endswith("unused") and row.ok is None


def test_the_model_does_not_change():
    drops = kdrop.InvertedDropout(0.5), layers.Dropout(0.5)
    model = chain(layers.Dense(4), layers.BatchNormalization(), *drops)
    before = [np.array(v) for v in model.variables]
    kdrop.audit(model)
    for one, other in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(one, np.array(other))
    assert not [x for layer in model.layers for x in vars(layer) if x == "call"]


def test_inputs_are_made_up_or_given():
    inputs = {"ids": keras.Input((None,), dtype="int32", name="ids")}
    x = layers.Embedding(2, 3)(inputs["ids"])
    model = keras.Model(inputs, layers.Dropout(0.3)(x))
    assert kdrop.audit(model).ok
    assert kdrop.audit(model, {"ids": np.ones((3, 4), "int32")}).ok

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.drop = layers.Dropout(0.3)

        def call(self, inputs, training=False):
            return self.drop(inputs, training=training)

    with pytest.raises(ValueError, match="needs `inputs` for model"):
        kdrop.audit(Own())
    assert kdrop.audit(Own(), np.ones((2, 3), "float32")).ok
