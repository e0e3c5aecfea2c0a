"""Chromium without a window, driven by its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
FLAGS += "--disable-background-networking --disable-component-update --disable-sync "
FLAGS += "--remote-debugging-port=0 --remote-allow-origins=*"


class Tab:
    """An open page; `messages` are its errors, among them those of its policy."""

    def __init__(self, connection):
        self._connection, self._count, self.messages = connection, 0, []
        for domain in ("Page", "Log", "Runtime", "DOM"):
            self.command(f"{domain}.enable")

    def command(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(60))
            if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.messages.append(answer["params"])
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, code):
        """The value of an expression of JavaScript."""
        answer = self.command("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, code):
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + 60
        while not (value := self.run(code)):
            assert time.monotonic() < end, code
            time.sleep(0.05)
        return value

    def open(self, url):
        self.command("Page.navigate", url=url)
        self.wait_for(
            f"location.href === {url!r} && document.readyState === 'complete'"
        )

    def click(self, x, y):
        """Press and release the mouse at a place of the window, in pixels."""
        where = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, **where)

    def choose_file(self, selector, path):
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector=selector)
        self.command("DOM.setFileInputFiles", files=[str(path)], **node)

    def screenshot(self, path):
        data = self.command("Page.captureScreenshot")["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(folder):
    """A tab of a new browser, whose profile is in the folder."""
    client = pytest.importorskip("websockets.sync.client")
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder}", "about:blank"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)
    try:
        file, end = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (file.exists() and len(file.read_text().split()) == 2):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        port, path = file.read_text().split()
        address = f"ws://127.0.0.1:{port}"
        with client.connect(address + path, max_size=None) as connection:
            connection.send('{"id": 1, "method": "Target.getTargets"}')
            targets = json.loads(connection.recv(60))["result"]["targetInfos"]
        (page,) = [x["targetId"] for x in targets if x["type"] == "page"]
        url = f"{address}/devtools/page/{page}"
        with client.connect(url, max_size=None) as connection:
            yield Tab(connection)
    finally:
        process.terminate()
        process.wait()
