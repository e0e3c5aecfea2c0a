"""The exported folder: whole or not at all, and served as it is."""

import collections
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

import kdrop
from kdrop.ensemble.split import SplitModel
from kdrop.errors import UserError
from kdrop.serving.saved_model import WARM_UP, export, versions

LABELS = ("cat", "dog", "emu")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((2,), name="inputs"),
            keras.layers.Normalization(mean=1.0, variance=4.0),
            keras.layers.Dense(8, activation="relu"),
            kdrop.VanillaDropout(0.5, seed=1, name="drop"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


POINTS = np.random.default_rng(0).normal(size=(7, 2)).astype("float32")


def test_a_process_with_tensorflow_alone_serves_it(model, tmp_path):
    path = export(model, tmp_path / "served", labels=LABELS)
    np.save(tmp_path / "points.npy", POINTS)
    code = """
import sys
sys.modules["keras"] = sys.modules["kdrop"] = None  # an import of them raises
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load("served/1")
names = {"serve", "serving_default", "sample", "sample_seeded"}
assert set(loaded.signatures) == names
for name in ("serve", "serving_default"):
    for batch in (1, 7):
        out = loaded.signatures[name](inputs=tf.constant(np.load("points.npy")[:batch]))
        assert set(out) == {"probabilities"}
np.save("out.npy", out["probabilities"])
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=600)
    expected = model.predict(POINTS, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)
    assert path == tmp_path / "served" / "1"


@pytest.fixture(scope="module")
def exported_path(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("exported"), passes=20)


@pytest.fixture(scope="module")
def exported(exported_path):
    return tf.saved_model.load(str(exported_path))


def own_rows(seeds, passes):
    """Oracle: pass, upper and lower half of the seed, pass by pass."""
    low, high = np.array(seeds, "int64").view("uint32").reshape(-1, 2).T
    numbers = np.repeat(np.arange(passes, dtype="uint32"), len(seeds))
    return np.stack([numbers, np.tile(high, passes), np.tile(low, passes)], axis=1)


@pytest.mark.parametrize("memory", [2**28, 2000])
def test_samples_are_summarised(model, exported, tmp_path, memory, monkeypatch):
    if memory != 2**28:
        monkeypatch.setattr("kdrop.serving.saved_model.MEMORY", memory)
        exported = tf.saved_model.load(str(export(model, tmp_path, passes=20)))
    seeds = np.array([0, 1, -1, 2**62, -(2**63), 5, 5])
    answer = exported.signatures["sample_seeded"]
    found = answer(inputs=tf.constant(POINTS), seeds=tf.constant(seeds))
    split = SplitModel(model)
    places = np.tile(np.arange(7, dtype="int32"), 20)
    outputs = split.sample(split.prefix(POINTS), places, own_rows(seeds, 20))
    expected = kdrop.summarise(np.reshape(outputs, (20, 7, 3)))
    assert set(found) == {"mean", "std", "entropy", "mutual_information"}
    for name, values in found.items():
        np.testing.assert_allclose(values, getattr(expected, name), atol=1e-6)
    assert (found["std"].numpy() > 0.01).any(axis=1).all()


def test_mutual_information_is_finite_where_passes_are_sure(model, exported):
    inputs, seeds = tf.constant(300 * POINTS), tf.range(7, dtype=tf.int64)
    found = exported.signatures["sample_seeded"](inputs=inputs, seeds=seeds)
    outputs = SplitModel(model).sample(
        SplitModel(model).prefix(inputs),
        np.tile(np.arange(7, dtype="int32"), 20),
        own_rows(np.arange(7), 20),
    )
    samples = np.reshape(outputs, (20, 7, 3))
    assert (samples[samples > 0] < 1e-9).any()
    expected = kdrop.summarise(samples).mutual_information
    np.testing.assert_allclose(found["mutual_information"], expected, atol=1e-6)


def test_seeded_samples_are_those_of_sample(model, exported):
    answer = exported.signatures["sample_seeded"]
    for seed in (0, 7, 2**32 - 1):
        served = answer(
            inputs=tf.constant(POINTS), seeds=tf.constant([seed] * 7, tf.int64)
        )
        for row in (0, 6):
            samples = kdrop.sample(model, POINTS[[row]], 20, seed=seed, verbose=0)
            expected = kdrop.summarise(samples)
            for name, values in served.items():
                one = getattr(expected, name)[0]
                np.testing.assert_allclose(values[row], one, atol=1e-6)


def test_seeded_samples_depend_on_a_row_s_own_seed_alone(exported):
    answer = exported.signatures["sample_seeded"]
    together = answer(inputs=tf.constant(POINTS), seeds=tf.range(7, dtype=tf.int64))
    for row in (0, 6):
        inputs, seeds = tf.constant(POINTS[[3, row]]), tf.constant([99, row], tf.int64)
        alone = answer(inputs=inputs, seeds=seeds)
        np.testing.assert_allclose(alone["mean"][1], together["mean"][row], atol=1e-6)


def test_two_processes_agree_on_a_seed_and_on_nothing_else(exported_path, tmp_path):
    np.save(tmp_path / "points.npy", POINTS)
    code = """
import sys
sys.modules["keras"] = sys.modules["kdrop"] = None  # an import of them raises
import numpy as np, tensorflow as tf
points = tf.constant(np.load("points.npy"))
loaded = tf.saved_model.load(sys.argv[2]).signatures
fresh = loaded["sample"](inputs=points)
seeded = loaded["sample_seeded"](inputs=points, seeds=tf.range(7, dtype=tf.int64))
np.savez(sys.argv[1], fresh=fresh["mean"], **seeded)
"""
    for name in ("one.npz", "other.npz"):
        command = [sys.executable, "-c", code, name, str(exported_path)]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    one, other = np.load(tmp_path / "one.npz"), np.load(tmp_path / "other.npz")
    assert (one["fresh"] != other["fresh"]).any(axis=1).all()
    for name in ("mean", "std", "entropy", "mutual_information"):
        np.testing.assert_array_equal(one[name], other[name])


def test_concurrent_samples_are_all_distinct(exported):
    sample = exported.signatures["sample"]
    inputs = tf.constant(np.repeat(POINTS[:1], 2, axis=0))
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda _: sample(inputs=inputs)["mean"], range(200))
    answers = np.concatenate([answer.numpy() for answer in answers])
    assert len(np.unique(answers, axis=0)) == 400


def reached(graph):
    """The nodes of a graph and of the functions that it calls, and those functions."""
    library = {function.signature.name: function for function in graph.library.function}
    nodes, functions, names = list(graph.node), [], set()
    for node in nodes:  # which grows meanwhile
        for value in node.attr.values():
            for called in [value.func, *value.list.func]:
                if called.name and called.name not in names:
                    names.add(called.name)
                    functions.append(library[called.name])
                    nodes += library[called.name].node_def
    return nodes, functions


def test_only_fresh_samples_are_random_and_nothing_needs_xla(exported):
    for name, signature in exported.signatures.items():
        nodes, functions = reached(signature.graph.as_graph_def())
        random = {node.op for node in nodes if "Random" in node.op}
        assert random == ({"RandomUniformInt"} if name == "sample" else set())
        assert not any(x.attr["_XlaMustCompile"].b for x in [*nodes, *functions])
        assert (len(nodes) > 100) == name.startswith("sample")


def test_at_rest_the_graph_holds_nothing_but_the_scaling_of_vanilla(tmp_path):
    def operations(dropout):
        path = export(kdrop.models.spiral_mlp(dropout), tmp_path)
        serve = tf.saved_model.load(str(path)).signatures["serve"]
        nodes, _ = reached(serve.graph.as_graph_def())
        return collections.Counter(node.op for node in nodes)

    assert operations(kdrop.InvertedDropout) == operations(None)
    scaling = operations(kdrop.VanillaDropout) - operations(None)
    assert scaling == {"Mul": 2, "Const": 2}  # of two layers


def test_a_regression_has_no_entropy_and_a_model_at_rest_no_samples(model, tmp_path):
    loaded = tf.saved_model.load(str(export(model, tmp_path, task="regression")))
    answer = loaded.signatures["sample"](inputs=tf.constant(POINTS))
    assert set(answer) == {"mean", "std"}
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    loaded = tf.saved_model.load(str(export(plain, tmp_path)))
    assert set(loaded.signatures) == {"serve", "serving_default"}


def test_the_keras_file_goes_on_as_the_model(model, tmp_path):
    path = export(model, tmp_path / "served")
    loaded = keras.models.load_model(path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(POINTS, verbose=0), model.predict(POINTS, verbose=0)
    )
    assert loaded.get_layer("drop").rate == 0.5


def test_it_holds_names_settings_versions_curves_and_pictures(model, tmp_path):
    path = export(
        model,
        tmp_path / "served",
        labels=LABELS,
        record={"settings": {"rate": 0.5}, "metrics": {"test_accuracy": 0.9}},
        history={"epoch": [1, 2], "loss": [0.5, 0.25]},
        draw=lambda folder: (folder / "picture.png").write_bytes(b"drawn"),
    )
    assert (path / "assets" / "labels.txt").read_text() == "cat\ndog\nemu\n"
    told = json.loads((path / "experiment.json").read_text())
    assert told["settings"] == {"rate": 0.5}
    assert told["metrics"] == {"test_accuracy": 0.9}
    assert told["made_with"]["tensorflow"] == tf.__version__
    assert told["made_with"]["keras"] == keras.__version__
    assert (path / "history.csv").read_text() == "epoch,loss\n1,0.5\n2,0.25\n"
    assert (path / "picture.png").read_bytes() == b"drawn"
    assert path.stat().st_mode & 0o777 == 0o755


def test_the_warm_up_is_requests_that_the_signatures_answer(exported_path, exported):
    records = tf.data.TFRecordDataset(str(exported_path / WARM_UP)).as_numpy_iterator()
    answers = {}
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record)
        request = log.predict_log.request
        assert request.model_spec.name == exported_path.parent.name
        name = request.model_spec.signature_name
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        answers[name] = exported.signatures[name](**inputs)
    assert list(answers) == ["serving_default", "sample"]
    assert answers["serving_default"]["probabilities"].shape == (1, 3)
    assert answers["sample"]["mean"].shape == (1, 3)


def test_versions_count_up_and_are_never_touched(model, tmp_path):
    folder = tmp_path / "served"
    first = export(model, folder)
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    (folder / "7").mkdir()
    (folder / "notes").mkdir()
    assert export(model, folder).name == "8"
    assert versions(folder) == [1, 7, 8]
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*")} == before


def test_a_version_taken_meanwhile_is_not_overwritten(model, tmp_path):
    folder = tmp_path / "served"

    def another_process(partial):
        (folder / "1").mkdir()
        (folder / "1" / "saved_model.pb").write_bytes(b"theirs")

    assert export(model, folder, draw=another_process).name == "2"
    assert (folder / "1" / "saved_model.pb").read_bytes() == b"theirs"


@pytest.mark.parametrize("stop", [OSError("disk full"), KeyboardInterrupt()])
def test_it_appears_whole_or_not_at_all(model, tmp_path, stop):
    folder = tmp_path / "served"
    export(model, folder)
    seen = []

    def fail(partial):
        # All but the pictures is written, and no server would take it for a version.
        seen.append(partial)
        assert (partial / "saved_model.pb").exists()
        assert not partial.name.isdecimal() and versions(folder) == [1]
        raise stop

    with pytest.raises(type(stop)):
        export(model, folder, draw=fail)
    assert [p.name for p in folder.iterdir()] == ["1"]
    assert not seen[0].exists()


def test_what_a_killed_process_left_is_swept_after_a_day(model, tmp_path):
    for name, age in (("old", 2 * 86400), ("new", 60)):
        left = tmp_path / f".partial-{name}"
        left.mkdir()
        os.utime(left, (time.time() - age,) * 2)
    export(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".partial-new", "1"]


def test_a_diverged_run_is_still_json(model, tmp_path):
    path = export(model, tmp_path, record={"metrics": {"test_loss": float("nan")}})
    told = json.loads((path / "experiment.json").read_text(), parse_constant=int)
    assert told["metrics"] == {"test_loss": None}


def test_a_folder_that_cannot_be_written_is_named(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/served cannot be written"):
        export(model, tmp_path / "file" / "served")
