"""Votes of sub-networks, exported models and the model server."""

import atexit
import functools
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np

import kdrop
from benchmarks.harness import JAX, Comparison, Variants, timed
from benchmarks.layers import INVERTED
from kdrop.models import alexnet32, spiral_mlp

if not JAX:
    import tensorflow as tf

    from kdrop.serving import export

SAMPLES = 50
CALLS, SUFFIXES = "calls", "prefix once, suffixes"
BASELINE = CALLS if JAX else SUFFIXES
REQUEST = {"signature_name": "serve", "instances": [[0.1, 0.2]]}


def votes(batch=256, **settings) -> Variants:
    """Draw Monte Carlo samples of a batch, by `kdrop.sample` and by hand."""
    model = alexnet32(kdrop.InvertedDropout, **settings)
    inputs = keras.random.normal((batch, *model.input_shape[1:]), seed=0)
    sampler = kdrop.Sampler(model)
    variants = {
        CALLS: lambda: [sampler.predict_on_batch(inputs) for _ in range(SAMPLES)],
        "kdrop.sample": lambda: kdrop.sample(model, inputs, SAMPLES, verbose=0),
    }
    if not JAX:
        variants = {SUFFIXES: suffixes(model, inputs), **variants}
    return {name: timed(work) for name, work in variants.items()}


def suffixes(model, inputs):
    """The prefix once and all suffixes in one graph, the least that samples cost."""
    first = next(n for n, each in enumerate(model.layers) if getattr(each, "rate", 0))
    cut = model.layers[first - 1].output
    prefix = keras.Model(model.inputs, cut)
    suffix = kdrop.Sampler(keras.Model(cut, model.outputs[0]))

    @tf.function(autograph=False)
    def samples(inputs):
        cut = prefix(inputs)
        numbers = tf.range(SAMPLES)
        return tf.map_fn(lambda _: suffix(cut), numbers, fn_output_signature="float32")

    return lambda: samples(inputs).numpy()


def exported(calls=500) -> Variants:
    """Call the exported `serve` of the spiral's network, with and without dropout."""

    def variant(layer):
        keras.utils.set_random_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            loaded = tf.saved_model.load(str(export(spiral_mlp(layer), folder)))
        point = tf.constant(REQUEST["instances"])
        return timed(lambda: loaded.signatures["serve"](inputs=point), calls)

    layers = None, kdrop.InvertedDropout, kdrop.VanillaDropout
    return {getattr(layer, "__name__", "none"): variant(layer) for layer in layers}


def start_server(model: Path) -> str:
    """Serve a model until this process ends, and return the address."""
    command = [sys.executable, "-m", "kdrop.serving", str(model), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    atexit.register(server.terminate)
    assert server.stderr is not None
    address = next(line.split()[-1] for line in server.stderr if " at http" in line)
    # Read on, or a full pipe would stop the server.
    threading.Thread(target=server.stderr.read, daemon=True).start()
    return address


def requests(calls=1000) -> Variants:
    """Ask a server in a process of its own, over one connection and over four."""
    import httpx

    folder = Path(tempfile.mkdtemp()) / "spiral"
    export(spiral_mlp(), folder)
    transport = httpx.HTTPTransport(retries=9)  # until the server listens
    address = start_server(folder)
    client = httpx.Client(base_url=address, transport=transport, timeout=60)
    atexit.register(client.close)

    def ask(_):
        start = time.perf_counter()
        client.post("/v1/models/spiral:predict", json=REQUEST).raise_for_status()
        return time.perf_counter() - start

    def ask_all(connections):
        with ThreadPoolExecutor(connections) as pool:
            return list(pool.map(ask, range(calls)))

    variants = {"600 a second": lambda: 1 / 600}
    for n in 1, 4:
        variants |= {
            f"{n} connections": lambda n=n: timed(lambda: ask_all(n))() / calls,
            f"{n} connections, p50": lambda n=n: float(np.quantile(ask_all(n), 0.5)),
            f"{n} connections, p99": lambda n=n: float(np.quantile(ask_all(n), 0.99)),
        }
    return variants


INFERENCE = {
    "vote-classifier": Comparison(
        f"{SAMPLES} samples of alexnet32, dropout in its classifier, 256 images",
        BASELINE, functools.partial(votes, rate=(0, 0, 0, 0.5)),
        {"kdrop.sample": 1.25}, rounds=3,
    ),
    "vote-everywhere": Comparison(
        f"{SAMPLES} samples of alexnet32, dropout at all its places, 256 images",
        BASELINE, votes, {"kdrop.sample": 1.25}, rounds=1,
    ),
    "export": Comparison(
        "a point through the exported serve of spiral_mlp", "none", exported,
        {INVERTED: 1.02, "VanillaDropout": 1.02}, rounds=21,
    ),
}  # fmt: skip
SERVING = {
    "requests": Comparison(
        "a request for one point to kdrop.serving", "600 a second", requests,
        {"4 connections": 1.0},
    )
}  # fmt: skip
if JAX:
    del INFERENCE["export"]
SUBJECTS = {"inference": INFERENCE} | ({} if JAX else {"serving": SERVING})
