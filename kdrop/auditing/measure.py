"""What a layer does to ones in training, and whether its copies do the same."""

import math
import tempfile

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


def measure(layer, shape, rate):
    """What calls on ones show of a layer that changes each element by itself.

    Returns fields of its row, and the shape of one call. Raises what the layer raises
    for inputs of this shape.
    """
    asked, rate = rate is not None or hasattr(layer, "stddev"), rate or 0.0
    outputs = _outputs(layer, shape, rate)
    single = _independent(outputs)
    drops = dropped, _, bound, together, count = _drops(outputs, single, rate)
    mean, variance, problems = _moments(layer, outputs, drops, rate)
    if bound is not None and abs(dropped - rate) > bound:
        problems.insert(0, f"drops {dropped:.4f} in place of {rate:.4g}")
    problems = problems if asked else []
    fresh = bool((single != single[0]).any()) or None
    chances = 2 * rate * (1 - rate) * count / len(single)
    if not fresh and (bound is None or chances > _LOG):  # independent calls differ
        fresh = False
        problems.append("calls repeat their masks")
    fields = {"dropped": dropped, "mean": mean, "variance": variance, "fresh": fresh}
    fields |= {"bound": bound if asked else None, "together": together}
    return {**fields, "problems": problems}, outputs.shape[1:]


def _drops(outputs, single, rate):
    """The fraction dropped, and what else the independent outputs show of it.

    Besides: the value of dropped units; how far chance may bring the fraction from the
    rate, `None` for noise; what one decision drops, `None` if nothing is random; the
    number of independent decisions.
    """
    # Those of one call: a layer may scale each call by the number that it dropped.
    calls = single.reshape(len(single), -1)
    mixed = calls[np.ptp(calls, axis=1) > 0]  # without those that drop all or nothing
    values = np.unique(mixed[0] if len(mixed) else calls)
    # The lower of two values is that of dropped units: `AlphaDropout` sets another.
    value = float(values[0]) if len(values) == 2 else 0.0
    is_dropped, units = single == value, single[0, 0].size
    fraction = float(is_dropped.mean())
    together = _group(outputs, single) if len(values) > 1 else None
    # Where blocks drop, rows vary as if they had fewer decisions.
    rows = is_dropped.mean(axis=tuple(range(2, single.ndim)))
    block = float(rows.var()) * units / max(fraction * (1 - fraction), 1e-9)
    count = single.size / max(block, 1)
    bound = chance_bound(rate * (1 - rate), count)
    if len(values) > 2 and fraction < (rate or 1) / 2:
        bound = None
    elif 0 < fraction < 1 and np.ptp(rows) == 0:  # the same number in each row
        bound = 0.5 / units + 1e-6
    elif block > 2:
        together = f"block of {together}s"
    return fraction, value, bound, together, count


def _moments(layer, outputs, drops, rate):
    """The mean and the variance of the outputs, and the problems that they show."""
    _, dropped_value, bound, _, count = drops
    ones = ops.ones(outputs.shape[1:], layer.compute_dtype)
    expected = float(to_numpy(layer(ones, training=False))[0].mean())
    uniform = isinstance(layer, UniformDropout)
    noise = rate**2 / 3 if uniform else rate / max(1 - rate, 1e-9)
    law = layer.stddev**2 if hasattr(layer, "stddev") else noise * expected**2
    if dropped_value:  # what such a layer keeps is a mean of 0 and a variance of 1
        outputs = _called(layer, np.resize([-1.0, 1.0], ones.shape), len(outputs))
        expected, law = 0.0, 1.0
    mean = float(outputs.mean(dtype="float64"))
    squares = (outputs - mean) ** 2
    variance = float(squares.mean(dtype="float64"))

    problems = []
    rounding = _ROUNDING.get(layer.compute_dtype, 1e-6) * max(1, abs(expected))
    near = chance_bound(float(squares.var()), count, float(squares.max())) + rounding
    if abs(variance - law) > near and dropped_value:
        problems.append(f"variance 1 becomes {variance:.4f}")
    elif abs(variance - law) > near and bound is None:
        problems.append(f"noise of variance {variance:.4f} that drops nothing")
    near = chance_bound(max(variance, law), count, float(np.ptp(outputs)) or 1.0)
    if abs(mean - expected) > near + rounding:
        problems.append(f"mean {mean:.4f} in training, {expected:.4f} at inference")
    return mean, variance, problems


