"""The command train.py: what it prints, exports and resumes, and how it ends."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from commands import SCRIPT, train

import kdrop
from kdrop.training import comparison
from kdrop.training.report import mean_and_spread

QUICK = "--train-size 300 --batch-size 50 --hidden 16 --epochs 4 --steps-per-epoch 5 "
QUICK += "--passes 2 "


def start(arguments, folder):
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments.split()],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder and the output of one command that compares two layers."""
    folder = tmp_path_factory.mktemp("compared")
    arguments = QUICK + "--dropout none,VanillaDropout --seeds 2 --tensorboard logs "
    arguments += "--schedule late --rate 0.4 --format saved_model,litert"
    status, output = train(arguments, folder)
    assert status == 0
    return folder, output


def record(folder, slug):
    return json.loads(
        (folder / "saved_models" / slug / "1/experiment.json").read_text()
    )


def test_tables_show_each_layer_over_its_seeds(compared):
    _, output = compared
    for kind, rows in ("none", 1), ("VanillaDropout", 3):
        assert f"{kind} seed 1  epoch 4/4" in output
        table = re.findall(rf"^ *{kind}  .*\n.*±.*", output, re.MULTILINE)
        assert len(table) == rows
        means, spreads = table[0].splitlines()
        # Three accuracies, then three losses and the calibration error.
        assert len(re.findall(r" \d+\.\d\b(?!\d)", means)) == 3
        assert len(re.findall(r" \d\.\d{3}\b", means)) == 4
        assert len(re.findall(r"± \d+\.\d\b(?!\d)", spreads)) == 3
        assert len(re.findall(r"± \d\.\d{3}\b", spreads)) == 4
    assert "spiral, at inference, mean ± standard deviation of 2 seeds" in output
    assert "spiral, test set: weight scaling and vote of 2 samples" in output
    assert "With VanillaDropout instead of none: test accuracy " in output
    assert output.splitlines()[-5:] == [
        "saved  saved_models/spiral-none/1",
        "saved  saved_models/spiral-vanilla-dropout/1",
        "open   saved_models/spiral-vanilla-dropout/1/report.html",
        "serve  python -m kdrop.serving saved_models",
        "ask    http://127.0.0.1:8501 in a browser; report.html shows how with curl",
    ]
    assert max(map(len, output.splitlines())) <= 100


def test_the_best_seed_is_exported_with_its_record(compared):
    folder, _ = compared
    for slug in ("spiral-none", "spiral-vanilla-dropout"):
        version = folder / "saved_models" / slug / "1"
        files = {path.name for path in version.iterdir()}
        assert {"curves.png", "regions.png", "saved_model.pb", "model.keras"} < files
        assert {"report.html", "serve.tflite"} < files
        assert ("sample_seeded.tflite" in files) == (slug != "spiral-none")
        assert record(folder, slug)["formats"] == ["litert"]
        seeds = record(folder, slug)["seeds"]
        assert set(seeds) == {"0", "1"}
        best = max(metrics["validation_accuracy"] for metrics in seeds.values())
        assert record(folder, slug)["metrics"]["validation_accuracy"] == best
        with open(version / "history.csv") as file:
            assert list(csv.DictReader(file))[-1]["epoch"] == "4"
    assert not list((folder / "saved_models").glob(".*"))  # no checkpoints are left


def test_a_schedule_is_recorded_for_the_runs_that_drop(compared):
    folder, _ = compared
    records = [record(folder, f"spiral-{x}") for x in ("none", "vanilla-dropout")]
    assert [x["settings"]["schedule"] for x in records] == ["constant", "late"]
    assert [x["settings"]["rate"] for x in records] == [[], [0.4]]
    assert [x["rates"] for x in records] == [{}, {"drop_1": 0.4}]
    with open(folder / "saved_models/spiral-vanilla-dropout/1/history.csv") as file:
        rates = [float(row["rate_drop_1"]) for row in csv.DictReader(file)]
    assert rates == [0.0, 0.4, 0.4, 0.4]  # the steps of an epoch share a rate


def test_tensorboard_has_a_row_for_each_epoch(compared):
    folder, _ = compared
    logs = list((folder / "logs").rglob("train/events.out.tfevents*"))
    assert len(logs) == 4
    events = tf.compat.v1.train.summary_iterator(str(logs[0]))
    assert {event.step for event in events if event.summary.value} == {0, 1, 2, 3}


