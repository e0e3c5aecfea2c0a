"""What `kdrop.benchmark` measures: each claim's work, its variants, what is accepted.

A variant is named as in the table: `InvertedDropout` is kdrop's layer, `keras Dropout`
is Keras's, `none` is the work without one, and `copy` is copying the same two tensors
that a layer reads and writes, forward and backward.
"""

import functools
import importlib.util
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import keras
import numpy as np
from rich.console import Console

import kdrop
from kdrop import bits, reference
from kdrop.data import BadInput
from kdrop.devices import join
from kdrop.experiment import Experiment, build, load_data, train
from kdrop.pipeline import batches
from kdrop.progress import Recorder, Unfinished
from kdrop.stages import Stages

Measure = Callable[[], float]  # one measurement of one unit of work: seconds or bytes
Variants = dict[str, Measure]


@dataclass(frozen=True)
class Claim:
    """What is measured, against what, and what is accepted."""

    work: str  # one unit of it
    rival: str  # the variant that the others are compared with
    variants: Callable[[], Variants]
    accepted: Mapping[str, float] = field(default_factory=dict)  # the highest ratios
    rounds: int = 5  # measurements of each variant in a process
    warm_up: int = 1  # those before, which do not count
    unit: str = "ms"  # that it is shown in: ms, ns or MiB


def _layer(name, rate=0.5, **arguments):
    kind, *block = name.removeprefix("keras ").split()
    if block:
        arguments["block_size"] = int(*block)
    package = keras.layers if name.startswith("keras ") else kdrop
    return getattr(package, kind)(rate, **arguments)


def _both_ways(layer):
    """A step: forward and backward through the layer."""
    import tensorflow as tf

    def step(inputs, upstream):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
        return outputs, tape.gradient(outputs, inputs, upstream)

    return step


def _copy(inputs, upstream):
    return inputs * 2, upstream * 2


def _passes(
    shape, names, kind="graph", dtype="float32", calls=2, per_element=False
) -> Variants:
    """Both ways through one layer, eagerly or in a graph or wholly compiled by XLA."""
    import tensorflow as tf

    inputs, upstream = (
        tf.cast(tf.random.stateless_normal(shape, (0, n)), dtype) for n in range(2)
    )
    units = inputs.shape.num_elements() if per_element else 1

    def variant(name):
        step = _copy if name == "copy" else _both_ways(_layer(name, dtype=dtype))
        if kind != "eager":
            xla = kind == "xla" or None
            step = tf.function(step, jit_compile=xla, autograph=False)

        def measure():
            start = time.perf_counter()
            for _ in range(calls):
                step(inputs, upstream)
            return (time.perf_counter() - start) / calls / units

        return measure

    return {name: variant(name) for name in names}


