"""The drop paths of other libraries are replaced by a right one."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras.src.applications.convnext import StochasticDepth

import kdrop
from kdrop.layers.replace import remaining


class Path(layers.Layer):
    def __init__(self, rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable("test_replace_paths")
class WithoutFloorDropPath(Path):
    """KerasHub 0.32's DINOV2DropPath and DINOV3DropPath: it raises in its own model."""

    def build(self, input_shape):
        self.noise_shape = (input_shape[0],) + (1,) * (len(input_shape) - 1)

    def call(self, inputs, training=None):
        if not training:
            return inputs
        noise = keras.random.uniform(self.noise_shape, dtype=inputs.dtype)
        return inputs / (1 - self.rate) * (noise + 1 - self.rate)


class AddingStochasticDepth(Path):
    """KerasCV's: it takes a shortcut and a branch."""

    def call(self, inputs, training=None):
        return inputs[0] + inputs[1]


class UnscaledDropPath(Path):
    scale_by_keep = False

    def call(self, inputs, training=None):
        return inputs


class ScaledAtInferenceStochasticDepth(Path):
    def call(self, inputs, training=None):
        return inputs if training else inputs * (1 - self.rate)


INPUTS = np.random.default_rng(0).normal(size=(5, 6, 4)).astype("float32")


def residual(*paths):
    inputs = x = keras.Input((6, 4))
    for path in paths:
        x = layers.Add()([x, path(layers.Dense(4)(x))])
    return keras.Model(inputs, x)


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
def test_drop_paths_are_replaced_by_one_that_drops(in_place):
    model = residual(
        WithoutFloorDropPath(0.5, name="hub"), StochasticDepth(0.25, name="keras")
    )
    expected = np.asarray(model(INPUTS))
    replaced = kdrop.replace(model, in_place=in_place)
    found = [(type(x), x.name, x.rate) for x in kdrop.drop_layers(replaced)]
    assert found == [(kdrop.DropPath, "hub", 0.5), (kdrop.DropPath, "keras", 0.25)]
    np.testing.assert_array_equal(np.asarray(replaced(INPUTS)), expected)
    assert kdrop.audit(replaced).ok
    replaced(INPUTS, training=True)  # the path that was replaced raised here
    assert not remaining(replaced)


@pytest.mark.parametrize(
    "kind", [UnscaledDropPath, ScaledAtInferenceStochasticDepth, AddingStochasticDepth]
)
def test_layers_that_do_something_else_are_named(kind):
    if kind is AddingStochasticDepth:
        inputs = keras.Input((6, 4))
        model = keras.Model(inputs, kind(0.5, name="path")([inputs, inputs]))
    else:
        model = residual(kind(0.5, name="path"))
    with pytest.warns(UserWarning, match="does not sample: 'path'"):
        kdrop.replace(model, in_place=True)
    assert not kdrop.drop_layers(model) and remaining(model) == ["path"]


def test_a_seed_and_the_type_are_those_of_the_path():
    class SeededDropPath(Path):
        def call(self, inputs, training=None):
            return inputs

        def get_config(self):
            return {**super().get_config(), "seed": 2**32 + 3}

    path = SeededDropPath(0.5, dtype="mixed_bfloat16", trainable=False)
    kdrop.replace(residual(path), in_place=True)
    assert isinstance(path, kdrop.DropPath) and path.seed == 3
    assert path.compute_dtype == "bfloat16" and not path.trainable


def test_a_rate_of_1_is_refused():
    with pytest.raises(ValueError, match="rate=1"):
        kdrop.replace(residual(StochasticDepth(1.0)), in_place=True)


def test_ops_are_the_same_at_rate_0():
    path = StochasticDepth(0.0)
    kdrop.replace(residual(path), in_place=True)
    assert path(ops.ones((2, 3)), training=True) is not None and path.rate == 0
