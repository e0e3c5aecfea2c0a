"""Models of Keras with kdrop's layers in them."""

import keras
import numpy as np
import pytest
from keras_dropout import (
    INPUTS,
    KERAS_LAYERS,
    PLACES,
    Holder,
    assert_drops,
    assert_replaced,
    chain,
    drop,
    functional,
    layers_of,
    shared,
    value,
)

import kdrop
from kdrop.layers.replace import remaining

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="of TensorFlow"
)
# The copies are replaced in place, too, once they are saved and loaded.
FAST_IN_PLACE = {"list", "Functional subclass"}
FAST_COPIES = {"inner Functional", "shared", "MultiHeadAttention", "subclassed model"}
CASES = [
    pytest.param(
        place,
        in_place,
        id=f"{place}-{'in place' if in_place else 'copy'}",
        marks=[] if place in fast else [pytest.mark.slow],
    )
    for in_place, fast in ((True, FAST_IN_PLACE), (False, FAST_COPIES))
    for place in PLACES
]


@pytest.mark.parametrize(("place", "in_place"), CASES)
def test_layers_are_replaced_in_every_place(place, in_place, tmp_path):
    model = PLACES[place]()
    expected = value(model(INPUTS, training=False))
    weights, layers = model.weights, layers_of(model)
    counts = len(layers_of(model, *KERAS_LAYERS)), len(model.get_weights())
    replaced = kdrop.replace(model, in_place=in_place)
    assert type(replaced) is type(model)
    np.testing.assert_array_equal(value(replaced(INPUTS, training=False)), expected)
    assert_replaced(replaced)
    noises = kdrop.InvertedDropout, kdrop.GaussianDropout, kdrop.AlphaDropout
    assert (len(layers_of(replaced, *noises)), len(replaced.get_weights())) == counts
    assert_drops(replaced)
    if in_place:
        assert replaced is model
        assert all(x is y for x, y in zip(replaced.weights, weights, strict=True))
    else:
        assert layers_of(model) == layers
        assert not {id(x) for x in layers} & {id(x) for x in layers_of(replaced)}
        assert not {id(x) for x in weights} & {id(x) for x in replaced.weights}
        np.testing.assert_array_equal(value(model(INPUTS, training=False)), expected)

    # Saved, loaded and replaced again, it has the same samples, bit for bit.
    path = tmp_path / "model.keras"
    replaced.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(value(loaded(INPUTS, training=False)), expected)
    again = kdrop.replace(loaded, in_place=True)
    again.load_weights(path)
    assert_replaced(again)
    one, other = (value(kdrop.Sampler(x, seed=1)(INPUTS)) for x in (replaced, again))
    np.testing.assert_array_equal(one, other)


def test_settings_are_copied():
    # Keras's layers take these with TensorFlow alone.
    beyond = 2**32 if keras.backend.backend() == "tensorflow" else 0
    policy = keras.DTypePolicy("mixed_bfloat16")
    model = chain(
        drop(0.4, noise_shape=(None, 1, None), seed=3, name="a", dtype=policy),
        keras.layers.GaussianDropout(0.2, seed=11 - beyond, name="b", trainable=False),
        keras.layers.AlphaDropout(0.3, noise_shape=(None, 6, 1), name="c"),
        keras.layers.SpatialDropout1D(0.1, seed=7 + beyond, name="d", dtype=policy),
        drop(0.0, name="e"),
    )
    model.layers[4].trainable = False
    model.compile("sgd", "mse")
    expected = value(model(INPUTS, training=False))
    for replaced in kdrop.replace(model), kdrop.replace(model, in_place=True):
        a, b, c, d, e = replaced.layers[1:]
        assert [x.name for x in (a, b, c, d, e)] == ["a", "b", "c", "d", "e"]
        assert [x.rate for x in (a, b, c, d, e)] == [0.4, 0.2, 0.3, 0.1, 0.0]
        assert [x.seed for x in (a, b, c, d, e)] == [3, 11, None, 7, None]
        assert type(a) is type(e) is kdrop.InvertedDropout
        assert type(b) is kdrop.GaussianDropout and type(c) is kdrop.AlphaDropout
        assert type(d) is kdrop.SpatialDropout1D
        assert a.noise_shape == (None, 1, None) and c.noise_shape == (None, 6, 1)
        assert a.dtype_policy == d.dtype_policy == policy
        assert [x.trainable for x in (a, c, e)] == [True] * 3
        assert not b.trainable and not d.trainable
        np.testing.assert_array_equal(value(replaced(INPUTS, training=False)), expected)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_maps_of_both_data_formats(dimensions):
    kind = getattr(keras.layers, f"SpatialDropout{dimensions}D")
    for data_format in "channels_first", "channels_last":
        inputs = keras.Input((2, 3, 4, 5)[: dimensions + 1])
        model = keras.Model(inputs, kind(0.5, data_format=data_format)(inputs))
        kdrop.replace(model, in_place=True)
        assert type(model.layers[1]).__name__ == f"SpatialDropout{dimensions}D"
        assert type(model.layers[1]).__module__.startswith("kdrop")
        assert model.layers[1].data_format == data_format


