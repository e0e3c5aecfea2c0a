"""The command line, as a user runs it."""

import csv
import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdrop.models import MODELS
from kdrop.training import comparison
from kdrop.training.data import SETS
from kdrop.training.experiment import SCHEDULES, Experiment, Run

SCRIPT = Path(__file__).parent.parent / "train.py"
QUICK = "--train-size 300 --batch-size 50 --hidden 16 --epochs 4 --passes 2".split()


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Runs the script in this process and returns its exit code."""
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train", module)  # where options find their help
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        return module.main()

    return run


def started(*arguments, cwd):
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_three_runs_side_by_side(train, tmp_path, capsys):
    assert train(*QUICK, "--seeds", 2) == 0
    told = capsys.readouterr().out
    for kind in ("none", "InvertedDropout", "VanillaDropout"):
        assert f"{kind} seed 1  epoch 4/4" in told
        row, *voted = re.findall(rf"^ *{kind}  .*±.*", told, re.MULTILINE)
        assert len(voted) == (0 if kind == "none" else 2)
        assert (
            len(re.findall(r"\d+\.\d ± \d+\.\d", row)) == 4
        )  # accuracies, and the gap
        assert len(re.findall(r"\d\.\d{3} ± \d\.\d{3}", row)) == 3  # losses
    assert "mean ± standard deviation of 2 seeds" in told
    for slug in ("spiral-none", "spiral-inverted-dropout", "spiral-vanilla-dropout"):
        path = tmp_path / "saved_models" / slug / "1"
        assert {"curves.png", "regions.png", "saved_model.pb", "model.keras"} < {
            p.name for p in path.iterdir()
        }
        record = json.loads((path / "experiment.json").read_text())
        assert set(record["seeds"]) == {"0", "1"}
        best = max(m["validation_accuracy"] for m in record["seeds"].values())
        assert record["metrics"]["validation_accuracy"] == best
        with open(path / "history.csv") as file:
            assert list(csv.DictReader(file))[-1]["epoch"] == "4"
    assert record["rates"] == {"drop_1": 0.3}
    assert record["settings"]["schedule"] is None
    # Nothing unfinished is left behind.
    assert not list((tmp_path / "saved_models").glob(".*"))


def test_one_run_and_its_name(train, tmp_path):
    for version in (1, 2):
        assert train(*QUICK, "--dropout", "VanillaDropout", "--name", "mine") == 0
        assert (tmp_path / "saved_models" / "mine" / str(version)).is_dir()
    assert [p.name for p in (tmp_path / "saved_models").glob("[!.]*")] == ["mine"]


def test_a_tensorboard_log_is_one_option_away(train, tmp_path):
    assert train(*QUICK, "--dropout", "none", "--tensorboard", "logs") == 0
    (log,) = (tmp_path / "logs").rglob("train/events.out.tfevents*")
    events = tf.compat.v1.train.summary_iterator(str(log))
    steps = {event.step for event in events if event.summary.value}
    assert max(steps) == 4  # our epochs


def test_a_schedule_is_in_the_record_and_not_for_the_run_without_dropout(
    train, tmp_path
):
    arguments = [
        "--schedule",
        "early",
        "--rate",
        "0.4",
        "--dropout",
        "NONE,VanillaDropout",
    ]
    assert train(*QUICK, *arguments) == 0
    records = [
        json.loads((tmp_path / "saved_models" / slug / "1/experiment.json").read_text())
        for slug in ("spiral-none", "spiral-vanilla-dropout")
    ]
    assert [each["settings"]["schedule"] for each in records] == [None, "early"]
    assert [each["settings"]["rate"] for each in records] == [None, [0.4]]
    assert [each["rates"] for each in records] == [{}, {"drop_1": 0.0}]
    with open(tmp_path / "saved_models/spiral-vanilla-dropout/1/history.csv") as file:
        rates = [float(row["rate_drop_1"]) for row in csv.DictReader(file)]
    assert rates == [0.4, 0.0, 0.0, 0.0]  # the steps of an epoch share a rate


@pytest.mark.parametrize("said", ["none", "None"])
def test_none_in_any_case_is_the_run_without_dropout(train, tmp_path, said):
    assert train(*QUICK, "--dropout", said) == 0
    assert [p.name for p in (tmp_path / "saved_models").iterdir()] == ["spiral-none"]


def test_help_tells_what_holds_where_nothing_is_said(train, capsys):
    with pytest.raises(SystemExit) as end:
        train("--help")
    assert end.value.code == 0
    told = " ".join(re.sub("[│╭╰╮╯─]", "", capsys.readouterr().out).split())
    assert "None" not in told
    assert "(default: 500 for spiral, 36 for cifar10, 20 for mnist)" in told
    assert "(default: none,InvertedDropout,VanillaDropout)" in told
    for name in (*MODELS, *SCHEDULES, *SETS):
        assert re.search(rf"\b{name}\b", told)
    for field in dataclasses.fields(Experiment)[2:]:
        form = rf"--{field.name.replace('_', '-')}[^()]* .*?\(default: \S.*?\)"
        assert re.search(form, told), field.name


@pytest.mark.parametrize("module", ["tyro", "rich", "matplotlib", "keras"])
def test_a_missing_extra_is_one_sentence(tmp_path, module):
    code = (
        f"import runpy, sys; sys.modules[{module!r}] = None;"
        f"sys.argv = ['train.py']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 2, process.stderr
    assert re.fullmatch(
        rf"train.py: .*\b{module}\b.*: pip install '.\[train\]'\n", process.stderr
    )


def test_a_missing_data_set_package_is_one_sentence(train, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert train("cifar10", "--data-dir", ".") == 2
    assert "tensorflow_datasets" in (told := capsys.readouterr().err)
    assert told.endswith(": pip install '.[train]'\n") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["spirl"], "did you mean spiral"),
        (["--dropout", "InvertedDropuot"], "did you mean InvertedDropout"),
        (["--rate", "1.5"], "--rate is 1.5, but must be in [0, 1)"),
        (["--rate", "0.1", "0.2", "0.3"], "2 places"),
        (["--train-size", "4000"], "train size is 4000"),
        (["--train-size", "3"], "at least one of each"),
        (["cifar10", "--data-dir", "nowhere"], "nowhere"),
        (["--output", "file/models"], "file/models cannot be written"),
        (["--model", "alexnet"], "(height, width, channels)"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--passes", "-1"], "--passes is -1"),
        (["--vote-size", "0"], "--vote-size is 0"),
        (["--epochs", "ten"], "train.py: --epochs: invalid literal for int()"),
        (["--rate", "0.1", "x"], "--rate: "),
        (["--epocs", "3"], "--epocs, 3: did you mean --epochs?"),
        (["--epochs"], "Missing value for argument '--epochs'"),
        (["spiral", "mnist"], "Unrecognized options: mnist"),
        (["--schedule", "erly"], "did you mean early"),
        (["--dropout", "none", "--schedule", "early"], "--schedule is given"),
        (["--dropout", "none", "--rate", "0.1"], "--rate is given"),
        (["--output", "file"], "file cannot be written"),
        (["--name", "../mine"], "../mine"),
        (["--name", ""], "plain name"),
        (["--mirror", "True"], "Only images"),
        (["--seed", "4294967295", "--seeds", "2"], "--seed is 4294967296"),
        (["--processes", "2"], "KERAS_BACKEND=jax python train.py --processes N"),
        (["--coordinator", "first:9876"], "several processes take the JAX backend"),
    ],
)
def test_bad_input_is_told_in_one_sentence(train, tmp_path, capsys, arguments, told):
    (tmp_path / "file").write_text("")
    assert train(*arguments) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err + printed.out
    assert not list((tmp_path / "saved_models").glob("*"))


def test_bad_input_is_all_that_a_user_reads(tmp_path):
    process = started("--rate", "2", cwd=tmp_path)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 2
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("train.py: --rate is 2.0")


def test_a_full_disk_loses_nothing(train, monkeypatch, tmp_path, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("kdrop.serving.saved_model._write_saved_model", full)
        assert train(*QUICK, "--dropout", "none") == 2
    assert "No space left" in capsys.readouterr().err
    assert train(*QUICK, "--dropout", "none", "--resume") == 0
    told = capsys.readouterr().out
    assert "epoch" not in told  # the training was not lost
    assert (tmp_path / "saved_models" / "spiral-none" / "1").is_dir()


def test_what_was_exported_before_a_kill_is_not_exported_again(
    train, monkeypatch, tmp_path
):
    real, calls = comparison.export, []

    def killed(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(comparison, "export", killed)
    assert train(*QUICK) == 130
    assert train(*QUICK, "--resume") == 0
    for slug in ("spiral-none", "spiral-inverted-dropout", "spiral-vanilla-dropout"):
        versions = (tmp_path / "saved_models" / slug).iterdir()
        assert [path.name for path in versions] == ["1"]


def wait_for(path, pattern, process, seconds=600):
    end = time.monotonic() + seconds
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


LONG = [
    *("--dropout", "InvertedDropout", "--hidden", "256", "256"),
    *("--train-size", "3000", "--epochs", "150", "--seed", "4"),
]


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    whole = started(*LONG, "--output", "whole", cwd=tmp_path)
    killed = started(*LONG, cwd=tmp_path)
    wait_for(tmp_path, "saved_models/.unfinished/*/epoch-*.keras", killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(tmp_path.glob("saved_models/*/1"))
    resumed = started(*LONG, "--resume", cwd=tmp_path)
    told, error = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, error
    assert "nothing to resume" not in told and "epoch   7/150" not in told
    assert "epoch 150/150" in told
    whole.communicate(timeout=600)
    assert whole.returncode == 0
    models = [
        keras.models.load_model(
            tmp_path / folder / "spiral-inverted-dropout" / "1" / "model.keras"
        )
        for folder in ("whole", "saved_models")
    ]
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ctrl_c_stops_cleanly(tmp_path):
    process = started(*LONG, "--epochs", "100000", cwd=tmp_path)
    wait_for(tmp_path, "saved_models/.unfinished/*/epoch-*.keras", process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "--resume goes on" in error and "Traceback" not in error
    assert not list(tmp_path.glob("saved_models/*/1"))


def test_starting_anew_says_what_is_lost(train, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(comparison, "_export", stop)
        assert train(*QUICK, "--dropout", "none") == 130
    assert train(*QUICK, "--dropout", "none") == 0
    assert "starts anew: --resume would have gone on" in capsys.readouterr().out


def test_the_best_of_the_seeds_is_the_one_with_the_best_validation():
    def run(accuracy, loss):
        metrics = {"validation_accuracy": accuracy, "validation_loss": loss}
        return Run(Experiment(), None, {}, {**metrics, "train_accuracy": 1 - accuracy})

    runs = [run(0.8, 0.5), run(0.9, 0.7), run(0.9, 0.6), run(0.7, 0.1)]
    assert comparison.Compared(runs).best is runs[2]
    # Without a validation part it is the training part that decides.
    alone = [
        Run(Experiment(), None, {}, {"train_accuracy": a, "train_loss": 0.0})
        for a in (0.5, 0.7)
    ]
    assert comparison.Compared(alone).best is alone[1]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_can_be_asked_for(name):
    assert Experiment(data="cifar10", model=name).resolved().model == name


def test_a_real_cifar_run(train, tmp_path, cifar10_folder, capsys):
    arguments = "cifar10 --train-size 200 --epochs 1 --dropout VanillaDropout".split()
    arguments += ["--vote-size", "20"]
    assert train(*arguments, "--data-dir", cifar10_folder) == 0
    path = tmp_path / "saved_models" / "cifar10-vanilla-dropout" / "1"
    pictures = {path.stem for path in path.glob("*.png")}
    assert pictures == {
        *("curves", "predictions", "confusion"),
        *("passes", "reliability", "certainty"),
    }
    assert (path / "assets" / "labels.txt").read_text().split()[0] == "airplane"
    assert os.listdir(path / "assets.extra")


def test_seeds_are_told_by_their_spread_a_diverged_one_too():
    assert comparison._spread([1.0, 2.0], 2) == "1.50 ± 0.71"
    assert comparison._spread([1.0, np.nan], 2) == "nan ± nan"
    assert comparison._spread([1.0, np.inf], 2) == "inf ± nan"
