"""What a layer does to ones in training, and whether its copies do the same."""

import math
import tempfile
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from kdrop import backend
from kdrop.layers import UniformDropout
from kdrop.layers.base import Noise
from kdrop.layers.callbacks import StepClock

_LOG = math.log(2e9)  # a right layer is out of bounds once in a thousand million
_ROUNDING = {"bfloat16": 2**-7, "float16": 2**-10}


def chance_bound(variance, count, largest=1.0):
    """How far the mean of independent values may be from its law, by Bernstein."""
    linear = _LOG * largest / 3 if variance else 0.0
    return (linear + math.sqrt(linear**2 + 2 * count * variance * _LOG)) / count


def to_numpy(outputs):
    """The tensors of a structure as a list of arrays, those of floats in float32."""
    return [
        ops.convert_to_numpy(ops.cast(x, "float32") if "float" in str(x.dtype) else x)
        for x in keras.tree.flatten(outputs)
    ]


class _Drops(NamedTuple):
    value: float  # of dropped units
    fraction: float
    bound: float | None  # how far chance may bring it from the rate; `None` for noise
    together: str | None  # what one decision drops; `None` if nothing is random
    count: float  # of independent decisions


def measure(layer, shape, rate):
    """What calls on ones show of a layer that changes each element by itself.

    Returns fields of its row, its problems, and the shape of one call. Raises what the
    layer raises for inputs of this shape.
    """
    asked, rate = rate is not None or hasattr(layer, "stddev"), rate or 0.0
    outputs, shared = _outputs(layer, shape, rate)
    drops = _drops(outputs, shared, rate)
    fresh = bool((outputs != outputs[0]).any()) or None
    by_call = drops.count / len(outputs)
    if not fresh and (drops.bound is None or 2 * by_call * rate * (1 - rate) > _LOG):
        fresh = False  # independent calls surely differ
    mean, variance, problems = _moments(layer, outputs, drops, rate)
    if drops.bound is not None and abs(drops.fraction - rate) > drops.bound:
        problems.insert(0, f"drops {drops.fraction:.4f} in place of {rate:.4g}")
    fields = {"dropped": drops.fraction, "mean": mean, "variance": variance}
    fields |= {"together": drops.together, "bound": drops.bound, "fresh": fresh}
    problems = ["calls repeat their masks"] * (fresh is False) + problems * asked
    return fields, problems, outputs.shape[1:]


def _drops(outputs, shared, rate):
    once = len(shared) == outputs.ndim - 1
    values = np.unique(outputs if once else outputs[0])
    # The lower of two values is that of dropped units: `AlphaDropout` sets another.
    value = float(values[0]) if len(values) == 2 else 0.0
    is_dropped = outputs == value
    fraction = float(is_dropped.mean())
    together = _together(outputs.shape[1:], shared) if len(values) > 1 else None

    rows = is_dropped.mean(axis=tuple(range(2, outputs.ndim)))
    rows = rows[:, :1] if 0 in shared else rows
    units = _decisions(outputs.shape[1:], shared | {0})
    if len(values) > 2 and fraction < (rate or 1) / 2:
        return _Drops(value, fraction, None, together, rows.size * units)
    if 0 < fraction < 1 and np.ptp(rows) == 0:  # the same number in each row
        bound = 0.5 / units + 1e-6
        return _Drops(value, fraction, bound, together, rows.size * units)
    # Where blocks drop, rows vary as if they had fewer decisions.
    block = float(rows.var()) * units / max(fraction * (1 - fraction), 1e-9)
    count = rows.size * units / max(block, 1)
    together = f"block of {together}s" if block > 2 else together
    return _Drops(
        value, fraction, chance_bound(rate * (1 - rate), count), together, count
    )


def _moments(layer, outputs, drops, rate):
    """The mean and the variance of the outputs, and the problems that they show."""
    shape, calls = outputs.shape[1:], len(outputs)
    ones = ops.ones(shape, layer.compute_dtype)
    expected = float(to_numpy(layer(ones, training=False))[0].mean())
    noise = rate / max(1 - rate, 1e-9)
    if isinstance(layer, UniformDropout):
        noise = rate**2 / 3
    law = layer.stddev**2 if hasattr(layer, "stddev") else noise * expected**2
    if drops.value:  # what such a layer keeps is a mean of 0 and a variance of 1
        values = np.random.default_rng(0).normal(size=shape)
        outputs = _called(layer, (values - values.mean()) / values.std(), calls)
        expected, law = 0.0, 1.0
    mean = float(outputs.mean(dtype="float64"))
    squares = (outputs - mean) ** 2
    variance = float(squares.mean(dtype="float64"))

    rounding = _ROUNDING.get(layer.compute_dtype, 1e-6) * max(1, abs(expected))
    bound = chance_bound(float(squares.var()), drops.count, float(squares.max()))
    problems = []
    if abs(variance - law) > bound + rounding and drops.value:
        problems.append(f"variance 1 becomes {variance:.4f}")
    elif abs(variance - law) > bound + rounding and drops.bound is None:
        problems.append(f"noise of variance {variance:.4f} that drops nothing")
    bound = chance_bound(max(variance, law), drops.count, float(np.ptp(outputs)) or 1.0)
    if abs(mean - expected) > bound + rounding:
        problems.append(f"mean {mean:.4f} in training, {expected:.4f} at inference")
    return mean, variance, problems


