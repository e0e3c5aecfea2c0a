"""Checks of a layer that need a copy of it: another type, a file, replicas."""

import json
import os
import tempfile

import keras
import numpy as np
from keras import ops

from kdrop import backend
from kdrop.auditing.measure import measure, to_numpy
from kdrop.layers.base import Noise
from kdrop.layers.callbacks import StepClock


class Copies:
    """The checks of an audit on copies, made once for layers whose copies are alike."""

    def __init__(self, strategy, recompute):
        self._strategy, self._recompute, self._problems = strategy, recompute, {}

    def problems(self, layer, shape, rate, together):
        """The problems of a layer's copies by the name of each check that was made."""
        try:
            config = json.dumps(
                {**layer.get_config(), "name": 0, "seed": 0}, default=str
            )
        except Exception:  # a layer without a configuration is like no other
            config = id(layer)
        key = type(layer), config, shape, together
        if key not in self._problems:
            checks = dict(self._checks(layer, shape, rate, together))
            self._problems[key] = {k: x for k, x in checks.items() if x is not None}
        return self._problems[key]

    def _checks(self, layer, shape, rate, together):
        def run(name, check, *args):
            try:
                return name, check(layer, shape, *args)
            except Exception as error:  # whatever the code of a layer raises
                return name, (f"{name}: a copy raises {type(error).__name__}",)

        yield run("saved", saved, rate)
        if together and layer.compute_dtype != "bfloat16":
            yield run("bfloat16", bfloat16, rate)
        if together and self._strategy and "batch" not in together:
            yield run("replicas", replicas, self._strategy)
        if together and self._recompute:
            yield run("recompute", recompute)


def copy(layer, **changes):
    return type(layer).from_config({**layer.get_config(), **changes})


def saved(layer, shape, rate):
    """Problems of a layer that is loaded: kdrop's continue their masks."""
    if not isinstance(layer, Noise):
        problems = measure(copy(layer), shape, rate).problems
        return tuple(f"saved and loaded, {x}" for x in problems)
    inputs = keras.Input(batch_shape=shape, dtype=layer.compute_dtype)
    model = keras.Sequential([inputs, copy(layer)])
    ones = ops.ones(shape, layer.compute_dtype)
    model(ones, training=True)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "layer.keras")
        model.save(path)
        loaded = keras.models.load_model(path)
    for _ in range(4):
        one, other = (to_numpy(x(ones, training=True))[0] for x in (model, loaded))
        if not np.allclose(one, other, rtol=1e-5, atol=1e-6):
            return ("saved and loaded, it draws other masks",)
    return ()


def bfloat16(layer, shape, rate):
    """Problems of the layer in bfloat16."""
    return measure(copy(layer, dtype="bfloat16"), shape, rate).problems


def replicas(layer, shape, strategy):
    """Problems of the layer on two replicas; `None` if it was hardly random."""
    with strategy.scope():
        twin = copy(layer)
        ones = ops.ones(shape, layer.compute_dtype)
        twin(ones, training=False)
    call = backend.replica_outputs(strategy, twin, ones)
    pairs = [[to_numpy(x)[0] for x in call()] for _ in range(16)]
    pairs = [(one, other) for one, other in pairs if np.ptp(one) > 0]
    if any((one != other).any() for one, other in pairs):
        return ()
    return ("two replicas share their masks",) if len(pairs) > 4 else None


def recompute(layer, shape):
    """Problems of the layer where the backward pass computes it again.

    A layer of kdrop runs under `StepClock`, as its documentation asks.
    """
    twin = copy(layer)
    ones = ops.ones(shape, layer.compute_dtype)
    twin(ones, training=False)
    remat = keras.remat(lambda inputs: twin(inputs, training=True))
    with StepClock().start(twin):
        one, other = map(to_numpy, backend.output_and_gradient(remat, ones))
    one, other = one[0], other[0]
    # The gradient of a dropped unit is 0; AlphaDropout sets it to the lowest value.
    agree = any(np.array_equal(one == x, other == 0) for x in (0, one.min()))
    if np.allclose(one, other, rtol=1e-2) or not np.ptp(other):
        return ()
    same = agree and (other == 0).any()
    return () if same else ("recomputed, the backward pass has another mask",)
