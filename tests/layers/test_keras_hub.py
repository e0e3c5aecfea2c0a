"""Models of KerasHub, tiny and with random weights, with kdrop's layers in them."""

import os
import warnings

import keras
import numpy as np
import pytest

import kdrop
from kdrop import keras_internals
from kdrop.layers.replace import remaining

if os.environ.get("CI_FULL") != "1":
    pytest.skip("minutes long: CI_FULL=1 runs it", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the packages that it imports
    keras_hub = pytest.importorskip("keras_hub")

VOCABULARY, STEPS = 11, 6
TEXT = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
    "dropout": 0.3,
}
HEADS = {"num_heads": 2, "max_sequence_length": STEPS}
IMAGE = {
    "image_shape": (8, 8, 3),
    "patch_size": 4,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "dropout_rate": 0.3,
    "attention_dropout": 0.3,
}
MODELS = {
    "Bert": {**TEXT, **HEADS},
    "GPT2": {**TEXT, **HEADS},
    "Llama": {**TEXT, "num_query_heads": 2, "num_key_value_heads": 1},
    "Bart": {**TEXT, **HEADS},
    "GPTNeoX": {**TEXT, **HEADS, "rotary_percentage": 0.5},
    "Whisper": {
        **TEXT,
        "num_heads": 2,
        "num_mels": 4,
        "max_encoder_sequence_length": STEPS,
        "max_decoder_sequence_length": STEPS,
    },
    "ViT": {**IMAGE, "mlp_dim": 16},
    "DeiT": {**IMAGE, "intermediate_dim": 16},
}


def build(name):
    return getattr(keras_hub.models, f"{name}Backbone")(**MODELS[name])


def batch(model, rows=4):
    """Random inputs of a model: tokens, features, and masks that hide nothing."""
    random = np.random.default_rng(0)

    def values(tensor):
        shape = [STEPS if size is None else size for size in tensor.shape[1:]]
        if "token" in tensor.name:
            return random.integers(1, VOCABULARY, (rows, *shape)).astype("int32")
        if "int" in tensor.dtype:
            return np.full((rows, *shape), "mask" in tensor.name, "int32")
        return random.normal(size=(rows, *shape)).astype("float32")

    if isinstance(model.input, dict):
        return {name: values(tensor) for name, tensor in model.input.items()}
    return values(model.input)


def results(outputs):
    return [np.asarray(x) for x in keras.tree.flatten(outputs)]


def assert_equal(outputs, expected):
    for one, other in zip(results(outputs), results(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def differ(outputs, others):
    pairs = zip(results(outputs), results(others), strict=True)
    return any(np.any(one != other) for one, other in pairs)


def with_head(backbone):
    inputs = keras.tree.map_structure(
        lambda x: keras.Input(x.shape[1:], dtype=x.dtype, name=x.name), backbone.input
    )
    features = keras.tree.flatten(backbone(inputs))[-1]
    features = features[:, 0]
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(features))


# The head uses only one output, and KerasHub has weights that no output uses.
@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
@pytest.mark.parametrize("name", MODELS)
def test_backbone(name, in_place, tmp_path):
    original = build(name)
    inputs = batch(original)
    expected = original(inputs)
    count = len(remaining(original))
    replaced = kdrop.replace(original, in_place=in_place)
    assert type(replaced) is type(original) and (replaced is original) == in_place
    assert_equal(replaced(inputs), expected)
    assert count and not remaining(replaced)
    assert len(remaining(original)) == (0 if in_place else count)
    dropouts = [
        x
        for x in keras_internals.layers_of(replaced)
        if type(x) is kdrop.InvertedDropout
    ]
    assert len(dropouts) >= count
    assert differ(kdrop.Sampler(replaced)(inputs), expected)

    # In training every drop layer drops that KerasHub calls. It does not call these.
    unused = "feedforward_dropout" if name == "GPTNeoX" else None
    dropouts = [layer for layer in dropouts if layer.name != unused]
    model = with_head(replaced)
    model.compile("adam", "sparse_categorical_crossentropy")
    before = [x.draw_count for x in dropouts]
    model.fit(inputs, np.array([0, 1, 0, 1]), verbose=0)
    assert all(x.draw_count > n for x, n in zip(dropouts, before, strict=True))
    assert differ(replaced(inputs), expected)

    # Saved, loaded and replaced again, it has the same samples.
    path = tmp_path / "model.keras"
    replaced.save(path)
    again = kdrop.replace(keras.models.load_model(path), in_place=True)
    again.load_weights(path)
    assert type(again) is type(original) and not remaining(again)
    assert_equal(again(inputs), replaced(inputs))
    one, other = (kdrop.Sampler(model, seed=1)(inputs) for model in (again, replaced))
    assert_equal(one, other)


@pytest.mark.parametrize("name", MODELS)
def test_sample(name):
    replaced = kdrop.replace(build(name), in_place=True)
    inputs = batch(replaced)
    samples = kdrop.sample(replaced, inputs, passes=3, seed=1, verbose=0)
    for sample, output in zip(results(samples), results(replaced(inputs)), strict=True):
        assert sample.shape == (3, *output.shape)
    assert any(np.any(x[0] != x[1]) for x in results(samples))


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
@pytest.mark.parametrize("name", ["GPT2", "Llama", "GPTNeoX"])
def test_generate(name, in_place, tmp_path):
    def generate(model):
        inputs = {
            "token_ids": np.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0]]),
            "padding_mask": np.array([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]),
        }
        return model.generate(inputs, stop_token_ids=None)["token_ids"]

    kind = getattr(keras_hub.models, f"{name}CausalLM")
    original = kind(backbone=build(name), preprocessor=None)
    original.compile(sampler="greedy")
    expected = generate(original)
    replaced = kdrop.replace(original, in_place=in_place)
    assert type(replaced) is kind and not remaining(replaced)
    replaced.compile(sampler="greedy")
    assert_equal(generate(replaced), expected)
    replaced.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    loaded.compile(sampler="greedy")
    assert_equal(generate(loaded), expected)


