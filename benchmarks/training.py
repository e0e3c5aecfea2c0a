"""What a training step costs, the parts around the layers included."""

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from rich.console import Console

from benchmarks.claim import DROPOUT, PAIR, Claim, Variants
from benchmarks.layers import drop_layer
from examples import dropout_in_numpy as reference
from kdrop.errors import UserError
from kdrop.training.devices import join
from kdrop.training.experiment import Experiment, build, load_data, train
from kdrop.training.pipeline import batches
from kdrop.training.progress import Recorder, Unfinished

# Data, network and images of the steps that processes share. Small steps show what the
# sums over the processes cost, large ones that there is little else.
SHARED = [
    ("mnist", "mnist_mlp", 1024),
    ("cifar10", "alexnet32", 64),
    ("cifar10", "alexnet32", 256),
    ("cifar10", "alexnet32", 512),
]
SHARED_STEPS = 4  # of an epoch
# One of several processes, on a core of its own before any library counts them.
PROCESS = """
import os, sys
count, number = map(int, sys.argv[1:3])
os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[number]])
from benchmarks import training
print(training.shared_step(count, number, *sys.argv[3:]))
"""


def _compiled_copy():
    """A layer that copies, both ways, in passes that XLA compiles: a layer's floor."""
    import tensorflow as tf

    double = tf.function(lambda tensor: tensor * 2, jit_compile=True, autograph=False)
    both_ways = tf.custom_gradient(lambda inputs: (double(inputs), double))
    return keras.layers.Lambda(both_ways)


