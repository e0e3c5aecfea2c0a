"""Limits on requests, and what else a careless or hostile client may send."""

import contextlib
import json
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

httpx = pytest.importorskip("httpx", reason="KServe is not installed")
pytest.importorskip("kserve", reason="KServe is not installed: the extra serve")
from servers import running, wait_until  # noqa: E402

V1, V2 = "/v1/models/spiral:predict", "/v2/models/spiral/infer"
GOOD = {"instances": [[0.1, 0.2]]}
OPTIONS = ["--max-rows", 500, "--max-bytes", 100_000, "--max-requests", 3]
OPTIONS += ["--max-values", 4000]


@pytest.fixture(scope="module")
def client(exported_path, plain_path, tmp_path_factory):
    folder, log = (
        tmp_path_factory.mktemp("models"),
        tmp_path_factory.mktemp("l") / "log",
    )
    shutil.copytree(exported_path, folder / "spiral" / "00000123")
    shutil.copytree(plain_path, folder / "plain" / "3")
    with running(folder, log, options=OPTIONS) as (_, client):
        yield client
    assert "Traceback" not in log.read_text()


def assert_refused(answer, status, sentence):
    assert answer.status_code == status, answer.text
    (reason,) = answer.json().values()
    assert sentence in reason and len(reason) < 400 and "\n" not in reason


def v2(rows):
    data = [0.5] * (2 * rows)
    tensor = {"name": "inputs", "shape": [rows, 2], "datatype": "FP32", "data": data}
    return {"inputs": [tensor]}


def test_rows_are_limited(client):
    assert client.post(V1, json={"instances": [[1, 2]] * 500}).status_code == 200
    assert client.post(V2, json=v2(500)).status_code == 200
    sentence = "501 rows are too many: send up to 500"
    assert_refused(client.post(V1, json={"instances": [1] * 501}), 413, sentence)
    assert_refused(client.post(V2, json=v2(501)), 413, sentence)


def test_values_of_an_answer_are_limited(client):
    for rows in (40, 41):
        tensor = {"name": "inputs", "shape": [rows], "datatype": "INT32"}
        name, data = {"signature_name": "wide"}, [1] * rows
        for url, body in (
            ("/v1/models/plain:predict", {**name, "instances": data}),
            (
                "/v2/models/plain/infer",
                {"inputs": [{**tensor, "data": data}], "parameters": name},
            ),
        ):
            answer = client.post(url, json=body)
            if rows == 40:
                assert answer.status_code == 200, answer.text
            else:
                sentence = "an answer of 4100 values is too large: up to 4000"
                assert_refused(answer, 413, sentence)


@contextlib.contextmanager
def slow_clients(client, count, *contents):
    """Connections whose requests begin with these contents and never end."""
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n"
    address = client.base_url.host, client.base_url.port
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(address)) for _ in range(count)
        ]
        for content in (head % V1.encode(), *contents):
            for connection in connections:
                connection.sendall(content)
            time.sleep(0.3)  # until the server has read it
        yield


def test_slow_clients_with_too_many_bytes_harm_no_large_request(client):
    body = json.dumps(GOOD).encode().ljust(80_000)
    with slow_clients(client, 100, b" " * 90_000, b" " * 90_000):
        for _ in range(20):
            assert client.post(V1, content=body).status_code == 200


def test_what_slow_clients_store_is_limited(client):
    with slow_clients(client, 140, b" " * 2**16):
        wait_until(lambda: client.post(V1, json=GOOD).status_code == 503, 60)
        answer = client.post(V1, json=GOOD)
        assert_refused(answer, 503, "bytes of other requests")
        assert answer.headers["retry-after"] == "1"
    wait_until(lambda: client.post(V1, json=GOOD).status_code == 200, 60)


def chunks(count):
    for _ in range(count):
        yield b" " * 1000


@pytest.mark.parametrize("url", [V1, V2, "/v1/models/spiral:explain"])
def test_bytes_are_limited(client, url):
    expected = (404, "there is no") if "explain" in url else (413, "send up to 100000")
    for content in (b" " * 100_001, b"[" * 10_000_000, chunks(101)):
        assert_refused(client.post(url, content=content), *expected)
    if "explain" not in url:
        body = json.dumps(GOOD if url == V1 else v2(1)).encode()
        answer = client.post(url, content=body.ljust(100_000))
        assert answer.status_code == 200, answer.text