def _fresh(function, *arguments):
    """The function's value in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _lengths(name, kind):
    """Seconds a batch over 200 batches of 200 lengths, compilation included."""
    import tensorflow as tf

    shapes = [(16, n, 64) for n in np.random.default_rng(0).permutation(200) + 20]
    sequences = [tf.random.stateless_normal(shape, (0, 0)) for shape in shapes]
    step = _both_ways(_layer(name))
    if kind == "graph":
        shape = tf.TensorSpec((16, None, 64))
        step = tf.function(step, input_signature=[shape, shape], autograph=False)
    start = time.perf_counter()
    for sequence in sequences:
        step(sequence, sequence)
    return (time.perf_counter() - start) / len(sequences)


def _all_lengths(kind) -> Variants:
    return {name: functools.partial(_fresh, _lengths, name, kind) for name in PAIR}


def _peak(name, depth=24):
    """Bytes that a deep stack needs at most beside its inputs, both ways."""
    import tensorflow as tf

    drops = [] if name == "none" else [_layer(name) for _ in range(depth)]

    def stack(x, training):
        for n in range(depth):
            # A ReLU's gradient needs its outputs, and nothing of what came before.
            x = tf.nn.relu(drops[n](x, training=training) if drops else x)
        return x

    step = tf.function(_both_ways(stack), autograph=False)
    small, large = tf.ones((1, 4096)), tf.ones(SQUARE)
    step(small, small)  # what tracing and compiling take is not the stack's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(large, large)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def _memory() -> Variants:
    bare = _fresh(_peak, "none")
    return {name: lambda name=name: _fresh(_peak, name) - bare for name in PAIR}


def _imports() -> Variants:
    def timed(code):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        return time.perf_counter() - start

    codes = "import keras", "import keras, kdrop"
    return {code: functools.partial(timed, code) for code in codes}


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
                layers.append(_compiled_copy() if copies else _layer(name, rate))
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


# One of several processes, on a core of its own before any library counts them.
PROCESS = """
import os, sys
count, number = map(int, sys.argv[1:3])
os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[number]])
from kdrop import claims
print(claims.shared_step(count, number, *sys.argv[3:]))
"""


SHARED_STEPS = 4  # of an epoch


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
        raise BadInput("Several processes take JAX: pip install 'kdrop[jax]'.")
    if len(os.sched_getaffinity(0)) < 2:
        raise BadInput("Two processes with a core each take two cores: there is one.")

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


SQUARE = (4096, 4096)
RIVAL, DROPOUT = "keras Dropout", "InvertedDropout"
PAIR = (RIVAL, DROPOUT)


def _products(per_example) -> Variants:
    """(128, 1024) x 1024: forward with a mask for each example, else both ways."""
    import tensorflow as tf

    inputs = tf.random.stateless_normal((128, 1024), (0, 0))
    plain, thinned = (
        keras.layers.Dense(1024),
        kdrop.DropConnectDense(1024, 0.5, per_example=per_example),
    )
    rows = tf.cast(tf.stack([tf.range(128), tf.zeros(128, "int32")], axis=1), "uint32")
    key = tf.zeros((), "uint32"), tf.ones((), "uint32")

    def both_ways(layer):
        layer(inputs)

        def step(inputs, upstream):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = layer(inputs, training=True)
            sources = [inputs, *layer.trainable_variables]
            return outputs, tape.gradient(
                outputs, [getattr(s, "value", s) for s in sources], upstream
            )

        return tf.function(step, autograph=False)

    def timed(step, *arguments):
        def measure(calls=10):
            start = time.perf_counter()
            for _ in range(calls):
                step(*arguments)
            return (time.perf_counter() - start) / calls

        return measure

    if not per_example:
        return {
            "keras Dense": timed(both_ways(plain), inputs, inputs),
            "DropConnectDense": timed(both_ways(thinned), inputs, inputs),
        }
    draw = tf.function(
        lambda rows: bits.words(key, rows, 2**20) < 2**31, jit_compile=True
    )
    forward = tf.function(lambda x: thinned(x, training=True), autograph=False)
    return {
        "drawing the words": timed(draw, rows),
        "DropConnectDense": timed(forward, inputs),
    }


SUFFIXES = "prefix once and 50 suffixes, in one graph"
LATE = (0, 0, 0, 0.5)  # rates of alexnet32: dropout in its classifier alone


def _vote(name, *rivals, **settings) -> Variants:
    """50 passes over a batch of 256: by calls of the model, and by `kdrop.sample`."""
    import tensorflow as tf

    model = kdrop.models.MODELS[name](kdrop.InvertedDropout, **settings)
    shape = (256, *model.input_shape[1:])
    sampler, inputs = kdrop.Sampler(model), tf.random.stateless_normal(shape, (0, 0))
    call = tf.function(sampler, autograph=False)
    model(inputs[:1])
    stages = Stages(model)

    @tf.function(autograph=False)
    def suffixes(inputs):
        shared, rows = stages.once(inputs), tf.range(shape[0])

        def suffix(number):
            names = tf.stack([tf.fill(rows.shape, number), rows], axis=1)
            return stages.sample(shared, rows, 0, tf.cast(names, "uint32"))

        return tf.map_fn(suffix, tf.range(50), fn_output_signature="float32")

    in_one_graph = tf.function(
        lambda x: tf.map_fn(
            lambda _: sampler(x), tf.range(50), fn_output_signature="float32"
        ),
        autograph=False,
    )

    def timed(work):
        def measure():
            start = time.perf_counter()
            work()
            return time.perf_counter() - start

        return measure

    ways = {
        "50 calls": lambda: [call(inputs).numpy() for _ in range(50)],
        "50 calls in one graph": lambda: in_one_graph(inputs).numpy(),
        SUFFIXES: lambda: suffixes(inputs).numpy(),
        "kdrop.sample": lambda: kdrop.sample(model, inputs, passes=50, verbose=0),
    }
    return {name: timed(ways[name]) for name in (*rivals, "kdrop.sample")}


def _exported() -> Variants:
    """A point through `serve` of the spiral's network, exported with and without."""
    import tensorflow as tf

    from kdrop.export import export

    point = tf.constant([[0.1, 0.2]])

    def variant(layer, calls=500):
        keras.utils.set_random_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            path = export(kdrop.models.spiral_mlp(layer), folder)
            loaded = tf.saved_model.load(str(path))

        def measure():
            serve = loaded.signatures["serve"]
            start = time.perf_counter()
            for _ in range(calls):
                serve(inputs=point)
            return (time.perf_counter() - start) / calls

        return measure

    layers = {"none": None, "VanillaDropout": kdrop.VanillaDropout}
    layers[DROPOUT] = kdrop.InvertedDropout
    return {name: variant(layer) for name, layer in layers.items()}


