"""The versions that the server loads, and the server under concurrent requests."""

import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdrop.serving import export
from kdrop.serving.signatures import WARM_UP

pytest.importorskip("httpx", reason="KServe is not installed")
pytest.importorskip("kserve", reason="KServe is not installed: the extra serve")
from servers import assert_a_thread_is_left, running, wait_until  # noqa: E402

V1, V2 = "/v1/models/spiral:predict", "/v2/models/spiral/infer"
INVALID = {"instances": [[1, 2, 3]]}


@pytest.fixture
def served():
    from kdrop.serving.server import ServedFolder

    return ServedFolder


def test_the_newest_version_that_can_be_loaded_is_served(
    served, plain_path, tmp_path, caplog
):
    caplog.set_level("INFO", "kdrop.serving")
    folder = tmp_path / "model"
    models = served(folder)
    (folder / "1").mkdir(parents=True)
    models.refresh()
    assert not models.models and "model/1, which cannot be loaded" in caplog.text
    shutil.copytree(plain_path, folder / "2")
    models.refresh()
    assert models.get_model("model").version == "2"
    shutil.copytree(plain_path, folder / "5")
    (folder / "5" / "saved_model.pb").write_bytes(b"broken")
    caplog.clear()
    models.refresh()
    models.refresh()
    assert models.get_model("model").version == "2"
    assert caplog.text.count("skipped") == 1  # once, not at each refresh
    shutil.copy(plain_path / "saved_model.pb", folder / "5")
    models.refresh()
    assert models.get_model("model").version == "5"
    shutil.rmtree(folder / "5")
    models.refresh()
    assert models.get_model("model").version == "2"


def test_a_loaded_version_that_breaks_is_served_on_and_not_tried_again(
    served, plain_path, tmp_path, caplog, monkeypatch
):
    shutil.copytree(plain_path, tmp_path / "model" / "1")
    models, loads, load = served(tmp_path / "model"), [], tf.saved_model.load
    monkeypatch.setattr(tf.saved_model, "load", lambda x: (loads.append(x), load(x))[1])
    models.refresh()
    for content in (b"broken", b"broken again"):
        (tmp_path / "model" / "1" / "saved_model.pb").write_bytes(content)
        for _ in range(3):
            models.refresh()
    assert models.get_model("model").ready and caplog.text.count("skipped") == 1
    assert len(loads) == 3  # once for each change of the files


def test_a_version_whose_warm_up_fails_is_skipped(served, exported_path, tmp_path):
    shutil.copytree(exported_path, tmp_path / "model" / "1")
    (tmp_path / "model" / "1" / WARM_UP).write_bytes(b"not a record")
    models = served(tmp_path / "model")
    models.refresh()
    assert not models.models


@pytest.fixture(scope="module")
def folder(exported_path, plain_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(exported_path, folder / "spiral" / "1")
    shutil.copytree(plain_path, folder / "plain" / "1")
    return folder


@pytest.fixture(scope="module")
def client(folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    with running(folder, log) as (process, client):
        yield client
        process.terminate()
        assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def expected(signatures, points):
    return signatures["serve"](inputs=tf.constant(points))["probabilities"].numpy()


@pytest.mark.slow
def test_slow_requests_of_few_rows_leave_a_thread_to_others(client):
    assert_a_thread_is_left(client, "wait", V1)


@pytest.mark.slow
def test_health_and_metrics(client, points):
    assert client.get("/v2/models/spiral/ready").json()["ready"]
    assert "spiral" in client.get("/v1/models").json()["models"]
    client.post(V1, json={"instances": points.tolist()})
    line = 'request_predict_seconds_count{model_name="spiral"}'
    assert line in client.get("/metrics").text


@pytest.mark.slow
def test_concurrent_requests_get_their_answers(client, signatures, request):
    count = request.config.getoption("--requests")
    points = np.random.default_rng(1).normal(size=(count, 2)).astype("float32")
    expected = signatures["serve"](inputs=tf.constant(points))["probabilities"]
    tensor = {"name": "inputs", "shape": [1, 2], "datatype": "FP32"}

    def ask(number):
        rows = points[number : number + 1].tolist()
        if number % 4 == 3:
            assert client.post(V1, json=INVALID).status_code == 400
        elif number % 4 == 2:
            body = {"inputs": [{**tensor, "data": rows}]}
            answer = client.post(V2, json=body).json()
            assert np.allclose(answer["outputs"][0]["data"], expected[number])
        else:
            answer = client.post(V1, json={"instances": rows}).json()
            assert np.allclose(answer["predictions"], expected[number : number + 1])
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(count))) == list(range(count))


@pytest.mark.slow
def test_a_new_version_takes_over_between_requests(
    client, folder, exported_path, expected, points, model, tmp_path
):
    url, body = "/v1/models/changing:predict", {"instances": points.tolist()}
    shutil.copytree(exported_path, tmp_path / "changing" / "1")
    (tmp_path / "changing").rename(folder / "changing")
    wait_until(lambda: client.post(url, json=body).status_code == 200)
    changed = keras.models.clone_model(model)
    second = changed.predict(points, verbose=0)
    assert not np.allclose(second, expected)
    answers = []

    def ask():
        while not answers or answers[-1]["model_version"] != "2":
            answers.append(client.post(url, json=body).json())

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        export(changed, folder / "changing", passes=1)
        asking.result(60)
    versions = [answer["model_version"] for answer in answers]
    assert versions[0] == "1" and versions == sorted(versions)
    for answer in answers:
        right = expected if answer["model_version"] == "1" else second
        np.testing.assert_allclose(answer["predictions"], right, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_sigterm_lets_a_request_finish_on_its_version(plain_path, tmp_path):
    folder, url = tmp_path / "slow", "/v1/models/slow:predict"
    shutil.copytree(plain_path, folder / "1")
    with running(folder, tmp_path / "log") as (process, client):
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(client.post, url, json={"instances": [600_000]})
            shutil.copytree(plain_path, tmp_path / "2")
            (tmp_path / "2").rename(folder / "2")
            quick = {"instances": [1]}
            wait_until(
                lambda: client.post(url, json=quick).json()["model_version"] == "2"
            )
            process.send_signal(signal.SIGTERM)
            assert not slow.done()
            answer = slow.result().json()
        assert answer == {"predictions": [600_000], "model_version": "1"}
        assert process.wait(60) == 0
