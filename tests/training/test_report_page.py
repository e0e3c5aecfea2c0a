"""The page of an exported model: complete, of one file, and escaped."""

import base64
import json
import re
from dataclasses import asdict, fields
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdrop.training.arguments import option
from kdrop.training.experiment import Experiment
from kdrop.training.report import Results
from kdrop.training.report_page import report_page, request_to

HOSTILE = "<script>alert('\"&')</script>"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and each cell of a table."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.open, self.text, self.cells = [], [], "", []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open += [] if tag in VOID else [tag]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & {*self.open}:
            self.cells[-1] += data


def page(**changes):
    record = {
        "settings": asdict(Experiment.preset("spiral", rate=(0.25, 0.125))),
        "rates": {"drop_1": 0.25},
        "metrics": {"test_accuracy": 0.896, "test_loss": None},
        "passes": 7,
        "voted_on": 3000,
        "made_with": {"kdrop": "1.2.3", "commit": None},
    }
    table = Results("of runs", ["dropout", "loss\ntest"], [["none", "0.250 ± 0.125"]])
    arguments = {
        "folder": Path("my models/spiral-none"),
        "record": json.loads(json.dumps(record)),  # as it is read from the file
        "labels": ["arm 0", "arm 1"],
        "tables": [table],
        "sentences": ["With A: it is so."],
        "pictures": {"curves": b"\x89PNG curves", "regions": b"\x89PNG regions"},
        "request": "curl 1",
        **changes,
    }
    return report_page(**arguments)


def test_a_page_has_all_settings_results_and_versions():
    seen = Page(page())
    assert seen.open == [] and seen.tags[0][0] == "html"
    cells = seen.cells
    for field in fields(Experiment):
        assert cells.count(option(field.name)) == 1
    for name, value in {
        **{"--rate": "0.25 0.125", "--input-rate": "the network's", "--epochs": "20"},
        **{"none": "0.250 ± 0.125", "rate of drop_1": "0.25", "kdrop": "1.2.3"},
        **{
            "test accuracy": "0.896",
            "test loss": "not a number",
            "classes": "arm 0, arm 1",
        },
        **{"Monte Carlo samples": "7", "they vote on": "3000"},
    }.items():
        assert cells[cells.index(name) + 1] == value
    for text in ("With A: it is so.", "of runs", "curl 1", "spiral-none"):
        assert text in seen.text
    assert "python -m kdrop.serving 'my models'" in seen.text
    assert "AdamW with --weight-decay" in seen.text  # an option, not an argument


def test_a_page_holds_its_pictures_in_order():
    sources = [x["src"] for tag, x in Page(page()).tags if tag == "img"]
    start = "data:image/png;base64,"
    assert all(source.startswith(start) for source in sources)
    pictures = [base64.b64decode(source.removeprefix(start)) for source in sources]
    assert pictures == [b"\x89PNG regions", b"\x89PNG curves"]


def test_a_page_needs_no_other_file_and_no_script():
    content = page()
    references = [
        value
        for _, attributes in Page(content).tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action") and value[:5] != "data:"
    ]
    assert references == ["http://127.0.0.1:8501"]  # the link to one's own server
    assert not re.search(r"<script|<link|@import|url\(|\son\w+=", content)
    assert "color-scheme: light dark" in content and "width=device-width" in content


@pytest.mark.parametrize("place", ["labels", "sentences", "request", "folder"])
def test_what_comes_from_outside_is_escaped(place):
    table = Results(HOSTILE, [HOSTILE, f"\n{HOSTILE}"], [[HOSTILE, HOSTILE]])
    changes = {
        "labels": {"labels": [HOSTILE]},
        "sentences": {"sentences": [HOSTILE], "tables": [table]},
        "request": {"request": HOSTILE},
        "folder": {"folder": Path("models") / HOSTILE.replace("/", "\\")},
    }[place]
    content = page(**changes)
    seen = Page(content)
    assert not [tag for tag, _ in seen.tags if tag == "script"]
    assert "<script" not in content and "alert" in seen.text


def test_a_request_has_the_shape_of_the_inputs():
    url = "127.0.0.1:8501/v1/models/a-b:predict"
    assert request_to("a-b", (2,), "sample") == (
        f"""curl {url} \\
    -d '{{"signature_name": "sample", "instances": [[0.0, 0.0]]}}'"""
    )
    command = request_to("a-b", (4, 3, 1), "serve")
    (program,) = re.findall(r'python -c "import json; print\((.*)\)"', command)
    body = json.loads(eval(program, {"json": json}))
    assert body == {"signature_name": "serve", "instances": [[[[0]] * 3] * 4]}
    assert command.endswith(f"| curl {url} -d @-")