POOL = "kdrop.serving, a pool of 4 connections"


def _serving() -> Variants:
    """Requests over the loopback to a server in a process of its own."""
    import atexit
    import threading

    import httpx
    import tensorflow as tf

    from kdrop.export import export

    folder = tempfile.TemporaryDirectory()
    path = export(
        kdrop.models.spiral_mlp(), Path(folder.name) / "spiral", labels=("a", "b", "c")
    )
    serve = tf.saved_model.load(str(path)).signatures["serve"]
    command = [sys.executable, "-m", "kdrop.serving", str(path.parent), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    atexit.register(server.terminate)
    assert server.stderr is not None
    address = next(line.split()[-1] for line in server.stderr if " at http" in line)
    threading.Thread(target=server.stderr.read, daemon=True).start()  # it never blocks
    transport = httpx.HTTPTransport(retries=9)
    client = httpx.Client(base_url=address, transport=transport, timeout=60)
    request = {"signature_name": "serve", "instances": [[0.1, 0.2]]}

    def alone():
        serve(inputs=tf.constant(request["instances"]))["probabilities"].numpy()

    def ask():
        client.post("/v1/models/spiral:predict", json=request).raise_for_status()

    def timed(work, connections=1, calls=1000):
        """Seconds for each request: of all together, and of one by itself."""
        waited = []

        def several():
            for _ in range(calls // connections):
                start = time.perf_counter()
                work()
                waited.append(time.perf_counter() - start)

        running = [threading.Thread(target=several) for _ in range(connections)]
        start = time.perf_counter()
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return (time.perf_counter() - start) / calls, waited

    def measures(name, connections):
        def quantile(share):
            return float(np.quantile(timed(ask, connections)[1], share))

        return {
            name: lambda: timed(ask, connections)[0],
            f"{name}, p50 of a request": lambda: quantile(0.5),
            f"{name}, p99 of a request": lambda: quantile(0.99),
        }

    return {
        "600 requests a second": lambda: 1 / 600,
        "the SavedModel in its process": lambda: timed(alone)[0],
        **measures("kdrop.serving, 1 connection", 1),
        **measures(POOL, 4),
    }


KERAS = (RIVAL, "keras GaussianDropout", "keras AlphaDropout")
OURS = (
    DROPOUT, "VanillaDropout", "GaussianDropout", "UniformDropout", "AlphaDropout",
)  # fmt: skip


MAPS = (
    *OURS, "ExactDropout", "SpatialDropout2D", "DropBlock2D 3",
    "DropBlock2D 7", "DropPath", "StochasticDepth",
)  # fmt: skip
FAMILY_LIMITS = {
    **dict.fromkeys(OURS, 2.0), "GaussianDropout": 7.5,
    "ExactDropout": 6.0, "SpatialDropout2D": 3.0, "DropBlock2D 3": 3.0,
    "DropBlock2D 7": 3.0, "DropPath": 1.2, "StochasticDepth": 1.2,
}  # fmt: skip


def _sizes():
    for power in 12, 16, 20, 24, 28:
        shape, calls = (2**power // 4096, 4096), max(1, min(256, 2 ** (24 - power)))
        yield (
            f"sizes 2^{power}",
            Claim(
                f"an element of 2^{power}, both ways through a layer in a graph",
                "copy",
                functools.partial(
                    _passes, shape, ("copy", *PAIR), calls=calls, per_element=True
                ),
                {DROPOUT: 1.25} if power >= 24 else {},
                unit="ns",
            ),
        )


# Data, network and images of the steps that processes share. Small steps show what the
# sums over the processes cost, large ones that there is little else.
SHARED = [
    ("mnist", "mnist_mlp", 1024),
    ("cifar10", "alexnet32", 64),
    ("cifar10", "alexnet32", 256),
    ("cifar10", "alexnet32", 512),
]

# Several claims may share their first word, which asks for them all.
CLAIMS = {
    "units": Claim(
        "4096 x 4096 float32, both ways through a layer in a graph",
        "copy",
        functools.partial(
            _passes,
            SQUARE,
            ("copy", *KERAS, *OURS),
        ),
        {DROPOUT: 1.25, "VanillaDropout": 1.25, "GaussianDropout": 7.5},
    ),
    "xla": Claim(
        "4096 x 4096 float32, both ways in a function compiled by XLA",
        "copy",
        functools.partial(_passes, SQUARE, ("copy", *OURS), "xla"),
        {DROPOUT: 1.6},
    ),
    # Keras's takes some 10 s at 4096 x 4096.
    "xla small": Claim(
        "128 x 4096 float32, both ways in a function compiled by XLA",
        "copy",
        functools.partial(_passes, (128, 4096), ("copy", *PAIR), "xla", calls=4),
    ),
    **{
        f"halves {dtype}": Claim(
            f"4096 x 4096 {dtype}, both ways through a layer in a graph",
            "copy",
            functools.partial(_passes, SQUARE, ("copy", *PAIR), dtype=dtype),
            {DROPOUT: 2.6},
        )
        for dtype in ("bfloat16", "float16")
    },
    "family maps": Claim(
        "(64, 32, 32, 64) float32, both ways through a layer in a graph",
        "copy",
        functools.partial(
            _passes,
            (64, 32, 32, 64),
            ("copy", *KERAS, "keras SpatialDropout2D", *MAPS),
        ),
        FAMILY_LIMITS,
    ),
    "family rows": Claim(
        "(256, 4096) float32, both ways through a layer in a graph",
        "copy",
        functools.partial(
            _passes,
            (256, 4096),
            ("copy", *KERAS, *OURS, "ExactDropout", "DropPath", "StochasticDepth"),
            calls=8,
        ),
        FAMILY_LIMITS,
    ),
    "connections example": Claim(
        "(128, 1024) x 1024, a mask for each example, forward",
        "drawing the words",
        functools.partial(_products, True),
        {"DropConnectDense": 1.3},
    ),
    "connections batch": Claim(
        "(128, 1024) x 1024, one mask for the batch, both ways",
        "keras Dense",
        functools.partial(_products, False),
        {"DropConnectDense": 1.5},
    ),
    "vote classifier": Claim(
        "50 passes of alexnet32 with dropout in its classifier, 256 images",
        "50 calls",
        functools.partial(_vote, "alexnet32", "50 calls", rate=LATE),
        {"kdrop.sample": 1 / 15},
        rounds=1,
    ),
    "vote suffixes": Claim(
        "the same",
        SUFFIXES,
        functools.partial(_vote, "alexnet32", SUFFIXES, rate=LATE),
        {"kdrop.sample": 1.25},
    ),
    "vote everywhere": Claim(
        "50 passes of alexnet32 with dropout at all its places, 256 images",
        SUFFIXES,
        functools.partial(_vote, "alexnet32", SUFFIXES, "50 calls"),
        {"kdrop.sample": 1.25},
        rounds=1,
    ),
    "vote mlp": Claim(
        "50 passes of mnist_mlp, 256 images",
        "50 calls in one graph",
        functools.partial(_vote, "mnist_mlp", "50 calls in one graph"),
        {"kdrop.sample": 1.0},
    ),
    "export": Claim(
        "a point through the exported serve of spiral_mlp",
        "none",
        _exported,
        {DROPOUT: 1.02, "VanillaDropout": 1.02},
        rounds=21,
    ),
    "serving": Claim(
        "an answer of the spiral's model, one point",
        "600 requests a second",
        _serving,
        {POOL: 1.0},
    ),
    **dict(_sizes()),
    **{
        f"small {kind}": Claim(
            f"32 x 256 float32, both ways through a layer, {kind}",
            RIVAL,
            functools.partial(_passes, (32, 256), PAIR, kind, calls=200),
            {DROPOUT: accepted},
            rounds=9,
        )
        for kind, accepted in (("graph", 1.1), ("eager", 1.0))
    },
    **{
        f"lengths {kind}": Claim(
            f"a batch of 200 of different lengths, from the first, {kind}",
            RIVAL,
            functools.partial(_all_lengths, kind),
            {DROPOUT: 1.0},
            rounds=1,
            warm_up=0,
        )
        for kind in ("graph", "eager")
    },
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
    "memory": Claim(
        "peak of 24 layers and ReLUs on 4096 x 4096, beyond that of the ReLUs alone",
        RIVAL,
        _memory,
        {DROPOUT: 0.25},
        rounds=1,
        warm_up=0,
        unit="MiB",
    ),
    "import": Claim(
        "a fresh Python that imports",
        "import keras",
        _imports,
        {"import keras, kdrop": 1.03},
        rounds=3,
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
