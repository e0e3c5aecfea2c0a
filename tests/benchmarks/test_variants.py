"""Every variant of the benchmarks runs, at a small size."""

import os

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from benchmarks import inference, layers, scaling, training
from benchmarks.scaling import Cost, step_seconds
from kdrop import InvertedDropout
from kdrop.training.experiment import Experiment


def check(variants, *names):
    assert set(names) < set(variants)
    assert all(measure() > 0 for measure in variants.values())


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_dropout_in_each_mode(mode):
    check(layers.steps((4, 8), ("copy", *layers.PAIR), mode, "bfloat16"), "copy")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param("maps", (2, 8, 8, 3), marks=pytest.mark.slow),
        ("tokens", (2, 9, 4)),
    ],
)
def test_layers_against_a_copy(name, shape):
    comparison = layers.LAYERS[name]
    variants = layers.steps(shape, comparison.variants.args[1])
    check(variants, comparison.baseline)
    if name == "maps":
        assert set(comparison.limits) < set(variants)


@pytest.mark.slow
def test_connections():
    check(layers.connections(2, 4), "keras Dense")


def test_a_step_goes_both_ways_through_the_layer():
    inputs, upstream = tf.fill((64, 64), 3.0), tf.fill((64, 64), 5.0)
    step = tf.function(layers.both_ways(InvertedDropout(0.5, seed=1)))
    outputs, (gradient,) = step(inputs, upstream)
    mask = outputs.numpy() != 0
    np.testing.assert_array_equal(outputs, 6.0 * mask)
    np.testing.assert_array_equal(gradient, 10.0 * mask)
    # 4,096 fair coins: 6 standard deviations are 192.
    assert abs(np.sum(mask) - 2048) < 192


@pytest.mark.slow
def test_lengths_and_memory():
    for mode in "eager", "graph":
        assert layers.seconds_per_length("InvertedDropout", mode, count=3) > 0
    for name in "none", "InvertedDropout":
        assert layers.peak_bytes(name, (64, 64), depth=2) >= 0


@pytest.mark.slow
def test_votes():
    variants = inference.votes(inference.alexnet32, batch=2, width=2, hidden=(8,))
    check(variants, inference.SUFFIXES, inference.CALLS)


@pytest.mark.slow
def test_exported_models():
    check(inference.exported(calls=1), "none")


@pytest.mark.slow
def test_requests():
    check(inference.requests(calls=8), "600 a second", "4 connections")


@pytest.mark.slow
def test_each_network_has_its_dropout(monkeypatch):
    names, layer = [], training.drop_layer

    def noted(name, rate):
        names.append(name)
        return layer(name, rate)

    monkeypatch.setattr(training, "drop_layer", noted)
    variants = training.networks(training.convolutions, (4, 8, 8, 3), 10, calls=1)
    assert names == ["keras Dropout"] * 4 + ["InvertedDropout"] * 4
    check(variants, "none")


@pytest.mark.slow
def test_the_spiral():
    check(training.spiral(steps=2), "NumPy")


@pytest.mark.slow
def test_processes():
    pytest.importorskip("jax")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    experiment = Experiment.preset(
        "spiral", hidden=8, batch_size=10, train_size=40, validation=0.0, epochs=2,
        steps_per_epoch=2,
    )  # fmt: skip
    assert training.train_in_processes(experiment, 2) > 0


# Binary fractions, so that sums are exact: 1,024 bytes at 4,096 a second.
@pytest.mark.parametrize(
    ("batch", "devices", "seconds"),
    [
        (8, 1, 0.5 + 8 * 0.125),  # nothing is sent
        (8, 2, 0.5 + 4 * 0.125 + 2 * (0.125 + 0.0625)),  # two messages of a half
        (8, 4, 0.5 + 2 * 0.125 + 6 * (0.0625 + 0.0625)),  # six of a quarter
        (9, 4, 0.5 + 3 * 0.125 + 6 * (0.0625 + 0.0625)),  # one device has three
        (2, 8, 0.5 + 0.125 + 14 * (0.03125 + 0.0625)),  # at least one each
    ],
)
def test_a_step_is_computation_and_a_ring(batch, devices, seconds):
    cost = Cost(fixed=0.5, per_example=0.125, gradients=1024)
    assert step_seconds(cost, batch, devices, 4096, 0.0625) == seconds


@pytest.mark.parametrize(
    ("seconds", "fixed", "per_example"),
    [
        ((0.75, 1.0, 1.5), 0.5, 0.125),
        ((0.1, 0.5, 1.5), 0.0, (0.1 / 2 + 0.5 / 4 + 1.5 / 8) / 3),  # below 0 at 0
        ((1.0, 1.5, 2.0), None, None),
    ],
)
def test_the_cost_is_a_line_of_least_relative_errors(
    seconds, fixed, per_example, monkeypatch
):
    sizes = (2, 4, 8)
    if fixed is None:  # no line through all three
        relative = np.transpose([np.ones(3), sizes]) / np.transpose([seconds])
        fixed, per_example = np.linalg.lstsq(relative, np.ones(3))[0]
        assert fixed > 0

    def step_of(model, dataset):
        return lambda: len(next(iter(dataset))[1])

    def timed(step, calls=1):
        return lambda: seconds[sizes.index(step())]

    monkeypatch.setattr(scaling, "training_step", step_of)
    monkeypatch.setattr(scaling, "timed", timed)
    cost = scaling.measure("spiral_mlp", 8)
    assert cost[:2] == pytest.approx((fixed, per_example))
    layer_sizes = (2, 256), (256, 256), (256, 3)
    assert cost.gradients == 4 * sum((n + 1) * units for n, units in layer_sizes)


@pytest.mark.slow
def test_the_scaling_report(capsys):
    scaling.report(Console(width=120), {"spiral_mlp": 8})
    output = capsys.readouterr().out
    assert "spiral_mlp: " in output and "0.269 MB of gradients" in output
    assert output.count("10 Gbit/s") == 2