def _group(outputs, single):
    """What one decision drops; axes of size 1 tell nothing."""
    last = outputs.ndim - 2
    inner = tuple(a for a in range(1, last + 1) if outputs.shape[a + 1] > 1)
    names = {  # by the axes of which each position has its decision; later ones prevail
        (1,): "channel",
        tuple(axis for axis in inner if axis < last): "token",
        (last,): "channel",
        inner: "unit",
        (): "row",
    }
    alone = tuple(axis for axis in inner if single.shape[axis + 1] > 1)
    name = names.get(alone, f"axes {alone}")
    if single.shape[1] > 1:
        return name
    return "batch" if name == "row" else f"{name} of the batch"


def _outputs(layer, shape, rate):
    """Outputs for ones, from many calls with many rows.

    Axes along which all positions are alike are cut to two positions.
    """
    try:
        outputs = _called(layer, np.ones(_sizes(shape, (2, *shape[1:]))), 4)
        _, *shape = outputs.shape
        _, *alone = _independent(outputs).shape
        if 1 not in alone:
            return outputs
        sizes = _sizes(shape, alone)
        decisions = math.prod(n for n, m in zip(sizes, alone, strict=True) if m > 1)
        # At low rates, one decision a call needs many before it drops at all.
        most = min(max(int(64 / (rate or 1)), 2**9), 2**12)
        return _called(layer, np.ones(sizes), max(min(2**16 // decisions, most), 4))
    except Exception:  # it may take no other shape
        return _called(
            layer, np.ones(shape), max(min(2**9, 2**24 // math.prod(shape)), 4)
        )


def _sizes(shape, alone):
    """Two positions along axes of size 1 in `alone`, and as many rows as it takes."""
    most = [*[16] * (len(shape) - 1), shape[-1]]
    sizes = zip(shape, most, alone, strict=True)
    rows, *inner = (min(n, m if each > 1 else 2) for n, m, each in sizes)
    return 2 if alone[0] == 1 else max(2**17 // math.prod(inner), 8), *inner


def _independent(outputs):
    """The outputs without the positions along an axis that are all alike."""
    for axis in range(1, outputs.ndim):
        first = outputs.take([0], axis)
        outputs = first if (outputs == first).all() else outputs
    return outputs


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
        problems = measure(loaded.layers[-1], shape, rate)[0]["problems"]
        return [f"saved and loaded, {x}" for x in problems]
    for _ in range(4):
        one, other = (to_numpy(x(ones, training=True))[0] for x in (model, loaded))
        if not np.allclose(one, other, rtol=1e-5, atol=1e-6):
            return ["saved and loaded, it draws other masks"]
    return []


def bfloat16(layer, shape, rate, _):
    return measure(copy(layer, dtype="bfloat16"), shape, rate)[0]["problems"]


def replicas(layer, shape, _, strategy):
    with strategy.scope():
        twin = copy(layer)
    ones = ops.ones(shape, layer.compute_dtype)
    twin(ones, training=False)
    local, training = strategy.experimental_local_results, {"training": True}
    both = backend.traced(lambda: local(strategy.run(twin, (ones,), training)))
    pairs = np.array([[to_numpy(x)[0] for x in both()] for _ in range(16)])
    share = np.ptp(pairs) > 0 and (pairs[:, 0] == pairs[:, 1]).all()
    return ["two replicas share their masks"] if share else []


def recompute(layer, shape, *_):
    """Problems where the backward pass calls it again; kdrop's under `StepClock`."""
    twin, ones = copy(layer), ops.ones(shape, layer.compute_dtype)
    twin(ones, training=False)
    remat = keras.remat(lambda inputs: twin(inputs, training=True))
    with StepClock().start(twin):
        call = backend.traced(lambda: backend.output_and_gradients(remat, [ones], ones))
        outputs, gradient = to_numpy(call())
    # Noise is its own gradient, and that of a dropped unit is 0.
    dropped = outputs == (0 if 0 in outputs else outputs.min())
    same = np.allclose(outputs, gradient, 1e-2) or np.all(dropped == (gradient == 0))
    wrong = np.ptp(gradient) > 0 and not same
    return ["recomputed, the backward pass has another mask"] if wrong else []
