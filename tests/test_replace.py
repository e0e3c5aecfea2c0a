"""Models of Keras with kdrop's layers in them."""

import keras
import numpy as np
import pytest

import kdrop


def model(rate=0.5):
    inputs = keras.Input((6, 8))
    x = keras.layers.Dense(8)(inputs)
    x = keras.layers.Dropout(rate, seed=3, noise_shape=(None, 1, None), name="a")(x)
    x = keras.layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x)
    x = keras.layers.GaussianDropout(0.2, seed=-1, name="b")(x)
    inner = [keras.Input((6, 8)), keras.layers.AlphaDropout(0.3, name="c")]
    x = keras.Sequential([*inner, keras.layers.Dense(2)])(x)
    return keras.Model(inputs, x)


def test_replace_keeps_weights_names_and_settings():
    theirs = model()
    ours = kdrop.replace(theirs)
    inputs = np.random.default_rng(0).normal(size=(4, 6, 8)).astype("float32")
    np.testing.assert_allclose(ours(inputs), theirs(inputs), rtol=1e-6)
    found = {
        layer.name: layer
        for layer in ours._flatten_layers()
        if type(layer).__module__.startswith("kdrop") and layer.name != "draws"
    }
    assert found["a"].noise_shape == (None, 1, None)
    assert (found["a"].rate, found["a"].seed) == (0.5, 3)
    assert (found["b"].rate, found["b"].seed) == (0.2, 2**32 - 1)
    assert type(found["c"]) is kdrop.AlphaDropout
    assert sum(type(f) is kdrop.InvertedDropout for f in found.values()) == 2
    # The original still holds its own layers, and the two share no weight.
    assert not any(type(x) is kdrop.InvertedDropout for x in theirs._flatten_layers())
    ours.set_weights([w * 0 for w in ours.get_weights()])
    assert np.any(theirs(inputs) != 0)


def test_what_is_replaced_is_sampled_saved_and_loaded(tmp_path):
    ours = kdrop.replace(model())
    inputs = np.ones((4, 6, 8), "float32")
    assert np.any(kdrop.Sampler(ours)(inputs) != ours(inputs))
    ours.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(inputs), ours(inputs), rtol=1e-6)


def test_what_cannot_be_replaced_is_refused():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="Sequential and Functional"):
        kdrop.replace(Own())
    with pytest.raises(ValueError, match="takes a keras.Model.*'model'"):
        kdrop.replace("model")
    with pytest.raises(ValueError, match="rate=1.0"):
        kdrop.replace(model(1.0))
