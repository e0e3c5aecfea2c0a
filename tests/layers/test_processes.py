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

from kdrop.training.devices import join

SCRIPT = Path(__file__).parent.parent / "train.py"
# One step an epoch, of an odd number of examples.
QUICK = (
    "--dropout InvertedDropout --rate 0.5 --hidden 16 --train-size 101 --validation 0 "
    "--batch-size 101 --epochs 120"
).split()

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="needs JAX"
)


def free_port():
    """Not one of those that the system gives to any connection in the meantime."""
    while True:
        port = random.randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


@contextlib.contextmanager
def starting(folder, coordinator):
    """Starts one of several processes of a command; none outlives the context."""
    running = []

    def start(process, processes, *options, command=(SCRIPT, *QUICK)):
        arguments = f"--processes {processes} --process-id {process}".split()
        if processes > 1:
            arguments += ["--coordinator", coordinator]
        running.append(
            subprocess.Popen(
                [sys.executable, *map(str, [*command, *arguments, *options])],
                cwd=folder,
                env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return running[-1]

    try:
        yield start
    finally:
        for process in running:
            process.kill()
            process.communicate()


@pytest.fixture
def coordinator():
    return f"localhost:{free_port()}"


@pytest.fixture
def start(tmp_path, coordinator):
    with starting(tmp_path, coordinator) as start:
        yield start


def ended(process, timeout=600):
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


# Trains in steps of an epoch each, and draws each mask of a batch.
SHARED = """
import sys
import jax, keras, numpy as np
from dataclasses import replace
from pathlib import Path
from jax.experimental.multihost_utils import process_allgather
from rich.console import Console
from kdrop.training import devices, experiment, progress
from kdrop.training.data import Part
from kdrop.training.experiment import Experiment

_, names, _, processes, _, process, *coordinator = sys.argv
SETTINGS = {
    # An odd number of examples, so that one is repeated.
    "spiral": Experiment(
        train_size=101, validation=0.0, batch_size=101, epochs=50, hidden=(16,)
    ),
    # With batch normalisation float sums in another order soon part the losses.
    "cifar10": Experiment(
        data="cifar10", model="mnist_mlp", hidden=(64,), train_size=128,
        validation=0.0, batch_size=128, epochs=50, shift=2,
    ),
}
experiment._stride = lambda epochs, steps: 1
progress.SAVE_SECONDS = 1e9 if process == "0" else 0  # their clocks do not agree
shared = devices.join(int(processes), int(process), *coordinator[1:])

def mask(layer, batch):
    shape = (batch, *layer.input.shape[1:])
    ones = np.ones((batch // shared.processes, *shape[1:]), "float32")
    if shared.processes > 1:
        layout = keras.distribution.distribution().get_data_layout(shape)
        ones = jax.make_array_from_process_local_data(layout.backend_layout, ones)
    kept = [variable.value for variable in layer.non_trainable_variables]
    step = jax.jit(lambda *given: layer.stateless_call([], *given, training=True)[0])
    return process_allgather(step(kept, ones), tiled=True)

def trained(settings, data, folder):
    unfinished = progress.Unfinished(folder)
    recorder = progress.Recorder(Console(quiet=True), "")
    return experiment.train(settings, data, unfinished, recorder, (), shared)

for name in names.split(","):
    settings = SETTINGS[name].resolved()
    data = experiment.load_data(settings)
    data = replace(data, test=Part(data.test.inputs[:1000], data.test.targets[:1000]))
    keras.utils.set_random_seed(0)  # JAX wants the same weights in all processes
    of_maps = {"model": "alexnet32", "hidden": None} if name == "cifar10" else {}
    with shared.scope():
        found = {
            layer.name: mask(layer, settings.batch_size // 2 * 2)
            for layer in experiment.network(replace(settings, **of_maps), data).layers
            if layer.name.startswith("drop")
        }
    folder = Path(f"{name}-{process}-of-{processes}")
    runs = [
        trained(replace(settings, seed=seed), data, folder / str(seed))
        for seed in range(3)
    ]
    found["losses"] = [run.history["loss"] for run in runs]
    found["accuracy"] = [run.metrics["test_accuracy"] for run in runs]
    np.savez(folder.with_suffix(".npz"), **found)
"""

# Keeps every epoch that it reports, and at one step dies.
MORTAL = """
import os, runpy, signal, sys
terminal = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as train.py
from kdrop.training import progress
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


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What one process and two made of it, each with all the data sets there are."""
    folder = tmp_path_factory.mktemp("shared")
    there = Path(os.environ.get("TFDS_DATA_DIR", "nowhere"), "cifar10").is_dir()
    command = "-c", SHARED, "spiral,cifar10" if there else "spiral"
    with starting(folder, f"localhost:{free_port()}") as start:
        for process in [start(0, 1, command=command)] + [
            start(number, 2, command=command) for number in range(2)
        ]:
            code, _, errors = ended(process)
            assert code == 0, errors
    return folder


@pytest.mark.parametrize("name", ["spiral", "cifar10"])
def test_two_processes_train_as_one(name, request):
    if name == "cifar10":
        request.getfixturevalue("cifar10_folder")
    folder = request.getfixturevalue("shared")
    alone = np.load(folder / f"{name}-0-of-1.npz")
    assert alone["losses"].shape == (3, 50)  # seeds, epochs
    masks = {*alone.files} - {"losses", "accuracy"}
    assert len(masks) == (1 if name == "spiral" else 4)
    for number in range(2):
        found = np.load(folder / f"{name}-{number}-of-2.npz")
        for layer in masks:
            assert 0.02 < np.mean(alone[layer] == 0) < 0.98
            np.testing.assert_array_equal(found[layer], alone[layer])
        np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-5)
        # One of the 1,000 may lie on the border of two classes; seeds part more.
        apart = np.max(np.abs(found["accuracy"] - alone["accuracy"]))
        assert apart < 0.0011 and apart <= np.ptp(alone["accuracy"])


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
        code, _, errors = ended(pair[1 - killed])
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
