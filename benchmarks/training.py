"""Training steps: drop layers in a network, NumPy, two processes."""

import dataclasses
import functools
import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import kdrop
from benchmarks.harness import JAX, Comparison, Variants, timed
from benchmarks.layers import INVERTED, KERAS, drop_layer
from examples.dropout_in_numpy import SpiralProgram
from kdrop.errors import UserError
from kdrop.models import alexnet32, mnist_mlp, spiral_mlp
from kdrop.training.data import load
from kdrop.training.devices import ALONE, Devices, join
from kdrop.training.experiment import Experiment
from kdrop.training.settings import DeviceOptions

if JAX:
    import jax
else:
    import tensorflow as tf


def training_step(model: keras.Model, batch):
    """A step of the function that `fit` compiles, without the loop of `fit`."""
    model.make_train_function()
    if not JAX:
        feed = iter(tf.data.Dataset.from_tensors(batch).repeat())
        return lambda: model.train_function(feed)
    model.optimizer.build(model.trainable_variables)
    groups = model.trainable_variables, model.non_trainable_variables
    groups += model.optimizer.variables, model.metrics_variables
    # Copies: the function deletes the state that it is given.
    state = tuple([jax.numpy.array(x.value) for x in group] for group in groups)
    batch = jax.device_put(batch)

    def step():
        nonlocal state
        logs, state = model.train_function(state, iter([batch]))
        return logs

    return step


def networks(build, inputs, calls, xla=JAX) -> Variants:
    """Train a network without dropout, with Keras's and with kdrop's layer."""
    random = np.random.default_rng(0)
    batch = random.normal(size=inputs), random.integers(3, size=inputs[0])
    if xla:  # it takes up to half a second for a step with Keras's layer
        calls = math.ceil(calls / 25)

    def variant(kind):
        layer = lambda rate, **names: drop_layer(kind, rate)  # noqa: E731
        model = build(None if kind == "none" else layer)
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=xla)
        return timed(training_step(model, batch), calls)

    return {name: variant(name) for name in ("none", KERAS, INVERTED)}


def convolutions(dropout):
    """Four small convolutions, each followed by dropout."""
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for filters, pooled in (32, False), (32, True), (64, False), (64, False):
        model.add(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
        if dropout is not None:
            model.add(dropout(0.1))
        if pooled:
            model.add(keras.layers.MaxPool2D())
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(10, activation="softmax"))
    return model


def transformer(dropout):
    """A Transformer block: dropout of the attention and of both residual branches."""
    drop = (lambda x: x) if dropout is None else dropout(0.1)
    rate = 0.0 if dropout is None else 0.1
    inputs = x = keras.Input((197, 384))
    y = keras.layers.LayerNormalization()(x)
    y = keras.layers.MultiHeadAttention(6, 64, dropout=rate)(y, y)
    x = x + drop(y)
    y = keras.layers.LayerNormalization()(x)
    y = keras.layers.Dense(1536, activation="gelu")(y)
    x = x + drop(keras.layers.Dense(384)(y))
    outputs = keras.layers.GlobalAveragePooling1D()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(outputs)
    model = keras.Model(inputs, outputs)
    if isinstance(drop, kdrop.InvertedDropout):  # the attention has a layer of Keras
        kdrop.replace(model, in_place=True)
    return model


def seconds_per_step(experiment: Experiment, devices: Devices = ALONE) -> float:
    """Train, and time the steps of the last epoch, in which nothing is compiled."""
    from kdrop.training.checkpoint import Checkpoint
    from kdrop.training.run import load_data, steps_per_epoch, train

    starts: list[float] = []  # of the training, then of each epoch
    clock = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: starts.append(time.perf_counter()),
        on_epoch_begin=lambda epoch, logs: starts.append(time.perf_counter()),
    )
    data = load_data(experiment)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder))
        run = train(experiment, data, checkpoint, callbacks=[clock], devices=devices)
    end = starts[0] + run.history["seconds"][-1]
    return (end - starts[-1]) / steps_per_epoch(experiment, data)


def spiral(steps=200) -> Variants:
    experiment = Experiment.preset(
        "spiral", hidden=512, rate=0.1, l2=5e-4, batch_size=3000, learning_rate=0.05,
        decay=5e-5, train_size=3000, validation=0.0, epochs=3, steps_per_epoch=steps,
    )  # fmt: skip
    points = load("spiral", 3000, validation=0.0).train
    program = SpiralProgram(np.random.default_rng(0))
    return {
        "NumPy": timed(lambda: program.step(*points), 10),
        "kdrop": lambda: seconds_per_step(experiment),
    }


