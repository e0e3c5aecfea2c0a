"""The exported folder: whole or not at all, and served as it is."""

import json
import os
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

import kdrop
from kdrop.data import BadInput
from kdrop.export import WARM_UP, export, versions

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
assert set(loaded.signatures) == {"serve", "serving_default"}
for name, serve in loaded.signatures.items():
    for batch in (1, 7):
        out = serve(inputs=tf.constant(np.load("points.npy")[:batch]))
        assert set(out) == {"probabilities"}
np.save("out.npy", out["probabilities"])
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    expected = model.predict(POINTS, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)
    assert path == tmp_path / "served" / "1"


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


def test_the_warm_up_is_a_request_that_the_signature_answers(model, tmp_path):
    path = export(model, tmp_path / "served")
    (record,) = tf.data.TFRecordDataset(str(path / WARM_UP)).as_numpy_iterator()
    request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
    assert request.model_spec.name == "served"
    serve = tf.saved_model.load(str(path)).signatures[request.model_spec.signature_name]
    inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
    assert serve(**inputs)["probabilities"].shape == (1, 3)


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
    with pytest.raises(BadInput, match="file/served cannot be written"):
        export(model, tmp_path / "file" / "served")
