"""The export of models with inputs and outputs of every structure."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import structures
import tensorflow as tf
from keras import tree
from structures import KINDS, ROWS, TASKS, head, points

from kdrop.serving import export
from kdrop.serving.interface import Interface
from kdrop.serving.signatures import WARM_UP, read_requests

SLOW = {"string", "lists", "dictionaries", "subclassed", "subclassed_dictionary"}
SLOW |= {"masked", "sequence", "twice"}
SEEDS = np.arange(7, 7 + ROWS)
WITHOUT_DROPOUT = {"nested": "u_1", "twice": "output_1"}  # an output of the kind
WITHOUT_DROPOUT["subclassed_dictionary"] = "output_1"

ON_JAX = """
import sys
sys.path.insert(0, sys.argv[1])
import keras, numpy as np
from structures import KINDS, TASKS, Subclassed, points
from kdrop.serving import export
for kind in ("string", "nested", "subclassed_arguments"):
    case = KINDS[kind]()
    task, formats = TASKS.get(kind, "classification"), ["litert"] * (kind == "nested")
    export(case.model, kind, passes=3, task=task, formats=formats)
    np.savez(f"{kind}.npz", **case.named)
    if kind != "string":  # which JAX cannot compute
        by_argument = kind == "subclassed_arguments"
        outputs = case.model(**case.inputs) if by_argument else case.model(case.inputs)
        np.savez(f"{kind}-jax.npz", *keras.tree.flatten(outputs))
class Local(Subclassed):
    pass
model = Local(name="local")
model(points())
for wrong, labels in ((model, []), (case.model, ["a"] * 9)):
    try:
        export(wrong, "local", task=task, labels=labels)
    except ValueError as error:
        print(error)
