"""The variants that are TensorFlow's alone run, at a small size."""

import os

import pytest
from rich.console import Console
from test_steps import check

from benchmarks import inference, layers, scaling, training
from kdrop.training.experiment import Experiment

pytestmark = pytest.mark.slow


def test_lengths_and_memory():
    for mode in "eager", "graph":
        assert layers.seconds_per_length("InvertedDropout", mode, count=3) > 0
    for name in "none", "InvertedDropout":
        assert layers.peak_bytes(name, (64, 64), depth=2) >= 0


def test_exported_models():
    check(inference.exported(calls=1), "none")


def test_requests():
    check(inference.requests(calls=8), "600 a second", "4 connections")


def test_the_spiral():
    check(training.spiral(steps=2), "NumPy")


def test_processes():
    pytest.importorskip("jax")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    experiment = Experiment.preset(
        "spiral", hidden=8, batch_size=10, train_size=40, validation=0.0, epochs=2,
        steps_per_epoch=2,
    )  # fmt: skip
    assert training.train_in_processes(experiment, 2) > 0


def test_the_scaling_report(capsys):
    scaling.report(Console(width=120), {"spiral_mlp": 8})
    output = capsys.readouterr().out
    assert "spiral_mlp: " in output and "0.269 MB of gradients" in output
    assert output.count("10 Gbit/s") == 2
