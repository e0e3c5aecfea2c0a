"""A model that changed is traced again, and an unchanged one is not."""

import keras
import numpy as np
import pytest
from keras import ops
from networks import INPUTS, JAX, mlp, sample

import kdrop
from kdrop.ensemble.compiled_sampler import fingerprint
from kdrop.layers.sampling_context import Sampling


class Table(keras.layers.Layer):
    """Multiplies by numbers in containers, which a graph holds as constants."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.array = [1.0], {"a": 1.0}, np.ones(1, "float32")

    def call(self, inputs):
        return inputs * self.one[0] * self.other["a"] * self.array[0]


def lora(model):
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(model.layers[0].lora_kernel_b + 1)


CHANGES = {
    "list": lambda model: model.layers[-2].one.__setitem__(0, 3.0),
    "dictionary": lambda model: model.layers[-2].other.__setitem__("a", 0.5),
    "array": lambda model: model.layers[-2].array.__setitem__(0, 3.0),
    "activation": lambda model: setattr(
        model.layers[0], "activation", keras.activations.relu
    ),
    "noise shape": lambda model: setattr(model.layers[1], "noise_shape", (None, 1, 1)),
    "tokens": lambda model: setattr(model.layers[2], "rate", 0.25),
    "nested": lambda model: model.layers[-1].add(keras.layers.Rescaling(10.0)),
    "add": lambda model: model.add(keras.layers.Rescaling(10.0)),
    "pop": lambda model: model.pop(),
    "lora": lora,
    "precision": lambda model: setattr(
        model.layers[3], "dtype_policy", keras.DTypePolicy("mixed_bfloat16")
    ),
}
if not JAX:
    CHANGES["quantize"] = lambda model: model.quantize("int8")


def changing_model():
    layers = [
        keras.Input((8, 6)),
        keras.layers.Dense(6),
        kdrop.InvertedDropout(0.5, noise_shape=(None, None, None), name="drop"),
        kdrop.TokenDropout(0.5, name="tokens"),
        keras.layers.Dense(6),
        Table(),
        keras.Sequential([keras.Input((None, 6)), keras.layers.Dense(6)]),
    ]
    return keras.Sequential(layers)


ignore_warnings = pytest.mark.filterwarnings(
    "ignore:Layer .* does not have a `quantize` method",
    "ignore:Layer .* has been traced with rate",
)


@ignore_warnings
def test_every_change_of_a_model_changes_its_fingerprint():
    model = changing_model()
    for name, change in CHANGES.items():
        before = fingerprint(model)
        assert fingerprint(model) == before
        change(model)
        assert fingerprint(model) != before, name


@ignore_warnings
@pytest.mark.parametrize(
    "names",
    [["list"], pytest.param(["nested", "quantize"], marks=pytest.mark.slow)],
    ids=str,
)
def test_a_changed_model_is_traced_again(names):
    """Oracle: the model in eager mode, where nothing is traced."""
    model = changing_model()
    inputs = np.random.default_rng(0).normal(size=(4, 8, 6)).astype("float32")
    seeded, unseeded = kdrop.Sampler(model, seed=1), kdrop.Sampler(model)
    rows = np.array([[0, i, 1] for i in range(4)], "uint32")
    before = sample(model, inputs, passes=2)[0]
    for name in filter(CHANGES.get, names):
        CHANGES[name](model)
        after = sample(model, inputs, passes=2)[0]
        assert abs(after - before).max() > 1e-4, name
        with Sampling(kdrop.drop_layers(model), ops.convert_to_tensor(rows)):
            expected = ops.convert_to_numpy(model(inputs))
        for outputs in (after, seeded.predict(inputs, verbose=0)):
            np.testing.assert_allclose(
                outputs, expected, atol=0.1, rtol=1e-2, err_msg=name
            )
        assert unseeded.predict(inputs, verbose=0).shape == expected.shape
        before = after


def test_an_unchanged_model_is_not_traced_again():
    model = mlp()
    sample(model)
    sampler = vars(model)["_kdrop_sampler"]
    model.compile("sgd", "mse")
    model.fit(INPUTS, INPUTS[:, :3], verbose=0)
    model.predict(INPUTS, verbose=0)
    model.get_layer("one").rate = 0.3
    sample(model)
    assert vars(model)["_kdrop_sampler"] is sampler
