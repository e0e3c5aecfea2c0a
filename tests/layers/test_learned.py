"""What the layers that learn their noise have in common."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import kdrop
from kdrop import ConcreteDropout, StandoutDropout, VariationalDropout

LORA = {
    "variational, no bias": lambda: VariationalDropout(
        4, 1e-3, seed=1, name="drop", use_bias=False
    ),
    "concrete": lambda: ConcreteDropout(
        keras.layers.Dense(4), 1e-3, 1e-3, seed=1, name="drop"
    ),
    "dense": lambda: keras.layers.Dense(4, name="drop"),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", LORA.values(), ids=LORA)
def test_weights_of_lora_are_trained_and_saved(make, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), make()])
    layer = getattr(model.layers[0], "layer", model.layers[0])
    layer.enable_lora(2, lora_alpha=3)
    model.compile("adam", "mse")
    kernel = layer._kernel.numpy()
    model.fit(inputs, inputs[:, :4], epochs=2, verbose=0)
    np.testing.assert_array_equal(layer._kernel, kernel)
    assert np.abs(layer.kernel - kernel).max() > 0
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    plain = keras.Sequential([keras.Input((6,)), make()])
    plain.load_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    resumed = getattr(loaded.layers[0], "layer", loaded.layers[0])
    assert resumed.lora_enabled and resumed.lora_rank == 2
    model.load_weights(tmp_path / "model.weights.h5")
    for other in (plain, loaded):
        np.testing.assert_array_equal(other(inputs), model(inputs))
        np.testing.assert_array_equal(other.losses, model.losses)
    if hasattr(layer, "log_alpha"):
        np.testing.assert_array_equal(plain.layers[0].log_alpha, layer.log_alpha)
    loaded.fit(inputs, inputs[:, :4], verbose=0)


def test_quantize_names_the_layers_that_stay_in_float():
    model = network()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.quantize("int8")
    sentences = [str(warning.message) for warning in caught]
    names = [s.split()[1] for s in sentences if s.startswith("Layer")]
    assert names == ["InputLayer", "'two'", "'three'"]
    assert model.layers[0].layer.quantization_mode == "int8"


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8,)),
            ConcreteDropout(keras.layers.Dense(16), 1e-3, 1e-3, seed=1, name="one"),
            StandoutDropout(seed=1, name="two"),
            VariationalDropout(4, 1e-3, activation="tanh", seed=1, name="three"),
        ]
    )


@pytest.mark.slow
def test_the_same_noise_in_eager_and_xla():
    inputs = tf.constant(np.random.default_rng(0).normal(size=(32, 8)), "float32")
    eager, xla = network(), network()
    compiled = tf.function(lambda x: xla(x, training=True), jit_compile=True)
    for _ in range(2):
        expected = eager(inputs, training=True)
        np.testing.assert_allclose(compiled(inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_run_is_resumed_and_sampled(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8)), rng.normal(size=(32, 4))
    settings = {"epochs": 2, "shuffle": False, "verbose": 0}
    whole, half = network(), network()
    for model in (whole, half):
        model.compile("adam", "mse", jit_compile=False)
        model.fit(x, y, callbacks=[kdrop.StepClock()], **settings)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    for model in (whole, resumed):
        model.fit(x, y, callbacks=[kdrop.StepClock()], **settings)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(half.layers, resumed.layers, strict=True):
        one, other = one.get_config(), other.get_config()
        for config in (one, other):
            config.pop("layer", None)  # with or without the shape it was built for
        assert one == other
    inputs = tf.constant(x, "float32")
    at_inference = resumed.layers[0].layer(inputs)
    at_inference = keras.layers.Dense.call(resumed.layers[2], at_inference)
    np.testing.assert_allclose(resumed(inputs), at_inference, rtol=1e-6)
    sampler = kdrop.Sampler(resumed)
    assert np.abs(sampler(inputs) - sampler(inputs)).max() > 0.1


def test_invalid_arguments_are_rejected():
    dense = keras.layers.Dense(2)
    with pytest.raises(ValueError, match="wraps a Dense, Conv1D.*Flatten"):
        ConcreteDropout(keras.layers.Flatten(), 0.1, 0.1)
    for arguments in [(-1, 0.1), (0.1, float("nan")), ("1", 0.1), (0.1, 0.1, 0)]:
        with pytest.raises(ValueError, match=r"must be a number in .0, inf\)"):
            ConcreteDropout(dense, *arguments)
    for settings in [{"alpha": float("inf")}, {"beta": None}, {"alpha": True}]:
        with pytest.raises(ValueError, match=r"must be a number in \(-inf, inf\)"):
            StandoutDropout(**settings)
    with pytest.raises(ValueError, match="known number of units"):
        StandoutDropout()(keras.Input((None,)))
    with pytest.raises(ValueError, match="`divergence_weight` must be .* in .0, inf"):
        VariationalDropout(2, -1)
    with pytest.raises(ValueError, match="`per` must be .*Received: per='example'"):
        VariationalDropout(2, per="example")
    for layer in (
        ConcreteDropout(dense, 0, 0),
        StandoutDropout(),
        VariationalDropout(2),
    ):
        with pytest.raises(ValueError, match="floating-point inputs only.*int32"):
            layer(np.ones((2, 2), "int32"))
