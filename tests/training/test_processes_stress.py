"""Several processes on the JAX backend: kills at random steps, and images."""

import csv
import importlib.util
import os
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
from processes import QUICK, SCRIPT, STEPS, free_port, process_starter, wait_for
from shared_runs import assert_as_one, run_alone_and_as_two

import kdrop  # noqa: F401, registers the layers of the models that are loaded

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX"),
    pytest.mark.slow,
]


def test_two_processes_train_on_images_as_one(tmp_path, cifar10_folder):
    run_alone_and_as_two(tmp_path, "cifar10")
    assert_as_one(tmp_path, "cifar10")


def result(folder):
    """Losses and weights of the exported model."""
    (path,) = Path(folder).glob("spiral-*/1")
    with open(path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    model = keras.models.load_model(path / "model.keras", compile=False)
    assert (path / "saved_model.pb").exists() and (path / "regions.png").exists()
    return [float(row["loss"]) for row in rows], model.get_weights()


# Saves every epoch, and kills itself in one step.
KILLED = """
import os, runpy, signal, sys
terminal = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as train.py
from kdrop.training import progress, run
os.dup2(terminal, 2)

class Recorder(progress.Recorder):
    step = 0

    def on_train_batch_end(self, batch, logs=None):
        Recorder.step += 1
        if Recorder.step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        super().on_train_batch_end(batch, logs)

_, last, *sys.argv = sys.argv
last, progress.SAVE_SECONDS, run.Recorder = int(last), 0, Recorder
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def start(tmp_path):
    with process_starter(tmp_path, f"localhost:{free_port()}") as start:
        yield start


def test_a_run_that_is_killed_at_any_step_resumes_with_one_process_or_two(
    start, tmp_path
):
    """It ends like the run of one process that is not interrupted."""
    uninterrupted = start(0, 1, "--output", "uninterrupted")
    saved_epoch = 0
    # In two of the epochs, one of the processes is killed at a random step.
    first, second = sorted(np.random.default_rng().choice(18, 2, replace=False) + 1)
    for victim, epoch in (1, first), (0, second):
        step = STEPS * (epoch - saved_epoch) + np.random.default_rng().integers(1, 6)
        lasts = [step if number == victim else 0 for number in range(2)]
        pair = [
            start(n, 2, "--resume", command=("-c", KILLED, lasts[n], SCRIPT, *QUICK))
            for n in range(2)
        ]
        assert wait_for(pair[victim])[0] == -signal.SIGKILL
        code, _, errors = wait_for(pair[1 - victim], timeout=90)
        assert code, (step, errors)
        saved_epoch = epoch
        (saved,) = (tmp_path / "saved_models" / ".unfinished").glob("*/epoch-*.keras")
        assert saved.name == f"epoch-{saved_epoch:07d}.keras"
    assert not list((tmp_path / "saved_models").glob("spiral-*"))
    shutil.copytree(tmp_path / "saved_models", tmp_path / "by_one")
    assert wait_for(uninterrupted)[0] == 0
    code, by_one, errors = wait_for(start(0, 1, "--resume", "--output", "by_one"))
    assert (code, errors) == (0, "")
    pair = [start(number, 2, "--resume") for number in range(2)]
    code, by_two, errors = wait_for(pair[0])
    assert (code, errors) == (0, "")
    assert f"saved  saved_models{os.sep}spiral" in by_two
    for out in by_one, by_two:
        assert f"epoch {saved_epoch:2}/20" not in out
        assert f"epoch {saved_epoch + 1:2}/20" in out
    code, out, errors = wait_for(pair[1])
    assert (code, errors) == (0, "") and "epoch" not in out
    expected = result(tmp_path / "uninterrupted")
    assert_same(result(tmp_path / "by_one"), expected)
    assert_same(result(tmp_path / "saved_models"), expected)


def assert_same(actual, expected):
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-3)
    # Rounding differences grow: the first 54 steps agree better.
    np.testing.assert_allclose(actual[0][:9], expected[0][:9], rtol=1e-5)
    for weight, expected_weight in zip(actual[1], expected[1], strict=True):
        np.testing.assert_allclose(weight, expected_weight, rtol=0.01, atol=1e-4)
