"""Audit a model: one row for each layer that is random in training."""

import re
from dataclasses import replace

import keras
import numpy as np
from keras import ops

from kdrop import backend, keras_internals
from kdrop.auditing import calls
from kdrop.auditing.copies import Copies, copy
from kdrop.auditing.measure import accepted_shape, measure, to_numpy
from kdrop.auditing.table import Audit, Row
from kdrop.errors import UserError, check, check_bool
from kdrop.layers.base import Noise
from kdrop.layers.rates import drops_by_rate, inner_layers, rate_of


def audit(model, inputs=None, replicas=False, recompute=False):
    """Measure what the random layers of a model do in training, by calling them.

    Every layer counts that Keras tracks, of whatever library: those that change single
    elements are measured on ones until the fraction that they drop is known, in a graph
    on TensorFlow. Layers that drop inside of their code (`LSTM(dropout=0.1)`), that
    have weights, or that augment images, are only asked whether calls differ in
    training and agree at inference. A right layer fails once in a million audits.
    The model itself does not change: its states are restored.

    Args:
        model: A `keras.Model`.
        inputs: A small batch, as the model's call takes it; made up if `None`.
        replicas: Whether to call each layer on two replicas of `tf.distribute`.
        recompute: Whether to let the backward pass compute each layer again, as
            `keras.remat` does; kdrop's under `StepClock`.

    Returns:
        A tuple of rows, in the order of the layers, which prints as a table and has
        `ok`. A row has `layer`, `kind`, `rate`, `dropped`, `bound`, `mean`, `variance`,
        `together`, `fresh`, `quiet`, `saved`, `bfloat16`, `replicas`, `recompute`,
        `problems` and `ok`; `None` is what was not measured.

    Raises:
        ValueError: For an invalid argument, or a model that needs `inputs`.

    >>> model = keras.Sequential([keras.Input((8,)), kdrop.DropPath(0.2, name="drop")])
    >>> (row,) = kdrop.audit(model)
    >>> row.layer, row.rate, abs(row.dropped - 0.2) < row.bound, row.together, row.ok
    ('drop', 0.2, True, 'row', True)
    """
    check("model", model, isinstance(model, keras.Model), "a keras.Model")
    check_bool("replicas", replicas)
    check_bool("recompute", recompute)
    try:
        if replicas or recompute:
            backend.check_tensorflow("audit() on replicas and with recomputation")
        strategy = backend.two_replicas(model) if replicas else None
    except ValueError as error:
        raise UserError(str(error)) from None
    values = calls.made_up_inputs(model) if inputs is None else inputs
    try:
        calls.Call((values,), {}).run(model, False)
    except Exception as error:  # whatever the code of a layer raises
        hint = "give `inputs` that fit: " if inputs is None else ""
        raise UserError(
            f"audit() cannot call model {model.name!r}: {hint}{_first(error)}"
        ) from error
    states = [(v, ops.convert_to_numpy(v)) for v in model.non_trainable_variables]
    try:
        return Audit(_rows(model, values, Copies(strategy, recompute)))
    finally:
        for variable, value in states:
            variable.assign(value)


def _rows(model, inputs, copied):
    recorded, rows = calls.record(model, inputs), {}
    paths = {**keras_internals.paths_of(model), model: model.name}
    for layer, call in recorded.items():
        inner = inner_layers(layer)
        held = [x for x in inner if x in rows and keras_internals.takes_training(x)]
        if any(x in rows and not rows[x].quiet for x in inner):
            continue  # what is random at inference makes all around it so
        try:
            row = _row(layer, paths[layer], call, held, copied)
        except Exception as error:  # whatever the code of a layer raises
            problems = (f"cannot be measured ({_first(error)})",)
            kind, rate = type(layer).__name__, _asked(layer)
            row = Row(paths[layer], kind, rate, problems=problems)
        if row is not None:
            rows[layer] = row
    for layer in paths:
        cell = hasattr(layer, "state_size")  # its layer has the row
        if layer not in recorded and drops_by_rate(layer) and not cell:
            rows[layer] = Row(paths[layer], type(layer).__name__, _asked(layer))
    return [rows[layer] for layer in paths if layer in rows]