def paths(name):
    if name == "MiT":
        return keras_hub.models.MiTBackbone(
            layerwise_depths=[2, 2],
            num_layers=2,
            layerwise_num_heads=[1, 2],
            layerwise_sr_ratios=[2, 1],
            max_drop_path_rate=0.3,
            layerwise_patch_sizes=[3, 3],
            layerwise_strides=[2, 2],
            image_shape=(16, 16, 3),
            hidden_dims=[4, 8],
        )
    settings = {"position_embedding_shape": (8, 8)} if name == "DINOV2" else {}
    return getattr(keras_hub.models, f"{name}Backbone")(
        image_shape=(8, 8, 3),
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        drop_path_rate=0.3,
        **settings,
    )


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
@pytest.mark.parametrize("name", ["MiT", "DINOV2", "DINOV3"])
def test_paths_of_kerashub_are_replaced(name, in_place):
    original = paths(name)
    inputs = batch(original)
    expected = original(inputs)
    replaced = kdrop.replace(original, in_place=in_place)
    assert type(replaced) is type(original)
    assert_equal(replaced(inputs), expected)
    kinds = [type(x) for x in kdrop.drop_layers(replaced) if x.rate > 0]
    assert kdrop.DropPath in kinds and not remaining(replaced)
    assert differ(replaced(inputs, training=True), expected)


@pytest.mark.parametrize("name", ["DINOV2", "DINOV3"])
def test_paths_without_a_floor_are_found_out(name):
    """KerasHub 0.32 multiplies by a uniform number, and raises in its own model."""
    rows = [x for x in kdrop.audit(paths(name)) if x.kind == f"{name}DropPath"]
    assert rows and all(row.dropped == 0 and row.mean > 1.3 for row in rows)
    assert all("raises in training" in row.problems[0] for row in rows)
    alone = keras.Sequential([keras.Input(batch_shape=(10000, 4))])
    alone.add(type(paths(name).encoder.layers[-1].drop_path)(0.5))
    (row,) = kdrop.audit(alone)
    assert row.dropped == 0 and abs(row.mean - 2) < 0.05 and not row.ok


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_rates_of_a_preset_are_set(tmp_path):
    model = build("Bert")
    inputs = batch(model)
    kdrop.set_dropout(model, 0.0)
    assert not differ(model(inputs, training=True), model(inputs))
    rates = kdrop.set_dropout(model, 0.5)
    assert len(rates) == 7
    assert differ(model(inputs, training=True), model(inputs))
    assert model.dropout == 0.5
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded(inputs)
    assert [row.rate for row in kdrop.audit(loaded, inputs)] == [0.5] * 7
