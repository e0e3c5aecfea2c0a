"""The model server: a real process, asked by many clients at once."""

import errno
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import keras
import numpy as np
import pytest
import tensorflow as tf

import kdrop
from kdrop.serving.saved_model import export

LABELS = ("red", "green", "blue")
POINTS = np.random.default_rng(0).normal(size=(9, 2)).round(3).tolist()
JSON = {"content-type": "application/json"}


@pytest.fixture
def serving():
    pytest.importorskip("kserve", reason="KServe is not installed: the extra serve")
    from kdrop.serving import __main__ as serving

    return serving


def spiral(folder, seed=0):
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Dense(8, activation="relu"),
        kdrop.InvertedDropout(0.5, seed=1, name="drop"),
        keras.layers.Dense(3, activation="softmax"),
    ]
    return export(keras.Sequential([keras.Input((2,)), *layers]), folder, labels=LABELS)


def mixed(folder):
    """A model of text, an integer and a truth value, that answers with text too."""
    keras.utils.set_random_seed(0)
    words = keras.layers.TextVectorization(output_sequence_length=4)
    words.adapt(["red fish", "blue"])
    inputs = {
        "text": keras.Input((1,), dtype="string", name="text"),
        "age": keras.Input((1,), dtype="int32", name="age"),
        "new": keras.Input((1,), dtype="bool", name="new"),
    }
    numbers = [words(inputs["text"]), inputs["age"], inputs["new"]]
    numbers = [keras.ops.cast(each, "float32") for each in numbers]
    joined = keras.layers.Concatenate()(numbers)
    joined = kdrop.InvertedDropout(0.5, seed=1, name="drop")(joined)
    color = keras.layers.Dense(3, activation="softmax")(joined)
    name = keras.layers.StringLookup(
        vocabulary=list(LABELS), oov_token="ü", invert=True
    )
    outputs = {"color": color, "name": name(keras.ops.argmax(color, axis=-1) + 1)}
    return export(keras.Model(inputs, outputs), folder, passes=5)


class Sampling(tf.Module):
    """As a signature that samples: several inputs and outputs, and time to pass."""

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 2), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        ]
    )
    def sample(self, inputs, seeds):
        summed = tf.reduce_sum(inputs, axis=1)
        return {"mean": summed + tf.cast(seeds, tf.float32), "std": inputs / 2}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)])
    def total(self, inputs):
        return {"total": tf.reduce_sum(inputs)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)])
    def raw(self, inputs):
        return {"raw": tf.repeat(tf.constant(b"\xff"), tf.size(inputs))}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)])
    def wait(self, rounds):
        def slower(number):
            return number + tf.cast(tf.sin(tf.cast(number, tf.float32)) < 2, tf.int32)

        last = tf.while_loop(lambda n: n < rounds[0], slower, [tf.constant(0)])[0]
        return {"last": tf.repeat(last, tf.size(rounds))}


def sampling(path):
    module = Sampling()
    signatures = {"serving_default": module.wait, "sample_seeded": module.sample}
    signatures |= {"total": module.total, "raw": module.raw}
    tf.saved_model.save(module, str(path), signatures=signatures)


