"""Several processes train as one does, on the JAX backend and real sockets."""

import importlib.util
import re
import socket

import pytest
from processes import free_port, process_starter, wait_for
from shared_runs import assert_as_one, run_alone_and_as_two

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


def test_two_processes_train_as_one(tmp_path):
    """Without an interruption, and when a run is stopped and resumed."""
    run_alone_and_as_two(tmp_path, "spiral")
    assert_as_one(tmp_path, "spiral")


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
