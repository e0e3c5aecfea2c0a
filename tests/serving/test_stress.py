"""The server under stress, with its default limits; `pytest -m slow -s` prints figures.

Ninety-nine of a hundred short requests beside long ones take less than 250 ms.
"""

import json
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

import kdrop
from kdrop.serving import export

httpx = pytest.importorskip("httpx", reason="KServe is not installed")
pytest.importorskip("kserve", reason="KServe is not installed: the extra serve")
from servers import assert_a_thread_is_left, running, wait_until  # noqa: E402

pytestmark = pytest.mark.slow
V1, V2 = "/v1/models/spiral:predict", "/v2/models/spiral/infer"
POINT = {"instances": [[0.1, 0.2]]}


@pytest.fixture(scope="module")
def folder(plain_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = kdrop.models.spiral_mlp(kdrop.InvertedDropout, seed=0)
    export(model, folder / "spiral", labels=["a", "b", "c"])
    shutil.copytree(folder / "spiral", folder / "other")
    shutil.copytree(plain_path, folder / "plain" / "1")
    return folder


@pytest.fixture
def server(folder, tmp_path):
    log = tmp_path / "log"
    with running(folder, log) as (process, client):
        client.post(V1, json=POINT).raise_for_status()
        yield process, client
        assert process.poll() is None
    assert "Traceback" not in log.read_text()


def ask(client, stop, url=V1):
    """Ask for one point until `stop`; the seconds of each request."""
    seconds = []
    while not stop():
        began = time.perf_counter()
        answer = client.post(url, json=POINT)
        seconds.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
        time.sleep(0.005)
    return seconds


def p99(seconds):
    return f"p99 {1000 * np.quantile(seconds, 0.99):.0f} ms of {len(seconds)}"


def test_short_requests_beside_long_ones(server):
    _, client = server
    end = time.monotonic() + 3
    print("\nalone:", p99(ask(client, lambda: time.monotonic() > end)))
    rows = np.random.default_rng(0).normal(size=(15_000, 2)).round(3).tolist()
    long = {"signature_name": "sample", "instances": rows}
    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            began = time.monotonic()
            answers = [pool.submit(client.post, V1, json=long) for _ in range(2)]

            def done(answers=answers):
                return all(answer.done() for answer in answers)

            other = pool.submit(ask, client, done, "/v1/models/other:predict")
            seconds = ask(client, done)
            for answer in answers:
                assert len(answer.result().json()["predictions"]) == 15_000
            print(
                f"beside two of 15,000 sampled rows, {time.monotonic() - began:.1f} s:",
                f"{p99(seconds)}, another model {p99(other.result())}",
            )
            assert np.quantile(seconds, 0.99) < 0.25


def memory(process):
    with open(f"/proc/{process.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def test_the_largest_requests_leave_no_memory(server):
    process, client = server
    rows = {"instances": np.full((20_000, 2), 0.123456).tolist()}
    point = json.dumps(POINT).encode()
    size = 2**23
    numbers = (b'{"instances": [[' + size // 5 * b"0.12,")[: size - 4]
    bodies = {
        "20,000 rows": json.dumps(rows).encode(),
        "8 MiB of spaces": point.ljust(size),
        "8 MiB of numbers": numbers.rstrip(b".,") + b"]]}",
        "9 MiB": b" " * (9 * 2**20),
    }
    before = memory(process)
    for name, body in bodies.items():
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(client.post, V1, content=body) for _ in range(100)]
            statuses = {future.result().status_code for future in futures}
        after = memory(process)
        print(f"\n100 of {name}: {statuses}, memory {before:.0f} to {after:.0f} MB")
        assert statuses < {200, 400, 413} and after < before + 300


def hostile(random):
    """A request that is refused, as keywords of `httpx.Client.request`."""
    number = random.choice(["NaN", "1e999", "-1e400", "1" * 5000, '"x"', "null", "{}"])
    content = random.choice(
        [
            random.randbytes(random.randrange(200)),
            b"[" * 100_000,
            b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"instances": [[1, %s]]}' % number.encode(),
            b'{"signature_name": "%s", "instances": [[1, 2]]}' % (b"a" * 9000),
            json.dumps({"instances": [[1, 2]] * 20_001}).encode(),
            json.dumps(
                {
                    "inputs": [
                        {
                            "name": "inputs",
                            "shape": [10**9, 2],
                            "datatype": "FP32",
                            "data": [1],
                        }
                    ]
                }
            ).encode(),
        ]
    )
    headers = random.choice(
        [
            {},
            {"content-encoding": "gzip"},
            {"inference-header-content-length": str(random.randrange(-5, 300))},
            {"ce-id": "1", "ce-type": "x", "ce-source": "y", "ce-specversion": "1.0"},
            {"content-type": random.choice(["text/plain", "application/x", "ü"])},
        ]
    )
    names = ["spiral", "other", "no", "..", "%00", "a:b", "1", "spiral/versions/1", ""]
    name = random.choice(names)
    path = random.choice([V1, V2, "/v1/models/{}:explain", "/v2/models/{}/infer"])
    headers = {key: value.encode() for key, value in headers.items()}
    return {"url": path.format(name), "content": content, "headers": headers}


def test_good_requests_beside_hostile_ones_and_broken_versions(server, folder):
    process, client = server
    end = time.monotonic() + 30
    before, statuses, lock = memory(process), {}, threading.Lock()

    def over():
        return time.monotonic() > end

    def attack(seed):
        numbers = random.Random(seed)
        while not over():
            answer = client.request("POST", **hostile(numbers))
            with lock:
                count = statuses.get(answer.status_code, 0)
                statuses[answer.status_code] = count + 1
            assert 400 <= answer.status_code < 500, (answer.request.url, answer.text)
            assert "Traceback" not in answer.text and str(folder) not in answer.text

    def break_versions():
        versions = 0
        while not over():
            versions += 1
            path = folder / "other" / str(versions + 1)
            shutil.copytree(folder / "spiral" / "1", path)
            if versions % 2:
                (path / "saved_model.pb").write_bytes(b"broken")
            time.sleep(0.7)
            shutil.rmtree(path)
        return versions

    with ThreadPoolExecutor(8) as pool:
        attacks = [pool.submit(attack, seed) for seed in range(3)]
        breaking = pool.submit(break_versions)
        other = pool.submit(ask, client, over, "/v1/models/other:predict")
        seconds = ask(client, over)
        for future in attacks:
            future.result()
        print(
            f"\nhostile {statuses}, versions {breaking.result()}, {p99(seconds)}, "
            f"the model with broken versions {p99(other.result())}, "
            f"memory {before:.0f} to {memory(process):.0f} MB"
        )
    wait_until(lambda: client.post(V1, json=POINT).json()["model_version"] == "1", 60)
    assert memory(process) < before + 300


def test_slow_requests_whose_answer_has_no_rows_leave_a_thread(server):
    assert_a_thread_is_left(server[1], "wait_whole", V1)


def test_a_server_killed_under_load_can_be_restarted(folder, points, tmp_path):
    loaded = tf.saved_model.load(str(folder / "spiral" / "1"))
    expected = loaded.signatures["serve"](inputs=tf.constant(points))["probabilities"]
    body = json.dumps({"instances": points.tolist()})
    answers, errors, stop = [], [], threading.Event()

    def ask(url):
        with httpx.Client(timeout=600) as client:
            while not stop.is_set():
                try:
                    answer = client.post(url, content=body).json()["predictions"]
                except httpx.TransportError as error:
                    errors.append(error)
                    time.sleep(0.05)
                else:
                    np.testing.assert_allclose(answer, expected, rtol=1e-5)
                    answers.append(url)

    with ThreadPoolExecutor(4) as pool:
        try:
            with running(folder, tmp_path / "first") as (process, client):
                port = client.base_url.port
                asking = [pool.submit(ask, f"{client.base_url}{V1}") for _ in range(4)]
                wait_until(lambda: len(answers) > 100)
                process.kill()
                process.wait()
            wait_until(lambda: len(errors) > 4)
            before = len(answers)
            with running(folder, tmp_path / "second", port):
                wait_until(lambda: len(answers) > before + 100)
                stop.set()
                for each in asking:
                    each.result()
        finally:
            stop.set()
