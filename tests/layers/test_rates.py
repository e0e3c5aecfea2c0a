"""`set_dropout` sets the rates of layers of any library, in models that were traced."""

import keras
import numpy as np
import pytest
from keras import layers

import kdrop
from kdrop.layers.rates import rate_of


def model_of(first=0.0, last=0.5):
    """Keras's layer, kdrop's in a nested model, and attention."""
    inputs = keras.Input((6, 4))
    x = layers.Dropout(first, name="first")(inputs)
    x = keras.Sequential([kdrop.InvertedDropout(last, name="drop")], name="inner")(x)
    x = layers.MultiHeadAttention(2, 2, dropout=first, name="heads")(x, x)
    x = layers.Dropout(last, name="last")(x)
    return keras.Model(inputs, x, name="model")


INPUTS = np.ones((64, 6, 4), "float32")


def dropped(layer):
    outputs = layer(np.ones((400, 100), "float32"), training=True)
    return float(np.mean(np.asarray(outputs) == 0))


def paths(model):
    return list(kdrop.set_dropout(model, 0.1))


def test_one_number_for_all():
    model = model_of()
    rates = kdrop.set_dropout(model, 0.25)
    assert [*rates][:2] == ["first", "inner/drop"] and [*rates][3] == "last"
    assert [*rates][2].startswith("heads/dropout")
    assert set(rates.values()) == {0.25}
    for name in "first", "last":
        layer = model.get_layer(name)
        assert layer.rate == 0.25
        assert abs(dropped(layer) - 0.25) < 5 * (0.25 * 0.75 / 40000) ** 0.5
    assert model.get_layer("inner").layers[0].rate == 0.25
    heads = model.get_layer("heads")
    assert heads.dropout == 0.25 and heads._dropout_layer.rate == 0.25
    one, other = (heads(INPUTS, INPUTS, training=True) for _ in range(2))
    assert np.any(np.asarray(one) != np.asarray(other))
    assert kdrop.audit(model).ok


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        ({"first": 0.1}, {0: 0.1}),
        ({"inner/drop": 0.1}, {1: 0.1}),
        ({"inner": 0.1, "last": 0.2}, {1: 0.1, 3: 0.2}),
        ({"*": 0.1, "heads*": 0.2}, {0: 0.1, 1: 0.1, 2: 0.2, 3: 0.1}),
        ({0: 0.1, -1: 0.2}, {0: 0.1, 3: 0.2}),
        ([0.0, 0.1, 0.2, 0.3], {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.3}),
        (kdrop.schedules.linear(0.0, 0.3), {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.3}),
        (kdrop.schedules.over_depth(0.4, 4), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
    ],
)
def test_rates_by_name_place_and_depth(rate, expected):
    model = model_of()
    names = paths(model)
    rates = kdrop.set_dropout(model, rate)
    assert rates == pytest.approx({names[i]: r for i, r in expected.items()})
    by_path = {p: x for x, p in kdrop.keras_internals.paths_of(model).items()}
    for path, value in rates.items():
        assert rate_of(by_path[path]) == pytest.approx(value)


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.5), (0.5, 0.0), (0.1, 0.5)])
def test_a_traced_model_is_traced_again(before, after):
    """The training loss shows what the compiled step drops."""
    model = keras.Sequential(
        [keras.Input((2000, 1)), layers.Dropout(before), layers.Dense(1)]
    )
    model.layers[-1].set_weights([np.ones((1, 1)), np.zeros(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    ones = np.ones((8, 2000, 1), "float32")
    model.fit(ones, ones, verbose=0)
    kdrop.set_dropout(model, after)
    loss = model.fit(ones, ones, verbose=0).history["loss"][0]
    # The variance of inverted dropout on ones.
    assert loss == pytest.approx(after / (1 - after), abs=0.1)


def test_recurrent_layers_and_attention_from_rate_0():
    inputs = keras.Input((5, 4))
    x = layers.LSTM(3, return_sequences=True, name="lstm")(inputs)
    x = layers.Attention(name="attention")([x, x])
    model = keras.Model(inputs, layers.GaussianDropout(0.0)(x))
    kdrop.set_dropout(model, 0.4)
    assert model.get_layer("lstm").dropout == 0.4
    table = kdrop.audit(model)
    assert table.ok and [row.fresh for row in table] == [True] * 3
    assert kdrop.set_dropout(model, {"lstm": 0.0}) == {"lstm/lstm_cell": 0.0}


class Survival(layers.Layer):
    """StochasticDepth as others write it."""

    def __init__(self, survival_probability, **kwargs):
        super().__init__(**kwargs)
        self.survival_probability = survival_probability

    def call(self, inputs):
        return inputs


class StochasticDepth(Survival):
    pass


def test_a_probability_of_survival_is_the_opposite():
    layer = StochasticDepth(0.8)
    assert rate_of(layer) == pytest.approx(0.2)
    kdrop.set_dropout(keras.Sequential([keras.Input((2,)), layer]), 0.3)
    assert layer.survival_probability == 0.7


def test_a_saved_model_has_the_new_rates(tmp_path):
    model = model_of(0.1, 0.1)
    kdrop.set_dropout(model, 0.3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded(INPUTS)  # MultiHeadAttention creates its dropout when it is built
    assert set(kdrop.set_dropout(loaded, {"*": 0.3}).values()) == {0.3}
    assert loaded.get_layer("heads").dropout == 0.3


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ({"firts": 0.1}, "no layer with a rate 'firts': did you mean first"),
        ({7: 0.1}, "no layer with a rate '7'"),
        ([0.1, 0.2], "There are 4 layers with a rate, and 2 rates: first, inner/drop"),
        (1.0, "rate=1.0"),
        ("0.1", "rate='0.1'"),
        ({"first": 0.1, "last": 1}, "rate=1"),
        (lambda depth: depth, "rate=1.0"),
    ],
)
def test_wrong_rates_are_refused_and_change_nothing(rate, message):
    model = model_of()
    with pytest.raises(ValueError, match=message):
        kdrop.set_dropout(model, rate)
    assert model.get_layer("first").rate == 0.0


def test_a_model_without_rates_is_refused():
    with pytest.raises(ValueError, match="has no layer with a rate"):
        kdrop.set_dropout(keras.Sequential([layers.Dense(2)]), 0.1)
