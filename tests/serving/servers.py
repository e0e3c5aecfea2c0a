"""A server in a process of its own, for tests that speak HTTP to it."""

import subprocess
import sys
import time
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
