"""What a layer costs: passes through it, memory, imports."""

import functools
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import keras
import numpy as np

import kdrop
from benchmarks.claim import DROPOUT, PAIR, RIVAL, Claim, Variants
from kdrop.masks import bits

SQUARE = (4096, 4096)
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


def drop_layer(name, rate=0.5, **arguments):
    kind, *block = name.removeprefix("keras ").split()
    if block:
        arguments["block_size"] = int(*block)
    package = keras.layers if name.startswith("keras ") else kdrop
    return getattr(package, kind)(rate, **arguments)


def both_ways(layer):
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
        step = _copy if name == "copy" else both_ways(drop_layer(name, dtype=dtype))
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
    step = both_ways(drop_layer(name))
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

    drops = [] if name == "none" else [drop_layer(name) for _ in range(depth)]

    def stack(x, training):
        for n in range(depth):
            # A ReLU's gradient needs its outputs, and nothing of what came before.
            x = tf.nn.relu(drops[n](x, training=training) if drops else x)
        return x

    step = tf.function(both_ways(stack), autograph=False)
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

    def with_weights(layer):
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
            "keras Dense": timed(with_weights(plain), inputs, inputs),
            "DropConnectDense": timed(with_weights(thinned), inputs, inputs),
        }
    draw = tf.function(
        lambda rows: bits.words(key, rows, 2**20) < 2**31, jit_compile=True
    )
    forward = tf.function(lambda x: thinned(x, training=True), autograph=False)
    return {
        "drawing the words": timed(draw, rows),
        "DropConnectDense": timed(forward, inputs),
    }


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
}