def train_in_processes(experiment: Experiment, count: int) -> float:
    """Share each batch between processes with a core each: seconds of a step."""
    with socket.create_server(("localhost", 0)) as server:
        coordinator = f"localhost:{server.getsockname()[1]}"
    settings = json.dumps(dataclasses.asdict(experiment))
    cores = sorted(os.sched_getaffinity(0))
    running = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(count), str(n), coordinator, settings],
            env=os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE, text=True,
            # Before any library counts the cores.
            preexec_fn=lambda core=cores[n]: os.sched_setaffinity(0, {core}),
        )
        for n in range(count)
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise UserError(f"One of {count} processes has failed.")
    return float(outputs[0].split()[-1])  # after the lines of JAX's collectives


def processes(data, model, batch_size) -> Variants:
    experiment = Experiment.preset(
        data, model=model, batch_size=batch_size, validation=0.0, epochs=3,
        train_size=4 * batch_size,
    )  # fmt: skip
    load(data)  # reports missing data once
    if not importlib.util.find_spec("jax") or len(os.sched_getaffinity(0)) < 2:
        raise UserError("Two processes need two cores and JAX: pip install '.[jax]'.")
    train_in = functools.partial(train_in_processes, experiment)
    return {"1 process": lambda: train_in(1), "2 processes": lambda: train_in(2)}


# Name, words, builder, inputs, calls of a measurement, limit without XLA
NETWORKS = [
    ("mlp", "2-512-3 on 3,000 points, dropout .1",
     functools.partial(spiral_mlp, rate=0.1, hidden=(512,)), (3000, 2), 50, 1.2),
    ("convolutions", "four small convolutions on 128 images, dropout .1 after each",
     convolutions, (128, 32, 32, 3), 2, 1.03),
    ("alexnet32", "alexnet32 on 64 images", alexnet32, (64, 32, 32, 3), 2, 1.02),
    ("mnist_mlp", "784-1024-1024-10 on 128 images", mnist_mlp,
     (128, 28, 28, 1), 20, 1.1),
    ("spiral_mlp", "2-256-256-3 on 300 points", spiral_mlp, (300, 2), 50, 1.2),
]  # fmt: skip
TRAINING = {
    f"{name}{'-xla' * (xla and not JAX)}": Comparison(
        f"a training step of {work}{', compiled by XLA' * xla}", "none",
        functools.partial(networks, build, inputs, calls, xla),
        {INVERTED: 1.02 if xla else limit}, rounds=9,
    )
    for name, work, build, inputs, calls, limit in NETWORKS
    for xla in ((True,) if JAX else (False, True))
} | {
    "spiral": Comparison(
        "a training step of SpiralProgram: 2-512-3 on 3,000 points", "NumPy", spiral
    ),
}  # fmt: skip
GPU_TRAINING = {
    f"gpu-{name}": Comparison(
        f"a training step of {name}", "none",
        functools.partial(networks, build, inputs, 250), {INVERTED: 1.02}, rounds=9,
    )
    for name, build, inputs in (
        ("alexnet32-256", alexnet32, (256, 32, 32, 3)),
        ("alexnet32-1024", alexnet32, (1024, 32, 32, 3)),
        ("mnist_mlp-1024", mnist_mlp, (1024, 28, 28, 1)),
        ("transformer-64", transformer, (64, 197, 384)),
    )
}  # fmt: skip
# Small batches show the cost of the collectives, large ones the gain.
PROCESSES = {
    f"{model}-{batch_size}": Comparison(
        f"a training step of {model} on {batch_size} images", "1 process",
        functools.partial(processes, data, model, batch_size),
        {"2 processes": 1 / 1.7}, rounds=1, warm_up=0,
    )
    for data, model, batch_size in (
        ("mnist", "mnist_mlp", 1024), ("cifar10", "alexnet32", 64),
        ("cifar10", "alexnet32", 256), ("cifar10", "alexnet32", 512),
    )
}  # fmt: skip
SUBJECTS = {"training": TRAINING, "processes": PROCESSES}
SUBJECTS |= {"gpu-training": GPU_TRAINING} if JAX else {}

if __name__ == "__main__":
    count, number, coordinator, settings = sys.argv[1:]
    devices = join(DeviceOptions(None, int(count), int(number), coordinator))
    print(seconds_per_step(Experiment(**json.loads(settings)), devices))
