"""Models of every structure, served under names."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import tree
from served import KINDS, ROWS, TASKS, Served, Subclassed, head, points
from tensorflow_serving.apis import prediction_log_pb2

from kdrop.serving.interface import Interface
from kdrop.serving.saved_model import WARM_UP, export

ALONE = """
import sys
sys.modules["keras"] = sys.modules["kdrop"] = None  # an import of them raises
import numpy as np, tensorflow as tf
for kind in sys.argv[1:]:
    named = np.load(f"{kind}.npz", allow_pickle=True)
    named = {name: tf.constant(named[name]) for name in named}
    signatures = tf.saved_model.load(f"{kind}/1").signatures
    np.savez(f"{kind}-serve.npz", **signatures["serve"](**named))
    if "sample_seeded" in signatures:
        seeds = tf.range(7, 11, dtype=tf.int64)
        seeded = signatures["sample_seeded"](**named, seeds=seeds)
        np.savez(f"{kind}-seeded.npz", **seeded)
        np.savez(f"{kind}-sample.npz", **signatures["sample"](**named))
"""


ON_JAX = """
import sys
sys.path.insert(0, sys.argv[1])
import keras, numpy as np
from served import KINDS, TASKS, Subclassed, points
from kdrop.serving.saved_model import export
for kind in ("string", "nested", "subclassed_arguments"):
    each = KINDS[kind]()
    export(each.model, kind, passes=3, task=TASKS.get(kind, "classification"))
    np.savez(f"{kind}.npz", **each.named)
    if kind != "string":  # which JAX cannot compute
        several = kind == "subclassed_arguments"
        outputs = each.model(**each.inputs) if several else each.model(each.inputs)
        np.savez(f"{kind}-jax.npz", *keras.tree.flatten(outputs))
class Local(Subclassed):
    pass
model = Local(name="local")
model(points())
try:
    export(model, "local")
except ValueError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The models, and the folder of their exports and of TensorFlow's answers."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("served")
    models = {kind: build() for kind, build in KINDS.items()}
    for kind, each in models.items():
        task = TASKS.get(kind, "classification")
        export(each.model, folder / kind, passes=5, task=task)
        np.savez(folder / f"{kind}.npz", **each.named)
    command = [sys.executable, "-c", ALONE, *models]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return models, folder


def predicted(each: Served):
    """The outputs of Keras, in the order of the names."""
    if each.model.name.startswith("of_arguments"):  # Keras predicts of one argument
        return tree.flatten(each.model(**each.inputs))
    inputs = each.inputs
    inputs = tf.constant(inputs) if isinstance(inputs, np.ndarray) else inputs
    return tree.flatten(each.model.predict(inputs, batch_size=ROWS, verbose=0))


