"""What an audit says of layers that are right, and of those that are not."""

import math
import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdrop
from kdrop.auditing.measure import chance_bound


def chain(*inner, shape=(8,), **kwargs):
    return keras.Sequential([keras.Input(shape, **kwargs), *inner])


def row_of(layer, shape=(8,), **kwargs):
    (row,) = kdrop.audit(chain(layer, shape=shape), **kwargs)
    return row


UNIT = (0.3, "unit")
RIGHT = {
    "Dropout": (layers.Dropout(0.3), (8,), UNIT),
    "noise shape": (
        layers.Dropout(0.3, noise_shape=(None, 1, 8)), (4, 8), (0.3, "channel")
    ),
    "tokens": (
        kdrop.InvertedDropout(0.3, noise_shape=(None, None, 1)), (4, 8), (0.3, "token")
    ),
    "of the batch": (
        kdrop.InvertedDropout(0.3, noise_shape=(1, None)), (8,),
        (0.3, "unit of the batch"),
    ),
    "SpatialDropout2D": (layers.SpatialDropout2D(0.3), (4, 4, 3), (0.3, "channel")),
    "InvertedDropout": (kdrop.InvertedDropout(0.3), (8,), UNIT),
    "small rate": (kdrop.InvertedDropout(0.001), (8,), (0.001, "unit")),
    "VanillaDropout": (kdrop.VanillaDropout(0.3), (8,), UNIT),
    "ExactDropout": (kdrop.ExactDropout(0.3), (10,), UNIT),
    "DropBlock2D": (kdrop.DropBlock2D(0.3, 3), (8, 6, 2), (0.3, "block of units")),
    "DropPath": (kdrop.DropPath(0.3), (8,), (0.3, "row")),
    "StochasticDepth": (kdrop.StochasticDepth(0.3), (8,), (0.3, "batch")),
    "AlphaDropout": (layers.AlphaDropout(0.3), (8,), UNIT),
    "kdrop's AlphaDropout": (kdrop.AlphaDropout(0.3), (8,), UNIT),
    "in bfloat16": (
        kdrop.InvertedDropout(0.001, dtype="bfloat16"), (8,), (0.001, "unit")
    ),
    "TokenDropout": (kdrop.TokenDropout(0.25), (8, 2), (0.25, "token")),
    "attention": (kdrop.InvertedDropout(0.3), (1, 4, 4), UNIT),
    "rate 0": (layers.Dropout(0.0), (8,), (0.0, None)),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_layer(name):
    layer, shape, (rate, together) = RIGHT[name]
    row = row_of(layer, shape)
    assert row.ok, row.problems
    assert (row.layer, row.kind) == (layer.name, type(layer).__name__)
    assert (row.rate, row.together) == (rate, together)
    assert abs(row.dropped - rate) <= row.bound < 0.25
    assert row.quiet and row.saved and row.fresh in ((True, None)[rate == 0],)


NOISE = {
    "GaussianDropout": (layers.GaussianDropout(0.2), 0.25),
    "in bfloat16": (layers.GaussianDropout(0.2, dtype="bfloat16"), 0.25),
    "kdrop's GaussianDropout": (kdrop.GaussianDropout(0.2), 0.25),
    "UniformDropout": (kdrop.UniformDropout(0.3), 0.03),
    "GaussianNoise": (layers.GaussianNoise(0.3), 0.09),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_right_by_its_mean_and_variance(name):
    layer, variance = NOISE[name]
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
        return ops.cast(
            super().noise(inputs) + 1.5 * super().noise(inputs) > 0, "float32"
        )


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


WRONG = {
    Less: "drops 0.0",
    Unscaled: r"mean 0\.(69|70).* in training, 1.0000 at inference",
    WithoutFloor: "noise of variance .* that drops nothing",
    Repeated: "calls repeat their masks",
    Nothing: "drops 0.0000 in place of 0.3",
    AtInference: "random at inference",
    Raises: "cannot be measured .*wrong on purpose",
    Forgets: r"saved and loaded, drops 0\.(09|10).* in place of 0.3",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_layer(kind):
    table = kdrop.audit(chain(kind(), kdrop.InvertedDropout(0.3)))
    assert [row.ok for row in table] == [False, True] and not table.ok
    assert re.search(WRONG[kind], "\n".join(table[0].problems))
    assert re.search(WRONG[kind], str(table))


def test_the_right_form_of_the_wrong_layers_is_right():
    assert row_of(Drop()).ok


def test_a_low_rate_at_which_nothing_drops():
    assert row_of(Nothing(0.02)).ok is False
    row = row_of(Nothing(1e-7))
    assert row.dropped == 0 and row.ok is None


class RepeatedAlpha(Drop):
    """Sets dropped units to another value than 0, always the same units."""

    def call(self, inputs, training=False):
        kept = keras.random.uniform(ops.shape(inputs), seed=7) >= self.rate
        return ops.where(kept, 1.1 * inputs, -1.0) if training else inputs


def test_repeated_masks_with_another_value_than_0():
    assert "calls repeat their masks" in row_of(RepeatedAlpha()).problems


def test_drop_paths_without_a_floor_double_the_mean():
    layer = WithoutFloor(0.5)
    row = row_of(layer, (4,))
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
    assert [(row.layer, row.dropped is None) for row in rows] == [
        ("own", True), ("own/inner", False)
    ]  # fmt: skip


def test_augmentation_is_listed_without_a_rate():
    row = row_of(layers.RandomFlip(), (6, 6, 3))
    assert row.ok and row.rate is None and row.dropped is None and row.fresh


def test_what_is_not_random_has_no_row():
    table = kdrop.audit(chain(layers.Dense(3), layers.BatchNormalization()))
    assert table == () and table.ok and "No layer" in str(table)


def test_a_layer_that_is_never_called_is_neither_right_nor_wrong():
    block = OwnCode()
    block.unused = layers.Dropout(0.5, name="unused")
    row = kdrop.audit(chain(block))[-1]
    assert row.layer.endswith("unused") and row.ok is None


def test_the_model_does_not_change():
    model = chain(
        layers.Dense(4), layers.BatchNormalization(), kdrop.InvertedDropout(0.5),
        layers.Dropout(0.5),
    )  # fmt: skip
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": layers.Dropout(0.5)}, "`model` must be a keras.Model"),
        ({"model": chain(), "replicas": 2}, "`replicas` must be True or False"),
        ({"model": chain(layers.Dense(2)), "inputs": np.ones((2, 3))}, "cannot call"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kdrop.audit(**arguments)


def binomial_tail(least, count, rate):
    """The probability of at least so many, summed from the law."""

    def log(k):
        ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        return ways + k * math.log(rate) + (count - k) * math.log1p(-rate)

    return sum(math.exp(log(k)) for k in range(least, count + 1))


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [256, 5000])
def test_a_right_fraction_is_hardly_ever_out_of_bounds(rate, count):
    bound = chance_bound(rate * (1 - rate), count)
    # Fewer dropped is more of those that are not.
    for p in rate, 1 - rate:
        least = math.floor((p + bound) * count) + 1
        assert binomial_tail(least, count, p) < 1e-9


def test_the_bound_is_that_of_the_decisions_made():
    """4,096 positions share the decision of a row."""
    row = row_of(kdrop.DropPath(0.3), (64, 64))
    assert row.bound >= chance_bound(0.3 * 0.7, 2**19)
    assert chance_bound(0.21, 10**6) == pytest.approx(6.5 * (0.21 / 10**6) ** 0.5, 0.02)
    assert chance_bound(0.0, 10) == 0


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="of other backends")
@pytest.mark.parametrize("option", ["replicas", "recompute"])
def test_options_of_tensorflow_are_refused_elsewhere(option):
    with pytest.raises(ValueError, match="needs the backend tensorflow"):
        kdrop.audit(chain(layers.Dropout(0.5)), **{option: True})
