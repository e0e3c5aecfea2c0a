"""A version folder appears complete or not at all, and is never changed."""

import os
import time

import keras
import pytest

from kdrop.errors import UserError
from kdrop.serving import export
from kdrop.serving.versions import PARTIAL, add_version, model_folders, versions


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
    assert versions(folder) == [1, 7, 8]
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
        assert not partial.name.isdecimal() and versions(tmp_path) == [1]
        raise error

    with pytest.raises(type(error)):
        export(model, tmp_path, passes=1, draw=fail)
    assert [p.name for p in tmp_path.iterdir()] == ["1"] and len(partials) == 1


def test_incomplete_versions_are_deleted_after_a_day(tmp_path):
    for name, age in (("old", 2 * 86400), ("new", 60)):
        partial = tmp_path / f"{PARTIAL}{name}"
        partial.mkdir()
        os.utime(partial, (time.time() - age,) * 2)
    add_version(tmp_path, write)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{PARTIAL}new", "1"]


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
