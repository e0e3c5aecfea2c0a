"""The page at the server's root: what it says, its headers, and what it asks."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("kserve", reason="KServe is not installed: the extra serve")
from kdrop.serving import page as page_module  # noqa: E402
from kdrop.training import plot_style  # noqa: E402


class Elements(HTMLParser):
    """The elements of the page: tag, attributes and text, of those without children."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        self.elements.append(["", {}, ""])  # of the text that follows

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2] += data

    def content(self, tag, **attributes):
        (found,) = [x for t, a, x in self.elements if (t, a) == (tag, attributes)]
        return found


def described(text):
    elements = Elements(text)
    return json.loads(elements.content("script", type="application/json", id="served"))


def test_the_page_describes_what_is_served(client):
    models = {model["name"]: model for model in described(client.get("/").text)}
    assert models.keys() == {"spiral", "plain", "mixed"}
    assert models["spiral"] == {
        "name": "spiral",
        "version": "1",
        "labels": ["red", "green", "blue"],
        "signature": "sample",
        "inputs": [{"name": "inputs", "datatype": "FP32", "shape": [-1, 2]}],
    }
    assert models["plain"]["version"] == "3" and models["plain"]["labels"] == []
    assert models["plain"]["signature"] == "serving_default"
    kinds = {x["name"]: (x["datatype"], x["shape"]) for x in models["mixed"]["inputs"]}
    assert kinds == {
        "text": ("BYTES", [-1, 1]), "age": ("INT32", [-1, 1]), "new": ("BOOL", [-1, 1])
    }  # fmt: skip


def test_a_request_for_the_described_signature_is_answered(client):
    models = {model["name"]: model for model in described(client.get("/").text)}
    zeros = {"text": [""], "age": [0], "new": [False]}
    for name, instance in {"spiral": [0, 0], "plain": 0, "mixed": zeros}.items():
        body = {"signature_name": models[name]["signature"], "instances": [instance]}
        answer = client.post(f"/v1/models/{name}:predict", json=body)
        assert answer.status_code == 200, answer.text


def test_the_browser_may_run_only_the_script_of_the_page(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(x.split(" ", 1) for x in _policy(answer).split("; "))
    elements = Elements(answer.text)
    for tag in ("script", "style"):
        digest = hashlib.sha256(elements.content(tag).encode()).digest()
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def _policy(answer):
    return answer.headers["content-security-policy"]


def test_the_page_needs_nothing_from_elsewhere(client):
    text = client.get("/").text
    assert set(re.findall(r"https?://[^\"'\s]*", text)) == {
        "http://www.w3.org/2000/svg"
    }
    assert not re.search(r"@import|url\(|\bsrc=|innerHTML|insertAdjacent|eval\(", text)
    references = [a["href"] for _, a, _ in Elements(text).elements if "href" in a]
    assert references == ["data:,"]
    assert "color-scheme: light dark" in text and "width=device-width" in text


def test_a_label_cannot_end_the_script():
    class Model:
        def describe(self):
            return {"name": "a", "labels": ["</script><script>alert(1)</script>", "é"]}

    text = page_module.page([Model()]).body.decode()
    assert "alert(1)</script>" not in text
    assert described(text)[0]["labels"] == Model().describe()["labels"]


def test_the_root_is_read_alone(client):
    assert client.head("/").status_code == 200
    assert client.post("/").status_code == 405


def test_the_colours_are_those_of_the_pictures():
    lines = re.findall(r"COLOURS.*(?:\[|push\().*", page_module.PAGE)
    assert re.findall("#[0-9A-F]{6}", "".join(lines[:2])) == plot_style.COLOURS
