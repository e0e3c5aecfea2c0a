"""What a trained network costs: votes of its sub-networks, its export, its server."""

import functools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import kdrop
from benchmarks.claim import DROPOUT, Claim, Variants
from kdrop.ensemble.split import SplitModel

SUFFIXES = "prefix once and 50 suffixes, in one graph"
LATE = (0, 0, 0, 0.5)  # rates of alexnet32: dropout in its classifier alone
POOL = "kdrop.serving, a pool of 4 connections"


def _vote(name, *rivals, **settings) -> Variants:
    """50 passes over a batch of 256: by calls of the model, and by `kdrop.sample`."""
    import tensorflow as tf

    model = kdrop.models.MODELS[name](kdrop.InvertedDropout, **settings)
    shape = (256, *model.input_shape[1:])
    sampler, inputs = kdrop.Sampler(model), tf.random.stateless_normal(shape, (0, 0))
    call = tf.function(sampler, autograph=False)
    model(inputs[:1])
    split = SplitModel(model)

    @tf.function(autograph=False)
    def suffixes(inputs):
        shared, rows = split.prefix(inputs), tf.range(shape[0])

        def suffix(number):
            names = tf.stack([tf.fill(rows.shape, number), rows, 0 * rows], axis=1)
            return split.sample(shared, rows, tf.cast(names, "uint32"))

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

    from kdrop.serving.saved_model import export

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


def _serving() -> Variants:
    """Requests over the loopback to a server in a process of its own."""
    import atexit
    import threading

    import httpx
    import tensorflow as tf

    from kdrop.serving.saved_model import export

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


CLAIMS = {
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
}
