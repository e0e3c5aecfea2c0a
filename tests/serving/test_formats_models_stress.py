"""Models of others with kdrop's layers as files for ONNX Runtime and LiteRT."""

import os
import warnings

import keras
import numpy as np
import pytest
from other_formats import SEEDS, differences

import kdrop
from kdrop.serving import export

pytestmark = pytest.mark.slow

if os.environ.get("CI_FULL") == "1":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that it imports
        keras_hub = pytest.importorskip("keras_hub")

ROWS, RANDOM = len(SEEDS), np.random.default_rng(0)
PIXELS = RANDOM.normal(size=(ROWS, 32, 32, 3)).astype("float32")


def efficient_net():
    model = keras.applications.EfficientNetB0(
        weights=None, input_shape=(32, 32, 3), classes=3
    )
    return model, {"inputs": PIXELS}


def bert():
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=11, num_layers=2, num_heads=2, hidden_dim=8,
        intermediate_dim=16, max_sequence_length=6,
    )  # fmt: skip
    inputs = {
        "padding_mask": np.ones((ROWS, 6), "int32"),
        "segment_ids": np.zeros((ROWS, 6), "int32"),
        "token_ids": RANDOM.integers(0, 11, (ROWS, 6)).astype("int32"),
    }
    kind = keras_hub.models.BertTextClassifier
    return kind(backbone, 3, preprocessor=None, activation="softmax"), inputs


def vision_transformer():
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=(8, 8), num_layers=2, num_heads=2,
        hidden_dim=8, mlp_dim=16, dropout_rate=0.3,
    )  # fmt: skip
    kind = keras_hub.models.ViTImageClassifier
    model = kind(backbone, 3, preprocessor=None, activation="softmax")
    return model, {"inputs": PIXELS}


# Of Keras: open sizes are 1 in the export's examples.
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis 3")
@pytest.mark.parametrize("make", [efficient_net, bert, vision_transformer])
def test_outputs_are_equal(tmp_path, make):
    keras.utils.set_random_seed(1)
    model, inputs = make()
    model = kdrop.replace(model)
    version = export(model, tmp_path, passes=3, formats=("onnx", "litert"))
    found = differences(version, inputs)
    assert len(found) == 2 * (1 + 4)
    assert max(found.values()) < 1e-6, found
