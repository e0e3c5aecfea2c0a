"""Studies: what they choose, keep, go on with, show and draw."""

import csv
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

import studies.__main__ as main
from kdrop.training.data import Data, Part
from kdrop.training.experiment import Experiment, Run, build, network
from studies import cifar, figures, mnist, runner
from studies.study import (
    ERRORS,
    Arm,
    Result,
    Study,
    answer,
    better,
    beyond,
    choose,
    spread,
    standard_error,
    test_error,
)

test_error.__test__ = False  # a metric
SMALL = Experiment(
    dropout="none", train_size=300, epochs=6, batch_size=50, hidden=(16,)
)
RATES = tuple(
    replace(SMALL, dropout="InvertedDropout", rate=(rate,)) for rate in (0.8, 0.1)
)
ARMS = [Arm("none", (SMALL,)), Arm("dropout", RATES)]


def draw(path, results):
    groups = {"": {each.arm.name: each.values(test_error) for each in results}}
    figures.dots(path, "What was found", groups, "Test error (%)")
    return "What was found"


def tiny(size):
    return Study("Does a tiny study end?", ARMS, 2, ERRORS, draw)


def long(size):
    arm = Arm("long", (replace(SMALL, epochs=400),))
    return Study("Does a killed study go on?", [arm], 1, ERRORS, draw)


@pytest.fixture(autouse=True)
def handlers():
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def conduct(monkeypatch, tmp_path, capsys):
    """Conducts the tiny study below a folder, and returns what it says."""
    monkeypatch.setitem(main.STUDIES, "tiny", tiny)

    def conducted():
        folder = main.conduct("tiny", "default", tmp_path, 2, Console(width=120))
        assert folder == tmp_path / "tiny"
        return capsys.readouterr().out

    return conducted