def _steps(body, inputs, classes, rate, steps) -> Variants:
    """Steps of the function that `fit` compiles, called without the loop of `fit`."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    batch = random.normal(size=inputs), random.integers(classes, size=inputs[0])
    constant = tf.data.Dataset.from_tensors(batch).repeat()

    def variant(name):
        layers = []
        for layer in body():
            layers.append(layer)
            if name != "none" and "activation" in layer.get_config():
                copies = name == "compiled copy"
                layers.append(_compiled_copy() if copies else drop_layer(name, rate))
        head = keras.layers.Dense(classes, activation="softmax")
        model = keras.Sequential([keras.Input(inputs[1:]), *layers, head])
        model.compile("adam", "sparse_categorical_crossentropy")
        model.make_train_function()
        feed = iter(constant)

        def measure():
            start = time.perf_counter()
            for _ in range(steps):
                model.train_function(feed)
            return (time.perf_counter() - start) / steps

        return measure

    return {name: variant(name) for name in ("none", "compiled copy", *PAIR)}


def _convolutions():
    for filters in 32, 64:
        for _ in range(2):
            yield keras.layers.Conv2D(filters, 3, padding="same", activation="relu")
        last = filters == 64
        yield (
            keras.layers.GlobalAveragePooling2D() if last else keras.layers.MaxPool2D()
        )


def _dense():
    yield keras.layers.Dense(512, activation="relu")


def _spiral_program() -> Variants:
    size = {"hidden": 512, "rate": 0.1, "l2": 5e-4}
    settings = Experiment(
        hidden=(size["hidden"],), rate=(size["rate"],), l2=size["l2"], batch_size=3000,
        learning_rate=0.05, decay=5e-5, validation=0.0, epochs=600,
    )  # fmt: skip
    data = load_data(settings)
    program = reference.SpiralProgram(np.random.default_rng(0), **size)

    def in_numpy(epochs=10):
        start = time.perf_counter()
        for _ in range(epochs):
            program.step(*data.train)
        return (time.perf_counter() - start) / epochs

    def in_kdrop():
        with tempfile.TemporaryDirectory() as folder:
            unfinished = Unfinished(Path(folder))
            recorder = Recorder(Console(quiet=True), "")
            history = train(settings, data, unfinished, recorder).history
        # From report to report, without the compilation before the first.
        seconds, epochs = history["seconds"], history["epoch"]
        return (seconds[-1] - seconds[0]) / (epochs[-1] - epochs[0])

    return {"reference.py": in_numpy, "train.py": in_kdrop}


def shared_step(processes: int, number: int, coordinator: str, settings: str) -> float:
    """Seconds of a training step that so many processes share.

    Args:
        processes, number, coordinator: Of `devices.join`.
        settings: JSON of an `Experiment`'s, with its data set and its batch size.
    """
    begins = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            begins.append(time.perf_counter())

    devices = join(processes, number, coordinator)
    given = json.loads(settings)
    size = SHARED_STEPS * given["batch_size"]
    experiment = Experiment(**given, train_size=size, validation=0.0, epochs=3)
    data = load_data(experiment)
    data = replace(data, test=data.validation)  # of none
    recorder = Recorder(Console(quiet=True), "")
    with tempfile.TemporaryDirectory() as folder:
        unfinished = Unfinished(Path(folder))
        train(experiment, data, unfinished, recorder, [Clock()], devices)
    # The last epoch, before which all is compiled and after which the model is saved.
    end = recorder.started + recorder.history["seconds"][-1]
    return (end - begins[-1]) / SHARED_STEPS


def _processes(settings) -> Variants:
    load_data(Experiment(**settings))  # or each process would say that it is missing
    if importlib.util.find_spec("jax") is None:
        raise UserError("Several processes take JAX: pip install 'kdrop[jax]'.")
    if len(os.sched_getaffinity(0)) < 2:
        raise UserError("Two processes with a core each take two cores: there is one.")

    def measure(count):
        with socket.create_server(("localhost", 0)) as server:
            coordinator = f"localhost:{server.getsockname()[1]}"
        running = [
            subprocess.Popen(
                [
                    *(sys.executable, "-c", PROCESS),
                    *(str(count), str(number), coordinator, json.dumps(settings)),
                ],
                env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        told = [process.communicate()[0] for process in running]
        return float(told[0].split()[-1])  # what Gloo has to say is before it

    return {
        "one process": lambda: measure(1),
        "two processes": lambda: measure(2),
    }


def _pipeline() -> Variants:
    # 15 whole batches: the remainder of a pass would be a cheaper step.
    settings = Experiment(data="cifar10", train_size=2000, validation=0.04).resolved()
    data = load_data(settings)
    model = build(settings, data)
    feed = batches(
        data.train, settings.batch_size, shuffle_seed=0, mirror=True, shift=4
    )
    constant = feed.take(1).cache().repeat()

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.start

    steps = len(data.train.targets) // settings.batch_size

    def fit(dataset):
        clock = Clock()
        model.fit(
            dataset, steps_per_epoch=steps, callbacks=[clock], shuffle=False, verbose=0
        )
        return clock.seconds / steps

    return {"a constant batch": lambda: fit(constant), "batches()": lambda: fit(feed)}


CLAIMS = {
    "convolutions": Claim(
        "a training step of four small convolutions, dropout .1 after each",
        "none",
        functools.partial(_steps, _convolutions, (128, 32, 32, 3), 10, 0.1, steps=2),
        {DROPOUT: 1.04},
        rounds=9,
    ),
    "mlp": Claim(
        "a training step of 2-512-3 on 3,000 points, dropout .1",
        "none",
        functools.partial(_steps, _dense, (3000, 2), 3, 0.1, steps=50),
        {DROPOUT: 1.3},
    ),
    "spiral": Claim(
        "an epoch of 2-512-3 on 3,000 points, dropout .1",
        "reference.py",
        _spiral_program,
    ),
    **{
        f"processes {model} {batch}": Claim(
            f"a training step of {model} on {batch} images, each process on a core of "
            "its own",
            "one process",
            functools.partial(
                _processes, dict(data=data, model=model, batch_size=batch)
            ),
            {"two processes": 1 / 1.7},
            rounds=1,
            warm_up=0,
        )
        for data, model, batch in SHARED
    },
    "pipeline": Claim(
        "a training step of alexnet32 on CIFAR-10",
        "a constant batch",
        _pipeline,
        {"batches()": 1.03},
        rounds=9,
    ),
}
