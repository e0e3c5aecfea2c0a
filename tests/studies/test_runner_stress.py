"""A study whose processes are killed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from small_studies import SMALL, rows_of, until

import studies.__main__ as main
from studies.study import ERRORS, Arm, Study

pytestmark = pytest.mark.slow


def draw_nothing(path, results):
    return ""


def long(quick):
    arm = Arm("long", (replace(SMALL, epochs=60),))
    return Study("Does a killed study resume?", [arm], 2, ERRORS, draw_nothing)


def test_a_killed_study_resumes(monkeypatch, tmp_path):
    code = (
        "import sys, test_runner_stress, studies.__main__ as main;"
        "main.STUDIES['long'] = test_runner_stress.long; sys.exit(main.main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "long", "--output", tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    saved = until(lambda: list((tmp_path / "long/runs").glob("*/epoch-*.keras")))
    process.kill()
    process.wait(60)

    def ended():
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True

    until(ended)  # the workers too
    path = saved[0].parent / "history.json"
    history = json.loads(path.read_text())
    assert history["epoch"][-1] < 60
    # A resumed run adds to these seconds.
    history["seconds"] = [1000 + each for each in history["seconds"]]
    path.write_text(json.dumps(history))
    monkeypatch.setitem(main.STUDIES, "long", long)
    main.conduct("long", False, tmp_path, 2, Console(quiet=True))
    rows = rows_of(tmp_path / "long/long.csv")
    assert max(float(row["seconds"]) for row in rows) > 1000
