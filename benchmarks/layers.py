"""The cost of each layer, forward and backward, against copying the two tensors.

A layer reads its inputs and writes its outputs, and does the same with the gradient.
`copy` does no more than that.
"""

import functools
import importlib.util
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import keras
import numpy as np

import kdrop
from benchmarks.harness import JAX, Comparison, Measure, Variants, timed
from kdrop import backend
from kdrop.errors import UserError
from kdrop.masks import bits

if JAX:
    import jax
else:
    import tensorflow as tf

KERAS, INVERTED, GAUSSIAN = "keras Dropout", "InvertedDropout", "GaussianDropout"
PAIR, SQUARE = (KERAS, INVERTED), (4096, 4096)
KERAS_UNITS = (KERAS, "keras GaussianDropout", "keras AlphaDropout")
UNITS = (INVERTED, "VanillaDropout", "UniformDropout", "AlphaDropout")
MAPS = ("SpatialDropout2D", "DropBlock2D 3", "DropBlock2D 7")
PATHS = ("DropPath", "StochasticDepth")
ALL = (*UNITS, GAUSSIAN, "ExactDropout", *PATHS)  # for inputs of any shape
TORCH = ("torch dropout",) if JAX and importlib.util.find_spec("torch") else ()
DENSE, ONE_MASK = "keras Dense", "DropConnectDense one mask"
LIMITS = {GAUSSIAN: 7.5, "ExactDropout": 5.0, **dict.fromkeys(UNITS, 2.0)}
LIMITS |= {**dict.fromkeys(MAPS, 3.0), **dict.fromkeys(PATHS, 1.2)}


def drop_layer(name: str, rate: float = 0.5, **arguments) -> keras.Layer:
    """Make a variant's layer: `keras Dropout`, `DropBlock2D 7`, `TokenDropout .1`."""
    kind, *words = name.removeprefix("keras ").split()
    if name == DENSE:
        return keras.layers.Dense(1024, **arguments)
    if kind == "DropConnectDense":
        arguments |= {"units": 1024, "per_example": name != ONE_MASK}
    elif kind == "TokenDropout":
        rate = float(words[0])
    elif words:
        arguments["block_size"] = int(words[0])
    package = keras.layers if name.startswith("keras ") else kdrop
    return getattr(package, kind)(rate=rate, **arguments)


def both_ways(layer):
    """Make a step that runs a built layer forward and backward; on JAX compiled."""
    weights = [weight.value for weight in layer.trainable_variables]
    state = [variable.value for variable in layer.non_trainable_variables]

    def step(inputs, upstream):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
        return outputs, tape.gradient(outputs, [inputs, *weights], upstream)

    def pure_step(weights, state, inputs, upstream):
        def call(inputs, weights):
            return layer.stateless_call(weights, state, inputs, training=True)

        outputs, pull, next_state = jax.vjp(call, inputs, weights, has_aux=True)
        return outputs, pull(upstream), next_state

    return functools.partial(jax.jit(pure_step), weights, state) if JAX else step


@functools.cache  # the variants share their tensors
def normal(shape, seed=0, dtype="float32"):
    return keras.random.normal(shape, dtype=dtype, seed=seed)


def steps(shape, names, mode="graph", dtype="float32", calls=2) -> Variants:
    """Run each layer both ways, with `mode` "eager", "graph" or "xla"; JAX has one."""
    stats = jax.devices()[0].memory_stats() if JAX else None  # `None` for a CPU
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = stats["bytes_limit"] if stats else free
    if 12 * np.prod(shape, dtype="int64") * (4 if dtype == "float32" else 2) > free:
        raise UserError(f"{shape} {dtype} does not fit {free / 2**30:.3g} GiB.")

    def variant(name):
        if name in TORCH:
            return torch_dropout(shape, dtype, calls)
        inputs = outputs = normal(shape, 0, dtype)
        if name == "copy":
            step = lambda x, gradient: (x * 2, gradient * 2)  # noqa: E731
            step = jax.jit(step) if JAX else step
        else:
            layer = drop_layer(name, dtype=dtype)
            # One row, except where it would be the first trace of several.
            outputs = layer(inputs if mode == "eager" else inputs[:1], training=True)
            step = both_ways(layer)
        if mode != "eager" and not JAX:
            step = tf.function(step, jit_compile=mode == "xla" or None, autograph=False)
        upstream = normal((shape[0], *outputs.shape[1:]), 1, dtype)
        return timed(lambda: step(inputs, upstream), calls)

    return {name: variant(name) for name in names}