@pytest.mark.parametrize("kind", KINDS)
def test_tensorflow_alone_serves_what_keras_predicts(served, kind):
    models, folder = served
    answer = np.load(folder / f"{kind}-serve.npz")
    assert set(answer) == set(models[kind].outputs)
    expected = predicted(models[kind])
    for name, values in zip(models[kind].outputs, expected, strict=True):
        np.testing.assert_allclose(answer[name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_seeded_samples_are_those_of_the_seed(served, kind):
    models, folder = served
    signatures = tf.saved_model.load(str(folder / kind / "1")).signatures
    if kind == "sequential":  # without drop layers
        assert set(signatures) == {"serve", "serving_default"}
        return
    outputs, task = models[kind].outputs, TASKS.get(kind, "classification")
    names = set()
    for output in outputs:
        prefix = f"{output}_" if len(outputs) > 1 else ""
        names |= {f"{prefix}mean", f"{prefix}std"}
        if (
            task == "classification"
            or task != "regression"
            and (task[output] == "classification")
        ):
            names |= {f"{prefix}entropy", f"{prefix}mutual_information"}
    elsewhere = np.load(folder / f"{kind}-seeded.npz")
    fresh = np.load(folder / f"{kind}-sample.npz")
    assert set(elsewhere) == set(fresh) == names
    named = {name: tf.constant(x) for name, x in models[kind].named.items()}
    seeds = tf.range(7, 7 + ROWS, dtype=tf.int64)
    here = signatures["sample_seeded"](**named, seeds=seeds)
    for name in names:
        np.testing.assert_allclose(here[name], elsewhere[name], rtol=1e-5, atol=1e-6)
    mean, std = (
        ("mean", "std")
        if len(outputs) == 1
        else (
            f"{outputs[0]}_mean",
            f"{outputs[0]}_std",
        )
    )
    assert (fresh[mean] != elsewhere[mean]).any()
    assert (elsewhere[std] > 1e-3).any()
    if kind == "fixed_batch":
        return
    row = {name: x[2:3] for name, x in named.items()}
    alone = signatures["sample_seeded"](**row, seeds=seeds[2:3])
    for name in names:
        np.testing.assert_allclose(
            alone[name][0], elsewhere[name][2], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    ("kind", "output"),
    [("nested", "u_1"), ("twice", "output_1"), ("subclassed_dictionary", "output_1")],
)
def test_what_does_not_vary_is_the_mean_of_its_own_row(served, kind, output):
    _, folder = served
    answer = np.load(folder / f"{kind}-seeded.npz")
    expected = np.load(folder / f"{kind}-serve.npz")[output]
    np.testing.assert_allclose(answer[f"{output}_mean"], expected, atol=1e-6)
    np.testing.assert_allclose(answer[f"{output}_std"], 0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_can_replay_the_warm_up(served, kind):
    models, folder = served
    signatures = tf.saved_model.load(str(folder / kind / "1")).signatures
    records = list(tf.data.TFRecordDataset(str(folder / kind / "1" / WARM_UP)))
    assert len(records) == 1 + (kind != "sequential")
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        assert set(inputs) == set(models[kind].named)
        signatures[request.model_spec.signature_name](**inputs)
        if kind == "string":
            assert inputs["inputs"].numpy().tolist() == [[b""]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_keras_file_holds_the_model(served, kind):
    models, folder = served
    file = folder / kind / "1" / "model.keras"
    loaded = keras.models.load_model(file, custom_objects=vars(sys.modules["served"]))
    each = models[kind]
    for values, expected in zip(
        predicted(each._replace(model=loaded)), predicted(each), strict=True
    ):
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_without_a_request_that_the_model_answers_there_is_no_warm_up(tmp_path):
    inputs = keras.Input((None, 2))
    windows = keras.layers.Conv1D(4, 3)(inputs)  # of at least three steps
    model = keras.Model(inputs, head(keras.layers.GlobalMaxPooling1D()(windows)))
    path = export(model, tmp_path, passes=3)
    assert not (path / WARM_UP).exists() and not (path / WARM_UP.parent).exists()
    serve = tf.saved_model.load(str(path)).signatures["serve"]
    assert serve(inputs=tf.zeros((2, 5, 2)))["probabilities"].shape == (2, 3)


def test_strings_that_a_model_returns_are_not_sampled(tmp_path):
    names = keras.layers.StringLookup(
        vocabulary=["red", "blue"], num_oov_indices=1, invert=True
    )
    inputs = keras.Input((2,))
    probabilities = head(inputs)
    name = names(keras.ops.argmax(probabilities, axis=-1))
    outputs = {"probabilities": probabilities, "name": name}
    path = export(keras.Model(inputs, outputs), tmp_path, passes=3)
    signatures = tf.saved_model.load(str(path)).signatures
    answer = signatures["serve"](inputs=tf.constant(points()))
    best = answer["probabilities"].numpy().argmax(axis=1)
    assert answer["name"].numpy().tolist() == [
        [b"[UNK]", b"red", b"blue"][i] for i in best
    ]
    sampled = signatures["sample"](inputs=tf.constant(points()))
    assert all(key.startswith("probabilities_") for key in sampled)


def test_an_output_of_the_whole_batch_is_not_sampled(tmp_path):
    inputs = keras.Input((2,))
    probabilities = head(inputs)
    total = keras.ops.sum(probabilities)
    across = keras.ops.sum(probabilities, axis=0, keepdims=True)
    outputs = {"p": probabilities, "total": total, "across": across}
    path = export(keras.Model(inputs, outputs), tmp_path, passes=3)
    signatures = tf.saved_model.load(str(path)).signatures
    answer = signatures["serve"](inputs=tf.constant(points()))
    np.testing.assert_allclose(answer["total"], ROWS, rtol=1e-5)
    sampled = signatures["sample"](inputs=tf.constant(points()))
    assert all(key.startswith("p_") for key in sampled)


def test_layers_of_like_names_are_numbered():
    inputs = keras.Input((2,))
    for names in (["a-b", "a_b"], ["a", "A"]):
        outputs = [keras.layers.Dense(1, name=name)(inputs) for name in names]
        model = keras.Model(inputs, outputs)
        named = Interface(model).name(model.outputs)
        assert list(named) == ["output_0", "output_1"]


class Crashing(Subclassed):
    def call(self, inputs):
        if inputs.shape[0] is None:
            raise KeyError("of the depths")
        return super().call(inputs)


@tf.function
def compiled(model, inputs):
    if inputs.shape[0] is None:
        raise ValueError("of a function")
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


REFUSED = {
    "no model": (lambda: keras.layers.Dense(3), {}, "must be a `keras.Model`"),
    "not built": (
        lambda: keras.Sequential([keras.layers.Dense(3)]),
        {},
        "call it on a batch",
    ),
    "not called": (Subclassed, {}, "call it on a batch"),
    "crashing": (lambda: called(Crashing(), points()), {}, "KeyError: of the depths"),
    "crashing inside": (
        lambda: called(CrashingInside(), points()),
        {},
        "exported: ValueError: of a function",
    ),
    "None": (lambda: called(Nothing(), points()), {}, "output b is None"),
    "not saved": (lambda: called(Secret(object()), points()), {}, "cannot be exported"),
    "two arguments": (
        lambda: called(TwoWithoutBuild(), points(), points(3)),
        {},
        "missing a required argument: 'b'",
    ),
    "case": (lambda: functional("a", "A"), {}, "differ in more than case"),
    "seeds": (lambda: functional("a", "seeds"), {}, "seeds"),
    "no classes": (flat, {}, r"shape \(None,\).*regression"),
    "task": (lambda: functional("a", "b"), {"task": "regresion"}, "'regresion'"),
    "task of others": (
        lambda: functional("a", "b"),
        {"task": {"a": "regression"}},
        "names? of|output's name: probabilities",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused_in_a_sentence(case, tmp_path):
    build, settings, reason = REFUSED[case]
    model = build()
    with pytest.raises(ValueError, match=reason) as error:
        export(model, tmp_path, **settings)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX")
def test_the_jax_backend_exports_the_same_or_refuses(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", ON_JAX, str(Path(__file__).parent)],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
        timeout=500,
    )
    (sentence,) = process.stdout.splitlines()
    assert sentence.startswith("model 'local' cannot be exported: ValueError: class")
    assert not list((tmp_path / "local").iterdir())
    names = {"nested": ("u_0", "u_1"), "subclassed_arguments": ("p", "rest")}
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


def test_an_error_of_the_pictures_is_not_the_model_s(tmp_path):
    model = called(Subclassed(), points())
    with pytest.raises(KeyError):
        export(model, tmp_path, passes=2, draw=lambda path: {}["picture"])
    assert not list(tmp_path.iterdir())


def test_wrong_numbers_of_seeds_are_refused(served):
    _, folder = served
    answer = tf.saved_model.load(str(folder / "twice" / "1")).signatures[
        "sample_seeded"
    ]
    for count in (1, ROWS + 1):
        with pytest.raises(tf.errors.InvalidArgumentError):
            answer(inputs=tf.zeros((ROWS, 2)), seeds=tf.range(count, dtype=tf.int64))
