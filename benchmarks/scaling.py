"""A model of what more devices give: measured steps, and a ring all-reduce.

A training step is modelled as its computation on a device's share of the batch, then a
ring all-reduce of the gradients. The computation is a line in the number of examples,
measured on one device from a quarter of the batch to all of it. Assumed: equal devices,
links at their full rate in both directions, and float32 gradients that wait for the
whole backward pass. Not counted: reading the data, batch statistics, stragglers.
"""

import itertools
import math
import statistics
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

import kdrop
from benchmarks.harness import timed
from benchmarks.training import training_step
from kdrop.models import MODELS

DEVICES = [2**n for n in range(1, 11)]
# Of each device in weak scaling, of all devices in strong scaling.
BATCHES = {"spiral_mlp": 300, "mnist_mlp": 128, "concat_mlp": 128}
BATCHES |= {"alexnet32": 64, "srivastava_cnn": 64, "alexnet": 64}
# Bytes a second, and seconds of a message besides.
LINKS = {"1 Gbit/s": (0.125e9, 50e-6), "10 Gbit/s": (1.25e9, 20e-6)}
LINKS |= {"100 Gbit/s": (12.5e9, 5e-6)}


class Cost(NamedTuple):
    """A network's training step on one device."""

    fixed: float  # seconds, whatever the batch
    per_example: float  # seconds
    gradients: int  # bytes


def step_seconds(cost: Cost, batch: int, devices: int, bandwidth=1.0, latency=0.0):
    """Seconds of a training step of a global batch.

    The ring sends 2 (devices - 1) messages, each with one of `devices` equal pieces of
    the gradients. A batch that cannot be divided takes as long as its largest share.
    Reference: [Patarasuk and Yuan, 2009](https://doi.org/10.1016/j.jpdc.2008.09.002)
    """
    computation = cost.fixed + cost.per_example * math.ceil(batch / devices)
    message = cost.gradients / devices / bandwidth + latency
    return computation + 2 * (devices - 1) * message


def measure(name: str, batch: int, rounds: int = 5) -> Cost:
    """Time a network's training steps on this device, and fit the line."""
    model = MODELS[name](kdrop.InvertedDropout)
    model.compile("adam", "sparse_categorical_crossentropy")
    sizes, seconds = [batch // 4, batch // 2, batch], []
    for size in sizes:
        inputs = np.random.default_rng(0).normal(size=(size, *model.input_shape[1:]))
        step = training_step(model, (np.float32(inputs), np.zeros(size, "float32")))
        step()  # traces and compiles
        measured = timed(step, math.ceil(0.1 / timed(step)()))
        seconds.append(statistics.median(measured() for _ in range(rounds)))
    per_example, fixed = np.polyfit(sizes, seconds, 1, w=1 / np.array(seconds))
    if fixed < 0:  # the best line through the origin
        per_example, fixed = np.mean(np.divide(seconds, sizes)), 0.0
    weights = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return Cost(float(fixed), float(per_example), 4 * weights)


def report(console: Console, batches=BATCHES) -> None:
    """Measure the networks, and print a table for weak and one for strong scaling."""
    costs = {name: measure(name, batches[name]) for name in batches}
    for name, (fixed, per_example, gradients) in costs.items():
        console.print(
            f"{name}: {1e3 * fixed:.3g} ms a step and {1e3 * per_example:.3g} ms an "
            f"example (to {batches[name]}), {gradients / 1e6:.3g} MB of gradients"
        )
    for weak, title in {True: "a batch for each", False: "one batch for all"}.items():
        title = f"Throughput as a multiple of one device's, {title}"
        table = Table("network", "link", *map(str, DEVICES), title=title)
        for (name, cost), link in itertools.product(costs.items(), LINKS):
            alone, cells = step_seconds(cost, batches[name], 1), []
            for devices in DEVICES:
                times = devices if weak else 1
                batch = times * batches[name]
                seconds = step_seconds(cost, batch, devices, *LINKS[link])
                cells.append(f"{times * alone / seconds:.3g}")
            table.add_row(name, link, *cells)
        console.print(table)
