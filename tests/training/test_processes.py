"""Several processes train as one does, on the JAX backend and real sockets."""

import csv
import importlib.util
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import keras
import numpy as np
import pytest
from processes import QUICK, SCRIPT, STEPS, free_port, process_starter, wait_for

import kdrop  # noqa: F401, registers the layers of the models that are loaded

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX"),
    pytest.mark.slow,
]


@pytest.fixture
def coordinator():
    return f"localhost:{free_port()}"


@pytest.fixture
def start(tmp_path, coordinator):
    with process_starter(tmp_path, coordinator) as start:
        yield start


def result(folder):
    """Losses and weights of the exported model."""
    (path,) = Path(folder).glob("spiral-*/1")
    with open(path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    model = keras.models.load_model(path / "model.keras", compile=False)
    assert (path / "saved_model.pb").exists() and (path / "regions.png").exists()
    return [float(row["loss"]) for row in rows], model.get_weights()


# Trains for 50 epochs of one step, and draws a mask of each layer for a whole batch.
SHARED = """
import sys
import jax, keras, numpy as np
from dataclasses import replace
from pathlib import Path
from jax.experimental.multihost_utils import process_allgather
from kdrop.training import devices, progress, run
from kdrop.training.data import Part
from kdrop.training.experiment import Experiment
from kdrop.training.settings import DeviceOptions

_, names, _, processes, _, process, *coordinator = sys.argv
EXPERIMENTS = {
    # An odd number of examples, so that one is repeated.
    "spiral": Experiment.preset(
        "spiral", train_size=101, validation=0.0, batch_size=101, epochs=50,
        steps_per_epoch=1, hidden=(16,),
    ),
    # Without batch normalisation, where a different order of sums would change losses.
    "cifar10": Experiment.preset(
        "cifar10", model="mnist_mlp", hidden=(64,), train_size=128, validation=0.0,
        batch_size=128, epochs=50, shift=2,
    ),
}
# The clocks of the processes differ: let one of them never save.
progress.SAVE_SECONDS = 1e9 if process == "0" else 0
options = DeviceOptions(None, int(processes), int(process), *coordinator[1:])
shared = devices.join(options)

def mask(layer, batch):
    shape = (batch, *layer.input.shape[1:])
    ones = np.ones((batch // shared.processes, *shape[1:]), "float32")
    if shared.processes > 1:
        layout = keras.distribution.distribution().get_data_layout(shape)
        ones = jax.make_array_from_process_local_data(layout.backend_layout, ones)
    state = [variable.value for variable in layer.non_trainable_variables]
    step = jax.jit(lambda *args: layer.stateless_call([], *args, training=True)[0])
    return process_allgather(step(state, ones), tiled=True)

for name in names.split(","):
    experiment = EXPERIMENTS[name]
    data = run.load_data(experiment)
    data = replace(data, test=Part(data.test.inputs[:1000], data.test.targets[:1000]))
    keras.utils.set_random_seed(0)  # JAX needs the same weights in all processes
    # A network with several drop layers, on feature maps too
    maps = {"data": "cifar10", "validation": 0.0, "train_size": 128}
    masked = Experiment.preset(**maps) if name == "cifar10" else experiment
    with shared.scope():
        results = {
            layer.name: mask(layer, experiment.batch_size // 2 * 2)
            for layer in run.network(masked, data).layers
            if layer.name.startswith("drop")
        }
    folder = Path(f"{name}-{process}-of-{processes}")
    runs = []
    for seed in range(3):
        checkpoint = progress.Checkpoint(folder / str(seed))
        seeded = replace(experiment, seed=seed)
        runs.append(run.train(seeded, data, checkpoint, devices=shared))
    results["losses"] = [each.history["loss"] for each in runs]
    results["accuracy"] = [each.metrics["test_accuracy"] for each in runs]
    np.savez(folder.with_suffix(".npz"), **results)
"""

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


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with the results of one process and of two, on all available data."""
    folder = tmp_path_factory.mktemp("shared")
    available = Path(os.environ.get("TFDS_DATA_DIR", "nowhere"), "cifar10").is_dir()
    command = "-c", SHARED, "spiral,cifar10" if available else "spiral"
    with process_starter(folder, f"localhost:{free_port()}") as start:
        for process in [start(0, 1, command=command)] + [
            start(number, 2, command=command) for number in range(2)
        ]:
            code, _, errors = wait_for(process)
            assert code == 0, errors
    return folder


@pytest.mark.parametrize("name", ["spiral", "cifar10"])
def test_two_processes_train_as_one(name, request):
    if name == "cifar10":
        request.getfixturevalue("cifar10_folder")
    folder = request.getfixturevalue("shared")
    single = np.load(folder / f"{name}-0-of-1.npz")
    assert single["losses"].shape == (3, 50)  # seeds, epochs
    masks = {*single.files} - {"losses", "accuracy"}
    assert len(masks) == (1 if name == "spiral" else 4)
    for number in range(2):
        pair = np.load(folder / f"{name}-{number}-of-2.npz")
        for layer in masks:
            assert 0.02 < np.mean(single[layer] == 0) < 0.98
            np.testing.assert_array_equal(pair[layer], single[layer])
        np.testing.assert_allclose(pair["losses"], single["losses"], rtol=1e-5)
        # One of the 1,000 may be at the border of two classes; seeds differ by more.
        difference = np.max(np.abs(pair["accuracy"] - single["accuracy"]))
        assert difference < 0.0011 and difference <= np.ptp(single["accuracy"])


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


def test_different_settings_are_rejected_by_all(start):
    first, second = start(0, 2), start(1, 2, "--seed", 4)
    expected = "train.py: --seed is 4 in process 1, but 0 in process 0: all .*\n"
    for process in first, second:
        code, _, errors = wait_for(process)
        assert code == 2 and re.fullmatch(expected, errors), errors


def test_processes_end_if_two_have_the_same_id(start):
    started = [start(number, 3, "--wait", 20) for number in (0, 1, 1)]
    assert all(wait_for(process, timeout=120)[0] for process in started)


def test_a_second_process_0_ends(start, coordinator):
    with socket.create_server(("", int(coordinator.partition(":")[2]))):
        assert wait_for(start(0, 2), timeout=120)[0]


def test_a_coordinator_that_does_not_answer_is_reported(start, coordinator):
    code, _, errors = wait_for(start(1, 2, "--wait", 1))
    assert code == 2
    assert re.fullmatch(f"train.py: .* {coordinator} does not answer .*\n", errors)


@pytest.mark.parametrize(
    "variables", [{}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}], ids=str
)
def test_no_process_waits_for_others_unasked(variables, monkeypatch):
    from kdrop.training.devices import join
    from kdrop.training.settings import DeviceOptions

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    devices = join(DeviceOptions())
    assert (devices.processes, devices.process) == (1, 0)