def read(folder):
    with open(folder / "tiny.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_from_end_to_end(conduct, tmp_path, monkeypatch):
    given = []
    dots = figures.dots
    monkeypatch.setattr(figures, "dots", lambda *a: [given.append(a), dots(*a)])
    told = conduct()
    assert "dropout  one of: rate 0.8; rate 0.1" in told
    rows = read(tmp_path / "tiny")
    # Two seeds of one, and two candidates of the other, of which one has two.
    assert len(rows) == 5
    assert len(list((tmp_path / "tiny/finished").iterdir())) == 5
    assert not list((tmp_path / "tiny/unfinished").glob("*"))
    first = [row for row in rows if (row["arm"], row["seed"]) == ("dropout", "0")]
    assert {row["rate"] for row in first} == {"(0.1,)", "(0.8,)"}
    best = max(first, key=lambda row: float(row["validation_accuracy"]))
    assert best["rate"] == "(0.1,)"  # the second candidate
    for row in first:
        assert row["chosen"] == str(int(row is best))
        accuracy = 100 * float(row["validation_accuracy"])
        assert f"rate {row['rate'][1:4]}: {accuracy:.2f}" in told
    for name in ("none", "dropout"):
        chosen = [r for r in rows if (r["arm"], r["chosen"]) == (name, "1")]
        assert [row["seed"] for row in chosen] == ["0", "1"]
        errors = 100 * (1 - np.array([float(r["test_accuracy"]) for r in chosen]))
        mean, error = np.mean(errors), np.std(errors, ddof=1) / np.sqrt(2)
        shown = re.search(rf"^ *{name} +([\d.]+) ± ([\d.]+) ", told, re.MULTILINE)
        digits = len(shown[1].partition(".")[2])
        assert shown[1] == f"{mean:.{digits}f}" and digits >= 1
        assert shown[2] == f"{error:.{digits}f}"
        np.testing.assert_allclose(given[0][2][""][name], errors)
    assert imread(tmp_path / "tiny/tiny.png").std() > 0.01
    assert told.rstrip().endswith("What was found")

    # What is finished is not trained again, and what is missing is.
    one, other = sorted((tmp_path / "tiny/finished").glob("spiral-none-*"))
    kept = json.loads(one.read_text())
    kept["metrics"]["test_accuracy"] = 0.125
    one.write_text(json.dumps(kept))
    other.unlink()
    conduct()
    again = read(tmp_path / "tiny")
    assert again[0]["test_accuracy"] == "0.125"
    for before, after in zip(rows[1:], again[1:], strict=True):
        assert before["test_loss"] == after["test_loss"]
        trained_again = before["seconds"] != after["seconds"]
        assert trained_again == (before is rows[1])


def until(condition):
    for _ in range(600):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen within a minute")


def test_a_killed_study_goes_on(monkeypatch, tmp_path):
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
    saved = until(lambda: list((tmp_path / "long/unfinished").glob("*/epoch-*.keras")))
    process.kill()
    process.wait(60)

    def alone():
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True

    until(alone)  # no process trains on
    path = saved[0].parent / "history.json"
    history = json.loads(path.read_text())
    assert history["epoch"][-1] < 400
    # A run that goes on adds to these seconds.
    history["seconds"] = [1000 + each for each in history["seconds"]]
    path.write_text(json.dumps(history))
    monkeypatch.setitem(main.STUDIES, "long", long)
    main.conduct("long", "default", tmp_path, 1, Console(quiet=True))
    with open(tmp_path / "long/long.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["seconds"]) > 1000


def late(path):
    time.sleep(20)
    path.touch()


def test_a_stop_is_told_and_ends_the_processes(monkeypatch, tmp_path, capsys):
    def stop(runner, experiments):
        runner.pool.submit(late, tmp_path / "late")
        until(multiprocessing.active_children)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(main.Runner, "run", stop)
    monkeypatch.setattr(sys, "argv", ["studies", "spiral", "--output", str(tmp_path)])
    assert main.main() == 130
    assert capsys.readouterr().err == "Stopped. The same command goes on.\n"
    assert not multiprocessing.active_children()
    assert not (tmp_path / "late").exists()


def die(*_):
    os._exit(1)


def test_a_run_whose_process_ends_is_told(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(runner, "_run", die)
    monkeypatch.setattr(sys, "argv", ["studies", "spiral", "--output", str(tmp_path)])
    assert main.main() == 2
    assert capfd.readouterr().err == (
        "studies: A run's process ended unexpectedly (too little memory?): the "
        "same command goes on, with --jobs 1 if need be.\n"
    )
    assert not multiprocessing.active_children()


def found(accuracy, loss=1.0, test=0.5):
    return {
        "validation_accuracy": accuracy,
        "validation_loss": loss,
        "test_accuracy": test,
    }


def test_validation_alone_chooses():
    one, other = RATES
    assert choose({one: found(0.7, test=0.9), other: found(0.8, test=0.1)}) is other
    assert choose({one: found(0.8, 0.3), other: found(0.8, 0.4)}) is one


class Known:
    """A runner that need not train: a low rate is best."""

    def run(self, experiments):
        return {each: found(1 - each.rate[0]) for each in experiments.values()}


def test_each_series_chooses_for_itself(monkeypatch, tmp_path, capsys):
    more = tuple(replace(each, train_size=400) for each in RATES)
    two = [Arm("dropout", RATES, "300 points"), Arm("dropout", more, "400 points")]
    study = Study("Which?", two, 2, {"test error %": test_error}, draw)
    results = answer(study, Known())
    for result, candidates in zip(results, (RATES, more), strict=True):
        assert result.chosen == candidates[1]
        assert set(result.searched) == set(candidates) and set(result.found) == {0, 1}
    monkeypatch.setitem(main.STUDIES, "two", lambda size: study)
    monkeypatch.setattr(main, "Runner", lambda *_: nullcontext(Known()))
    main.conduct("two", "default", tmp_path, 2, Console(width=120))
    told = capsys.readouterr().out
    for points in (300, 400):
        assert f"{points} points dropout  one of: rate 0.8; rate 0.1" in told
        assert re.search(rf"^ {points} points dropout +rate 0.1: 90.00", told, re.M)


def result(*accuracies):
    metrics = {n: found(0.5, test=each) for n, each in enumerate(accuracies)}
    return Result(ARMS[0], SMALL, {}, metrics)


def test_the_seeds_spread():
    errors = np.array([12.0, 15.0, 11.0])
    three = result(*(1 - errors / 100))
    assert standard_error(errors) == pytest.approx(np.std(errors, ddof=1) / 3**0.5)
    assert spread([three], test_error) == ["12.7 ± 1.2"]
    assert spread([result(0.9877)], test_error) == ["1.23"]
    # As many digits in all of a column.
    several = [three, result(0.9877)]
    assert spread(several, test_error) == ["12.67 ± 1.20", "1.23"]
    # Means 12.67 and 15, of standard errors 1.2 and .58: 2.33 is less than 2 * 1.33.
    near, far = result(0.84, 0.85, 0.86), result(0.83, 0.84, 0.85)
    assert not beyond(near, three, test_error)
    assert beyond(far, three, test_error)
    assert not beyond(three, far, test_error)
    assert better(three, [near, far, far, result(0.95, 0.95, 0.95)]) == (
        "Beyond two standard errors 1 of 4 layers err less than none, 2 more:\n"
        "least none 5.00 ± 0.00 %, most none 16.00 ± 0.58 %, none 12.67 ± 1.20 %"
    )


def test_votes_meet_weight_scaling_in_pairs(tmp_path):
    study = mnist.votes("default")
    errors = {1: 0.08, 2: 0.06, 5: 0.05, 10: 0.045, 20: 0.042, 50: 0.041, 100: 0.04}

    def finding(single, further):
        # Networks that differ more from each other than votes from weight scaling.
        metrics = {
            seed: {"test_accuracy": 1 - single - shift}
            | {f"error_of_{k}": each + shift for k, each in errors.items()}
            | {"error_of_50": errors[50] + shift + further}
            for seed, (shift, further) in enumerate(
                zip((0.0, 0.01, 0.02), further, strict=True)
            )
        }
        arm = study.arms[0]
        found = [Result(arm, arm.candidates[0], {}, metrics)]
        return study.draw(tmp_path / "figure.png", found)

    even = (0.0, 0.0, 0.0)
    assert "does not meet weight scaling (4.90 %) within 100" in finding(0.039, even)
    told = finding(0.0408, (-0.0006, 0.0, 0.0006))  # .02 ± .03 more
    assert "two standard errors of weight scaling (5.08 %) with 50 passes" in told
    assert "100 in 5.00 %, -0.08 ± 0.00 in pairs" in told


def test_votes_of_so_many_share_no_pass(monkeypatch):
    samples = np.random.default_rng(3).dirichlet(np.ones(4), (200, 30))
    monkeypatch.setattr(mnist, "sample", lambda *a, **settings: samples)
    targets = np.random.default_rng(4).integers(0, 4, 30)
    part = Part(np.zeros((30, 2), "float32"), targets)
    measured = mnist._measure_votes(
        Run(SMALL, None, {}, {}), Data("spiral", part, part, part, tuple("abcd"))
    )
    for passes in mnist.PASSES:
        parts = samples.reshape(-1, passes, 30, 4).mean(axis=1)
        wrong = np.mean([np.mean(p.argmax(axis=1) != targets) for p in parts])
        assert measured[f"error_of_{passes}"] == pytest.approx(wrong)


def test_a_layer_is_timed_and_what_diverged_has_no_calibration():
    part = Part(np.zeros((6, 2), "float32"), np.arange(6, dtype="int32") % 3)
    data = Data("spiral", part, part, part, tuple("abc"))
    settings = replace(SMALL, batch_size=4)
    model = build(settings, data)
    measured = cifar._measure_family(Run(settings, model, {}, {}), data)
    assert measured["step"] > 0 and 0 <= measured["expected_calibration_error"] <= 1
    model.get_layer("probabilities").bias.assign([np.nan] * 3)
    measured = cifar._measure_family(Run(settings, model, {}, {}), data)
    assert np.isnan(measured["expected_calibration_error"])


def data_of(experiment):
    settings = experiment.resolved()
    shape = {"spiral": (2,), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
    empty = np.zeros((1, *shape[settings.data]), "float32")
    part = Part(empty, np.zeros(1, "int32"))
    return Data(settings.data, part, part, part, tuple("abcdefghij"))


@pytest.mark.parametrize("name", main.STUDIES)
def test_each_study_can_be_built(name):
    for size in ("quick", "default", "full"):
        study = main.STUDIES[name](size)
        assert len({arm.label for arm in study.arms}) == len(study.arms)
        for series in {arm.series for arm in study.arms}:
            # The same budget for all that are compared: candidates, epochs, examples.
            mine = [arm.candidates for arm in study.arms if arm.series == series]
            assert len({len(candidates) for candidates in mine}) == 1
            each = [e.resolved() for candidates in mine for e in candidates]
            assert len({(e.epochs, e.train_size, e.batch_size) for e in each}) == 1
            most = {"spiral": 3000, "mnist": 60000, "cifar10": 50000}
            assert all(e.train_size <= most[e.data] for e in each)
        if size == "quick" or name == "alexnet":
            for arm in study.arms:
                network(arm.candidates[0], data_of(arm.candidates[0]))


@pytest.mark.parametrize("name", ["alexnet", "family", "spiral"])
def test_no_arm_has_a_learning_rate_that_none_may_not_have(name):
    for size in ("quick", "default", "full"):
        plain, *others = [
            {each.learning_rate for each in arm.candidates}
            for arm in main.STUDIES[name](size).arms
        ]
        assert all(rates <= plain for rates in others)


@pytest.mark.parametrize("name", main.STUDIES)
def test_each_study_says_and_draws_what_it_found(name, tmp_path):
    study = main.STUDIES[name]("quick")
    rng = np.random.default_rng(5)
    names = ("test_accuracy", "test_loss", "train_accuracy", "step", "seconds")
    names += ("expected_calibration_error",)
    names += tuple(f"error_of_{passes}" for passes in mnist.PASSES)
    results = [
        Result(
            arm,
            arm.candidates[0],
            {},
            {
                seed: dict(zip(names, rng.random(len(names)), strict=True))
                for seed in (0, 1)
            },
        )
        for arm in study.arms
    ]
    finding = study.draw(tmp_path / "figure.png", results)
    assert imread(tmp_path / "figure.png").std() > 0.01
    best = min(results, key=lambda each: each.mean(test_error))
    assert f"{best.mean(test_error):.2f}" in finding


def test_a_step_up_is_told_as_one_down_is(tmp_path):
    study = cifar.alexnet("quick")
    errors = [(0.40, 0.41), (0.40, 0.41), (0.50, 0.51)]
    results = [
        Result(
            arm,
            arm.candidates[0],
            {},
            dict(enumerate(found(0, test=1 - e) for e in each)),
        )
        for arm, each in zip(study.arms, errors, strict=True)
    ]
    told = study.draw(tmp_path / "figure.png", results)
    assert told.endswith("errors of the one before: more everywhere")
    told = study.draw(tmp_path / "figure.png", [results[2], results[1], results[0]])
    assert told.endswith("errors of the one before: less in the classifier")


def test_the_plateau_of_rates_ends_where_the_error_first_rises(tmp_path):
    study = mnist.rate("default")
    errors = [4.5, 3.95, 3.8, 3.75, 3.8, 3.9, 4.6, 5.0, 6.1, 3.9]
    errors += [4.8, 4.7, 4.6, 4.5, 4.4, 4.3, 4.2, 4.1, 4.0, 3.9]
    results = [
        Result(arm, arm.candidates[0], {}, {0: metrics})
        for arm, error in zip(study.arms, errors, strict=True)
        if (metrics := {"test_accuracy": 1 - error / 100, "train_accuracy": 1.0})
    ]
    wide, kept = study.draw(tmp_path / "figure.png", results).splitlines()
    assert wide == (
        "width 512: 3.75 % at 0.3, up to a tenth more from 0.1 to 0.5; "
        "4.50 at 0, 3.90 at 0.9"
    )
    assert "3.90 % at 0.9, up to a tenth more from 0.6 to 0.9" in kept


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["spirl"], "There is no study 'spirl': did you mean spiral?"),
        ([], "the following arguments are required: name."),
        (["spiral", "--jobs", "0"], "--jobs is 0, but must be at least 1."),
        (["spiral", "--jobs", "a"], "argument --jobs: invalid int value: 'a'."),
        (["spiral", "--quick", "--full"], "not allowed with argument"),
        (
            ["spiral", "--output", "file"],
            "the output folder file/spiral cannot be written",
        ),
        (["votes", "--quick", "--data-dir", "none"], "none is not a folder"),
        (["tiny"], "cannot be read: delete it, and its run is trained again."),
    ],
)
def test_bad_input_is_told_in_a_sentence(
    arguments, sentence, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(main.STUDIES, "tiny", tiny)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    kept = Path("studies/tiny/finished") / f"{RATES[0].key()}.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{")
    monkeypatch.setattr(sys, "argv", ["studies", *arguments])
    assert main.main() == 2
    told = capsys.readouterr().err
    assert told.startswith("studies: ") and told.count("\n") == 1
    assert sentence in told


@pytest.mark.parametrize("module", ["studies", "scaling", "benchmark"])
def test_a_missing_extra_is_one_sentence(tmp_path, module):
    code = (
        "import runpy, sys; sys.modules['matplotlib'] = None;"
        f"runpy.run_module('kdrop.{module}', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 2, process.stderr
    told = process.stderr.splitlines()[-1]  # TensorFlow's start writes before it
    assert re.fullmatch(
        rf"kdrop.{module}: .*\bmatplotlib\b.*: pip install '.\[train\]'", told
    )


def test_data_are_had_before_several_processes_ask_for_them(tmp_path, monkeypatch):
    def missing(experiment, folder):
        raise main.UserError(f"{experiment.data} is not in {folder}.")

    monkeypatch.setattr(main, "load_data", missing)
    monkeypatch.setattr(main, "Runner", None)  # a call of it would be a TypeError
    with pytest.raises(main.UserError, match="mnist is not in here"):
        main.conduct("votes", "quick", tmp_path, 2, Console(quiet=True), "here")
