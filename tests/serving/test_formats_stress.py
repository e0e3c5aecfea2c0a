"""Layers and networks whose files for ONNX Runtime and LiteRT take long to write."""

import keras
import numpy as np
import pytest
from keras import layers
from other_formats import SEEDS, differences

import kdrop
from kdrop.serving import export

pytestmark = pytest.mark.slow
IMAGES = (16, 16, 3)


def classifier(size, *middle):
    top = [layers.Flatten(), layers.Dense(3, activation="softmax")]
    return keras.Sequential([keras.Input(size), *middle, *top])


MODELS = {
    "alpha": lambda: classifier((6,), kdrop.AlphaDropout(0.3)),
    "concrete": lambda: classifier(
        (6,), kdrop.ConcreteDropout(layers.Dense(5), 1e-6, 1e-5)
    ),
    "standout": lambda: classifier((6,), kdrop.StandoutDropout(5)),
    "uniform": lambda: classifier((6,), kdrop.UniformDropout(0.3)),
    "variational": lambda: classifier((6,), kdrop.VariationalDropout(5)),
    "regions": lambda: classifier(
        IMAGES, kdrop.SpatialDropout2D(0.3), kdrop.DropBlock2D(0.3, 3)
    ),
    "convolution": lambda: classifier(IMAGES, kdrop.DropConnectConv2D(4, 3, rate=0.3)),
    "recurrent": lambda: classifier(
        (5, 3), kdrop.LockedDropout(0.3), layers.LSTM(4, unroll=True)
    ),
    "alexnet32": lambda: kdrop.models.alexnet32(
        kdrop.InvertedDropout, width=4, hidden=(8,)
    ),
    "resnet32": lambda: kdrop.models.resnet32(kdrop.DropPath, width=4),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_equal(tmp_path, name):
    keras.utils.set_random_seed(1)
    model = MODELS[name]()
    size = (len(SEEDS), *model.input_shape[1:])
    inputs = np.random.default_rng(0).normal(size=size).astype("float32")
    version = export(model, tmp_path, passes=3, formats=("onnx", "litert"))
    found = differences(version, {"inputs": inputs})
    assert len(found) == 2 * (1 + 4)
    assert max(found.values()) < 1e-6, found
