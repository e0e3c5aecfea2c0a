"""What a layer does to single elements in training, measured on ones."""

import functools
import math
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kdrop import backend
from kdrop.auditing import chance
from kdrop.layers import UniformDropout

_ELEMENTS = 2**18  # of one call
_DECISIONS = 2**16  # enough for a frequency
_CALLS = 256  # at most, where a call decides once

_ROUNDING = {"bfloat16": 2**-7, "float16": 2**-10}


@dataclass(frozen=True)
class Measurement:
    dropped: float
    bound: float | None  # how far chance may bring `dropped` from the rate
    mean: float
    variance: float
    together: str | None  # what is decided together; `None` if nothing was random
    fresh: bool | None  # whether calls differ; `None` if that cannot be told
    problems: tuple[str, ...]


def to_numpy(outputs):
    """The tensors of a structure as a list of arrays, those of floats in float32."""
    return [
        ops.convert_to_numpy(ops.cast(x, "float32") if "float" in str(x.dtype) else x)
        for x in keras.tree.flatten(outputs)
    ]


def measure(layer, shape, rate):
    """Measure a layer that changes each element by itself, on an `accepted_shape`."""
    first = _training_outputs(layer, shape, 2)
    shared = _shared_axes(first)
    small = [min(n, 2) if axis in shared else n for axis, n in enumerate(shape)]
    if 0 not in shared:
        small[0] = max(min(_ELEMENTS // math.prod(small[1:]), 2**14), shape[0])
    shape = _accepted(layer, [tuple(small), shape])
    independent = [n for axis, n in enumerate(shape) if axis not in shared]
    # At low rates, one decision a call needs many calls before it drops at all.
    most = min(max(_CALLS, int(25 / rate) if rate else 0), 8 * _CALLS)
    calls = min(-(-_DECISIONS // math.prod(independent)), most)
    calls = max(min(calls, 2**24 // math.prod(shape)), 2)
    if shape != first.shape[1:] or calls > 2:
        first = _training_outputs(layer, shape, calls)
    shared = _shared_axes(first)
    independent = [n for axis, n in enumerate(shape) if axis not in shared]
    return _judge(layer, rate, first, shared, math.prod(independent) * len(first))


def _judge(layer, rate, outputs, shared, decisions):
    shape, asked, problems = outputs.shape[1:], rate or 0.0, []
    in_call = np.unique(outputs if len(shared) == len(shape) else outputs[0])
    random, noise, dropped_value = outputs.min() < outputs.max(), len(in_call) > 2, 0.0
    if len(in_call) == 2 and 0 not in in_call:
        # Of the two values that of the dropped units does not depend on the inputs.
        twos = _training_outputs(layer, shape, len(outputs), 2.0)
        dropped_value = float([*np.intersect1d(in_call, twos), 0.0][0])
    is_dropped = outputs == dropped_value
    dropped, together = float(is_dropped.mean()), _name_group(shared, shape)
    bound, block = _bound(asked, is_dropped, shared, decisions)

    fresh = any((one != outputs[0]).any() for one in outputs[1:]) or None
    certain = chance.tells_calls_apart(asked, decisions / len(outputs))
    if fresh is None and (certain or noise):
        fresh = False
        problems.append("calls repeat their masks")
    expected = float(to_numpy(layer(np.ones(shape), training=False))[0].mean())
    variance = _noise_variance(layer, asked) * expected**2
    if dropped_value:  # mean 0 and variance 1 are what such a layer keeps
        outputs, expected, variance = _on_normal(layer, shape, len(outputs)), 0.0, 1.0
    mean, measured = float(outputs.mean(dtype="float64")), float(outputs.var())
    mean_bound, variance_bound = chance.moment_bounds(outputs, decisions)
    rounding = _ROUNDING.get(layer.compute_dtype, 1e-6) * max(1, abs(expected))
    if not noise and not dropped_value:
        mean_bound = bound * float(outputs.max() - outputs.min() if random else 1)
    wrong_variance = abs(measured - variance) > variance_bound + rounding
    # In bfloat16, Gaussian noise that is exactly 0 is no rarity.
    is_noise = noise and not (dropped and wrong_variance)
    if rate is None and not hasattr(layer, "stddev"):
        pass  # nothing is asked
    elif is_noise and wrong_variance:
        problems.append(f"noise of variance {measured:.4f} that drops nothing")
    elif not is_noise and abs(dropped - asked) > bound:
        problems.append(f"drops {dropped:.4f} in place of {asked:.4g}")
    elif dropped_value and wrong_variance:
        problems.append(f"variance 1 becomes {measured:.4f}")
    if rate is not None and abs(mean - expected) > mean_bound + rounding:
        problems.append(f"mean {mean:.4f} in training, {expected:.4f} at inference")
    return Measurement(
        dropped,
        None if rate is None or is_noise else bound,
        mean,
        measured,
        (f"block of {together}s" if block else together) if random else None,
        fresh,
        tuple(problems),
    )


def _bound(rate, is_dropped, shared, decisions):
    """How far chance may bring the dropped fraction, and whether it drops blocks."""
    dropped = is_dropped.mean()
    bound = chance.frequency_bound(rate, float(dropped), decisions)
    rows = math.prod(is_dropped.shape[:2])
    if 0 in shared or decisions == rows or not 0 < dropped < 1:
        return bound, False
    by_row = is_dropped.reshape(rows, -1).mean(axis=1)
    if np.ptp(by_row) == 0:  # a count that is exact
        return 0.5 * rows / decisions + 1e-6, False
    # Where neighbours agree, the rows vary more than independent decisions would.
    excess = float(by_row.var() * decisions / rows / (dropped * (1 - dropped)))
    if excess < 2:
        return bound, False
    return chance.frequency_bound(rate, float(dropped), decisions / excess), True


def _noise_variance(layer, rate):
    """The variance of the noise that a layer is asked for, on ones."""
    if hasattr(layer, "stddev"):
        return layer.stddev**2
    if isinstance(layer, UniformDropout):
        return rate**2 / 3
    return rate / (1 - rate) if rate < 1 else math.inf


def accepted_shape(layer, shape):
    """A shape of more rows and fewer positions, or this one, that the layer takes.

    Raises what the layer raises in training if it does not even take this one.
    """
    inner = shape[1:]
    if math.prod(inner) > 2**12:
        inner = (*(min(n, 8) for n in inner[:-1]), *inner[-1:])
    many = ((max(_ELEMENTS // math.prod(x), 1), *x) for x in (inner, shape[1:]))
    return _accepted(layer, [*many, shape])


def _accepted(layer, shapes):
    """The first of the shapes that the layer takes in training."""
    for shape in shapes:
        try:
            layer(ops.ones(shape, layer.compute_dtype), training=True)
            return shape
        except Exception:  # whatever the code of a layer raises
            if shape == shapes[-1]:
                raise


def _training_outputs(layer, shape, calls, value=1.0):
    """The outputs of several calls as one array; on TensorFlow in a graph, as `fit`."""
    inputs = ops.full(shape, value, layer.compute_dtype)
    call = functools.partial(layer, training=True)
    if backend.name() == "tensorflow":
        call = backend.compiled(call, xla=False)
    return np.stack([to_numpy(call(inputs))[0] for _ in range(calls)])


def _on_normal(layer, shape, calls):
    random = np.random.default_rng(0)
    inputs = (random.normal(size=shape).astype("float32") for _ in range(calls))
    return np.stack([to_numpy(layer(x, training=True))[0] for x in inputs])


def _shared_axes(outputs):
    """The axes along which all positions share the decisions of each call."""
    first = ((axis, outputs.take([0], axis + 1)) for axis in range(outputs.ndim - 1))
    return {axis for axis, one in first if (outputs == one).all()}


def _name_group(shared, shape):
    """What one decision drops; axes of size 1 tell nothing."""
    last = len(shape) - 1
    inner = [axis for axis in range(1, last + 1) if shape[axis] > 1]
    alone = [axis for axis in inner if axis not in shared]
    name = f"axes {alone}"
    if not alone:
        name = "row"
    elif alone == inner:
        name = "unit"
    elif alone == [last] or (alone == [1] and last > 2):
        name = "channel"
    elif alone == [axis for axis in inner if axis < last]:
        name = "token"
    if 0 not in shared:
        return name
    return "batch" if name == "row" else f"{name} of the batch"
