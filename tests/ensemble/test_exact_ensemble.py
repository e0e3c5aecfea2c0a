"""The exact ensemble against closed forms, and against every mask in NumPy."""

import itertools

import keras
import numpy as np
import pytest
from family import DEVIATIONS
from networks import INPUTS, JAX, Opaque, dense, mlp, sample

import kdrop
from kdrop import InvertedDropout, VanillaDropout

in_float64 = pytest.mark.skipif(JAX, reason="JAX has no float64 by default")


def rng():
    return np.random.default_rng(0)


@in_float64
@pytest.mark.parametrize("drop", [VanillaDropout, InvertedDropout])
def test_the_mean_of_a_deep_linear_network_is_weight_scaling(drop):
    settings = dict(dtype="float64")
    model = keras.Sequential(
        [
            keras.Input((4,), **settings),
            drop(0.2, **settings),
            dense(5, **settings),
            drop(0.7, noise_shape=(1, None), **settings),
            dense(3, **settings),
        ]
    )
    ensemble = kdrop.subnetworks(model, rng().normal(size=(7, 4)))
    assert ensemble.count == 2**9
    np.testing.assert_allclose(ensemble.arithmetic, ensemble.weight_scaling, rtol=1e-12)
    assert ensemble.difference < 1e-12
    assert ensemble.geometric is None  # no probabilities


@in_float64
@pytest.mark.parametrize("classes, activation", [(3, "softmax"), (1, "sigmoid")])
def test_the_geometric_mean_of_softmax_regression_is_weight_scaling(
    classes, activation
):
    model = keras.Sequential(
        [
            keras.Input((8,), dtype="float64"),
            VanillaDropout(0.3, dtype="float64"),
            dense(classes, activation=activation, dtype="float64"),
        ]
    )
    ensemble = kdrop.subnetworks(model, 3 * rng().normal(size=(7, 8)))
    np.testing.assert_allclose(ensemble.geometric, ensemble.weight_scaling, rtol=1e-9)
    assert ensemble.difference > 0.01


def test_a_deep_network_against_every_mask_in_numpy():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            dense(4, activation="relu"),
            InvertedDropout(0.25),
            dense(4, activation="relu"),
            VanillaDropout(0.5),
            dense(3, activation="softmax"),
        ]
    )
    inputs = 3 * rng().normal(size=(5, 3)).astype("float32")
    weights = [w.astype("float64") for w in model.get_weights()]

    def forward(first, second):
        hidden = np.maximum(inputs @ weights[0] + weights[1], 0) * first
        hidden = np.maximum(hidden @ weights[2] + weights[3], 0) * second
        outputs = np.exp(hidden @ weights[4] + weights[5])
        return outputs / outputs.sum(axis=1, keepdims=True)

    arithmetic, logarithm = 0, 0
    for keep in itertools.product([0, 1], repeat=8):
        first, second = np.array(keep[:4]), np.array(keep[4:])
        probability = np.prod(np.where(first, 0.75, 0.25)) * 0.5**4
        outputs = forward(first / 0.75, second)
        arithmetic += probability * outputs
        logarithm += probability * np.log(outputs)
    geometric = np.exp(logarithm) / np.exp(logarithm).sum(axis=1, keepdims=True)
    ensemble = kdrop.subnetworks(model, inputs)
    assert ensemble.count == 2**8
    np.testing.assert_allclose(ensemble.arithmetic, arithmetic, atol=1e-6)
    np.testing.assert_allclose(ensemble.geometric, geometric, atol=1e-6)
    np.testing.assert_allclose(ensemble.weight_scaling, forward(1, 0.5), atol=1e-6)
    difference = abs(forward(1, 0.5) - arithmetic).max()
    np.testing.assert_allclose(ensemble.difference, difference, atol=1e-6)
    assert difference > 0.01
    samples = sample(model, inputs, passes=4000)
    error = 1e-5 + DEVIATIONS * samples.std(axis=0) / np.sqrt(len(samples))
    assert (abs(samples.mean(axis=0) - arithmetic) < error).all()


def test_a_million_sub_networks_are_computed_in_batches():
    model = keras.Sequential([keras.Input((20,)), VanillaDropout(0.1)])
    ensemble = kdrop.subnetworks(model, np.ones((1, 20), "float32"))
    assert ensemble.count == 2**20
    np.testing.assert_allclose(ensemble.arithmetic, 0.9, rtol=1e-9)


def test_a_model_without_an_exact_ensemble_is_refused():
    model = keras.Sequential([keras.Input((21,)), InvertedDropout(0.5)])
    with pytest.raises(ValueError, match=r"2\^21 sub-networks .* at most 2\^20"):
        kdrop.subnetworks(model, np.ones((1, 21)))
    model = keras.Sequential([keras.Input((2,)), kdrop.GaussianDropout(0.5, name="g")])
    with pytest.raises(ValueError, match="drop or keep single units.*name=g"):
        kdrop.subnetworks(model, np.ones((1, 2)))
    with pytest.raises(ValueError, match="graph of a Sequential or Functional"):
        kdrop.subnetworks(Opaque(mlp()), INPUTS)
    with pytest.raises(ValueError, match="have rate 0"):
        kdrop.subnetworks(mlp(rate=0.0), INPUTS)