@contextmanager
def running(folder, log, port=0):
    """A server, on a free port: its process and a client with a pool of connections."""
    httpx = pytest.importorskip("httpx", reason="KServe is not installed")
    command = [sys.executable, "-m", "kdrop.serving", str(folder)]
    command += ["--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file)
    try:
        end = time.monotonic() + 600
        while "http://" not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        address = log.read_text().split("at http://")[1].split()[0]
        transport = httpx.HTTPTransport(retries=50)  # of connecting
        with httpx.Client(
            base_url=f"http://{address}", transport=transport, timeout=600
        ) as client:
            assert client.get("/v2/health/ready").json() == {"ready": True}
            yield process, client
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    spiral(folder / "spiral")
    spiral(folder / "spiral" / ".partial-9")  # what a stopped export leaves
    sampling(folder / "sampling" / "3")
    mixed(folder / "mixed")
    return folder


@pytest.fixture(scope="module")
def client(folder, tmp_path_factory):
    pytest.importorskip("kserve", reason="KServe is not installed: the extra serve")
    log = tmp_path_factory.mktemp("log") / "log"
    with running(folder, log) as (process, client):
        yield client
        process.terminate()
        assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()


def serve(folder, points, version=1):
    loaded = tf.saved_model.load(str(folder / str(version)))
    outputs = loaded.signatures["serve"](inputs=tf.constant(points, tf.float32))
    return outputs["probabilities"].numpy()


def tensor(data, shape, datatype="FP32", name="inputs"):
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def test_v1_answers_as_the_saved_model(client, folder):
    expected = serve(folder / "spiral", POINTS)
    url = "/v1/models/spiral:predict"
    for request in (
        {"instances": POINTS},
        {"signature_name": "serve", "instances": POINTS},
        {"signature_name": "serve", "instances": [{"inputs": p} for p in POINTS]},
    ):
        plain = client.post(url, content=json.dumps(request))  # as curl -d sends it
        for answer in (client.post(url, json=request), plain):
            assert answer.status_code == 200
            told = answer.json()
            np.testing.assert_allclose(told.pop("predictions"), expected, rtol=1e-5)
            assert told == {"labels": list(LABELS), "model_version": "1"}


def test_v2_answers_as_the_saved_model(client, folder):
    expected = serve(folder / "spiral", POINTS)
    for data in (POINTS, np.ravel(POINTS).tolist()):
        request = {
            "id": "mine",
            "inputs": [tensor(data, [9, 2])],
            "parameters": {"signature_name": "serve"},
        }
        told = client.post("/v2/models/spiral/infer", json=request).json()
        (output,) = told["outputs"]
        found = np.reshape(output["data"], output["shape"])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
        assert (told["id"], told["model_version"]) == ("mine", "1")
        assert json.loads(told["parameters"]["labels"]) == list(LABELS)
    described = client.get("/v2/models/spiral").json()
    assert described["inputs"] == [
        {"name": "inputs", "datatype": "FP32", "shape": [-1, 2]}
    ]
    assert described["outputs"][0]["shape"] == [-1, 3]


def test_several_inputs_and_outputs_are_objects(client):
    rows = [{"inputs": [1, 2.5], "seeds": 7}, {"inputs": [0, -1], "seeds": -3}]
    request = {"signature_name": "sample_seeded", "instances": rows}
    told = client.post("/v1/models/sampling:predict", json=request).json()
    assert told == {
        "predictions": [
            {"mean": 10.5, "std": [0.5, 1.25]},
            {"mean": -4.0, "std": [0.0, -0.5]},
        ],
        "model_version": "3",
    }


TEXTS = ["Red fish!", "", "blau \u2713 \0"]
MIXED = {"text": TEXTS, "age": [7, 0, -3], "new": [True, False, True]}


def mixed_answer(folder, signature="serve", **more):
    loaded = tf.saved_model.load(str(folder / "mixed" / "1")).signatures[signature]
    columns = {name: np.reshape(MIXED[name], (3, 1)) for name in ("age", "new")}
    columns["age"] = columns["age"].astype("int32")
    columns["text"] = np.array(TEXTS, dtype=object)[:, None]
    answer = loaded(**{k: tf.constant(x) for k, x in {**columns, **more}.items()})
    return {name: output.numpy() for name, output in answer.items()}


def test_v1_takes_and_answers_text_numbers_and_truth_values(client, folder):
    url = "/v1/models/mixed:predict"
    rows = [{name: [MIXED[name][row]] for name in MIXED} for row in range(3)]
    predictions = client.post(url, json={"instances": rows}).json()["predictions"]
    expected = mixed_answer(folder)
    for row, color, name in zip(
        predictions, expected["color"], expected["name"], strict=True
    ):
        np.testing.assert_allclose(row["color"], color, rtol=1e-5)
        assert row["name"] == name.decode() in LABELS
        assert set(row) == {"color", "name"}
    for number, row in enumerate(rows):
        row["seeds"] = number
    request = {"signature_name": "sample_seeded", "instances": rows}
    predictions = client.post(url, json=request).json()["predictions"]
    sampled = mixed_answer(folder, "sample_seeded", seeds=np.arange(3))
    assert sampled["color_std"].max() > 0.01
    for number, row in enumerate(predictions):
        assert set(row) == {
            f"color_{x}" for x in ("mean", "std", "entropy", "mutual_information")
        }
        for name, values in row.items():
            np.testing.assert_allclose(values, sampled[name][number], atol=1e-6)


def test_v2_takes_and_answers_text_numbers_and_truth_values(client, folder):
    url, types = (
        "/v2/models/mixed/infer",
        {"text": "BYTES", "age": "INT32", "new": "BOOL"},
    )
    inputs = [tensor(MIXED[name], [3, 1], types[name], name) for name in types]
    expected = mixed_answer(folder)
    answer = client.post(url, json={"inputs": inputs}).json()
    tensors = {output["name"]: output for output in answer["outputs"]}
    assert {name: x["datatype"] for name, x in tensors.items()} == {
        "color": "FP32",
        "name": "BYTES",
    }
    color = np.reshape(tensors["color"]["data"], tensors["color"]["shape"])
    np.testing.assert_allclose(color, expected["color"], rtol=1e-5)
    assert tensors["name"]["data"] == [name.decode() for name in expected["name"]]
    described = client.get("/v2/models/mixed").json()
    declared = {
        each["name"]: (each["datatype"], each["shape"]) for each in described["inputs"]
    }
    assert declared == {name: (datatype, [-1, 1]) for name, datatype in types.items()}
    # Text as bytes behind the JSON, each with its length before it.
    raw = b"".join(
        len(text).to_bytes(4, "little") + text for text in map(str.encode, TEXTS)
    )
    inputs[0] = tensor(None, [3, 1], "BYTES", "text")
    del inputs[0]["data"]
    inputs[0]["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    headers["content-type"] = "application/octet-stream"
    binary = client.post(url, content=head + raw, headers=headers).json()
    assert binary["outputs"] == answer["outputs"]


def test_health_and_metrics(client):
    assert client.get("/v2/models/spiral/ready").json()["ready"]
    models = client.get("/v1/models").json()["models"]
    assert {"spiral", "sampling"} <= set(models)
    client.post("/v1/models/spiral:predict", json={"instances": POINTS})
    line = 'request_predict_seconds_count{model_name="spiral"}'
    assert line in client.get("/metrics").text


V1 = "/v1/models/spiral:predict"
SAMPLING = "/v1/models/sampling:predict"
V2 = "/v2/models/spiral/infer"
BAD = {
    V1: [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        *({"instances": rows} for rows in ([], None, {}, 3, "ab", [[]], [[[1, 2]]])),
        *({"instances": rows} for rows in ([1, 2], [[1]], [[1, 2, 3]], [[1, 2], [3]])),
        *({"instances": [[1, x]]} for x in ("2", None, True, [], {}, 1e39, 10**400)),
        *(b'{"instances": [[1, %s]]}' % x for x in (b"NaN", b"Infinity", b"1e999")),
        *({"instances": [x]} for x in ({}, {"input": [1, 2]}, {"inputs": [1]})),
        {"instances": [{"inputs": [1, 2]}, [1, 2]]},
        *({"signature_name": x, "instances": [[1, 2]]} for x in ("no", 1, [], "")),
        *([], 3, "instances", None, {"inputs": [[1, 2]]}),
    ],
    "/v1/models/nobody:predict": [{"instances": [[1, 2]]}],
    SAMPLING: [
        {"signature_name": "sample_seeded", "instances": [row]}
        for row in (
            [1, 2],
            {"inputs": [1, 2]},
            {"inputs": [1, 2], "seeds": 1.5},
            {"inputs": [1, 2], "seeds": True},
            {"inputs": [1, 2], "seeds": 2**31},
            {"inputs": [1, 2], "seeds": 2**70},
            {"inputs": [1, 2], "seeds": [1]},
            {"inputs": [1, 2], "seeds": 1, "more": 1},
        )
    ]
    + [{"signature_name": x, "instances": [1, 2]} for x in ("total", "raw")],
    "/v1/models/mixed:predict": [
        {"instances": [{"text": ["a"], "age": [1], "new": [True], **row}]}
        for row in (
            *({"text": [x]} for x in (1, None, True, ["a"], {"b64": "YQ=="})),
            *({"age": [x]} for x in ("1", 1.5, True, None)),
            *({"new": [x]} for x in (1, "true", None)),
            *({"text": "a"}, {"other": 1}),
        )
    ]
    + [b'{"instances": [{"text": ["\\ud800"], "age": [1], "new": [true]}]}'],
    "/v2/models/mixed/infer": [
        {
            "inputs": [
                tensor(text, shape, datatype, "text"),
                tensor([1], [1, 1], "INT32", "age"),
                tensor([True], [1, 1], "BOOL", "new"),
            ]
        }
        for text, shape, datatype in (
            (["a"], [1, 1], "STRING"),
            (["a"], [1, 2], "BYTES"),
            ([1], [1, 1], "BYTES"),
            (["a", "b"], [2, 1], "BYTES"),
        )
    ],
    V2: [
        *(b"", b"{", b"[" * 100_000, [], {}, "text", {"inputs": []}),
        *({"inputs": [tensor([1, 2], shape)]} for shape in ([2], [2, 1], [1, 3], [])),
        *({"inputs": [tensor([1, 2], shape)]} for shape in ([-1, 2], [1, -2], [2**70])),
        *({"inputs": [tensor([], shape)]} for shape in ([0, 2], [2**32, 2**32])),
        *({"inputs": [tensor([1, x], [1, 2])]} for x in ("2", None, True, 1e39)),
        b'{"inputs": [{"name": "inputs", "shape": [1, 2], "datatype": "FP32", '
        b'"data": [NaN, 1]}]}',
        *({"inputs": [tensor([1, 2], [1, 2], x)]} for x in ("INT32", "FP64", "?", 1)),
        {"inputs": [tensor([1, 2], [1, 2], name="other")]},
        {"inputs": [tensor([1, 2], [1, 2])] * 2},
        {"inputs": [tensor([1, 2], [1, 2])], "outputs": [{"name": "no"}]},
        {"inputs": [tensor([1, 2], [1, 2])], "parameters": {"signature_name": "no"}},
        {"inputs": [tensor([1, 2], [1, 2])], "id": 3},
    ],
    "/v2/models/nobody/infer": [{"inputs": [tensor([1, 2], [1, 2])]}],
    "/v2/repository/models/spiral/unload": [{}],
}


def refused(answer):
    assert 400 <= answer.status_code < 500, (answer.request.content[:80], answer.text)
    (sentence,) = answer.json().values()
    assert isinstance(sentence, str) and 0 < len(sentence) < 300
    assert "\n" not in sentence and "Traceback" not in sentence


@pytest.mark.parametrize("url", BAD)
def test_what_cannot_be_answered_is_refused_in_a_sentence(client, url):
    for bad in BAD[url]:
        content = bad if isinstance(bad, bytes) else json.dumps(bad)
        refused(client.post(url, content=content, headers=JSON))
        refused(client.post(url, content=content))  # without its type


@pytest.mark.parametrize("length", ["x", "-1", "2", "20", "10000"])
def test_a_binary_request_that_cannot_be_read_is_refused(client, length):
    headers = {"inference-header-content-length": length}
    headers["content-type"] = "application/octet-stream"
    for content in (b"{}", b'{"inputs": [{}], "a": 1}', b'{"inputs": 3, "b": 1}', b"x"):
        refused(client.post(V2, content=content, headers=headers))


def test_no_request_of_many_at_once_is_lost_or_mistaken(client, folder, request):
    count = request.config.getoption("--requests")
    points = np.random.default_rng(1).normal(size=(count, 2)).astype("float32")
    expected = serve(folder / "spiral", points)
    bad = [(url, each) for url in BAD for each in BAD[url]]

    def ask(number):
        if number % 4 == 3:
            url, each = bad[number // 4 % len(bad)]
            content = each if isinstance(each, bytes) else json.dumps(each)
            refused(client.post(url, content=content, headers=JSON))
        elif number % 4 == 2:
            row = tensor(points[number].tolist(), [1, 2])
            told = client.post(V2, json={"inputs": [row]}).json()
            assert np.allclose(told["outputs"][0]["data"], expected[number])
        else:
            rows = points[number : number + 1].tolist()
            told = client.post(V1, json={"instances": rows}).json()
            assert np.allclose(told["predictions"], expected[number : number + 1])
        return number

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(ask, range(len(points)))) == list(range(len(points)))


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_that_is_killed_under_load_comes_back(serving, folder, tmp_path):
    import httpx

    expected, rows = serve(folder / "spiral", POINTS), {"instances": POINTS}
    right, lost, stop = [], [], threading.Event()

    def ask(url):
        with httpx.Client(timeout=600) as client:
            while not stop.is_set():
                try:
                    told = client.post(url, json=rows).json()["predictions"]
                except httpx.TransportError as error:
                    lost.append(error)
                    time.sleep(0.05)
                else:
                    np.testing.assert_allclose(told, expected, rtol=1e-5)
                    right.append(url)

    with ThreadPoolExecutor(4) as pool:
        try:
            with running(folder, tmp_path / "first") as (process, client):
                port = client.base_url.port
                asking = [pool.submit(ask, f"{client.base_url}{V1}") for _ in range(4)]
                until(lambda: len(right) > 100)
                process.kill()
                process.wait()
            until(lambda: len(lost) > 4)
            before = len(right)
            with running(folder, tmp_path / "second", port):
                until(lambda: len(right) > before + 100)
                stop.set()
                for each in asking:
                    each.result()
        finally:
            stop.set()


def test_a_new_version_takes_over_between_requests(client, folder):
    url = "/v1/models/changing:predict"
    spiral(folder / "changing", seed=1)  # a new model is found too
    until(lambda: client.post(url, json={"instances": POINTS}).status_code == 200)
    seen = []

    def ask():
        while not seen or seen[-1][0] != "2":
            answer = client.post(url, json={"instances": POINTS}).json()
            seen.append((answer["model_version"], answer["predictions"]))

    asking = threading.Thread(target=ask)
    asking.start()
    spiral(folder / "changing", seed=2)
    asking.join(60)
    assert seen[0][0] == "1" and seen[-1][0] == "2"
    for version in (1, 2):
        expected = serve(folder / "changing", POINTS, version)
        for told, predictions in seen:
            if told == str(version):
                np.testing.assert_allclose(predictions, expected, rtol=1e-5)
    assert [told for told, _ in seen] == sorted(told for told, _ in seen)


def test_sigterm_lets_a_request_end_on_the_version_that_it_began_with(
    serving, tmp_path
):
    folder = tmp_path / "slow"
    sampling(folder / "1")
    url = "/v1/models/slow:predict"
    with running(folder, tmp_path / "log") as (process, client):
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(client.post, url, json={"instances": [600_000]})
            shutil.copytree(folder / "1", tmp_path / "2")
            (tmp_path / "2").rename(folder / "2")
            quick = {"instances": [1]}
            until(lambda: client.post(url, json=quick).json()["model_version"] == "2")
            process.send_signal(signal.SIGTERM)
            assert not slow.done()
            told = slow.result().json()
        assert told == {"predictions": [600_000], "model_version": "1"}
        assert process.wait(60) == 0


def test_a_broken_version_leaves_the_old_one(serving, tmp_path, caplog):
    folder = tmp_path / "model"
    models = serving.ServedFolder(folder)
    (folder / "1").mkdir(parents=True)
    models.refresh()
    assert not models.models and "model/1 is left out" in caplog.text
    spiral(folder)
    models.refresh()
    model = models.get_model("model")
    assert model.servable.version == 2
    shutil.copytree(folder / "2", folder / "5")
    (folder / "5" / "saved_model.pb").write_bytes(b"broken")
    caplog.clear()
    models.refresh()
    models.refresh()
    assert model.servable.version == 2
    assert caplog.text.count("model/5 is left out") == 1  # said once, not each second
    shutil.copy(folder / "2" / "saved_model.pb", folder / "5")
    models.refresh()
    assert model.servable.version == 5
    shutil.rmtree(folder / "5")  # the way back
    models.refresh()
    assert model.servable.version == 2


def test_a_version_whose_warm_up_fails_is_broken(serving, tmp_path):
    path = spiral(tmp_path / "model")
    (path / kdrop.serving.saved_model.WARM_UP).write_bytes(b"not a record")
    models = serving.ServedFolder(path.parent)
    models.refresh()
    assert not models.models


@pytest.fixture
def command(serving, monkeypatch):
    """The command line in this process, its signal handlers taken back."""
    handlers = {
        each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)
    }

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdrop.serving", *map(str, arguments)])
        return serving.main()

    yield run
    for each, handler in handlers.items():
        signal.signal(each, handler)


def test_a_folder_without_models_is_told(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / ".partial-1").mkdir()
    for folder, reason in (
        (tmp_path / "nowhere", "there is no folder"),
        (tmp_path / "file", "there is no folder"),
        (tmp_path, "holds no model"),
    ):
        assert command(folder, "--port", 0) == 2
        sentence = capsys.readouterr().err
        assert sentence.count("\n") == 1 and reason in sentence
        assert str(folder) in sentence


def test_an_address_that_cannot_be_had_is_told(command, folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command(folder, "--port", port) == 2
    reason = os.strerror(errno.EADDRINUSE)
    told = f"kdrop.serving: 127.0.0.1 port {port} cannot be served: {reason}\n"
    assert capsys.readouterr().err == told
    for wrong in (["--port", 70000], ["--host", "no.such.host.invalid"]):
        assert command(folder, *wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_without_kserve_it_says_what_to_install(monkeypatch, capsys):
    for name in ("kserve", "fastapi.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("kdrop.serving", "kdrop.serving.model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("kdrop.serving", run_name="__main__")
    assert end.value.code == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1 and "pip install '.[serve]'" in sentence
