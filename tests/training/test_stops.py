"""Stopped and damaged runs of train.py: resumed, or refused in one sentence."""

import json
import os
import shutil
import signal

import pytest
from commands import train

from kdrop.training import comparison
from kdrop.training.checkpoint import Checkpoint, lock

QUICK = "--train-size 300 --batch-size 50 --hidden 16 --epochs 4 --steps-per-epoch 5 "
QUICK += "--passes 0 --dropout none "
RESUME = QUICK + "--resume"
JUNK = {
    "empty": b"",
    "binary": bytes(range(256)),
    "null": b"null",
    "number": b"3",
    "list": b"[1, [2], {}]",
    "object": b"{}",
    "nested": b"[" * 100_000,
}


def stop(*_, **__):
    raise KeyboardInterrupt


def saves_two(checkpoint, model, history, save=Checkpoint.save):
    save(checkpoint, model, history)
    if history["epoch"][-1] == 2:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of a command: stopped in training, before the export, and after it."""
    folder = tmp_path_factory.mktemp("trained")
    for name in "stopped", "finished":
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdrop.training.progress.SAVE_SECONDS", 0)
        patch.setattr(Checkpoint, "save", saves_two)
        assert train(QUICK, folder / "stopped")[0] == 130
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "export_best", stop)
        assert train(QUICK, folder / "finished")[0] == 130
    shutil.copytree(folder / "finished", folder / "exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "discard", stop)
        assert train(RESUME, folder / "exported")[0] == 130
    return folder


@pytest.fixture
def stopped(trained, tmp_path):
    return shutil.copytree(trained / "stopped", tmp_path / "copy")


@pytest.fixture
def finished(trained, tmp_path):
    return shutil.copytree(trained / "finished", tmp_path / "copy")


@pytest.fixture
def exported(trained, tmp_path):
    return shutil.copytree(trained / "exported", tmp_path / "copy")


def run_folder(folder):
    (path,) = (folder / "saved_models/.unfinished").glob("spiral-none-*")
    return path


def versions(folder):
    return sorted(os.listdir(folder / "saved_models/spiral-none"))


def refused(folder, capsys, arguments=RESUME):
    """The one sentence that the command ends with."""
    status, output = train(arguments, folder)
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("train.py: "), error
    assert error.count("\n") == 1 and "Traceback" not in error + output
    return error


def test_a_stopped_run_resumes_after_its_last_epoch(stopped):
    status, output = train(RESUME, stopped)
    assert status == 0 and "epoch 2/4" not in output and "epoch 3/4" in output
    assert os.listdir(stopped / "saved_models") == ["spiral-none"]


@pytest.mark.parametrize("kind", JUNK)
@pytest.mark.parametrize("file", ["history.json", "epoch-0000002.keras"])
def test_a_damaged_file_is_one_sentence(file, kind, stopped, capsys):
    (run_folder(stopped) / file).write_bytes(JUNK[kind])
    error = refused(stopped, capsys)
    assert "cannot be read" in error and str(run_folder(stopped).name) in error


@pytest.mark.parametrize("file", ["history.json", "epoch-0000002.keras"])
def test_half_of_a_file_a_folder_or_a_dead_link_is_one_sentence(file, stopped, capsys):
    path = run_folder(stopped) / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "cannot be read" in refused(stopped, capsys)
    path.unlink()
    path.mkdir()
    assert "cannot be read" in refused(stopped, capsys)
    path.rmdir()
    path.symlink_to("nowhere")
    assert "cannot be read" in refused(stopped, capsys)


@pytest.mark.parametrize(
    "damage",
    [
        lambda columns: columns["accuracy"].pop(),
        lambda columns: columns.pop("data_loss"),
        lambda columns: columns.pop("val_accuracy"),
        lambda columns: columns.update(more=[1.0, 2.0]),
        lambda columns: columns.update(loss=["a", None]),
        lambda columns: columns.update(epoch=[2, 1]),
        lambda columns: columns.update(epoch=[2, 2]),
        lambda columns: columns.update(seconds=[[1.0], [2.0]]),
    ],
)
def test_a_history_of_other_columns_is_one_sentence(damage, stopped, capsys):
    file = run_folder(stopped) / "history.json"
    columns = json.loads(file.read_text())
    damage(columns)
    file.write_text(json.dumps(columns))
    assert "history" in refused(stopped, capsys)


@pytest.mark.parametrize("name", [".unfinished", ".unfinished/run", "spiral-none"])
@pytest.mark.parametrize("kind", ["file", "dead link"])
def test_a_file_in_place_of_a_folder_is_one_sentence(name, kind, stopped, capsys):
    path = stopped / "saved_models" / name
    path = run_folder(stopped) if path.name == "run" else path
    if path.exists():
        shutil.rmtree(path)
    path.touch() if kind == "file" else path.symlink_to("nowhere")
    assert path.name in refused(stopped, capsys)


@pytest.mark.parametrize("name", ["history.json.partial", "partial.keras", "lock"])
def test_a_folder_in_place_of_a_file_is_one_sentence(name, stopped, capsys):
    run = run_folder(stopped)
    path = run / name if name != "lock" else run.with_name(f"{run.name}.lock")
    path.mkdir()
    (path / "file").touch()
    assert str(path.name) in refused(stopped, capsys)
    shutil.rmtree(path)
    assert train(RESUME, stopped)[0] == 0


def test_a_folder_that_is_a_link_is_followed_and_left(stopped, tmp_path):
    run = run_folder(stopped)
    shutil.move(run, tmp_path / "elsewhere")
    run.symlink_to(tmp_path / "elsewhere")
    status, output = train(RESUME, stopped)
    assert status == 0 and "epoch 3/4" in output and versions(stopped) == ["1"]
    assert os.listdir(stopped / "saved_models") == ["spiral-none"]


@pytest.mark.parametrize("content", [b"", b"elsewhere/1", b"\xff"])
def test_a_note_in_the_folder_of_a_run_exports_it_all_the_same(content, finished):
    (run_folder(finished) / "exported").write_bytes(content)
    status, output = train(RESUME, finished)
    assert status == 0 and "saved  saved_models/spiral-none/1\n" in output
    assert versions(finished) == ["1"]


def test_a_stop_after_the_export_exports_nothing_again(finished, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "write", stop)
        assert train(RESUME, finished)[0] == 130
    assert versions(finished) == ["1"]
    status, output = train(RESUME, finished)
    assert status == 0 and "saved  saved_models/spiral-none/1\n" in output
    assert versions(finished) == ["1"]
    assert os.listdir(finished / "saved_models") == ["spiral-none"]


@pytest.mark.parametrize("kind", ["whole", *JUNK, "paths", "folder"])
def test_a_stop_in_the_clean_up_exports_nothing_again(kind, exported):
    (mark,) = (exported / "saved_models").glob(".exported-*")
    if kind == "whole":
        shutil.rmtree(run_folder(exported))
    elif kind == "paths":
        mark.write_text(json.dumps(["spiral-none/7"]))
    elif kind == "folder":
        mark.unlink()
        mark.symlink_to("spiral-none")
    else:
        mark.write_bytes(JUNK[kind])
    status, output = train(RESUME, exported)
    assert status == 0 and "epoch" not in output
    assert "saved  saved_models/spiral-none/1\n" in output
    assert versions(exported) == ["1"]
    assert os.listdir(exported / "saved_models") == ["spiral-none"]


def test_a_stop_in_the_clean_up_and_then_another_format(exported):
    assert train(f"{RESUME} --format litert", exported)[0] == 0
    assert versions(exported) == ["1", "2"]
    assert (exported / "saved_models/spiral-none/2/serve.tflite").exists()
    assert os.listdir(exported / "saved_models") == ["spiral-none"]


def test_the_clean_up_leaves_what_another_command_began(exported, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", saves_two)
        patch.setattr("kdrop.training.progress.SAVE_SECONDS", 0)
        assert train(f"{QUICK} --name other", exported)[0] == 130
    assert train(RESUME, exported)[0] == 0
    assert (run_folder(exported) / "epoch-0000002.keras").exists()


def test_a_deleted_version_is_exported_again(exported):
    shutil.rmtree(exported / "saved_models/spiral-none/1")
    assert train(RESUME, exported)[0] == 0
    assert versions(exported) == ["1"]


@pytest.mark.parametrize("arguments", [QUICK, RESUME])
def test_a_run_that_another_process_trains_is_left(arguments, stopped, capsys):
    before = sorted(run_folder(stopped).iterdir())
    with lock(run_folder(stopped)):
        error = refused(stopped, capsys, arguments)
    assert "Another process trains" in error and "wait until it ends" in error
    assert sorted(run_folder(stopped).iterdir()) == before
    assert train(RESUME, stopped)[0] == 0


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143)])
def test_a_signal_ends_with_a_sentence(number, status, tmp_path, monkeypatch, capsys):
    def killed(*_, **__):
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "train", killed)
        assert train(RESUME, tmp_path)[0] == status
    error = capsys.readouterr().err
    assert error == "Stopped. No epoch is saved: the same command starts anew.\n"
    assert not os.listdir(tmp_path / "saved_models")
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "export_best", killed)
        assert train(RESUME, tmp_path)[0] == status
    assert "The same command with --resume continues" in capsys.readouterr().err
    assert signal.getsignal(number) != signal.SIG_IGN


@pytest.mark.parametrize("saved", [False, True])
def test_a_full_disk_promises_what_there_is(saved, stopped, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison, "train", full)
    error = refused(stopped, capsys, RESUME if saved else RESUME + " --seed 5")
    assert "No space left" in error
    assert ("--resume continues" in error) == saved
