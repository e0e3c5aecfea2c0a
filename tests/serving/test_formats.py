"""Files for ONNX Runtime and LiteRT: the same masks and outputs as TensorFlow's."""

import importlib.util

import keras
import numpy as np
import pytest
from other_formats import RUN, SEEDS, differences

import kdrop
from kdrop.errors import UserError
from kdrop.serving import export, formats

BOTH = ("onnx", "litert")
POINTS = np.random.default_rng(0).normal(size=(len(SEEDS), 6)).astype("float32")


def classifier(*layers, size=(6,)):
    keras.utils.set_random_seed(1)
    outputs = keras.layers.Dense(3, activation="softmax")
    return keras.Sequential([keras.Input(size), *layers, outputs])


def test_the_masks_are_those_of_sample(tmp_path):
    """With inputs of 1, one sample, and no arithmetic but the scale."""
    model = keras.Sequential([keras.Input((1000,)), kdrop.InvertedDropout(0.5)])
    version = export(model, tmp_path, passes=1, task="regression", formats=BOTH)
    seeds, ones = np.array([0, 1, 2**31, 2**32 - 1]), np.ones((4, 1000), "float32")
    expected = [
        kdrop.sample(model, ones[:1], 1, seed=int(seed), verbose=0)[0, 0]
        for seed in seeds
    ]
    assert 0.4 < np.mean(np.equal(expected, 0)) < 0.6
    for suffix, run in RUN.items():
        inputs = {"inputs": ones, "seeds": seeds}
        masks = run(version / f"sample_seeded.{suffix}", inputs)["mean"]
        np.testing.assert_array_equal(masks, expected)


@pytest.mark.parametrize(
    "layer",
    [
        kdrop.GaussianDropout(0.3),
        pytest.param(kdrop.ExactDropout(0.5), marks=pytest.mark.slow),  # searches
        pytest.param(kdrop.DropConnectDense(5, 0.5), marks=pytest.mark.slow),  # loops
    ],
    ids=lambda layer: layer.name,
)
def test_outputs_are_equal(tmp_path, layer):
    model = classifier(keras.layers.Dense(8, activation="gelu"), layer)
    version = export(model, tmp_path, passes=5, formats=BOTH)
    found = differences(version, {"inputs": POINTS})
    assert len(found) == 2 * (1 + 4)
    assert max(found.values()) < 1e-6, found


def test_a_model_without_dropout_has_one_file_for_each_format(tmp_path):
    version = export(classifier(), tmp_path, formats=("saved_model", "litert"))
    assert (version / "saved_model.pb").exists()
    assert [path.name for path in version.glob("*.tflite")] == ["serve.tflite"]
    assert not list(version.glob("*.onnx"))


def test_what_a_format_lacks_is_named(tmp_path, capfd):
    # The lists of a loop over time: LiteRT must know their shape.
    loop = classifier(kdrop.LockedDropout(0.5), keras.layers.LSTM(2), size=(4, 3))
    erfinv = classifier(keras.layers.Lambda(keras.ops.erfinv))
    half = classifier(keras.layers.Dense(4, dtype="bfloat16"))
    for model, file_format, message in [
        (
            loop,
            "litert",
            "serve.tflite cannot be .*: LiteRT has no .*TensorListReserve.*unroll=True",
        ),
        (erfinv, "onnx", "serve.onnx cannot be written: ONNX has no operator Erfinv"),
        (half, "onnx", "serve.onnx cannot be .*the model computes in bfloat16"),
        (half, "litert", "serve.tflite cannot be .*the model computes in bfloat16"),
    ]:
        with pytest.raises(UserError, match=message):
            export(model, tmp_path / "model", formats=[file_format])
        assert not list((tmp_path / "model").iterdir())
    assert not [x for x in capfd.readouterr().err.splitlines() if "error" in x.lower()]


def test_names_of_inputs_and_outputs_that_onnx_cannot_keep_apart(tmp_path):
    inputs = {name: keras.Input((2,), name=name) for name in "ab"}
    outputs = {"a": inputs["a"] * 2, "c": inputs["b"] * 3}
    model = keras.Model(inputs, outputs)
    with pytest.raises(UserError, match="ONNX needs other names .*: {'a'}"):
        export(model, tmp_path, task="regression", formats=["onnx"])


def test_as_many_seeds_as_rows(tmp_path):
    model = keras.Sequential([keras.Input((2,)), kdrop.InvertedDropout(0.5)])
    version = export(model, tmp_path, passes=2, task="regression", formats=BOTH)
    for suffix, run in RUN.items():
        for seeds in np.arange(1), np.arange(3):
            inputs = {"inputs": np.ones((2, 2), "float32"), "seeds": seeds}
            with pytest.raises(Exception, match="(?i)reshape"):
                run(version / f"sample_seeded.{suffix}", inputs)


@pytest.mark.parametrize("file_format", BOTH)
@pytest.mark.parametrize("scale", [1, 1e-6])
def test_a_file_that_computes_something_else_is_not_published(
    tmp_path, monkeypatch, file_format, scale
):
    run = getattr(formats, f"_run_{file_format}")

    def wrong(content, inputs):
        return {key: 0.99 * values for key, values in run(content, inputs).items()}

    monkeypatch.setattr(formats, f"_run_{file_format}", wrong)
    model = classifier(keras.layers.Dense(3), keras.layers.Rescaling(scale))
    model.pop()
    with pytest.raises(UserError, match="does not compute TensorFlow's probabilities:"):
        export(model, tmp_path, formats=[file_format])
    assert not list(tmp_path.iterdir())


def test_undefined_outputs_are_compared(tmp_path):
    negative = keras.layers.Rescaling(1, offset=-0.5)
    model = classifier(negative, keras.layers.Lambda(keras.ops.log))
    version = export(model, tmp_path, formats=BOTH)
    assert {"serve.onnx", "serve.tflite"} < {path.name for path in version.iterdir()}


def test_open_sizes_that_are_too_small_for_the_model(tmp_path):
    layers = [keras.layers.Conv2D(2, 3), keras.layers.GlobalMaxPooling2D()]
    model = classifier(*layers, size=(None, None, 3))
    version = export(model, tmp_path, formats=["onnx"])
    assert (version / "serve.onnx").exists()


def test_wrong_formats_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no format 'onx': did you mean onnx"):
        export(classifier(), tmp_path, formats=["onx"])
    for wrong in "onnx", [1], None:
        with pytest.raises(ValueError, match="`formats` must be a list of names"):
            export(classifier(), tmp_path, formats=wrong)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tf2onnx: pip install '.\[formats\]'"):
        export(classifier(), tmp_path, formats=["onnx"])
    assert not list(tmp_path.iterdir())