def _together(shape, shared):
    """What one decision drops; axes of size 1 tell nothing."""
    last = len(shape) - 1
    inner = tuple(axis for axis in range(1, last + 1) if shape[axis] > 1)
    names = {  # by the axes of which each position has its decision; later ones prevail
        (1,): "channel",
        tuple(axis for axis in inner if axis < last): "token",
        (last,): "channel",
        inner: "unit",
        (): "row",
    }
    alone = tuple(axis for axis in inner if axis not in shared)
    name = names.get(alone, f"axes {alone}")
    if 0 not in shared:
        return name
    return "batch" if name == "row" else f"{name} of the batch"


def _outputs(layer, shape, rate):
    """Outputs for ones in many calls, and the axes along which decisions are shared.

    In many rows, and with few positions along axes that share their decisions.
    """
    try:
        outputs = _called(layer, np.ones(_sizes(shape, set())), 4)
        shared = _shared_axes(outputs)
        if shared:
            shape = _sizes(outputs.shape[1:], shared)
            # At low rates, one decision a call needs many before it drops at all.
            most = min(max(int(64 / (rate or 1)), 2**9), 2**12)
            calls = min(2**16 // _decisions(shape, shared), most)
            outputs = _called(layer, np.ones(shape), max(calls, 4))
    except Exception:  # it may only take its own shape
        calls = min(2**9, 2**24 // math.prod(shape))
        outputs = _called(layer, np.ones(shape), max(calls, 4))
    return outputs, _shared_axes(outputs)


def _sizes(shape, shared):
    last = len(shape) - 1
    inner = [
        min(n, 2 if axis in shared else 16 if axis < last else n)
        for axis, n in enumerate(shape)
    ][1:]
    return 2 if 0 in shared else max(2**17 // math.prod(inner), 8), *inner


def _decisions(shape, shared):
    return math.prod(n for axis, n in enumerate(shape) if axis not in shared)


def _shared_axes(outputs):
    first = (outputs.take([0], axis + 1) for axis in range(outputs.ndim - 1))
    return {axis for axis, values in enumerate(first) if (outputs == values).all()}


def _called(layer, values, calls):
    """The outputs of calls in training as one array; on TensorFlow of a graph."""
    inputs = ops.cast(values, layer.compute_dtype)
    call = backend.traced(lambda: layer(inputs, training=True))
    return np.stack([to_numpy(call())[0] for _ in range(calls)])


def copy(layer, **changes):
    return type(layer).from_config({**layer.get_config(), **changes})


def saved(layer, shape, rate, _):
    """Problems of a loaded copy; kdrop's layers continue the masks of the saved one."""
    ones = ops.ones(shape, layer.compute_dtype)
    inputs = keras.Input(batch_shape=shape, dtype=layer.compute_dtype)
    model = keras.Sequential([inputs, copy(layer)])
    model(ones, training=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/layer.keras")
        classes = {type(layer).__name__: type(layer)}
        loaded = keras.models.load_model(f"{folder}/layer.keras", classes)
    if not isinstance(layer, Noise):
        _, problems, _ = measure(loaded.layers[-1], shape, rate)
        return [f"saved and loaded, {x}" for x in problems]
    one, other = (
        np.stack([to_numpy(x(ones, training=True))[0] for _ in range(4)])
        for x in (model, loaded)
    )
    same = np.allclose(one, other, rtol=1e-5, atol=1e-6)
    return [] if same else ["saved and loaded, it draws other masks"]


def bfloat16(layer, shape, rate, _):
    return measure(copy(layer, dtype="bfloat16"), shape, rate)[1]


def replicas(layer, shape, _, strategy):
    with strategy.scope():
        twin = copy(layer)
    local, ones = (
        strategy.experimental_local_results,
        ops.ones(shape, twin.compute_dtype),
    )
    twin(ones, training=False)
    both = backend.traced(
        lambda: local(strategy.run(twin, (ones,), {"training": True}))
    )
    pairs = np.array([[to_numpy(x)[0] for x in both()] for _ in range(16)])
    share = np.ptp(pairs) > 0 and (pairs[:, 0] == pairs[:, 1]).all()
    return ["two replicas share their masks"] if share else []


def recompute(layer, shape, *_):
    """Problems where the backward pass calls it again; kdrop's under `StepClock`."""
    twin, ones = copy(layer), ops.ones(shape, layer.compute_dtype)
    twin(ones, training=False)
    remat = keras.remat(lambda inputs: twin(inputs, training=True))
    with StepClock().start(twin):
        both = backend.output_and_gradient(remat, ones)
    outputs, gradient = (to_numpy(x)[0] for x in both)
    # Noise is its own gradient, and that of a dropped unit is 0.
    dropped = outputs == (0 if 0 in outputs else outputs.min())
    same = np.allclose(outputs, gradient, 1e-2) or np.all(dropped == (gradient == 0))
    wrong = np.ptp(gradient) > 0 and not same
    return ["recomputed, the backward pass has another mask"] if wrong else []
