"""A copy by `replace` is the same model, or it is refused."""

import keras
import pytest
from keras_dropout import chain, drop

import kdrop
from kdrop.layers.replace import remaining


def test_a_class_that_is_not_registered_can_be_copied():
    class Unregistered(keras.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.drop = drop()

        def call(self, inputs, training=False):
            return self.drop(inputs, training=training)

    model = chain(Unregistered())
    assert type(kdrop.replace(model).layers[1]) is Unregistered


class Incomplete(keras.Layer):
    """A layer whose config lacks an argument."""

    def __init__(self, factor=1.0, units=8, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.units, self.drop = factor, units, drop()

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(self.units,), initializer="ones")

    def call(self, inputs, training=False):
        return self.drop(inputs * self.factor * self.scale, training=training)

    def get_config(self):
        return super().get_config()


class Imprecise(Incomplete):
    """A layer whose config lacks the dtype policy."""

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        return config


class Random(Incomplete):
    """A layer whose weight is not saved."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(8,), initializer="random_normal")

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


class More(Incomplete):
    """A layer whose config lacks an argument that adds a layer."""

    def __init__(self, more=False, **kwargs):
        super().__init__(**kwargs)
        self.more = drop() if more else None


class Casting(Incomplete):
    """A layer whose config holds its argument as a float."""

    def get_config(self):
        return {**super().get_config(), "factor": float(self.factor)}


def test_a_copy_may_cast_a_setting():
    assert kdrop.replace(chain(Casting(2), drop())).layers[1].factor == 2.0
    with pytest.raises(ValueError, match="other settings of layer"):
        kdrop.replace(chain(Incomplete(2), drop()))


@pytest.mark.parametrize(
    "build, reason",
    [
        (lambda: Incomplete(factor=2.0), "other settings of layer '.*'"),
        (lambda: Imprecise(dtype="mixed_bfloat16"), "other settings of layer '.*'"),
        (lambda: Incomplete(units=1), "saving and loading it failed"),
        (Random, "other values of weight '.*'"),
        (lambda: More(more=True), "other layers"),
    ],
)
def test_a_copy_that_is_not_the_same_is_refused(build, reason):
    model = chain(drop(), build())
    message = f"cannot copy model '{model.name}'.*{reason}.*in_place=True"
    with pytest.raises(ValueError, match=message) as refusal:
        kdrop.replace(model)
    assert "\n" not in str(refusal.value)
    assert remaining(model)
    kdrop.replace(model, in_place=True)
    assert not remaining(model)
