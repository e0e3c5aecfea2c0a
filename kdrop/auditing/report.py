"""Audit a model: one row for each layer that is random in training."""

import re
from dataclasses import dataclass, field, fields

import numpy as np
from keras import ops

from kdrop import backend, keras_internals
from kdrop.auditing import calls, measure
from kdrop.auditing.measure import to_numpy
from kdrop.errors import UserError, check_bool
from kdrop.layers.base import Noise, check_model
from kdrop.layers.rates import drops_by_rate, inner_layers, rate_of


@dataclass
class Row:
    """What one layer is asked for, and what it does. `None`: not measured.

    `ok` is whether there are no problems, and `None` for a layer that was never called,
    or whose rate is too low to show. `bfloat16` is no part of it.
    """

    layer: str  # its name after those of the layers around it
    kind: str  # the name of its class
    rate: float | None  # the fraction that it is asked to drop
    dropped: float | None = None  # the fraction that it dropped
    bound: float | None = None  # how far chance may bring `dropped` from `rate`
    mean: float | None = None  # of the outputs for ones
    variance: float | None = None
    together: str | None = None  # what is decided together: unit, channel, row, batch
    fresh: bool | None = None  # two calls differ
    quiet: bool | None = None  # two calls at inference agree
    saved: bool | None = None  # a saved and loaded copy does the same
    bfloat16: bool | None = None  # a copy in bfloat16 does the same
    replicas: bool | None = None  # two replicas draw other masks
    recompute: bool | None = None  # forward and backward masks agree
    problems: list[str] = field(default_factory=list)  # in words

    @property
    def ok(self) -> bool | None:
        unknown = self.quiet is None or (self.rate and self.fresh is None)
        return None if unknown and not self.problems else not self.problems


