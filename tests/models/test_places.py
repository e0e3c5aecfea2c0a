"""Which drop layer takes which place of a network, and the penalties of its layers."""

import functools

import keras
import numpy as np
import pytest
import tensorflow
from small_models import EVERY_RATE, SMALL, build, kinds, parameters, rates

from kdrop import Sampler, drop_layers, layers, models


@pytest.mark.parametrize("name", SMALL)
def test_each_rate_is_that_of_its_place(name):
    places = EVERY_RATE.get(name, 2)
    values = [round(0.1 * (place + 1), 1) for place in range(places)]
    model = build(name, keras.layers.Dropout, values, input_rate=0.05)
    names = [f"drop_{place}" for place in range(1, places + 1)]
    assert rates(model) == {"drop_input": 0.05, **dict(zip(names, values, strict=True))}
    with pytest.raises(ValueError, match=f"{places} places"):
        build(name, keras.layers.Dropout, [0.5] * (places + 1))


@pytest.mark.parametrize("name", SMALL)
def test_any_callable_makes_layers_and_none_leaves_the_places_empty(name):
    calls = []

    def factory(rate, *, seed, name):
        calls.append((name, seed))
        return keras.layers.GaussianDropout(rate, seed=seed, name=name)

    build(name, factory, 0.3, seed=7, input_rate=0.0)
    places = EVERY_RATE.get(name, 2)
    assert calls == [(f"drop_{place}", 7) for place in range(1, places + 1)]
    plain = build(name, None, 0.3, input_rate=0.2)
    assert not [x for x in plain.layers if x.name.startswith("drop")]
    partial = functools.partial(keras.layers.Dropout, noise_shape=(None, 1))
    if len(SMALL[name].get("hidden", ())) == places:
        model = build(name, partial, 0.3)
        assert model.get_layer("drop_2").noise_shape == (None, 1)


@pytest.mark.parametrize("name", SMALL)
def test_penalties_of_hidden_layers(name):
    model = build(name, l1=0.01, l2=0.02)
    hidden = [x for x in model.layers[:-1] if hasattr(x, "kernel")]
    values = [w.numpy() for x in hidden for w in x.trainable_weights]
    expected = sum(0.01 * np.abs(w).sum() + 0.02 * (w**2).sum() for w in values)
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_norm_penalty_of_every_parameter(name):
    model = build(name, norm_penalty=0.1, l2=0.02)
    for weight in model.trainable_weights:
        weight.assign(weight + 0.01)
    everything = parameters(model)
    hidden = [x for x in model.layers[:-1] if hasattr(x, "kernel")]
    squared = [w.numpy() for x in hidden for w in x.trainable_weights]
    expected = 0.1 * sum(np.abs(w).sum() + np.linalg.norm(w) for w in everything)
    expected += 0.02 * sum((w**2).sum() for w in squared)
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.5])
def test_norm_penalty_has_a_finite_gradient(value):
    weight = tensorflow.Variable(np.full((3, 4), value, "float32"))
    penalty = models.NormPenalty(2.0, l2=0.5)

    @tensorflow.function(jit_compile=True)  # XLA does not simplify 0 * inf
    def differentiate():
        with tensorflow.GradientTape() as tape:
            loss = penalty(weight)
        return loss, tape.gradient(loss, weight)

    loss, gradient = differentiate()
    slope = 2 + 2 / np.sqrt(12) + value if value == 0.5 else 2.0 * (value > 0)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6)
    assert loss >= 0


@pytest.mark.parametrize("name", ["l1", "l2", "max_norm", "norm_penalty"])
def test_negative_penalties_are_rejected(name):
    with pytest.raises(ValueError, match=f"`{name}` must be 0 or more.*-0.1"):
        models.spiral_mlp(**{name: -0.1})


@pytest.mark.parametrize(
    "name", ["SpatialDropout2D", "DropBlock2D", "DropConnectConv2D"]
)
@pytest.mark.parametrize("network", ["alexnet32", "srivastava_cnn"])
def test_layers_for_feature_maps_are_behind_convolutions(name, network):
    plain = build(network, layers.InvertedDropout, input_rate=0.1)
    model = build(network, getattr(layers, name), input_rate=0.1)
    expected = {layer.name: layer.rate for layer in drop_layers(plain)}
    assert {layer.name: layer.rate for layer in drop_layers(model)} == expected
    inputs, *maps, first, second = [type(x).__name__ for x in drop_layers(model)]
    assert {inputs, first, second} == {"InvertedDropout"} and maps == [name] * 3


