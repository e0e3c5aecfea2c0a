"""Many runs in several processes: resumed, stopped, shared by arms."""

import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from small_studies import RATES, metrics, rows_of, tiny, until

import studies.__main__ as main
from studies import runner
from studies.study import ERRORS, Arm, Study, answer


@pytest.mark.slow
def test_a_tiny_study_is_conducted_and_resumed(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(main.STUDIES, "tiny", tiny)

    def conduct():
        folder = main.conduct("tiny", False, tmp_path, 1, Console(width=120))
        return rows_of(folder / "tiny.csv"), capsys.readouterr().out

    rows, output = conduct()
    # Two seeds of one arm, two candidates of the other and a further seed of one.
    assert [(row["arm"], row["chosen"], row["seed"]) for row in rows] == [
        ("none", "1", "0"), ("none", "1", "1"),
        ("dropout", "0", "0"), ("dropout", "1", "0"), ("dropout", "1", "1"),
    ]  # fmt: skip
    assert rows[3]["rate"] == "(0.1,)"
    assert "dropout  one of: rate 0.9; rate 0.1" in output
    errors = [100 * (1 - float(row["test_accuracy"])) for row in rows[:2]]
    error = abs(errors[0] - errors[1]) / 2
    assert f"{np.mean(errors):.4g} ± {error:.1g}" in output
    assert imread(tmp_path / "tiny/tiny.png").std() > 0.01
    assert sorted((tmp_path / "tiny/runs").glob("*/")) == []  # no checkpoints

    # A finished run is not trained again, a missing one is.
    finished = {
        json.loads(path.read_text())["experiment"]["seed"]: path
        for path in (tmp_path / "tiny/runs").glob("spiral-none-*.json")
    }
    run = json.loads(finished[0].read_text())
    run["metrics"]["test_accuracy"] = 0.125
    finished[0].write_text(json.dumps(run))
    finished[1].unlink()
    again, _ = conduct()
    assert again[0]["test_accuracy"] == "0.125"
    assert [row["test_loss"] for row in again] == [row["test_loss"] for row in rows]
    repeated = [a["seconds"] != b["seconds"] for a, b in zip(rows, again, strict=True)]
    assert repeated == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_stop_ends_the_processes(number, status, monkeypatch, tmp_path, capsys):
    def stop(self, experiments):
        self.pool.submit(time.sleep, 60)
        until(multiprocessing.active_children)
        signal.raise_signal(number)

    monkeypatch.setattr(main.Runner, "run", stop)
    monkeypatch.setattr(sys, "argv", ["studies", "spiral", "--output", str(tmp_path)])
    assert main.main() == status
    message = "Stopped: run the same command again to resume.\n"
    assert capsys.readouterr().err.endswith(message)
    assert not multiprocessing.active_children()


def test_an_experiment_of_two_arms_runs_once(monkeypatch, tmp_path):
    runs = []

    def run(experiment, path, *arguments):
        runs.append((experiment.rate[0], experiment.seed))
        path.write_text(json.dumps({"metrics": metrics(1 - experiment.rate[0])}))
        return metrics(1 - experiment.rate[0])

    def pool(jobs, context, start_worker, arguments):
        return ThreadPoolExecutor(jobs)

    monkeypatch.setattr(runner, "_run", run)
    monkeypatch.setattr(runner, "ProcessPoolExecutor", pool)
    study = Study("Which?", [Arm("one", RATES), Arm("other", RATES)], 2, ERRORS)
    with runner.Runner(tmp_path, None, 2, Console(quiet=True)) as trained:
        one, other = answer(study, trained)
    assert sorted(runs) == [(0.1, 0), (0.1, 1), (0.9, 0)]
    assert one.by_seed == other.by_seed


def test_usable_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert runner.usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert runner.usable_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert runner.usable_cores() == 1
