"""A server in a process of its own, for tests that speak HTTP to it."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx


@contextmanager
def running(folder, log, port=0, options=()):
    """A server process, and a client with a pool of connections to it."""
    command = [sys.executable, "-m", "kdrop.serving", str(folder)]
    command += ["--port", str(port), *map(str, options)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file)
    try:
        wait_until(lambda: "http://" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
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


def wait_until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def assert_a_thread_is_left(client, signature, url):
    """Slow requests to the model "plain" leave a thread to a short one."""
    tensor = {"name": "rounds", "shape": [1], "datatype": "INT32", "data": [600_000]}
    slow = {"inputs": [tensor], "parameters": {"signature_name": signature}}

    def post():
        return client.post("/v2/models/plain/infer", json=slow).status_code

    assert post() == 200  # from which the server learns the time
    count = os.cpu_count() + 2
    with ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(post) for _ in range(count)]
        wait_until(lambda: all(answer.running() for answer in answers))
        time.sleep(0.3)
        assert client.post(url, json={"instances": [[1, 2]]}).status_code == 200
        assert not any(answer.done() for answer in answers)
        assert [answer.result() for answer in answers] == [200] * count
