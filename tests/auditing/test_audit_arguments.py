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


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="of other backends")
@pytest.mark.parametrize("option", ["replicas", "recompute"])
def test_options_of_tensorflow_are_refused_elsewhere(option):
    with pytest.raises(ValueError, match="needs the backend tensorflow"):
        kdrop.audit(chain(layers.Dropout(0.5)), **{option: True})