@pytest.mark.parametrize(
    "name",
    ["InvertedDropout", "DropBlock2D", "DropConnectConv2D", "DropPath"],
)
def test_each_residual_block_has_one_place(name):
    model = build("resnet32", getattr(layers, name), 0.6, depth=2, hidden=(8,))
    *blocks, dense = drop_layers(model)
    assert [type(layer).__name__ for layer in blocks] == [name] * 6
    assert (type(dense), dense.rate) == (layers.InvertedDropout, 0.6)
    expected = {f"drop_{block}": block / 10 for block in range(1, 7)}
    assert {layer.name: layer.rate for layer in blocks} == pytest.approx(expected)


@pytest.mark.parametrize("name", ["DropPath", "StochasticDepth"])
def test_a_block_whose_branch_is_dropped_is_its_shortcut(name):
    model = build("resnet32", getattr(layers, name), [1 - 1e-9] * 3)
    shortcuts = build("resnet32", getattr(layers, name), [1 - 1e-9] * 3)
    shortcuts.set_weights(model.get_weights())
    ends = [drop.input for drop in drop_layers(shortcuts)]
    for layer in shortcuts.layers:
        if any(layer.output is end for end in ends):
            layer.kernel.assign(0 * layer.kernel)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3))
    expected = shortcuts(images)
    np.testing.assert_allclose(Sampler(model)(images), expected, rtol=1e-5)
    for layer in drop_layers(model):
        layer.rate = 0.0
    assert np.abs(Sampler(model)(images) - expected).max() > 0.01


@pytest.mark.parametrize(
    "name", ["InvertedDropout", "SpatialDropout2D", "DropPath", "StochasticDepth"]
)
def test_the_gradient_reaches_all_of_a_residual_network(name):
    model = build("resnet32", getattr(layers, name), 0.2, seed=1)
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3))
    with tensorflow.GradientTape() as tape:
        loss = tensorflow.reduce_sum(model(images, training=True)[:, 0] ** 2)
    for gradient in tape.gradient(loss, model.trainable_weights):
        assert 0 < np.abs(gradient).max() < np.inf


def test_a_partial_of_a_layer_has_its_place():
    model = build("alexnet32", functools.partial(layers.DropBlock2D, block_size=2))
    *maps, dense, _ = drop_layers(model)
    assert [layer.block_size for layer in maps] == [2, 2, 2]
    assert type(dense) is layers.InvertedDropout


@pytest.mark.parametrize(
    "name", ["DropConnectDense", "VariationalDropout", "ConcreteDropout"]
)
def test_layers_that_drop_connections_replace_dense_layers(name):
    model = models.spiral_mlp(getattr(layers, name), hidden=(8, 8), l2=1e-3)
    assert kinds(model) == ["Normalization", name, name, "Dense"]
    outputs = model(np.ones((2, 2), "float32"), training=True)
    np.testing.assert_allclose(np.sum(outputs, axis=1), 1, rtol=1e-5)
    assert model.losses  # with the penalty of the weights


def test_losses_of_layers_are_divided_by_the_examples():
    model = models.spiral_mlp(layers.VariationalDropout, hidden=(8,), examples=50)
    assert model.get_layer("drop_1").divergence_weight == 1 / 50


def test_standout_dropout_starts_near_the_rate_behind_dense_layers():
    model = build("alexnet32", layers.StandoutDropout)
    drops = drop_layers(model)
    assert [layer.name for layer in drops] == ["drop_4", "drop_5"]
    assert 1 / (1 + np.exp(drops[0].beta)) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="starts at a rate above 0"):
        models.spiral_mlp(layers.StandoutDropout, 0.0)


@pytest.mark.parametrize(
    ("name", "network", "place"),
    [
        ("SpatialDropout2D", "mnist_mlp", "feature maps"),
        ("DropBlock2D", "alexnet", "feature maps"),
        ("DropConnectConv2D", "spiral_mlp", "a convolution to replace"),
        ("TokenDropout", "alexnet32", "tokens"),
        ("DropPath", "concat_mlp", "residual branches"),
        ("StochasticDepth", "alexnet32", "residual branches"),
        ("DropConnectDense", "resnet32", "a dense layer to replace"),
        ("StandoutDropout", "resnet32", "dense units"),
        ("SpatialDropout1D", "resnet32", "the channels of sequences"),
        ("LockedDropout", "spiral_mlp", "sequences"),
        ("EmbeddingDropout", "spiral_mlp", "words to embed"),
        ("WeightDropout", "spiral_mlp", "a layer to wrap"),
        ("DropKey", "spiral_mlp", "an attention layer to wrap"),
        ("Zoneout", "spiral_mlp", "a recurrent cell to wrap"),
    ],
)
def test_a_layer_without_a_place_is_rejected(name, network, place):
    with pytest.raises(ValueError, match=f"{name} needs {place}, which this network"):
        build(network, getattr(layers, name), input_rate=0.1)
