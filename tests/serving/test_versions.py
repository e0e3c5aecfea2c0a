"""A version folder appears complete or not at all, and is never changed."""

import subprocess
import sys

import keras
import pytest

from kdrop.errors import UserError
from kdrop.serving import export
from kdrop.serving.versions import (
    PARTIAL,
    add_version,
    model_folders,
    remove_partial,
    versions,
)


def write(partial):
    (partial / "saved_model.pb").write_bytes(b"model")


def test_versions_count_up_and_are_never_changed(tmp_path):
    folder = tmp_path / "models" / "spiral"
    first = add_version(folder, write)
    assert first == folder / "1" and first.stat().st_mode & 0o777 == 0o755
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    (folder / "7").mkdir()
    (folder / "notes").mkdir()
    assert add_version(folder, write).name == "8"
    assert list(versions(folder)) == [1, 7, 8]
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*")} == before


def test_a_version_of_another_process_is_not_overwritten(tmp_path):
    def write_after_another(partial):
        write(partial)
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "saved_model.pb").write_bytes(b"another")

    assert add_version(tmp_path, write_after_another).name == "2"
    assert (tmp_path / "1" / "saved_model.pb").read_bytes() == b"another"


@pytest.mark.parametrize("error", [OSError("full"), KeyError(), KeyboardInterrupt()])
def test_an_incomplete_version_is_hidden_and_deleted(tmp_path, error):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    (tmp_path / "1").mkdir()
    partials = []

    def fail(partial):
        partials.append(partial)
        assert (partial / "saved_model.pb").exists()
        assert not partial.name.isdecimal() and list(versions(tmp_path)) == [1]
        raise error

    with pytest.raises(type(error)):
        export(model, tmp_path, passes=1, draw=fail)
    assert [p.name for p in tmp_path.iterdir()] == ["1"] and len(partials) == 1


EXPORT = """
import sys
from pathlib import Path
from kdrop.serving.versions import add_version
def write(folder):
    (folder / "saved_model.pb").write_bytes(b"x" * 2_000_000)
    print("written", flush=True)
    sys.stdin.readline()
add_version(Path(sys.argv[1]), write)
"""


def test_the_next_export_deletes_what_a_killed_one_left(tmp_path):
    folder = tmp_path / "spiral"
    (folder / f"{PARTIAL}x").mkdir(parents=True)  # killed before it took its lock
    command = [sys.executable, "-c", EXPORT, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, **pipes) as alive,
        subprocess.Popen(command, **pipes) as killed,
    ):
        for process in (alive, killed):
            assert process.stdout.readline() == "written\n"
        killed.kill()
        killed.wait()
        add_version(folder, write)
        assert len(list(folder.glob(f"{PARTIAL}*"))) == 1
        alive.communicate("\n", timeout=60)
        assert alive.returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert (folder / "2" / "saved_model.pb").stat().st_size == 2_000_000
    assert [path.name for path in (folder / "2").iterdir()] == ["saved_model.pb"]


def test_what_an_export_killed_after_its_rename_left_is_removed(tmp_path):
    remove_partial(tmp_path / "missing")
    killed = """
import os, shutil
shutil.rmtree = lambda *_, **__: os._exit(9)
""" + EXPORT.replace("sys.stdin.readline()", "")
    command = [sys.executable, "-c", killed, str(tmp_path / "spiral")]
    assert subprocess.run(command, timeout=60).returncode == 9
    (left,) = (tmp_path / "spiral").glob(f"{PARTIAL}*")
    remove_partial(tmp_path / "spiral")
    assert [path.name for path in left.parent.iterdir()] == ["1"]


REFUSED = ["a:predict", "123", "\u0661\u0662", "modèle", "a b", "-a", ".a", "a\n"]


@pytest.mark.parametrize("name", [*REFUSED, ".", "..", "", 101 * "a"])
def test_a_name_that_no_server_could_address_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(UserError, match="cannot be the name of a model") as error:
        export(model, name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("passes", [0, -1, 2.5, True, "5", 10**9])
def test_a_count_of_samples_that_no_server_could_compute_is_refused(tmp_path, passes):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`passes` must be an integer from 1"):
        export(model, tmp_path / "model", passes=passes)


def test_zeros_before_a_version_are_no_digits_of_other_scripts(tmp_path):
    for name in ("00000123", "9", "\u0661\u0662\u0663\u0664", "1e3", "1" * 30):
        (tmp_path / name).mkdir()
    assert list(versions(tmp_path)) == [9, 123]
    assert add_version(tmp_path, write).name == "124"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/spiral cannot be written"):
        add_version(tmp_path / "file" / "spiral", write)


def test_a_folder_is_a_model_or_holds_models(tmp_path):
    for name in ("a/1", "b/2", "b/.partial-x/1", ".hidden/1", "empty/notes"):
        (tmp_path / name).mkdir(parents=True)
    assert model_folders(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert model_folders(tmp_path / "b") == [tmp_path / "b"]
    assert model_folders(tmp_path / "missing") == []