def torch_dropout(shape, dtype, calls) -> Measure:
    """Run PyTorch's dropout both ways, on a device of the kind that JAX has."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    options = {"dtype": getattr(torch, dtype), "device": device}
    inputs = torch.randn(shape, requires_grad=True, **options)
    upstream = torch.randn(shape, **options)

    def step():
        outputs = torch.nn.functional.dropout(inputs, 0.5)
        return outputs, torch.autograd.grad(outputs, inputs, upstream)

    return timed(step, calls, lambda _: getattr(torch, device).synchronize())


def against(baseline, shape, *names, limits=LIMITS, rounds=5, **options) -> Comparison:
    """Compare layers with a baseline; the options are those of `steps`."""
    mode, dtype = options.get("mode", "graph"), options.get("dtype", "float32")
    variants = functools.partial(steps, shape, (baseline, *names), **options)
    work = f"{shape} {dtype}, forward and backward, {mode}"
    return Comparison(work, baseline, variants, limits, rounds)


def in_fresh_process(function, *arguments) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def seconds_per_length(name: str, mode: str, count: int) -> float:
    """Run a layer on batches that all differ in length: seconds a batch."""
    lengths = np.random.default_rng(0).permutation(count) + 20
    step = both_ways(drop_layer(name))
    if mode == "graph":
        spec = tf.TensorSpec((16, None, 64))
        step = tf.function(step, input_signature=[spec, spec], autograph=False)
    batches = [normal((16, n, 64)) for n in lengths]
    start = time.perf_counter()
    for batch in batches:
        step(batch, batch)
    return (time.perf_counter() - start) / count


DEPTH = 8 if JAX else 24  # as one program, XLA compiles a dozen such layers in minutes


def peak_bytes(name: str, shape=SQUARE, depth: int = DEPTH) -> int:
    """Peak memory of a deep stack, forward and backward, beside its inputs."""
    stack = keras.Sequential([keras.Input(shape[1:])])
    for _ in range(depth):
        if name != "none":
            stack.add(drop_layer(name))
        stack.add(keras.layers.ReLU())  # its gradient needs its outputs alone
    step = both_ways(stack)
    if JAX:  # what the compiler plans
        inputs = keras.ops.ones(shape)
        plan = step.func.lower(*step.args, inputs, inputs).compile().memory_analysis()
        return plan.temp_size_in_bytes
    step = tf.function(step, autograph=False)
    peaks = []
    for inputs in tf.ones((1, shape[1])), tf.ones(shape):  # the first one compiles
        step(inputs, inputs)
        peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peaks[1] - peaks[0]


def xor_of_words(count: int, size: int):
    """Draw the words of `count` rows, and keep one for each position: (size,)."""
    rows = keras.ops.cast(np.indices((count, 2))[0], "uint32")
    key = bits.fold(*(keras.ops.cast(n, "uint32") for n in range(3)))
    rows = bits.row_keys(key, rows)
    positions = keras.ops.cast(keras.ops.arange(size, dtype="int32"), "uint32")

    def add_several(step, total):
        for k in range(4):
            word = bits.word(positions, *(row[4 * step + k] for row in rows))
            total = keras.ops.bitwise_xor(total, word)
        return total

    return keras.ops.fori_loop(0, count // 4, add_several, positions)


def connections() -> Variants:
    """Run `DropConnectDense` forward, and only draw its random words: 2^27."""
    inputs = normal((128, 1024))
    layer = drop_layer("DropConnectDense", use_bias=False)
    layer(inputs[:1], training=True)
    weights = [weight.value for weight in layer.trainable_variables]
    state = [variable.value for variable in layer.non_trainable_variables]

    product = functools.partial(layer.stateless_call, training=True)
    product = functools.partial(backend.compiled(product, None), weights, state)
    return {
        "words alone": timed(backend.compiled(xor_of_words, None, 128, 2**20)),
        "DropConnectDense": timed(functools.partial(product, inputs)),
    }


def lengths(mode, count=200) -> Variants:
    measure = functools.partial(in_fresh_process, seconds_per_length)
    return {name: functools.partial(measure, name, mode, count) for name in PAIR}


def memory() -> Variants:
    peak = functools.partial(in_fresh_process, peak_bytes)
    relus = peak("none")
    return {name: lambda name=name: peak(name) - relus for name in PAIR}


def imports() -> Variants:
    codes = "import keras", "import keras, kdrop"
    run = functools.partial(subprocess.run, check=True, capture_output=True)
    return {c: timed(lambda c=c: run([sys.executable, "-c", c])) for c in codes}


LAYERS = {
    "maps": against(
        "copy", (64, 32, 32, 64), *KERAS_UNITS, "keras SpatialDropout2D", *ALL, *MAPS
    ),
    "rows": against("copy", (256, 4096), *KERAS_UNITS, *ALL, calls=8),
    "square": against(
        "copy", SQUARE, *KERAS_UNITS, *UNITS, GAUSSIAN,
        limits={INVERTED: 1.25, "VanillaDropout": 1.25, GAUSSIAN: 7.5},
    ),
    "tokens": against("copy", (64, 197, 384), "TokenDropout .5", "TokenDropout .1"),
    "connections": against(
        DENSE, (128, 1024), ONE_MASK, "DropConnectDense", limits={ONE_MASK: 1.5}
    ),
    "connections-words": Comparison(
        "(128, 1024) x 1024, a mask for each example, forward, xla",
        "words alone", connections, {"DropConnectDense": 1.2},
    ),
}  # fmt: skip
DROPOUT = {
    **{
        half: against("copy", SQUARE, *PAIR, dtype=half, limits={INVERTED: 2.6})
        for half in ("bfloat16", "float16")
    },
    "xla": against("copy", SQUARE, *UNITS, mode="xla", limits={INVERTED: 1.6}),
    # Keras's layer takes some 10 s at 4096 x 4096.
    "xla-small": against("copy", (128, 4096), *PAIR, mode="xla", calls=4, limits={}),
    **{
        f"size-2^{power}": against(
            "copy", (2**power // 4096, 4096), *PAIR, calls=calls,
            limits={INVERTED: 1.25} if power >= 24 else {},
        )
        for power, calls in {12: 256, 16: 256, 20: 16, 24: 1, 28: 1}.items()
    },
    **{
        f"small-{mode}": against(
            KERAS, (32, 256), INVERTED, mode=mode, calls=200,
            limits={INVERTED: limit}, rounds=9,
        )
        for mode, limit in {"graph": 1.1, "eager": 1.0}.items()
    },
    **{
        f"lengths-{mode}": Comparison(
            f"a batch, over 200 batches of 200 lengths, tracing included, {mode}",
            KERAS, functools.partial(lengths, mode), {INVERTED: 1.0},
            rounds=1, warm_up=0,
        )
        for mode in ("graph", "eager")
    },
    "first-step": Comparison(
        "the first batch of a process, traced and compiled, eager",
        KERAS, functools.partial(lengths, "eager", 1), {}, rounds=1, warm_up=0,
    ),
    "memory": Comparison(
        f"peak of {DEPTH} layers and ReLUs on 4096 x 4096, less that of the ReLUs",
        KERAS, memory, {INVERTED: 0.25}, rounds=1, warm_up=0, unit="MiB",
    ),
    "import": Comparison(
        "a fresh Python that imports", "import keras", imports,
        {"import keras, kdrop": 1.03}, rounds=3,
    ),
}  # fmt: skip
GPU = {
    f"{dtype}-2^{power}": against(
        "copy", (2**power >> 16, 32, 32, 64), KERAS, *TORCH, *UNITS, GAUSSIAN, *MAPS,
        dtype=dtype, calls=max(1, 2**28 >> power), rounds=9,
    )
    for dtype in ("float32", "bfloat16") for power in range(20, 31, 2)
}  # fmt: skip
if JAX:
    for name in "small-eager", "lengths-graph", "lengths-eager", "first-step":
        del DROPOUT[name]
SUBJECTS = {"layers": LAYERS, "dropout": DROPOUT} | ({"gpu": GPU} if JAX else {})
