"""The studies: search, seeds, resuming, findings."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from small import ARMS, RATES, SMALL, tiny

import studies.__main__ as main
from kdrop.training.data import Data, Part
from kdrop.training.run import Run, build, network
from studies import cifar, mnist
from studies.study import (
    ERRORS,
    Arm,
    Result,
    Study,
    answer,
    beyond,
    choose,
    draw_errors,
)


def draw_nothing(path, results):
    return ""


def long(quick):
    arm = Arm("long", (replace(SMALL, epochs=200),))
    return Study("Does a killed study resume?", [arm], 2, ERRORS, draw_nothing)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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


def until(condition):
    for _ in range(2400):
        if result := condition():
            return result
        time.sleep(0.1)
    raise AssertionError("nothing happened for four minutes")


@pytest.mark.slow
def test_a_killed_study_resumes(monkeypatch, tmp_path):
    code = (
        "import sys, test_studies, studies.__main__ as main;"
        "main.STUDIES['long'] = test_studies.long; sys.exit(main.main())"
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
    assert history["epoch"][-1] < 200
    # A resumed run adds to these seconds.
    history["seconds"] = [1000 + each for each in history["seconds"]]
    path.write_text(json.dumps(history))
    monkeypatch.setitem(main.STUDIES, "long", long)
    main.conduct("long", False, tmp_path, 2, Console(quiet=True))
    rows = rows_of(tmp_path / "long/long.csv")
    assert max(float(row["seconds"]) for row in rows) > 1000


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


def metrics(accuracy=0.5, loss=1.0, test=0.5):
    validation = {"validation_accuracy": accuracy, "validation_loss": loss}
    return {**validation, "test_accuracy": test, "train_accuracy": 1.0}


def test_validation_alone_chooses():
    one, other = RATES
    searched = {one: metrics(0.7, test=0.9), other: metrics(0.8, test=0.1)}
    assert choose(RATES, searched) is other
    assert choose(RATES, {one: metrics(0.8, 0.3), other: metrics(0.8, 0.4)}) is one


class LowRatesAreBest:
    """A runner that does not train."""

    def run(self, experiments):
        return {each: metrics(1 - each.rate[0]) for each in experiments.values()}


def test_each_series_chooses_its_settings():
    more = tuple(replace(each, train_size=400) for each in RATES)
    two = [Arm("dropout", RATES, "300 points"), Arm("dropout", more, "400 points")]
    results = answer(Study("Which?", two, 2, ERRORS), LowRatesAreBest())
    for result, candidates in zip(results, (RATES, more), strict=True):
        assert result.chosen == candidates[1]
        assert set(result.searched) == set(candidates)
        assert set(result.by_seed) == {0, 1}


def result(*errors, arm=ARMS[0]):
    by_seed = {n: metrics(test=1 - each / 100) for n, each in enumerate(errors)}
    return Result(arm, arm.candidates[0], {}, by_seed)


def test_the_finding_counts_differences_beyond_two_standard_errors(tmp_path):
    plain = result(12, 15, 11)
    assert plain.summary() == pytest.approx(
        (38 / 3, np.std([12, 15, 11], ddof=1) / 3**0.5)
    )
    # Means 12.67 and 15, standard errors 1.2 and .58: 2.33 is less than 2 * 1.33.
    near, far, best = result(16, 15, 14), result(17, 16, 15), result(5, 5, 5)
    assert not beyond(near, plain) and beyond(far, plain) and not beyond(plain, far)
    finding = draw_errors(tmp_path / "f.png", [plain, near, far, far, best])
    assert finding == (
        "none 12.67 ± 1.20 %, least none 5.00 ± 0.00 %;\n"
        "beyond two standard errors 1 of 4 err less, 2 more"
    )


def test_a_vote_is_compared_with_weight_scaling_in_pairs(tmp_path):
    study = mnist.votes(False)
    errors = dict(zip(mnist.VOTERS, (8, 6, 5, 4.5, 4.2, 4.1, 4), strict=True))

    def finding(scaled, noise):
        # The networks differ more than a vote and weight scaling of one of them.
        by_seed = {
            seed: {"test_accuracy": 1 - (scaled + shift) / 100}
            | {f"error_of_{n}": (e + shift) / 100 for n, e in errors.items()}
            | {"error_of_50": (errors[50] + shift + noise[seed]) / 100}
            for seed, shift in enumerate((0, 1, 2))
        }
        arm = study.arms[0]
        results = [Result(arm, arm.candidates[0], {}, by_seed)]
        return study.draw(tmp_path / "figure.png", results)

    assert "from no number on" in finding(3.9, (0, 0, 0))
    near = finding(4.08, (-0.06, 0, 0.06))  # .02 ± .03 more
    assert "errors from 50 on" in near and "-0.08 ± 0.00 more" in near


def test_votes_share_no_sample(monkeypatch):
    samples = np.random.default_rng(3).dirichlet(np.ones(4), (200, 30))
    monkeypatch.setattr(mnist.kdrop, "sample", lambda *a, **settings: samples)
    targets = np.random.default_rng(4).integers(0, 4, 30)
    part = Part(np.zeros((30, 2), "float32"), targets)
    data = Data("spiral", part, part, part, tuple("abcd"))
    measured = mnist.measure_votes(Run(SMALL, None, {}, {}), data)
    for voters in mnist.VOTERS:
        votes = samples.reshape(-1, voters, 30, 4).mean(axis=1)
        wrong = np.mean([np.mean(vote.argmax(axis=1) != targets) for vote in votes])
        assert measured[f"error_of_{voters}"] == pytest.approx(wrong)


def test_a_diverged_run_has_no_calibration_error():
    part = Part(np.zeros((6, 2), "float32"), np.arange(6, dtype="int32") % 3)
    data = Data("spiral", part, part, part, tuple("abc"))
    run = Run(SMALL, build(SMALL, data), {}, {})
    assert 0 <= cifar.measure_calibration(run, data)["calibration_error"] <= 1
    run.model.get_layer("probabilities").bias.assign([np.nan] * 3)
    assert np.isnan(cifar.measure_calibration(run, data)["calibration_error"])


@pytest.mark.parametrize("name", main.STUDIES)
@pytest.mark.parametrize("quick", [True, False])
def test_each_study_compares_equal_budgets(name, quick):
    study = main.STUDIES[name](quick)
    assert len({arm.label for arm in study.arms}) == len(study.arms)
    for series in {arm.series for arm in study.arms}:
        arms = [arm.candidates for arm in study.arms if arm.series == series]
        assert len({len(candidates) for candidates in arms}) == 1
        each = [e for candidates in arms for e in candidates]
        assert len({(e.epochs, e.train_size, e.batch_size) for e in each}) == 1
        sizes = {"spiral": 3000, "mnist": 60000, "cifar10": 50000}
        assert all(e.train_size <= sizes[e.data] for e in each)
    if name in ("alexnet", "family", "spiral"):
        # No arm has a learning rate that the one without dropout may not have.
        plain, *others = [{e.learning_rate for e in a.candidates} for a in study.arms]
        assert all(rates <= plain for rates in others)


@pytest.mark.parametrize("name", main.STUDIES)
def test_each_study_is_built_and_drawn(name, tmp_path):
    study = main.STUDIES[name](True)
    rng = np.random.default_rng(5)
    names = ["test_accuracy", "test_loss", "train_accuracy", "calibration_error"]
    names += [f"error_of_{voters}" for voters in mnist.VOTERS]
    shape = {"spiral": (2,), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
    results = []
    for arm in study.arms:
        experiment = arm.candidates[0]
        inputs = np.zeros((1, *shape[experiment.data]), "float32")
        part = Part(inputs, np.zeros(1, "int32"))
        network(
            experiment, Data(experiment.data, part, part, part, tuple("abcdefghij"))
        )
        by_seed = {
            seed: dict(zip(names, rng.random(len(names)), strict=True))
            for seed in range(2)
        }
        results.append(Result(arm, experiment, {}, by_seed))
    finding = study.draw(tmp_path / "figure.png", results)
    assert imread(tmp_path / "figure.png").std() > 0.01
    if name != "votes":
        assert f"{min(result.summary()[0] for result in results):.2f}" in finding


def test_the_plateau_of_rates_ends_where_the_error_first_rises(tmp_path):
    study = mnist.rate(False)
    errors = [4.5, 3.95, 3.8, 3.75, 3.8, 3.9, 4.6, 5.0, 6.1, 3.9]
    errors += [4.8, 4.7, 4.6, 4.5, 4.4, 4.3, 4.2, 4.1, 4.0, 3.9]
    results = [result(e, e, arm=a) for a, e in zip(study.arms, errors, strict=True)]
    wide, scaled = study.draw(tmp_path / "figure.png", results).splitlines()
    assert wide == "width 512: 3.75 % at 0.3, up to a tenth more from 0.1 to 0.5"
    assert scaled.endswith("3.90 % at 0.9, up to a tenth more from 0.6 to 0.9")