def test_a_compiled_model_trains_with_the_new_layers():
    model = chain(keras.layers.Dense(8), drop(), functional(), keras.layers.Dense(8))
    model.compile(keras.optimizers.Adam(), "mse")
    model.fit(INPUTS, INPUTS, verbose=0)
    expected = model.predict(INPUTS, verbose=0)
    loss = model.evaluate(INPUTS, INPUTS, verbose=0)
    optimizer, steps = model.optimizer, int(model.optimizer.iterations)
    assert kdrop.replace(model, in_place=True) is model
    np.testing.assert_array_equal(model.predict(INPUTS, verbose=0), expected)
    np.testing.assert_allclose(model.evaluate(INPUTS, INPUTS, verbose=0), loss, 1e-6)
    model.fit(INPUTS, INPUTS, verbose=0)
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == steps + 1
    counts = [x.draw_count for x in layers_of(model, kdrop.InvertedDropout)]
    assert counts == [1, 1]
    assert np.any(model.predict(INPUTS, verbose=0) != expected)


def test_a_copy_has_the_same_frozen_weights():
    model = chain(Holder("list"), keras.layers.Dense(8), drop())
    model.layers[1].contents[1].trainable = False
    model.compile("adam", "mse")
    model.fit(INPUTS, INPUTS, verbose=0)
    replaced = kdrop.replace(model)
    assert not replaced.compiled and model.compiled
    frozen = [weight.trainable for weight in replaced.weights]
    assert frozen == [weight.trainable for weight in model.weights]
    assert False in frozen and True in frozen
    assert len(replaced.trainable_weights) == 2


def test_a_shared_layer_is_replaced_once():
    model = kdrop.replace(shared())
    (layer,) = layers_of(model, kdrop.InvertedDropout)
    assert layer is model.layers[1] is model.layers[-1].layer
    kdrop.Sampler(model)(INPUTS)
    assert layer.draw_count == 2 + INPUTS.shape[1]


def test_replacing_twice_changes_nothing():
    model = kdrop.replace(chain(drop(seed=3), Holder("dictionary")), in_place=True)
    kdrop.Sampler(model)(INPUTS)
    before = layers_of(model), [value(x).tolist() for x in model.variables]
    assert kdrop.replace(model, in_place=True) is model
    again = layers_of(model), [value(x).tolist() for x in model.variables]
    assert again == before
    copy = kdrop.replace(model)
    assert remaining(copy) == []
    assert [value(x).tolist() for x in copy.variables] == before[1]


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
def test_a_sequential_that_is_not_built(in_place):
    model = keras.Sequential([keras.layers.Dense(8), drop(), drop()])
    replaced = kdrop.replace(model, in_place=in_place)
    assert not replaced.built
    replaced(INPUTS)
    assert_replaced(replaced)
    assert_drops(replaced)


@pytest.mark.parametrize("place", ["list", "inner Functional"])
def test_weight_files_pass_both_ways(place, tmp_path):
    model = chain(Holder(place))
    replaced = kdrop.replace(model)
    for source, target in (model, replaced), (replaced, model):
        source.set_weights([np.full_like(w, 0.5) for w in source.get_weights()])
        target.set_weights([np.zeros_like(w) for w in target.get_weights()])
        source.save_weights(tmp_path / "of.weights.h5")
        target.load_weights(tmp_path / "of.weights.h5")
        assert all(np.all(w == 0.5) for w in target.get_weights())


@on_tensorflow
def test_checkpoints_hold_the_new_layers_alone(tmp_path):
    import tensorflow as tf

    def names(model):
        path = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
        return [name for name, _ in tf.train.list_variables(path)]

    model = chain(Holder("list"), drop(), Holder("attribute"))
    assert not any("/draws/" in name for name in names(model))
    kdrop.replace(model, in_place=True)
    saved = names(model)
    assert not any("seed_generator" in name for name in saved)
    # Checkpoints of Keras do not include layers in lists.
    assert sum("/draws/" in name for name in saved) == 2, saved


@pytest.mark.slow
@on_tensorflow
def test_a_model_under_a_strategy(strategy):
    with strategy.scope():
        model = chain(drop(), keras.layers.Dense(8))
        model.compile("sgd", "mse")
    model.fit(INPUTS, INPUTS, verbose=0)
    kdrop.replace(model, in_place=True)
    model.fit(INPUTS, INPUTS, verbose=0)
    assert model.layers[1].draw_count == 1  # one step on two replicas


@pytest.mark.slow
def test_efficient_net():
    model = keras.applications.EfficientNetB0(
        weights=None, input_shape=(32, 32, 3), classes=3
    )
    inputs = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    expected = value(model(inputs))
    count = len(layers_of(model, *KERAS_LAYERS))
    for replaced in kdrop.replace(model), kdrop.replace(model, in_place=True):
        np.testing.assert_array_equal(value(replaced(inputs)), expected)
        assert len(layers_of(replaced, kdrop.InvertedDropout)) == count > 5
        assert_replaced(replaced)


def test_a_rate_of_1_is_refused_before_anything_is_replaced():
    model = chain(drop(0.5, name="half"), drop(1.0, name="all"))
    for in_place in True, False:
        with pytest.raises(ValueError, match="layer .all.: .*rate=1.0"):
            kdrop.replace(model, in_place=in_place)
        assert remaining(model) == ["half", "all"]


def test_what_is_not_a_model_is_refused():
    for wrong in "model", drop(), None:
        with pytest.raises(ValueError, match="`model` must be a keras.Model. Received"):
            kdrop.replace(wrong)