"""


@pytest.fixture(
    scope="module",
    params=[pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in KINDS],
)
def exported(request, tmp_path_factory):
    """The kind of a model, its case, the exported version, and its signatures."""
    keras.utils.set_random_seed(0)
    kind, case = request.param, KINDS[request.param]()
    folder, task = tmp_path_factory.mktemp(kind), TASKS.get(kind, "classification")
    path = export(case.model, folder, passes=5, task=task)
    loaded = tf.saved_model.load(str(path))
    yield kind, case, path, loaded.signatures


def tensors(case, rows=slice(None)):
    return {name: tf.constant(x[rows]) for name, x in case.named.items()}


def predictions(case):
    """The outputs of Keras, in the order of their names."""
    if case.model.name.startswith("takes_arguments"):  # `predict` takes one argument
        return tree.flatten(case.model(**case.inputs))
    inputs = case.inputs
    inputs = tf.constant(inputs) if isinstance(inputs, np.ndarray) else inputs
    return tree.flatten(case.model.predict(inputs, batch_size=ROWS, verbose=0))


def test_serve_equals_keras(exported):
    _, case, path, signatures = exported
    answer = signatures["serve"](**tensors(case))
    assert set(answer) == set(case.outputs)
    expected = predictions(case)
    for name, values in zip(case.outputs, expected, strict=True):
        np.testing.assert_allclose(answer[name], values, rtol=1e-5, atol=1e-6)
    loaded = keras.models.load_model(
        path / "model.keras", custom_objects=vars(structures)
    )
    restored = predictions(case._replace(model=loaded))
    for values, before in zip(restored, expected, strict=True):
        np.testing.assert_allclose(values, before, rtol=1e-5, atol=1e-6)


def summary_names(kind, outputs):
    """The names of the summaries of all samples."""
    names, task = set(), TASKS.get(kind, "classification")
    for output in outputs:
        prefix = f"{output}_" if len(outputs) > 1 else ""
        names |= {f"{prefix}mean", f"{prefix}std"}
        if (task if isinstance(task, str) else task[output]) == "classification":
            names |= {f"{prefix}entropy", f"{prefix}mutual_information"}
    return names


def test_seeded_samples_depend_on_the_row_and_its_seed(exported):
    kind, case, _, signatures = exported
    if kind == "without_drop_layers":
        assert set(signatures) == {"serve", "serving_default"}
        return
    seeded = signatures["sample_seeded"](**tensors(case), seeds=tf.constant(SEEDS))
    unseeded = signatures["sample"](**tensors(case))
    assert set(seeded) == set(unseeded) == summary_names(kind, case.outputs)
    prefix = f"{case.outputs[0]}_" if len(case.outputs) > 1 else ""
    assert (unseeded[f"{prefix}mean"] != seeded[f"{prefix}mean"]).numpy().any()
    assert (seeded[f"{prefix}std"].numpy() > 1e-3).any()
    if kind in WITHOUT_DROPOUT:
        output = WITHOUT_DROPOUT[kind]
        expected = signatures["serve"](**tensors(case))[output]
        np.testing.assert_allclose(seeded[f"{output}_mean"], expected, atol=1e-6)
        np.testing.assert_allclose(seeded[f"{output}_std"], 0, atol=1e-6)
    wrong = tf.range(ROWS + 1, dtype=tf.int64)
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["sample_seeded"](**tensors(case), seeds=wrong)
    if kind == "fixed_batch":
        return
    one_row = tensors(case, slice(2, 3))
    row = signatures["sample_seeded"](**one_row, seeds=tf.constant(SEEDS[2:3]))
    for name in seeded:
        np.testing.assert_allclose(row[name][0], seeded[name][2], rtol=1e-4, atol=1e-6)


def test_a_server_can_replay_the_warm_up(exported):
    kind, case, path, signatures = exported
    requests = list(read_requests(path))
    assert len(requests) == 1 + (kind != "without_drop_layers")
    for signature, inputs in requests:
        assert set(inputs) == set(case.named)
        signatures[signature](**inputs)
        assert kind != "string" or inputs["inputs"].numpy().tolist() == [[b""]]


@pytest.mark.slow
def test_a_model_that_rejects_zeros_has_no_warm_up(tmp_path):
    inputs = keras.Input((None, 2))
    windows = keras.layers.Conv1D(4, 3)(inputs)  # needs at least three steps
    model = keras.Model(inputs, head(keras.layers.GlobalMaxPooling1D()(windows)))
    path = export(model, tmp_path, passes=3)
    assert not (path / WARM_UP).exists() and not (path / WARM_UP.parent).exists()
    serve = tf.saved_model.load(str(path)).signatures["serve"]
    assert serve(inputs=tf.zeros((2, 5, 2)))["probabilities"].shape == (2, 3)


def test_outputs_of_text_and_of_the_whole_batch_are_not_sampled(tmp_path):
    words = ["red", "blue"]
    names = keras.layers.StringLookup(vocabulary=words, num_oov_indices=1, invert=True)
    inputs = keras.Input((2,))
    p = head(inputs)
    outputs = {"p": p, "name": names(keras.ops.argmax(p, axis=-1))}
    outputs["total"] = keras.ops.sum(p)
    outputs["across"] = keras.ops.sum(p, axis=0, keepdims=True)
    path = export(keras.Model(inputs, outputs), tmp_path, passes=3)
    signatures = tf.saved_model.load(str(path)).signatures
    answer = signatures["serve"](inputs=tf.constant(points()))
    best = answer["p"].numpy().argmax(axis=1)
    expected = [[b"[UNK]", b"red", b"blue"][number] for number in best]
    assert answer["name"].numpy().tolist() == expected
    np.testing.assert_allclose(answer["total"], ROWS, rtol=1e-5)
    sampled = signatures["sample"](inputs=tf.constant(points()))
    assert all(key.startswith("p_") for key in sampled)


def test_outputs_with_similar_names_are_numbered():
    inputs = keras.Input((2,))
    for names in (["a-b", "a_b"], ["a", "A"]):
        outputs = [keras.layers.Dense(1, name=name)(inputs) for name in names]
        model = keras.Model(inputs, outputs)
        named = Interface(model).name(model.outputs)
        assert list(named) == ["output_0", "output_1"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX")
def test_a_model_of_the_jax_backend_is_exported_or_rejected(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", ON_JAX, str(Path(__file__).parent)],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
        timeout=500,
    )
    of_class, of_labels = process.stdout.splitlines()
    assert of_class.startswith("model 'local' cannot be exported: ValueError: class")
    assert "cannot be exported: there are 9 labels, but" in of_labels
    assert not list((tmp_path / "local").iterdir())
    files = {path.name for path in (tmp_path / "nested/1").glob("*.tflite")}
    assert files == {"serve.tflite", "sample_seeded.tflite"}
    names = {"nested": ("u_0", "u_1"), "subclassed_arguments": ("p", "q")}
    for kind in ("string", *names):
        assert (tmp_path / kind / "1" / WARM_UP).exists()
        signatures = tf.saved_model.load(str(tmp_path / kind / "1")).signatures
        named = np.load(tmp_path / f"{kind}.npz", allow_pickle=True)
        answer = signatures["serve"](**{n: tf.constant(x) for n, x in named.items()})
        assert len(signatures) == 4
        if kind in names:
            expected = np.load(tmp_path / f"{kind}-jax.npz").values()
            for name, values in zip(names[kind], expected, strict=True):
                np.testing.assert_allclose(answer[name], values, atol=1e-5)
