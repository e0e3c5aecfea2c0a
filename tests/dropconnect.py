"""DropConnect layers, their masks computed from the words, and ways to run them."""

import zlib

import numpy as np
import tensorflow as tf

from kdrop import DropConnectDense
from kdrop.masks import bits, run


def masks(layer, count, draw=1, bias=False):
    """What each of `count` rows multiplies the layer's kernel, or bias, by."""
    numbers = (layer.seed, zlib.crc32(layer.name.encode()) + bias, draw)
    key = bits.fold(*(tf.constant(np.uint32(n)) for n in numbers))
    rows = np.stack([np.arange(count), np.zeros(count)], axis=1).astype("uint32")
    shape = layer.bias.shape if bias else layer.kernel.shape
    words = bits.words(key, tf.constant(rows), int(np.prod(shape))).numpy()
    mask = words >= round(layer.rate * 2**32)
    return mask.reshape(count, *shape) / (1 - layer.rate)


def dense(units=4, rate=0.25, **settings):
    settings = {"seed": 7, "name": "dense", "dtype": "float64", **settings}
    return DropConnectDense(units, rate, bias_initializer="normal", **settings)


def normal(*shape, dtype="float64"):
    return tf.constant(np.random.default_rng(0).normal(size=shape).astype(dtype))


def in_mode(mode, function):
    """The function run eagerly, in a graph, compiled, or traced for export."""
    if mode == "eager":
        return function
    if mode != "export":
        return tf.function(function, jit_compile=mode == "xla")

    def exported(*args):
        token = run.exporting.set(True)
        try:
            return function(*args)
        finally:
            run.exporting.reset(token)

    return tf.function(exported)


def connected(rate=0.5, seed=1, name="one", **settings):
    settings = {"use_bias": False, "kernel_initializer": "ones", **settings}
    return DropConnectDense(256, rate, seed=seed, name=name, **settings)


def thinned(layer, shape=(64, 1)):
    """Which connections of a dense layer the next mask drops: (batch, units)."""
    return layer(tf.ones(shape, layer.compute_dtype), training=True).numpy() == 0
