"""The rules of the tree: who imports whom, and what an import costs."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

import kdrop

ROOT = Path(__file__).parent.parent
# Each part may import from the parts before it, and from itself.
FLOORS = [
    {"kdrop.errors", "kdrop.backend"},
    {"kdrop.keras_internals", "kdrop.schedules"},
    {"kdrop.masks"},
    {"kdrop.layers"},
    {"kdrop.models", "kdrop.ensemble", "kdrop.auditing"},
    {"kdrop.serving"},
    {"kdrop.training"},
    {"train", "examples"},
    {"benchmarks"},
    {"studies"},
]
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
FILES = [
    path.relative_to(ROOT)
    for folder in ("kdrop", "examples", "benchmarks", "studies")
    for path in (ROOT / folder).rglob("*.py")
    if path != ROOT / "kdrop" / "__init__.py"
] + [Path("train.py")]


def imported(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module):
    """The part of the project that a module belongs to; `None` for other packages."""
    names = module.split(".")
    return next((p for p in (".".join(names[:2]), names[0]) if p in FLOOR), None)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_from_the_floors_below(path):
    part = part_of(".".join(path.with_suffix("").parts))
    assert part is not None, f"{path} belongs to no part"
    for name in imported(path):
        other = part_of(name)
        if other is not None and other != part:
            assert FLOOR[other] < FLOOR[part], f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_plots_and_figures_import_matplotlib(path):
    if path.parts[0] == "examples":
        pytest.skip("an example is one file")
    imports = any(name.split(".")[0] == "matplotlib" for name in imported(path))
    assert imports == path.stem.endswith(("plots", "plot_style", "figures"))


def test_the_installed_package_is_tested():
    """Not the checkout beside the tests, which may hold files that a wheel lacks."""
    installed = sysconfig.get_path("purelib")
    (distribution,) = metadata.distributions(name="kdrop", path=[installed])
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    if source.get("dir_info", {}).get("editable"):
        pytest.skip("kdrop is installed in editable mode")
    assert Path(kdrop.__file__).is_relative_to(installed)


@pytest.mark.parametrize(
    ("private", "file"),
    [
        ("keras.src", "kdrop/keras_internals.py"),
        ("tensorflow.python", "kdrop/backend.py"),
        ("jax.extend", "kdrop/backend.py"),
    ],
)
def test_one_file_imports_private_modules(private, file):
    users = {
        str(path)
        for path in FILES
        if any(n.startswith(private) for n in imported(path))
    }
    assert users == {file}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_import_loads_neither_data_sets_nor_plots_nor_another_backend(backend):
    pytest.importorskip(backend)
    # Keras itself imports these where it finds them.
    code = (
        "import sys, keras; before = set(sys.modules); import kdrop;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "assert not new & {'tensorflow_datasets', 'matplotlib', 'rich'}, new;"
        f"assert {backend == 'tensorflow'} or 'tensorflow' not in new, new"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend}
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=600, env=environment
    )


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


def test_the_numpy_example_needs_numpy_alone():
    roots = {
        name.split(".")[0] for name in imported(Path("examples/dropout_in_numpy.py"))
    }
    assert roots - set(sys.stdlib_module_names) == {"numpy"}
