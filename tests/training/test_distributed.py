"""Several devices of one machine train as one does."""

import dataclasses
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from kdrop.errors import UserError
from kdrop.training import experiment as module
from kdrop.training import watch
from kdrop.training.data import Part
from kdrop.training.devices import (
    ENDED,
    UNREACHED,
    Devices,
    _check_name,
    lost,
    replicas,
)
from kdrop.training.experiment import Experiment, load_data, train
from kdrop.training.pipeline import batches
from kdrop.training.progress import Recorder, Unfinished

# Two steps an epoch, of 60 examples and of 30.
SMALL = Experiment(
    train_size=90, validation=0.0, epochs=25, batch_size=60, hidden=(16,), rate=(0.5,)
)


@pytest.fixture
def pair(strategy):
    return Devices(2, scope=strategy.scope)


@pytest.fixture(autouse=True)
def each_epoch_is_reported_and_saved(monkeypatch):
    monkeypatch.setattr(module, "_stride", lambda epochs, steps: 1)
    monkeypatch.setattr("kdrop.training.progress.SAVE_SECONDS", 0)


class Steps(keras.callbacks.Callback):
    """The loss up to each step, and at the end of an epoch a stop if it is the one."""

    def __init__(self, stop=None):
        super().__init__()
        self.stop, self.losses = stop, []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.stop:
            raise KeyboardInterrupt


def run(settings, folder, devices=module.ALONE, stop=None):
    steps = Steps(stop)
    recorder = Recorder(Console(quiet=True), settings.dropout)
    data = load_data(settings)
    found = train(settings, data, Unfinished(folder), recorder, [steps], devices)
    return found, steps.losses


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({"l2": 1e-3}, 1),
        ({"dropout": "VanillaDropout", "schedule": "linear", "epochs": 6}, 1),
        # Of 61, one is repeated, which then counts in the mean over an epoch.
        ({"train_size": 91, "batch_size": 61, "epochs": 6}, 2),
    ],
    ids=str,
)
def test_a_seed_gives_the_same_run_on_two_devices(
    changes, each, tmp_path, pair, monkeypatch
):
    monkeypatch.setattr(module, "EXECUTION_STEPS", 1)
    monkeypatch.setattr(module, "SCHEDULED_STEPS", 1)
    settings = dataclasses.replace(SMALL, **changes)
    one, expected = run(settings, tmp_path / "one")
    two, losses = run(settings, tmp_path / "two", pair)
    assert len(losses) == 2 * settings.epochs
    np.testing.assert_allclose(losses[::each], expected[::each], rtol=1e-5)
    assert two.model.distribute_strategy.num_replicas_in_sync == 1
    for name, value in one.metrics.items():
        if name != "seconds":
            assert two.metrics[name] == pytest.approx(value, rel=1e-5), name


def test_images_train_alike_on_two_devices(tmp_path, pair, monkeypatch, cifar10_folder):
    monkeypatch.setattr(module, "EXECUTION_STEPS", 1)
    settings = Experiment(
        data="cifar10", model="mnist_mlp", hidden=(64,), train_size=128,
        validation=0.0, batch_size=128, epochs=50, shift=2,
    )  # fmt: skip
    one, expected = run(settings, tmp_path / "one")
    two, losses = run(settings, tmp_path / "two", pair)
    assert len(losses) == 50
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    # Of the 10,000 of the test part, those on the border of two classes.
    assert abs(two.metrics["test_accuracy"] - one.metrics["test_accuracy"]) < 0.001


def test_batch_statistics_are_those_of_the_global_batch(tmp_path, pair, monkeypatch):
    # Images of two kinds, which come one behind the other in each batch.
    monkeypatch.setattr(module, "EXECUTION_STEPS", 1)
    monkeypatch.setattr(module, "batches", lambda *a, **k: batches(*a, **calm(k)))
    settings = Experiment(
        data="cifar10", train_size=8, batch_size=8, epochs=2, hidden=(8,), mirror=False
    )
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], 4).astype("int32")
    inputs = rng.integers(0, 100, (8, 32, 32, 3)) + 150 * targets[:, None, None, None]
    part = Part(inputs.astype("uint8"), targets)
    data = dataclasses.replace(
        load_data(SMALL),
        train=part,
        validation=Part(inputs[:0], targets[:0]),
        test=part,
    )
    found = []
    for devices in (module.ALONE, pair):
        recorder = Recorder(Console(quiet=True), "")
        unfinished = Unfinished(tmp_path / str(devices.count))
        found.append(train(settings, data, unfinished, recorder, (), devices))
    one, two = (run.history["loss"] for run in found)
    np.testing.assert_allclose(two, one, rtol=1e-4)
    for layer in found[1].model.layers:
        assert not getattr(layer, "synchronized", False)


