"""Files for ONNX Runtime and LiteRT of each layer, and of whole networks."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers
from other_formats import SEEDS, differences

import kdrop
from kdrop.serving import export

pytestmark = pytest.mark.slow

VECTOR, SEQUENCE, IMAGE, VOLUME = (6,), (5, 4), (16, 16, 3), (4, 4, 4, 2)
LAYERS = {  # and the shape of their inputs
    VECTOR: [
        lambda: kdrop.InvertedDropout(0.3),
        lambda: kdrop.VanillaDropout(0.3),
        lambda: kdrop.GaussianDropout(0.3),
        lambda: kdrop.UniformDropout(0.3),
        lambda: kdrop.AlphaDropout(0.3),
        lambda: kdrop.ExactDropout(0.3),
        lambda: kdrop.DropPath(0.3),
        lambda: kdrop.StochasticDepth(0.3),
        lambda: kdrop.DropConnectDense(5, 0.3),
        lambda: kdrop.ConcreteDropout(layers.Dense(5), 1e-6, 1e-5),
        lambda: kdrop.StandoutDropout(5),
        lambda: kdrop.VariationalDropout(5),
    ],
    SEQUENCE: [
        lambda: kdrop.SpatialDropout1D(0.3),
        lambda: kdrop.LockedDropout(0.3),
        lambda: kdrop.DropBlock1D(0.3, 2),
        lambda: kdrop.WeightDropout(layers.GRU(4, unroll=True), 0.3),
        lambda: layers.RNN(kdrop.Zoneout(layers.LSTMCell(4), 0.3), unroll=True),
    ],
    IMAGE: [
        lambda: kdrop.SpatialDropout2D(0.3),
        lambda: kdrop.DropBlock2D(0.3, 3),
        lambda: kdrop.DropConnectConv2D(4, 3, rate=0.3),
    ],
    VOLUME: [
        lambda: kdrop.SpatialDropout3D(0.3),
        lambda: kdrop.DropBlock3D(0.3, 2),
    ],
}


def classifier(size, *middle):
    top = [layers.Flatten(), layers.Dense(3, activation="softmax")]
    return keras.Sequential([keras.Input(size), *middle, *top])


def words():
    return classifier((5,), kdrop.EmbeddingDropout(10, 4, rate=0.3))


def tokens():
    # It returns an unknown number of them.
    drop, pool = kdrop.TokenDropout(0.3), layers.GlobalAveragePooling1D()
    return classifier(SEQUENCE, drop, pool)


def attention():
    inputs = keras.Input(SEQUENCE)
    attended = kdrop.DropKey(layers.MultiHeadAttention(2, 2), 0.3)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(attended[:, 0]))


MODELS = {
    f"{size}-{number}": lambda size=size, make=make: classifier(size, make())
    for size, makers in LAYERS.items()
    for number, make in enumerate(makers)
}
MODELS |= {
    "words": words,
    "tokens": tokens,
    "attention": attention,
    "alexnet32": lambda: kdrop.models.alexnet32(
        kdrop.InvertedDropout, width=4, hidden=(8,)
    ),
    "resnet32": lambda: kdrop.models.resnet32(kdrop.DropPath, width=4),
    "mnist_mlp": lambda: kdrop.models.mnist_mlp(kdrop.VanillaDropout, hidden=(8, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_equal(tmp_path, name):
    keras.utils.set_random_seed(1)
    model = MODELS[name]()
    size = (len(SEEDS), *model.input_shape[1:])
    inputs = np.random.default_rng(0).normal(size=size).astype("float32")
    inputs = np.abs(inputs) if name == "words" else inputs
    version = export(model, tmp_path, passes=3, formats=("onnx", "litert"))
    found = differences(version, {"inputs": inputs})
    assert len(found) == 2 * (1 + 4)
    assert max(found.values()) < 1e-6, found


def test_no_layer_is_missing():
    source = inspect.getsource(inspect.getmodule(classifier))
    for name in kdrop.__all__:
        kind = getattr(kdrop, name)
        if inspect.isclass(kind) and issubclass(kind, keras.Layer):
            assert name == "Sampler" or f"kdrop.{name}(" in source, name


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "float64"])
def test_half_and_double_precision_in_onnx(tmp_path, policy):
    hidden = layers.Dense(8, activation="relu", dtype=policy)
    model = classifier(VECTOR, hidden, kdrop.InvertedDropout(0.3, dtype=policy))
    version = export(model, tmp_path, passes=3, formats=["onnx"])
    assert (version / "sample_seeded.onnx").exists()