def test_compressed_bodies_are_refused(client):
    headers = {"content-encoding": "gzip"}
    answer = client.post(V1, content=b"\x1f\x8b", headers=headers)
    assert_refused(answer, 415, "must not be compressed")


@pytest.mark.parametrize("length", [b"10", b"9999999999", b"-1", b"x", b"1e3"])
def test_a_wrong_content_length_harms_no_other_request(client, length):
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address, timeout=60) as connection:
        head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n"
        connection.sendall(head % (V1.encode(), length) + b'{"a":')
        assert client.post(V1, json=GOOD).status_code == 200


def test_more_requests_than_allowed_are_refused_for_a_moment(client):
    slow, url = {"instances": [1_000_000]}, "/v1/models/plain:predict"
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(client.post, url, json=slow) for _ in range(6)]
        assert client.get("/v2/health/ready").json() == {"ready": True}
        answers = [each.result() for each in waiting]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 1 <= len(refused) <= 3
    for answer in refused:
        assert_refused(answer, 503, "3 requests are being answered")
        assert answer.headers["retry-after"] == "1"
    assert client.post(V1, json=GOOD).status_code == 200


def test_a_long_request_has_the_answers_of_its_rows(client, exported_path):
    rows = np.random.default_rng(0).normal(size=(500, 2)).astype("float32")
    seeds = np.arange(500)
    instances = [
        {"inputs": row, "seeds": seed}
        for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True)
    ]
    body = {"signature_name": "sample_seeded", "instances": instances}
    answer = client.post(V1, json=body).json()
    assert answer["model_version"] == "123"
    loaded = tf.saved_model.load(str(exported_path))
    expected = loaded.signatures["sample_seeded"](
        inputs=tf.constant(rows), seeds=tf.constant(seeds)
    )
    for name, values in expected.items():
        got = [row[name] for row in answer["predictions"]]
        np.testing.assert_allclose(got, values, atol=1e-5)


def test_unknown_verbs_and_closed_pages_are_not_found(client):
    for method, path in (
        ("POST", "/v1/models/spiral:explain"),
        ("POST", "/v1/models/spiral:regress"),
        ("GET", "/v1/models/spiral:predict"),
        ("POST", "/v1/models/spiral/versions/1:predict"),
        ("POST", "/v2/models/spiral/versions/1/infer"),
        ("GET", "/openapi.json"),
    ):
        answer = client.request(method, path)
        assert_refused(answer, 404, f"there is no {method} '{path}': the newest")
    for name in ("no", "a" * 5000, "%2e%2e", "a%2fb"):
        for path in (f"/v1/models/{name}:predict", f"/v2/models/{name}/infer"):
            answer = client.post(path, json=GOOD)
            assert answer.status_code == 404 and len(answer.text) < 300
    assert client.get("/docs").status_code == 404


@pytest.mark.parametrize("size", [7, 9, 800, 2**40, -8, 0, True, 8.0, "8", None])
def test_a_binary_size_that_is_not_that_of_the_body_is_refused(client, size):
    tensor = {"name": "inputs", "shape": [1, 2], "datatype": "FP32"}
    head = {"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}
    content = json.dumps(head).encode()
    headers = {"inference-header-content-length": str(len(content))}
    values = np.float32([[0.1, 0.2]]).tobytes()
    answer = client.post(V2, content=content + values, headers=headers)
    assert answer.status_code == 400, answer.text
    head["inputs"][0]["parameters"]["binary_data_size"] = 8
    content = json.dumps(head).encode()
    headers["inference-header-content-length"] = str(len(content))
    assert client.post(V2, content=content + values, headers=headers).status_code == 200


@pytest.mark.parametrize("size", [0, 8, 10**12])
def test_an_input_with_data_and_a_binary_size_is_refused(client, size):
    body = v2(1)
    body["inputs"][0]["parameters"] = {"binary_data_size": size}
    content = json.dumps(body).encode()
    length = {"inference-header-content-length": str(len(content))}
    for tail, headers in ((b"", {}), (b"", length), (b"x" * 8, length)):
        answer = client.post(V2, content=content + tail, headers=headers)
        assert_refused(answer, 400, "either data or a binary_data_size")