class Audit(tuple[Row, ...]):
    """The rows of an audit, which print as a table."""

    @property
    def ok(self) -> bool:
        """Whether no row has a problem."""
        return all(row.ok is not False for row in self)

    def __repr__(self):
        if not self:
            return "No layer is random in training."
        names = [x.name for x in fields(Row) if x.name != "problems"]
        names = [n for n in names if any(getattr(row, n) is not None for row in self)]
        names.append("ok")
        table = [names, *([_cell(getattr(row, n)) for n in names] for row in self)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
        if any(row.bfloat16 is False for row in self):
            lines.append("bfloat16: of a copy in that type; no part of ok.")
        return "\n".join(lines + [f"{x.layer}: {y}" for x in self for y in x.problems])


def _cell(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    return {None: "-", True: "yes", False: "NO"}.get(value, value)


def audit(model, inputs=None, replicas=False, recompute=False):
    """Measure what the random layers of a model do in training, by calling them.

    Every layer counts that Keras tracks, of whatever library: those that change single
    elements are measured on ones until the fraction that they drop is known, in a graph
    on TensorFlow. Layers that drop inside of their code (`LSTM(dropout=0.1)`), that
    have weights, or that augment images, are only asked whether calls differ in
    training and agree at inference. A right layer fails once in a million audits.
    Layers of a model whose `call` has no argument `training` are not ok: its `fit` does
    not make them drop.

    Args:
        model: A `keras.Model`. It does not change: its states are restored.
        inputs: A small batch, as the model's call takes it; made up if `None`.
        replicas: Whether to call each layer on two replicas of `tf.distribute`.
        recompute: Whether to let the backward pass compute each layer again, as
            `keras.remat` does; kdrop's under `StepClock`.

    Returns:
        A tuple with a `Row` for each such layer, in their order, which prints as a
        table and has `ok`.

    Raises:
        ValueError: For an invalid argument, or a model that needs `inputs`.

    >>> model = keras.Sequential([keras.Input((8,)), kdrop.DropPath(0.2, name="drop")])
    >>> (row,) = kdrop.audit(model)
    >>> row.layer, row.rate, abs(row.dropped - 0.2) < row.bound, row.together, row.ok
    ('drop', 0.2, True, 'row', True)
    """
    check_model(model)
    check_bool("replicas", replicas)
    check_bool("recompute", recompute)
    if (replicas or recompute) and backend.name() != "tensorflow":
        raise UserError(
            "audit() on replicas or with recomputation needs the backend tensorflow. "
            f"Received: {backend.name()!r}"
        )
    strategy = backend.two_replicas() if replicas else None
    try:
        values = calls.made_up_inputs(model) if inputs is None else inputs
        model(values, training=False)
    except Exception as error:  # whatever the code of a layer raises
        problem = "needs `inputs` for" if inputs is None else "cannot call"
        raise UserError(
            f"audit() {problem} model {model.name!r}: {_first(error)}"
        ) from error
    states = [(v, ops.convert_to_numpy(v)) for v in model.non_trainable_variables]
    try:
        return Audit(_rows(model, calls.record(model, values), strategy, recompute))
    finally:
        for variable, value in states:
            variable.assign(value)


def _rows(model, recorded, strategy, recompute):
    paths, rows = {**keras_internals.paths_of(model), model: model.name}, {}
    for layer, call in recorded.items():
        held = [x for x in inner_layers(layer) if x in rows]
        if not all(rows[x].quiet for x in held):
            continue  # what is random at inference makes all around it so
        row = Row(paths[layer], type(layer).__name__, _asked(layer))
        try:
            plain, trained = _call(row, layer, call, held)
            if row.fresh and keras_internals.fits_at_inference(model):
                problem = "drops nothing in `fit`: the model's `call` has no argument "
                row.problems.append(problem + "`training`")
            if not (row.fresh or row.problems or drops_by_rate(layer)):
                continue
            shape = _measure(row, layer, call.single_input(), plain, trained)
            if shape and not row.problems:
                _check_copies(row, layer, shape, strategy, recompute)
        except Exception as error:  # whatever the code of a layer raises
            row.problems = [f"cannot be measured ({_first(error)})"]
        rows[layer] = row
    for layer, path in paths.items():
        cell = hasattr(layer, "state_size")  # its RNN layer has a row
        if layer not in recorded and drops_by_rate(layer) and not cell:
            rows[layer] = Row(path, type(layer).__name__, _asked(layer))
    return [rows[layer] for layer in paths if layer in rows]


def _asked(layer):
    """The fraction that a layer is asked to drop; `None` if it states none."""
    rate, recurrent = rate_of(layer), getattr(layer, "recurrent_dropout", 0.0)
    return max(rate or 0.0, recurrent) or rate


def _call(row, layer, call, held):
    """Compare calls, with the layers `held` at inference; return outputs of both."""
    with keras_internals.wrapped_calls(held, _at_inference):
        plain, other = (to_numpy(call.run(layer, False)) for _ in range(2))
        try:
            trained, *others = (to_numpy(call.run(layer, True)) for _ in range(3))
        except Exception as error:  # whatever the code of a layer raises
            trained, others = plain, []
            row.problems.append(f"raises in training ({_first(error)})")
    row.fresh = any(_differ(trained, x) for x in others) or None
    row.quiet = not _differ(plain, other)
    if not row.quiet:
        row.problems.append("random at inference")
    return plain, trained


def _measure(row, layer, inputs, plain, trained):
    """Measure what is dropped; return the shape for copies, `None` for no copies."""
    shape = None if inputs is None else tuple(inputs.shape)
    if shape and _is_elementwise(layer, inputs, plain, trained):
        # One that raises may have been built for another shape.
        target = measure.copy(layer) if row.problems else layer
        values, shape = measure.measure(target, shape, row.rate)
        if row.rate is None and values["together"] is None:
            return None  # it augments images, say, and leaves ones as they are
        vars(row).update(values, problems=row.problems + values["problems"])
        return shape
    tokens, left = plain[0].shape[1:2], trained[0].shape[1:2]
    if row.rate and left < tokens:  # as in `TokenDropout`
        row.dropped, row.together = 1 - left[0] / tokens[0], "token"
        row.bound = 0.5 / tokens[0] + 1e-6
    return shape if isinstance(layer, Noise) else None


def _is_elementwise(layer, inputs, plain, trained):
    """Whether a layer scales at inference, and has neither layers nor weights."""
    if inner_layers(layer) or layer.weights or len(plain) != 1:
        return False
    (inputs,), (outputs,) = to_numpy(inputs), plain
    if not inputs.shape == outputs.shape == trained[0].shape:
        return False
    scale = np.vdot(inputs, outputs) / max(np.vdot(inputs, inputs), 1e-9)
    return np.allclose(outputs, scale * inputs, rtol=1e-2, atol=1e-6)


def _check_copies(row, layer, shape, strategy, recompute):
    is_random = row.mean is not None and row.together is not None
    checks = {
        "saved": True,
        "bfloat16": is_random and layer.compute_dtype != "bfloat16",
        "replicas": is_random and strategy and "batch" not in row.together,
        "recompute": is_random and recompute,
    }
    for name in (name for name, asked in checks.items() if asked):
        try:
            problems = getattr(measure, name)(layer, shape, row.rate, strategy)
        except Exception as error:  # whatever the code of a layer raises
            problems = [f"{name}: a copy raises {type(error).__name__}"]
        setattr(row, name, not problems)
        if name != "bfloat16":
            row.problems += problems


def _at_inference(layer, call, *args, **kwargs):
    training = {"training": False} if "training" in kwargs else {}
    return call(*args, **{**kwargs, **training})


def _differ(one, other):
    def close(a, b):
        least = 1e-6 * np.abs(a).max(initial=0)
        return a.shape == b.shape and np.allclose(a, b, 1e-5, least, equal_nan=True)

    return not all(map(close, one, other))


def _first(error):
    """The first line of an error that says what was wrong."""
    text = re.sub(r"\x1b\[\d+m|^Exception encountered when.*\s+", "", str(error))
    return f"{type(error).__name__}: {text.partition(chr(10))[0]}"
