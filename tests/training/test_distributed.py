"""Runs on several devices of one machine, and the checks before several processes."""

import dataclasses
import socket

import numpy as np
import pytest
import tensorflow as tf
from runs import Losses, StopAfter, run

from kdrop.errors import UserError
from kdrop.training import devices as module
from kdrop.training import run as run_module
from kdrop.training.checkpoint import Checkpoint
from kdrop.training.data import Data, Part
from kdrop.training.devices import ALONE, Devices, available, join, mirror
from kdrop.training.experiment import Experiment
from kdrop.training.pipeline import batches
from kdrop.training.run import train
from kdrop.training.settings import DeviceOptions

# Two steps an epoch, of 60 examples and of 30.
SMALL = Experiment.preset(
    "spiral", train_size=90, validation=0.0, epochs=25, steps_per_epoch=None,
    batch_size=60, hidden=(16,), rate=0.5,
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("single_steps")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "stride"),
    [
        ({"l2": 1e-3}, 1),
        ({"dropout": "VanillaDropout", "schedule": "linear", "epochs": 6}, 1),
        # Of 61 examples one is repeated, which then counts in the mean of an epoch.
        ({"train_size": 91, "batch_size": 61, "epochs": 6}, 2),
    ],
    ids=str,
)
def test_two_devices_train_as_one_does(changes, stride, tmp_path, pair):
    experiment = dataclasses.replace(SMALL, **changes)
    expected, losses = Losses(), Losses()
    one = run(experiment, tmp_path / "one", [expected])
    two = run(experiment, tmp_path / "two", [losses], devices=pair)
    assert len(losses.losses) == 2 * experiment.epochs
    np.testing.assert_allclose(
        losses.losses[::stride], expected.losses[::stride], rtol=1e-5
    )
    assert two.model.distribute_strategy.num_replicas_in_sync == 1
    for name in set(one.metrics) - {"seconds"}:
        assert two.metrics[name] == pytest.approx(one.metrics[name], rel=1e-5), name


@pytest.mark.slow
def test_batch_statistics_are_those_of_the_global_batch(tmp_path, pair, monkeypatch):
    # Without shuffling, each device has images of another brightness.
    def in_order(*arguments, **settings):
        return batches(*arguments, **{**settings, "shuffle_seed": None})

    monkeypatch.setattr(run_module, "batches", in_order)
    experiment = Experiment.preset(
        "cifar10",
        train_size=8,
        batch_size=8,
        epochs=2,
        hidden=(8,),
        mirror=False,
        shift=0,
    )
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], 4).astype("int32")
    inputs = rng.integers(0, 100, (8, 32, 32, 3)) + 150 * targets[:, None, None, None]
    part = Part(inputs.astype("uint8"), targets)
    data = Data("cifar10", part, part.first(0), part, labels=("dark", "bright"))
    runs = []
    for devices in (ALONE, pair):
        checkpoint = Checkpoint(tmp_path / str(devices.count))
        runs.append(train(experiment, data, checkpoint, devices=devices))
    one, two = (each.history["loss"] for each in runs)
    np.testing.assert_allclose(two, one, rtol=1e-4)
    for layer in runs[1].model.layers:
        assert not getattr(layer, "synchronized", False)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_resumes_with_another_number_of_devices(first, tmp_path, pair):
    order = [ALONE, pair] if first == 1 else [pair, ALONE]
    experiment = dataclasses.replace(SMALL, epochs=6)
    whole = run(experiment, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "run", [StopAfter(3)], devices=order[0])
    resumed = run(experiment, tmp_path / "run", devices=order[1])
    for a, b in zip(
        resumed.model.get_weights(), whole.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("size", [10, 9, 7])
def test_the_parts_of_a_batch_are_the_whole(processes, size):
    part = Part(np.arange(23, dtype="float32")[:, None], np.arange(23, dtype="int32"))
    whole = list(batches(part, size, epochs=2, shuffle_seed=3))
    parts = []
    for process in range(processes):
        devices = Devices(3, process, processes)
        share = batches(part, size, epochs=2, shuffle_seed=3, devices=devices)
        parts.append(list(share))
    for (inputs, targets), *shared in zip(whole, *parts, strict=True):
        columns = [np.concatenate(column) for column in zip(*shared, strict=True)]
        assert len(columns[0]) % 3 == 0 and len(columns[0]) - len(inputs) < 3
        np.testing.assert_array_equal(columns[0][: len(inputs)], inputs)
        np.testing.assert_array_equal(columns[1][: len(inputs)], targets)
        # The weighted mean is the mean over the batch.
        expected = np.mean(inputs)
        mean = np.mean(columns[0][:, 0] * columns[2]) if columns[2:] else expected
        assert mean == pytest.approx(expected, rel=1e-6)


def test_more_replicas_than_devices_are_rejected():
    for count in (0, -1, 10**6):
        with pytest.raises(UserError, match=f"`replicas` is {count}, but must be in"):
            mirror(DeviceOptions(replicas=count))
    with pytest.raises(UserError, match="`replicas` is 1024, but must be from 1 to"):
        mirror(DeviceOptions(replicas=1024))
    assert mirror(DeviceOptions(1)) == available(DeviceOptions()) == ALONE
    assert not tf.distribute.has_strategy()


def test_several_devices_train_without_xla(tmp_path, pair):
    experiment = dataclasses.replace(SMALL, jit_compile=True)
    result = run(experiment, tmp_path, devices=pair)
    plain = run(SMALL, tmp_path / "plain", devices=pair)
    assert result.history["loss"] == plain.history["loss"]


def test_a_coordinator_that_does_not_answer_is_reported():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        module._wait_for(f"localhost:{port}", 0)
    with pytest.raises(UserError, match=f"localhost:{port} does not answer"):
        module._wait_for(f"localhost:{port}", 0)


@pytest.mark.parametrize("address", ["first", "first:", ":9876", "first:x", "a:70000"])
def test_a_malformed_coordinator_is_rejected(address):
    with pytest.raises(UserError, match="`coordinator` is .* but must be HOST:PORT"):
        module._check_address(address)


def test_wrong_numbers_of_processes_are_rejected(monkeypatch):
    pytest.importorskip("jax")
    with pytest.raises(UserError, match="`process_id` is 2, but of 2 processes"):
        join(DeviceOptions(None, 2, 2, "localhost:9876"))
    # Without a launcher, JAX asks for the coordinator.
    with pytest.raises(UserError, match="each process needs `processes`"):
        join(DeviceOptions(processes=2))