@pytest.mark.slow
def test_a_failed_export_loses_nothing(monkeypatch, tmp_path, capsys):
    export, calls = comparison.export_best, []

    def full_disk(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return export(*arguments)

    arguments = QUICK + "--dropout none,InvertedDropout --name mine"
    with monkeypatch.context() as broken:
        broken.setattr(comparison, "export_best", full_disk)
        assert train(arguments, tmp_path)[0] == 2
    message = capsys.readouterr().err
    assert "No space left" in message and "--resume continues" in message
    status, output = train(arguments + " --resume", tmp_path)
    assert status == 0
    assert "epoch" not in output  # no training was lost
    for slug in ("mine-none", "mine-inverted-dropout"):
        versions = (tmp_path / "saved_models" / slug).iterdir()
        assert [path.name for path in versions] == ["1"]


def test_a_start_without_resume_says_what_it_discards(monkeypatch, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "train", interrupted)
    experiment_folder = tmp_path / "saved_models/.unfinished"
    assert train(QUICK + "--dropout none --resume", tmp_path) == (
        130,
        "none  nothing to resume with these settings\n",
    )
    assert "the same command starts anew" in capsys.readouterr().err
    ((experiment,), _) = comparison_of(QUICK + "--dropout none")
    (experiment_folder / experiment.key()).mkdir(parents=True)
    _, output = train(QUICK + "--dropout none", tmp_path)
    assert output == "none  starts from epoch 1 and deletes what was saved\n"


def comparison_of(arguments):
    from kdrop.training.arguments import parse

    parsed, devices = parse(arguments.split())
    return parsed.experiments, devices


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rate 0.1 0.2 0.3", "2 places"),
        ("--train-size 4000", "--train-size is 4000, but must be in [1, 3000]"),
        ("--train-size 3", "at least one of each"),
        ("cifar10 --data-dir nowhere", "nowhere is not a folder"),
        ("--output file/models", "file/models cannot be written"),
        ("--output file", "file cannot be written: it is a file"),
        ("--format onx", "There is no format 'onx': did you mean onnx?"),
        ("--tensorboard file", "file cannot be written"),
        ("--process-id 5", "set KERAS_BACKEND=jax"),
        ("--model alexnet", "(height, width, channels)"),
        ("--mirror", "Only images"),
        ("--seed 4294967295 --seeds 2", "--seed is 4294967296"),
        (
            "--processes 2",
            "set KERAS_BACKEND=jax, and give each --processes",
        ),
        ("--coordinator first:9876", "Several processes need the JAX backend"),
        ("--replicas 1000000", "--replicas is 1000000, but must be in [1, 1024]"),
    ],
)
def test_wrong_settings_end_with_one_sentence(tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    status, output = train(arguments, tmp_path)
    error = capsys.readouterr().err
    assert status == 2
    assert message in error and error.startswith("train.py: ")
    assert error.count("\n") == 1 and "Traceback" not in error + output
    assert not list((tmp_path / "saved_models").glob("*"))


def test_a_missing_data_set_package_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert train("cifar10 --data-dir .", tmp_path)[0] == 2
    error = capsys.readouterr().err
    assert "tensorflow_datasets" in error
    assert error.endswith(": pip install '.[train]'\n") and error.count("\n") == 1


def test_a_diverged_seed_has_no_spread():
    assert mean_and_spread([1.0, np.nan], 2) == "nan ± nan"
    assert mean_and_spread([1.0, np.inf], 2) == "inf ± nan"


def test_a_backend_that_is_not_supported_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    process = start("", tmp_path)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 2 and error.count("\n") == 1, error
    assert error.startswith("train.py: kdrop runs on the Keras backends tensorflow")


@pytest.mark.slow
def test_the_command_records_its_versions(tmp_path):
    """The names of kdrop, `__version__` among them, are there once it trains."""
    process = start(QUICK + "--dropout none --passes 0", tmp_path)
    output, error = process.communicate(timeout=600)
    assert (process.returncode, error) == (0, ""), error
    made_with = record(tmp_path, "spiral-none")["made_with"]
    assert made_with["kdrop"] == kdrop.__version__


def test_an_error_is_all_that_is_printed(tmp_path):
    process = start("--rate 2", tmp_path)
    output, error = process.communicate(timeout=600)
    assert process.returncode == 2
    assert (output, error.count("\n")) == ("", 1)
    assert error.startswith("train.py: --rate is 2.0")


LONG = "--dropout InvertedDropout --epochs 12 --steps-per-epoch 100 --seed 4 "


def wait_for_checkpoint(folder, process):
    end = time.monotonic() + 600
    while not list(folder.glob("saved_models/.unfinished/*/epoch-*.keras")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_with_a_sentence(number, status, tmp_path):
    process = start(LONG + "--epochs 100000", tmp_path)
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=600)
    assert process.returncode == status
    assert "--resume continues" in error and "Traceback" not in error
    assert not list(tmp_path.glob("saved_models/*/1"))


@pytest.mark.slow
def test_a_run_on_images(tmp_path, cifar10_folder):
    arguments = "cifar10 --train-size 200 --epochs 1 --dropout VanillaDropout "
    arguments += f"--vote-size 20 --data-dir {cifar10_folder}"
    assert train(arguments, tmp_path)[0] == 0
    version = tmp_path / "saved_models" / "cifar10-vanilla-dropout" / "1"
    pictures = {path.stem for path in version.glob("*.png")}
    assert pictures == {
        *("curves", "predictions", "confusion"),
        *("passes", "reliability", "certainty"),
    }
    page = (version / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert (version / "assets" / "labels.txt").read_text().split()[0] == "airplane"
    assert list((version / "assets.extra").iterdir())
