"""The pages of the site have what there is, and name what exists.

That they build, and that their code runs, is for `.ci/run` to see.
"""

import ast
import re
from pathlib import Path

import pytest
from public_names import OBJECTS

from kdrop import layers

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS): path.read_text() for path in DOCS.rglob("*.md")}
PROMISES = PAGES[Path("promises.md")]


def page(name):
    return PAGES[Path(name)]


@pytest.mark.parametrize("name", [*OBJECTS, "kdrop.models", "kdrop.schedules"])
def test_a_public_name_is_documented_on_one_page(name):
    directive = rf"(?m)^\.\. auto(class|function|module):: {re.escape(name)}$"
    assert len(re.findall(directive, "\n".join(PAGES.values()))) == 1


@pytest.mark.parametrize(
    "command", ["train.py", "-m kdrop.serving", "-m kdrop.auditing"]
)
def test_options_are_documented_by_the_help_of_their_command(command):
    pages = "\n".join(PAGES.values())
    assert re.search(rf"(?m)^lines = !.*{re.escape(command)} --help", pages)


@pytest.mark.parametrize("name", layers.__all__)
def test_the_choice_of_a_layer_names_each(name):
    dimensions = re.sub("[123]D$", "", name)
    assert re.search(rf"`{dimensions}", page("guide/which_layer.md"))


def functions_in(path):
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }


def test_each_promise_is_held_by_tests_that_exist():
    sections = re.split(r"(?m)^## ", PROMISES)[1:]
    for section in sections:
        names = re.findall(r"(?m)^- `(\S+)::(\w+)`$", section)
        assert names or "benchmarks" in section, section
        for file, test in names:
            assert test in functions_in(ROOT / "tests" / file), test


def test_files_that_pages_name_exist():
    for name, text in PAGES.items():
        for path in re.findall(r"`((?:tests|examples|studies|docs)/[\w/.]+)`", text):
            assert (ROOT / path).exists(), f"{name} names {path}"


def test_each_example_is_on_a_page():
    programs = {path.name for path in (ROOT / "examples").glob("[a-z]*.py")}
    listed = set(re.findall(r"(?m)^\| `(\w+\.py)`", page("guide/examples.md")))
    assert listed == programs
