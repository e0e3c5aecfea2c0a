"""The rules of the tree: who imports whom, and what an import costs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kdrop"
GROUPS = [
    {"backend", "reference", "bits", "votes", "watch"},
    {"kernels"},
    {"connections"},
    {"layers", "schedules"},
    {"stages"},
    {"ensemble", "models", "data", "plots"},
    {"devices", "figures", "interface", "pipeline", "progress", "voting"},
    {"experiment", "export"},
    {"servable"},
    {"comparison", "studies", "serving", "claims", "scaling"},
    {"benchmark"},
]
RANK = {name: rank for rank, names in enumerate(GROUPS) for name in names}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    "path",
    [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_a_file_imports_only_from_files_to_its_left(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imported(path):
        package, *rest = name.split(".")
        if package == "kdrop" and rest and rest[0] in RANK and rest[0] != own:
            assert RANK[rest[0]] < RANK[own], f"{path.name} imports {name}"
    assert own in RANK


@pytest.mark.parametrize(
    "path", list(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_only_plots_and_figures_know_matplotlib(path):
    knows = any(name.split(".")[0] == "matplotlib" for name in imported(path))
    assert knows == (path.stem in {"plots", "figures"})


def test_import_loads_neither_data_sets_nor_plots():
    # Keras itself imports matplotlib where it finds it.
    code = (
        "import sys, keras; before = set(sys.modules); import kdrop;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "assert not new & {'tensorflow_datasets', 'matplotlib', 'rich'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


@pytest.mark.parametrize("keras_first", [True, False])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_other_backends_are_refused_in_a_sentence(backend, keras_first):
    if keras_first:  # which asks for these itself
        pytest.importorskip({"numpy": "scipy", "torch": "torch"}[backend])
    code = f"{'import keras; ' * keras_first}import kdrop"
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: kdrop runs on the Keras backends tensorflow")
    assert f"Received: '{backend}'" in last


def test_reference_needs_numpy_alone():
    roots = {name.split(".")[0] for name in imported(PACKAGE / "reference.py")}
    assert roots - set(sys.stdlib_module_names) == {"numpy"}