def _row(layer, path, call, held, copied):
    """The row of a layer; `None` if it is not random, apart from the layers in it."""
    row, rate = Row(path, type(layer).__name__, _asked(layer)), _asked(layer)
    single, problems = call.single_input(), []
    shape = together = None
    with keras_internals.wrapped_calls(held, _at_inference):
        plain, other = (to_numpy(call.run(layer, False)) for _ in range(2))
        try:
            trained = [to_numpy(call.run(layer, True)) for _ in range(3)]
        except Exception as error:  # whatever the code of a layer raises
            trained = [plain]
            problems.append(f"raises in training ({_first(error)})")
    fresh = any(_differ(trained[0], x) for x in trained[1:])
    quiet = not _differ(plain, other)
    if not quiet:
        problems.append("random at inference")
    elif not (fresh or problems or drops_by_rate(layer)):
        return None
    row = replace(row, fresh=fresh or None, quiet=quiet)
    if _is_elementwise(layer, single, plain, trained[0]):
        # One that raises may have been built for another shape.
        target = copy(layer) if problems else layer
        shape = accepted_shape(target, tuple(single.shape))
        measured = vars(measure(target, shape, rate))
        problems += measured["problems"]
        if rate is None and measured["together"] is None:
            shape = None  # it augments images, say, and leaves ones as they are
        else:
            row = replace(row, **measured)
        together = row.together
    elif isinstance(layer, Noise) and single is not None:
        shape = tuple(single.shape)
        row = replace(row, **_dropped_tokens(rate, shape, trained[0][0].shape))
    if not problems and shape is not None:
        found = copied.problems(layer, shape, rate, together)
        row = replace(row, **{name: not x for name, x in found.items()})
        problems = [x for name in found if name != "bfloat16" for x in found[name]]
    return replace(row, problems=tuple(problems))


def _asked(layer):
    """The fraction that a layer is asked to drop; `None` if it states none."""
    rate, recurrent = rate_of(layer), getattr(layer, "recurrent_dropout", 0.0)
    return max(rate or 0.0, recurrent) or rate


def _is_elementwise(layer, single, plain, trained):
    """Whether a layer scales at inference, and has neither layers nor weights."""
    if single is None or inner_layers(layer) or layer.weights or len(plain) != 1:
        return False
    (inputs,), outputs = to_numpy(single), plain[0]
    if outputs.shape != inputs.shape or trained[0].shape != inputs.shape:
        return False
    square = float((inputs**2).sum())
    scale = float((inputs * outputs).sum()) / square if square else 1.0
    return np.allclose(outputs, scale * inputs, rtol=1e-2, atol=1e-6)


def _dropped_tokens(rate, shape, trained):
    """The dropped fraction of a layer whose outputs in training have fewer tokens."""
    if rate is None or len(trained) < 2 or trained[1] >= shape[1]:
        return {}
    dropped, bound = 1 - trained[1] / shape[1], 0.5 / shape[1] + 1e-6
    return {"dropped": dropped, "bound": bound, "together": "token"}


def _at_inference(layer, call, *args, **kwargs):
    return call(*args, **{**kwargs, "training": False})


def _differ(one, other):
    pairs = zip(one, other, strict=True)
    return any(a.shape != b.shape or not _close(a, b) for a, b in pairs)


def _close(one, other):
    if one.dtype.kind != "f":
        return np.array_equal(one, other)
    scale = np.abs(one).max(initial=0)
    return np.allclose(one, other, rtol=1e-5, atol=1e-6 * scale, equal_nan=True)


def _first(error):
    """The first line of an error that says what was wrong."""
    lines = [x for x in re.sub(r"\x1b\[\d+m", "", str(error)).splitlines() if x]
    wrapped = len(lines) > 1 and lines[0].startswith("Exception encountered when")
    return f"{type(error).__name__}: {lines[wrapped] if lines else ''}"
