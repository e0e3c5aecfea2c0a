"""Several processes train as one does, on the JAX backend and real sockets."""

import csv
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from kdrop.devices import join
from kdrop.layers import InvertedDropout

SCRIPT = Path(__file__).parent.parent / "train.py"
# One step an epoch, of an odd number of examples.
QUICK = (
    "--dropout InvertedDropout --rate 0.5 --hidden 16 --train-size 101 --validation 0 "
    "--batch-size 101 --epochs 120"
).split()

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX"),
    pytest.mark.skipif(
        not os.environ.get("CI_FULL"), reason="minutes of processes: CI_FULL=1"
    ),
]


@pytest.fixture
def coordinator():
    with socket.create_server(("localhost", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


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
                [sys.executable, *command, *arguments, *map(str, options)],
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


def ended(process, timeout=100):
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of the command."""
    folder = tmp_path_factory.mktemp("alone")
    variables = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, SCRIPT, *QUICK, "--output", folder],
        env={**os.environ, **variables},
        check=True,
        capture_output=True,
        timeout=100,
    )
    return result(folder)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)
    np.testing.assert_allclose(found[0][:9], expected[0][:9], rtol=1e-5)  # 54 steps
    for ours, theirs in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.01, atol=1e-4)


def test_two_processes_train_as_one(start, alone, tmp_path):
    first = start(0, 2, "--output", "first")
    second = start(1, 2, "--output", "second")
    code, out, errors = ended(first)
    assert (code, errors) == (0, "")
    assert "epoch 120/120" in out and "saved first" in out
    code, out, errors = ended(second)
    assert (code, errors) == (0, "")
    assert "epoch" not in out
    assert_same(result(tmp_path / "first"), alone)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(("killed", "then"), [(0, 2), (1, 1)])
def test_a_killed_process_ends_all_and_the_run_goes_on(
    killed, then, start, alone, tmp_path
):
    pair = [start(number, 2) for number in range(2)]
    unfinished = tmp_path / "saved_models" / ".unfinished"
    while not list(unfinished.glob("*/epoch-*.keras")):
        assert pair[0].poll() is None
        time.sleep(0.01)
    pair[killed].send_signal(signal.SIGKILL)
    code, _, errors = ended(pair[1 - killed], timeout=60)
    assert code != 0
    assert re.fullmatch(r"train.py: another process has ended; --resume .*\n", errors)
    assert not list((tmp_path / "saved_models").glob("spiral-*"))
    again = [start(number, then, "--resume") for number in range(then)]
    for process in again:
        code, out, errors = ended(process)
        assert (code, errors) == (0, "")
    assert " epoch   6/120" not in out
    assert_same(result(tmp_path / "saved_models"), alone)


def test_differing_settings_are_refused_by_all(start):
    first, second = start(0, 2), start(1, 2, "--seed", 4)
    told = "train.py: process 1 has other settings than process 0: all .*\n"
    code, _, errors = ended(first)
    assert code == 2 and re.fullmatch(told, errors)
    code, _, errors = ended(second)
    told = "train.py: --seed is 4 here, but 0 in process 0: all .*\n"
    assert code == 2 and re.fullmatch(told, errors)


def test_two_processes_with_one_id_are_told(start):
    started = [start(number, 3, "--wait", 15) for number in (0, 1, 1)]
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


MASKS = """
import sys
import jax, keras, numpy as np
from jax.experimental.multihost_utils import process_allgather
from kdrop import InvertedDropout, devices

_, _, processes, _, process, _, coordinator = sys.argv
shared = devices.join(int(processes), int(process), coordinator)
with shared.scope():
    model = keras.Sequential([InvertedDropout(0.5, seed=3, name="drop")])
    model.build((None, 16))
    layout = keras.distribution.distribution().get_data_layout((12, 16))
    ones = np.ones((12 // shared.processes, 16), "float32")
    ones = jax.make_array_from_process_local_data(layout.backend_layout, ones)
    state = model.trainable_variables, model.non_trainable_variables
    values = [[v.value for v in kind] for kind in state]
    step = jax.jit(lambda *given: model.stateless_call(*given, training=True)[0])
    mask = process_allgather(step(*values, ones), tiled=True)
    np.save(f"mask-{process}.npy", mask)
"""


def test_masks_are_those_of_one_process_on_any_backend(start, tmp_path):
    pair = [start(number, 2, command=("-c", MASKS)) for number in range(2)]
    for process in pair:
        code, _, errors = ended(process)
        assert code == 0, errors
    layer = InvertedDropout(0.5, seed=3, name="drop")
    expected = layer(np.ones((12, 16), "float32"), training=True)
    for number in range(2):
        mask = np.load(tmp_path / f"mask-{number}.npy")
        np.testing.assert_array_equal(mask, keras.ops.convert_to_numpy(expected))


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
