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


@keras.saving.register_keras_serializable("test_replace_paths")
class RightDropPath(Path):
    """KerasCV's DropPath: one decision for each row, scaled in training."""

    def call(self, inputs, training=None):
        if not training or self.rate == 0:
            return inputs
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        kept = keras.random.uniform(shape) >= self.rate
        return ops.where(kept, inputs / (1 - self.rate), 0.0)


@keras.saving.register_keras_serializable("test_replace_paths")
class PrivateStochasticDepth(RightDropPath):
    """The Model Garden's StochasticDepth: its rate is private, of another name."""

    def __init__(self, stochastic_depth_drop_rate=0.5, **kwargs):
        layers.Layer.__init__(self, **kwargs)
        self._drop_rate = stochastic_depth_drop_rate

    def call(self, inputs, training=None):
        path = RightDropPath(self._drop_rate)
        return path.call(inputs, training)

    def get_config(self):
        config = layers.Layer.get_config(self)
        return {**config, "stochastic_depth_drop_rate": self._drop_rate}


class AddingStochasticDepth(Path):
    """KerasCV's StochasticDepth: it adds a branch to a shortcut, or none of its rows.

    At inference it scales the branch.
    """

    def call(self, inputs, training=None):
        shortcut, branch = inputs
        if training:
            kept = keras.random.uniform(()) >= self.rate
            return shortcut + ops.where(kept, branch, 0.0)
        return shortcut + (1 - self.rate) * branch


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


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
@pytest.mark.parametrize("kind", [RightDropPath, PrivateStochasticDepth])
def test_paths_of_other_libraries(kind, in_place):
    plain = residual(layers.Identity(name="a"), layers.Identity(name="b"))
    model = kdrop.insert(plain, "dense*", kind(0.5, name="path"))
    for row in kdrop.audit(model):
        assert row.ok and (row.rate, row.together) == (0.5, "row"), row
    first, second = kdrop.set_dropout(model, [0.125, 0.25])
    assert [row.rate for row in kdrop.audit(model)] == [0.125, 0.25]
    replaced = kdrop.replace(model, in_place=in_place)
    paths = {x.name: x.rate for x in kdrop.drop_layers(replaced)}
    assert paths == {first: 0.125, second: 0.25} and not remaining(replaced)
    np.testing.assert_array_equal(np.asarray(replaced(INPUTS)), plain(INPUTS))
    assert kdrop.audit(replaced).ok


def test_a_path_that_adds_is_not_measured():
    inputs = keras.Input((6, 4))
    path = AddingStochasticDepth(0.5, name="path")
    (row,) = kdrop.audit(keras.Model(inputs, path([inputs, inputs])))
    # By chance its few calls may be equal: then it is neither right nor wrong.
    assert not row.problems and row.rate == 0.5 and row.dropped is None and row.quiet


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
