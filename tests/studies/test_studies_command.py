"""The command line of the studies: what it rejects, in a sentence."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from small_studies import RATES, tiny

import studies.__main__ as main
from kdrop.errors import UserError
from kdrop.training.checkpoint import lock
from studies import runner


def die(*_):
    os._exit(1)


def test_a_dead_process_gives_an_error_message(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(runner, "_run", die)
    monkeypatch.setattr(
        sys, "argv", ["studies", "spiral", "--jobs", "1", "--output", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as exit_:
        main.main()
    assert exit_.value.code == 2
    assert "studies: A process has died, perhaps for lack of" in capfd.readouterr().err
    assert not multiprocessing.active_children()


DAMAGED = [
    '{"metrics": 5}',
    '{"metrics": {}}',
    '{"metrics": {"a": "b"}}',
    "",
    "[" * 9999,
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_result_gives_an_error_message(content, tmp_path):
    path = tmp_path / f"{RATES[0].key()}.json"
    path.write_text(content)
    with runner.Runner(tmp_path, None, 1, Console(quiet=True)) as running:
        with pytest.raises(UserError, match="cannot be read: delete it"):
            running.run({RATES[0]: "first"})


def test_a_study_that_another_process_runs_is_left(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(main.STUDIES, "tiny", tiny)
    monkeypatch.setattr(sys, "argv", ["studies", "tiny", "--output", str(tmp_path)])
    with lock(tmp_path / "tiny/runs"), pytest.raises(SystemExit) as exit_:
        main.main()
    assert exit_.value.code == 2
    assert "Another process trains" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["spirl"], "did you mean spiral?"),
        (["spiral", "--jobs", "0"], "--jobs is 0, but must be in [1, 256]."),
        (["spiral", "--jobs", "9" * 20], "but must be in [1, 256]."),
        (["spiral", "--output", "file"], "file/spiral cannot be written"),
        (["votes", "--quick", "--data-dir", "none"], "none is not a folder"),
        (["tiny"], "cannot be read: delete it to repeat its run."),
    ],
)
def test_a_wrong_input_gives_an_error_message(
    arguments, sentence, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(main.STUDIES, "tiny", tiny)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    damaged = Path("studies/results/tiny/runs") / f"{RATES[0].key()}.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    monkeypatch.setattr(sys, "argv", ["studies", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main.main()
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("studies: ") and message.count("\n") == 1
    assert sentence in message


def test_missing_data_are_reported_before_any_process_starts(tmp_path, monkeypatch):
    def missing(experiment, folder):
        raise UserError(f"{experiment.data} is not in {folder}.")

    monkeypatch.setattr(main, "load_data", missing)
    monkeypatch.setattr(main, "Runner", None)  # a call of it would be a TypeError
    with pytest.raises(UserError, match="mnist is not in here"):
        main.conduct("votes", True, tmp_path, 2, Console(quiet=True), "here")


@pytest.mark.slow
def test_a_missing_extra_gives_an_error_message():
    code = (
        "import runpy, sys; sys.modules['matplotlib'] = None;"
        "runpy.run_module('studies', run_name='__main__', alter_sys=True)"
    )
    root = Path(__file__).parent.parent.parent
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True
    )
    assert process.returncode == 2, process.stderr
    assert "studies: " in process.stderr and "pip install '.[train" in process.stderr
