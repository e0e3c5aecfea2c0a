"""`insert` puts drop layers where a network has none."""

import keras
import numpy as np
import pytest
from keras import layers

import kdrop


def block(x, name):
    branch = layers.Dense(4, activation="tanh", name=f"{name}_1")(x)  # never all 0
    branch = layers.Dense(4, name=f"{name}_2")(branch)
    return layers.Add(name=f"{name}_add")([x, branch])


def residual(blocks=3, name="network"):
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((4,), name="inputs")
    for number in range(blocks):
        x = block(x, f"block{number}")
    return keras.Model(inputs, layers.Dense(2, name="head")(x), name=name)


INPUTS = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")


def value(tensor):
    return np.asarray(tensor)


def drops(model):
    return [x for x in kdrop.drop_layers(model)]


def assert_same(inserted, model):
    np.testing.assert_array_equal(value(inserted(INPUTS)), value(model(INPUTS)))
    assert {id(x) for x in inserted.weights} == {id(x) for x in model.weights}


def test_stochastic_depth_in_residual_branches():
    model = residual()
    names = [x.name for x in model.layers]
    inserted = kdrop.insert(model, "block*_2", kdrop.DropPath(0.5, seed=1, name="path"))
    assert [x.name for x in drops(inserted)] == [f"block{i}_2_path" for i in range(3)]
    assert_same(inserted, model)
    assert inserted.name == model.name
    # The model that it shares its layers with has none.
    assert [x.name for x in model.layers] == names and not drops(model)
    np.testing.assert_array_equal(
        value(model(INPUTS, training=True)), value(model(INPUTS))
    )
    # An eighth of the rows has all branches dropped, and goes straight to the head.
    trained = value(inserted(np.tile(INPUTS, (20, 1)), training=True))
    straight = value(model.get_layer("head")(np.tile(INPUTS, (20, 1))))
    skipped = np.isclose(trained, straight, atol=1e-6).all(axis=1)
    assert abs(skipped.mean() - 1 / 8) < 5 * (1 / 8 * 7 / 8 / 1280) ** 0.5
    assert kdrop.audit(inserted).ok


def test_a_function_gives_each_place_its_layer():
    inserted = kdrop.insert(
        residual(),
        "block*_2",
        lambda name, depth: kdrop.DropPath(0.1 + 0.2 * depth, name=f"{name}_p"),
    )
    rates = {x.name: round(x.rate, 6) for x in drops(inserted)}
    assert rates == {"block0_2_p": 0.1, "block1_2_p": 0.2, "block2_2_p": 0.3}


def test_places_by_a_function_of_the_layer():
    inserted = kdrop.insert(
        residual(), lambda layer: isinstance(layer, layers.Add), layers.Dropout(0.3)
    )
    dropped = [x for x in inserted.layers if isinstance(x, layers.Dropout)]
    assert [x.name.partition("_add_")[0] for x in dropped] == [
        "block0", "block1", "block2"
    ]  # fmt: skip


def test_nested_and_sequential_models():
    inner = residual(2, name="inner")
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="first"), inner, layers.ReLU()],
        name="outer",
    )
    drop = kdrop.InvertedDropout(0.5, name="drop")
    inserted = kdrop.insert(model, "inner/block1_2", drop)
    assert type(inserted) is keras.Sequential
    assert [x.name for x in drops(inserted)] == ["block1_2_drop"]
    assert_same(inserted, model)
    outside = kdrop.insert(model, "inner", drop)
    assert [x.name for x in outside.layers][1:3] == ["inner", "inner_drop"]
    assert outside.layers[1] is inner
    both = kdrop.insert(model, lambda layer: layer.name in ("inner", "block0_1"), drop)
    assert len(drops(both)) == 2
    assert_same(both, model)
    functional = keras.Model(model.inputs[0], model.outputs[0])
    assert_same(kdrop.insert(functional, "inner", drop), functional)
    assert len(drops(kdrop.insert(functional, "inner/block0_1", drop))) == 1


def test_the_model_is_saved_and_trained(tmp_path):
    inserted = kdrop.insert(residual(), "block*_2", kdrop.DropPath(0.5, seed=1))
    inserted.compile("sgd", "mse")
    inserted.fit(INPUTS, np.ones((64, 2)), verbose=0)
    inserted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for training in (False, True):
        one, other = (x(INPUTS, training=training) for x in (inserted, loaded))
        np.testing.assert_allclose(value(one), value(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "after", "message"),
    [
        (residual(), "block1_3", "no layer 'block1_3': did you mean block1_"),
        (residual(), lambda layer: False, "`after` fits no layer of model 'network'"),
        (keras.Sequential([layers.Dense(2)]), "dense", "Functional or Sequential"),
        (layers.Dense(2), "dense", "Functional or Sequential"),
    ],
)
def test_what_fits_nothing_is_refused(model, after, message):
    with pytest.raises(ValueError, match=message):
        kdrop.insert(model, after, kdrop.DropPath(0.1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "after", "count"),
    [("ResNet50", "conv*_block*_3_bn", 16), ("ConvNeXtTiny", "*_layer_scale", 18)],
)
def test_networks_of_keras(build, after, count):
    network = getattr(keras.applications, build)
    model = network(weights=None, input_shape=(32, 32, 3), classes=3)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    inserted = kdrop.insert(model, after, kdrop.DropPath(0.5))
    assert len(drops(inserted)) == count
    np.testing.assert_array_equal(value(inserted(images)), value(model(images)))
    one, other = (value(inserted(images, training=True)) for _ in range(2))
    assert np.any(one != other)
