"""Arguments that an audit refuses."""

import keras
import numpy as np
import pytest
from keras import layers

import kdrop


def chain(*inner):
    return keras.Sequential([keras.Input((8,)), *inner])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": layers.Dropout(0.5)}, "`model` must be a keras.Model"),
        ({"model": chain(), "replicas": 2}, "`replicas` must be True or False"),
        ({"model": chain(layers.Dense(2)), "inputs": np.ones((2, 3))}, "cannot call"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kdrop.audit(**arguments)


class WithoutTraining(keras.Model):
    def __init__(self):
        super().__init__()
        self.drop, self.dense = kdrop.InvertedDropout(0.5), layers.Dense(8)

    def call(self, inputs):
        return self.dense(self.drop(inputs))


class WithOwnStep(WithoutTraining):
    def train_step(self, data):
        return {"loss": self(data, training=True)}


def test_a_model_that_fit_cannot_tell_of_training_is_not_ok():
    inputs = np.ones((2, 8), "float32")
    model = WithoutTraining()
    model.compile("sgd", "mse")
    model.fit(inputs, inputs, verbose=0)
    assert model.drop.draw_count == 0  # so Keras
    (row,) = kdrop.audit(model, inputs)
    assert row.ok is False and "`call` has no argument `training`" in row.problems[0]
    assert kdrop.audit(WithOwnStep(), inputs).ok


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="of other backends")
@pytest.mark.parametrize("option", ["replicas", "recompute"])
def test_options_of_tensorflow_are_refused_elsewhere(option):
    with pytest.raises(ValueError, match="needs the backend tensorflow"):
        kdrop.audit(chain(layers.Dropout(0.5)), **{option: True})
