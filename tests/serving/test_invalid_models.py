"""Models that cannot be exported."""

import keras
import pytest
import tensorflow as tf
from structures import Subclassed, head, points

from kdrop.serving import export


class Crashing(Subclassed):
    def call(self, inputs):
        if inputs.shape[0] is None:
            raise KeyError("deep inside")
        return super().call(inputs)


@tf.function
def compiled(model, inputs):
    if inputs.shape[0] is None:
        raise ValueError("in a function")
    return model.dense(inputs)


class CrashingInside(Subclassed):
    def call(self, inputs):
        return compiled(self, inputs)


class Nothing(Subclassed):
    def call(self, inputs):
        return {"a": super().call(inputs), "b": None}


class Secret(Subclassed):
    def __init__(self, secret, **kwargs):
        super().__init__(**kwargs)


class TwoWithoutBuild(Subclassed):
    def call(self, a, b):
        return self.dense(self.drop(a)) + b


def called(model, *inputs):
    model(*inputs)
    return model


def functional(*names):
    inputs = {name: keras.Input((2,), name=name) for name in names}
    return keras.Model(inputs, head(keras.layers.Add()([*inputs.values()])))


def flat():
    inputs = keras.Input((2,))
    return keras.Model(inputs, keras.ops.sum(head(inputs), axis=-1))


def unbuilt():
    return keras.Sequential([keras.layers.Dense(3)])


INVALID = {
    "no model": (lambda: keras.layers.Dense(3), "must be a `keras.Model`"),
    "not built": (unbuilt, "call it on a batch"),
    "not called": (Subclassed, "call it on a batch"),
    "crashing": (lambda: called(Crashing(), points()), "KeyError: deep inside"),
    "crashing inside": (
        lambda: called(CrashingInside(), points()),
        "exported: ValueError: in a function",
    ),
    "None": (lambda: called(Nothing(), points()), "output b is None"),
    "not saved": (lambda: called(Secret(object()), points()), "cannot be exported"),
    "two arguments": (
        lambda: called(TwoWithoutBuild(), points(), points(3)),
        "missing a required argument: 'b'",
    ),
    "case": (lambda: functional("a", "A"), "differ in more than case"),
    "seeds": (lambda: functional("a", "seeds"), "seeds"),
    "no classes": (flat, r"shape \(None,\).*regression"),
}


@pytest.mark.parametrize("build, reason", INVALID.values(), ids=INVALID)
def test_a_model_that_cannot_be_exported_raises_one_sentence(build, reason, tmp_path):
    assert_rejected(build(), tmp_path, reason)


def test_an_invalid_task_is_an_error(tmp_path):
    model = functional("a", "b")
    assert_rejected(model, tmp_path, "'regresion'", task="regresion")
    reason, task = "output's name: probabilities", {"a": "regression"}
    assert_rejected(model, tmp_path, reason, task=task)


def assert_rejected(model, folder, reason, **settings):
    with pytest.raises(ValueError, match=reason) as error:
        export(model, folder, **settings)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not list(folder.iterdir())
