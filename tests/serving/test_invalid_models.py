"""Models that cannot be exported."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from structures import Subclassed, head, points

import kdrop
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
    "no model": (lambda: keras.layers.Dense(3), "must be a keras.Model"),
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


def dropped(units, activation=None):
    layers = [keras.Input((2,)), kdrop.InvertedDropout(0.5)]
    return keras.Sequential([*layers, keras.layers.Dense(units, activation)])


@pytest.mark.parametrize("units, activation", [(3, None), (1, None), (3, "sigmoid")])
def test_what_is_not_a_probability_is_no_classification(units, activation, tmp_path):
    model = dropped(units, activation)
    # In [0, 1) for the numbers of the example, which are, and negative far from them.
    model.set_weights([np.full((2, units), 0.25), np.full(units, 0.25)])
    reason = 'output probabilities does not hold probabilities.*"regression"'
    assert_rejected(model, tmp_path, reason)
    assert export(model, tmp_path / "regression", task="regression").name == "1"


def test_probabilities_may_be_rows_of_zeros_or_nan(tmp_path):
    inputs = keras.Input((3,))
    shares = keras.ops.relu(kdrop.InvertedDropout(0.5)(inputs))
    total = keras.ops.sum(shares, axis=-1, keepdims=True)
    masked = keras.Model(inputs, shares / (total + 1e-9))
    assert export(masked, tmp_path / "masked").name == "1"
    diverged = functional("a", "b")
    diverged.set_weights([np.full(x.shape, np.nan) for x in diverged.get_weights()])
    assert export(diverged, tmp_path / "diverged").name == "1"


def test_an_output_that_is_not_a_probability_is_named(tmp_path):
    inputs = keras.Input((2,))
    size = keras.layers.Dense(1, name="size")(kdrop.InvertedDropout(0.5)(inputs))
    model = keras.Model(inputs, {"kind": head(inputs), "size": size})
    assert_rejected(model, tmp_path, "output size does not hold probabilities")
    tasks = {"kind": "classification", "size": "regression"}
    assert export(model, tmp_path / "both", task=tasks).name == "1"


@pytest.mark.parametrize(
    "labels, reason",
    [
        (["a", "b"], "2 labels, but the last dimension.* has size 3"),
        ("abc", "strings of one line"),
        (["a", "b\n", "c"], "strings of one line"),
        ([0, 1, 2], "strings of one line"),
        (None, "strings of one line"),
    ],
)
def test_labels_are_one_for_each_class(labels, reason, tmp_path):
    assert_rejected(functional("a", "b"), tmp_path, reason, labels=labels)


def test_a_sigmoid_has_two_labels(tmp_path):
    model = dropped(1, "sigmoid")
    assert_rejected(model, tmp_path, "3 labels", labels=["a", "b", "c"])
    path = export(model, tmp_path / "binary", labels=["no", "yes"])
    assert (path / "assets" / "labels.txt").read_text() == "no\nyes\n"


def test_the_dropout_of_keras_alone_is_not_sampled(tmp_path):
    layers = [
        keras.Input((2,)),
        keras.layers.Dropout(0.5, name="drop"),
        keras.layers.Dense(3),
    ]
    with pytest.warns(UserWarning, match="no signature `sample`.*'drop'"):
        path = export(keras.Sequential(layers), tmp_path / "keras")
    signatures = tf.saved_model.load(str(path)).signatures
    assert sorted(signatures) == ["serve", "serving_default"]


def assert_rejected(model, folder, reason, **settings):
    with pytest.raises(ValueError, match=reason) as error:
        export(model, folder, **settings)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not list(folder.iterdir())
