"""Several processes train as one does, on the JAX backend and real sockets."""

import contextlib
import csv
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from kdrop.devices import join

SCRIPT = Path(__file__).parent.parent / "train.py"
# One step an epoch, of an odd number of examples.
QUICK = (
    "--dropout InvertedDropout --rate 0.5 --hidden 16 --train-size 101 --validation 0 "
    "--batch-size 101 --epochs 120"
).split()

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="needs JAX"
)


@pytest.fixture
def coordinator():
    # Not one of those that the system gives to any connection in the meantime.
    while True:
        port = random.randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return f"localhost:{port}"


@pytest.fixture
def start(tmp_path, coordinator):
    """Starts one of several processes of a command; none outlives the test."""
    running = []

    def start(process, processes, *options, command=(SCRIPT, *QUICK)):
        arguments = f"--processes {processes} --process-id {process}".split()
        if processes > 1:
            arguments += ["--coordinator", coordinator]
        running.append(
            subprocess.Popen(
                [sys.executable, *map(str, [*command, *arguments, *options])],
                cwd=tmp_path,
                env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def ended(process, timeout=300):
    out, errors = process.communicate(timeout=timeout)
    return process.returncode, out, errors


def result(folder):
    """History and weights of what was exported."""
    (path,) = Path(folder).glob("spiral-*/1")
    with open(path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    model = keras.models.load_model(path / "model.keras", compile=False)
    assert (path / "saved_model.pb").exists() and (path / "regions.png").exists()
    return [float(row["loss"]) for row in rows], model.get_weights()


# Of the accuracy, from seed to seed: half of the range of seeds 0 to 4.
SPREAD = {"spiral": 0.01, "cifar10": 0.01}

# Trains in steps of an epoch each, and draws each mask of a batch.
SHARED = """
import sys
import jax, keras, numpy as np
from pathlib import Path
from jax.experimental.multihost_utils import process_allgather
from rich.console import Console
from kdrop import devices, experiment, progress
from kdrop.data import Part
from kdrop.progress import Recorder, Unfinished

_, name, _, processes, _, process, *coordinator = sys.argv
settings = {
    # An odd number of examples, so that one is repeated.
    "spiral": experiment.Experiment(
        train_size=101, validation=0.0, batch_size=101, epochs=50, hidden=(16,)
    ),
    # With batch normalisation float sums in another order soon part the losses.
    "cifar10": experiment.Experiment(
        data="cifar10", model="mnist_mlp", hidden=(64,), train_size=128,
        validation=0.0, batch_size=128, epochs=50, shift=2,
    ),
}[name].resolved()
experiment._stride = lambda epochs, steps: 1
progress.SAVE_SECONDS = 1e9 if process == "0" else 0  # their clocks do not agree
shared = devices.join(int(processes), int(process), *coordinator[1:])
data = experiment.load_data(settings)
few = Part(data.test.inputs[:1000], data.test.targets[:1000])
data = experiment.replace(data, test=few)
folder = Path(f"{name}-{process}-of-{processes}")

found = {}
keras.utils.set_random_seed(0)  # JAX wants the same weights in all processes
with shared.scope():
    of_maps = {"model": "alexnet32", "hidden": None} if name == "cifar10" else {}
    dropped = experiment.replace(settings, **of_maps)
    for layer in experiment.network(dropped, data).layers:
        if not layer.name.startswith("drop"):
            continue
        batch = 2 * (settings.batch_size // 2)
        ones = np.ones((batch // shared.processes, *layer.input.shape[1:]), "float32")
        if shared.processes > 1:
            layout = keras.distribution.distribution().get_data_layout(
                (batch, *ones.shape[1:])
            )
            ones = jax.make_array_from_process_local_data(layout.backend_layout, ones)
        kept = [v.value for v in layer.non_trainable_variables]
        step = jax.jit(lambda *a: layer.stateless_call([], *a, training=True)[0])
        found[layer.name] = process_allgather(step(kept, ones), tiled=True)
unfinished, recorder = Unfinished(folder), Recorder(Console(quiet=True), "")
run = experiment.train(settings, data, unfinished, recorder, (), shared)
found |= {"losses": run.history["loss"], "accuracy": run.metrics["test_accuracy"]}
np.savez(folder.with_suffix(".npz"), **found)
"""

# Keeps every epoch that it reports, and at one step dies.
MORTAL = """
import os, runpy, signal, sys
terminal = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as train.py
from kdrop import progress
os.dup2(terminal, 2)

class Recorder(progress.Recorder):
    step = 0

    def on_train_batch_end(self, batch, logs=None):
        Recorder.step += 1
        if Recorder.step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        super().on_train_batch_end(batch, logs)

_, last, *sys.argv = sys.argv
last, progress.SAVE_SECONDS, progress.Recorder = int(last), 0, Recorder
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", ["spiral", "cifar10"])
def test_two_processes_train_as_one(name, start, tmp_path, request):
    if name == "cifar10":
        request.getfixturevalue("cifar10_folder")
    command = "-c", SHARED, name
    for process in [start(0, 1, command=command)] + [
        start(number, 2, command=command) for number in range(2)
    ]:
        code, _, errors = ended(process)
        assert code == 0, errors
    alone = np.load(tmp_path / f"{name}-0-of-1.npz")
    assert len(alone["losses"]) == 50
    for number in range(2):
        found = np.load(tmp_path / f"{name}-{number}-of-2.npz")
        for key in {*alone.files} - {"losses", "accuracy"}:
            assert 0.02 < np.mean(alone[key] == 0) < 0.98
            np.testing.assert_array_equal(found[key], alone[key])
        np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-5)
        assert abs(found["accuracy"] - alone["accuracy"]) < SPREAD[name]


def test_killed_at_any_step_a_run_goes_on_with_one_and_two(start, tmp_path):
    """To the end of the run of one process that nothing stops."""
    alone = start(0, 1, "--output", "alone")
    # Two steps in which a process dies: a report is six steps, and is kept.
    first, second = sorted(np.random.default_rng().choice(18, 2, replace=False) + 1)
    kept = 0
    for killed, report in (1, first), (0, second):
        step = 6 * report + np.random.default_rng().integers(1, 6)
        lasts = [step - kept if number == killed else 0 for number in range(2)]
        pair = [
            start(n, 2, "--resume", command=("-c", MORTAL, lasts[n], SCRIPT, *QUICK))
            for n in range(2)
        ]
        assert ended(pair[killed])[0] == -signal.SIGKILL
        code, _, errors = ended(pair[1 - killed], timeout=60)
        told = "train.py: another process has ended; --resume .*\n"
        assert code and re.fullmatch(told, errors), (step, code, errors)
        kept = 6 * report
        (saved,) = (tmp_path / "saved_models" / ".unfinished").glob("*/epoch-*.keras")
        assert saved.name == f"epoch-{kept:07d}.keras"
    assert not list((tmp_path / "saved_models").glob("spiral-*"))
    shutil.copytree(tmp_path / "saved_models", tmp_path / "by_one")
    assert ended(alone)[0] == 0
    code, out, errors = ended(start(0, 1, "--resume", "--output", "by_one"))
    assert (code, errors) == (0, "")
    pair = [start(number, 2, "--resume") for number in range(2)]
    code, whole, errors = ended(pair[0])
    assert (code, errors) == (0, "")
    assert f"saved saved_models{os.sep}spiral" in whole
    for shown in out, whole:
        assert f"epoch {kept:3}/120" not in shown
        assert f"epoch {kept + 6:3}/120" in shown
    code, told, errors = ended(pair[1])
    assert (code, errors) == (0, "") and "epoch" not in told
    expected = result(tmp_path / "alone")
    assert_same(result(tmp_path / "by_one"), expected)
    assert_same(result(tmp_path / "saved_models"), expected)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)
    np.testing.assert_allclose(found[0][:9], expected[0][:9], rtol=1e-5)  # 54 steps
    for ours, theirs in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.01, atol=1e-4)


def test_differing_settings_are_refused_by_all(start):
    first, second = start(0, 2), start(1, 2, "--seed", 4)
    told = "train.py: process 1 has other settings than process 0: all .*\n"
    code, _, errors = ended(first)
    assert code == 2 and re.fullmatch(told, errors)
    code, _, errors = ended(second)
    told = "train.py: --seed is 4 here, but 0 in process 0: all .*\n"
    assert code == 2 and re.fullmatch(told, errors)


def test_two_processes_with_one_id_are_told(start):
    started = [start(number, 3, "--wait", 20) for number in (0, 1, 1)]
    told = [ended(process)[2] for process in started]
    assert sum("two processes have the id 1" in errors for errors in told) == 1
    assert sum("not all 3 processes came to" in errors for errors in told) == 2
    assert all(re.fullmatch("train.py: .*\n", errors) for errors in told)


def test_a_second_first_process_is_told(start, coordinator):
    with socket.create_server(("", int(coordinator.partition(":")[2]))):
        code, _, errors = ended(start(0, 2))
    assert code == 2 and re.fullmatch("train.py: .* another process 0\\?\n", errors)


def test_a_coordinator_that_is_not_there_is_told(start, coordinator):
    code, _, errors = ended(start(1, 2, "--wait", 1))
    assert code == 2
    assert re.fullmatch(f"train.py: .* {coordinator} does not answer .*\n", errors)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (1, 0)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, (1, 0)),  # of another program
    ],
    ids=str,
)
def test_no_process_waits_for_others_unasked(variables, expected, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    devices = join()
    assert (devices.processes, devices.process) == expected