def calm(settings):
    return {**settings, "shuffle_seed": None}


@pytest.mark.parametrize("before", [1, 2])
def test_a_run_goes_on_with_another_number_of_devices(before, tmp_path, pair):
    order = [module.ALONE, pair] if before == 1 else [pair, module.ALONE]
    settings = dataclasses.replace(SMALL, epochs=6)
    whole, _ = run(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "run", order[0], stop=3)
    resumed, _ = run(settings, tmp_path / "run", order[1])
    for ours, theirs in zip(
        resumed.model.get_weights(), whole.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("size", [10, 9, 7])
def test_the_parts_of_a_batch_make_the_whole(processes, size):
    part = Part(np.arange(23, dtype="float32")[:, None], np.arange(23, dtype="int32"))
    whole = list(batches(part, size, passes=2, shuffle_seed=3))
    parts = [
        list(
            batches(
                part,
                size,
                passes=2,
                shuffle_seed=3,
                devices=3,
                process=process,
                processes=processes,
            )
        )
        for process in range(processes)
    ]
    assert len(whole) == len(parts[0])
    for (inputs, targets), *own in zip(whole, *parts, strict=True):
        columns = [np.concatenate(column) for column in zip(*own, strict=True)]
        assert len(columns[0]) % 3 == 0 and len(columns[0]) - len(inputs) < 3
        np.testing.assert_array_equal(columns[0][: len(inputs)], inputs)
        np.testing.assert_array_equal(columns[1][: len(inputs)], targets)
        # The weighted mean is the mean over the batch.
        expected = np.mean(inputs)
        found = np.mean(columns[0][:, 0] * columns[2]) if columns[2:] else expected
        assert found == pytest.approx(expected, rel=1e-6)


def test_more_replicas_than_devices_are_refused():
    for count in (0, -1, 10**6):
        with pytest.raises(UserError, match=f"--replicas is {count}, but must be from"):
            replicas(count)
    assert replicas(1) == replicas() == Devices()
    assert not tf.distribute.has_strategy()


def test_a_compiled_step_is_refused_on_several(tmp_path, pair):
    with pytest.raises(UserError, match="--jit-compile"):
        run(dataclasses.replace(SMALL, jit_compile=True), tmp_path, pair)


@pytest.mark.parametrize("points_to", ["127.0.1.1", "::1", None])
def test_a_name_that_other_machines_cannot_use_is_refused(points_to, monkeypatch):
    def address(name, port):
        if points_to is None:
            raise socket.gaierror
        return [(None, None, None, None, (points_to, port))]

    monkeypatch.setattr(socket, "gethostname", lambda: "second")
    monkeypatch.setattr(socket, "getaddrinfo", address)
    told = "second, the name of this machine, means (::1|127.0.[01].1) here"
    with pytest.raises(UserError, match=told):
        _check_name("first")
    _check_name("localhost")  # there are no other machines
    _check_name("127.0.0.1")
    points_to = "10.7.0.2"
    _check_name("first")


def test_errors_of_a_lost_process_are_told_from_others():
    def wrapped(text):
        error = ValueError("of Keras")
        error.__cause__ = RuntimeError(text)
        return error

    assert lost(wrapped("Gloo all-reduce failed: Connection closed by peer")) == ENDED
    assert lost(wrapped("Gloo context initialization failed: time")) == UNREACHED
    assert lost(wrapped("of our own")) is None


def test_an_abort_is_told_in_a_sentence_and_tries_are_not():
    tries = f"[external/{watch.TRIES}:25] ERROR failed to connect, willRetry=1\n"
    abort = f"F1124 Terminating process because {watch.ABORT}.\nRegisterTask\n"
    ends = '{"RegisterTask": "not all came", "": "one has ended"}'
    for given, told in (
        ("plain\n" + tries + abort, "plain\ntrain.py: not all came\n"),
        (abort.replace("RegisterTask", "?"), "train.py: one has ended\n"),
        ("train.py: ended\n" + abort, "train.py: ended\n"),
        (tries, ""),
    ):
        command = [sys.executable, "-I", watch.__file__, ends]
        found = subprocess.run(command, input=given, capture_output=True, text=True)
        assert (found.stderr, found.stdout) == (told, "")
