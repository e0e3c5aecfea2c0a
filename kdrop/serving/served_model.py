"""One version of an exported model in memory, and its answers to requests.

Errors in a request are raised as KServe's `InvalidInput`, in one sentence.
"""

import json
import math
import time
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import tensorflow as tf
from kserve import InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput
from kserve.utils.numpy_codec import from_np_dtype
from starlette.exceptions import HTTPException

from kdrop.errors import first_line
from kdrop.serving.limits import Limits
from kdrop.serving.signatures import read_requests

# A request that takes longer than this is long: its rows are computed in parts of about
# this time, and other requests in between. The first part of a signature's first
# request has one row, each later part up to `GROWTH` times as many as the one before.
PART_SECONDS = 0.03
GROWTH = 8
# A request has at most so many parts besides: on a busy machine each part takes long,
# however few its rows are.
PARTS = 100
TOO_MANY_ROWS = "{} rows are too many: send up to {}"
TOO_MANY_VALUES = "an answer of {} values is too large: up to {} are sent"

Specs = Mapping[str, tf.TensorSpec]


class ServedModel(Model):
    """A version folder, loaded and warmed up."""

    def __init__(self, path: Path):
        super().__init__(path.parent.name)
        self.version = str(int(path.name))
        self.path = path
        self.files: object = None  # from which it was loaded
        file = path / "assets" / "labels.txt"
        self.labels = file.read_text().splitlines() if file.exists() else []
        self._loaded = tf.saved_model.load(str(path))  # it owns the variables
        self._part_rows: dict[str, float] = {}  # rows in `PART_SECONDS` by signature
        for signature, tensors in read_requests(path):
            self._loaded.signatures[signature](**tensors)
        self.ready = True

    def get_input_types(self):
        return _describe(_inputs(self._signature()))

    def get_output_types(self):
        return _describe(self._signature().structured_outputs)

    def describe(self) -> dict:
        """What the page at `/` says and asks: by `sample`, if there is one."""
        signatures = self._loaded.signatures
        names = ("sample", "serving_default", *signatures)
        name = next((x for x in names if x in signatures), "")
        inputs = _describe(_inputs(signatures[name])) if name else []
        about = {"name": self.name, "version": self.version, "labels": self.labels}
        return {**about, "signature": name, "inputs": inputs}

    def answer(self, request, limits: Limits) -> Generator[None, None, Any]:
        """Compute the answer in parts, and yield before each part of a long request.

        More rows or values than the limits raise an `HTTPException` of status 413.
        """
        v2 = isinstance(request, InferRequest)
        return (self._answer_v2 if v2 else self._answer_v1)(request, limits)

    def _answer_v1(self, request, limits):
        """Predict in TensorFlow Serving's row format: one row for each instance."""
        if not isinstance(request, dict):
            raise InvalidInput("the request must be an object with `instances`")
        if unknown := request.keys() - {"signature_name", "instances"}:
            raise InvalidInput(
                f"the request has a field {shortened(min(unknown))}: there are only "
                "`instances` and `signature_name`"
            )
        signature = self._signature(request.get("signature_name", "serving_default"))
        rows = request.get("instances")
        if not isinstance(rows, list) or not rows:
            raise InvalidInput("`instances` must be a list of at least one row")
        _check_limit(len(rows), limits.max_rows, TOO_MANY_ROWS)
        specs = _inputs(signature)
        if len(specs) == 1 and not any(isinstance(row, dict) for row in rows):
            rows = [dict.fromkeys(specs, row) for row in rows]  # bare values
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or row.keys() != specs.keys():
                received = shortened([*row] if isinstance(row, dict) else row)
                raise InvalidInput(
                    f"row {number} must be an object with the fields "
                    f"{', '.join(specs)}. Received: {received}"
                )
        columns = {name: [row[name] for row in rows] for name in specs}
        outputs = yield from self._run(signature, columns, limits.max_values)
        for name, output in outputs.items():
            if output.shape[:1] != (len(rows),):
                raise InvalidInput(
                    f"output {name} has shape {output.shape}, not one row for each "
                    "instance; use the V2 protocol for this signature"
                )
        predictions, *others = [output.tolist() for output in outputs.values()]
        if others:
            by_row = zip(predictions, *others, strict=True)
            predictions = [dict(zip(outputs, row, strict=True)) for row in by_row]
        labels = {"labels": self.labels} if self.labels else {}
        return {"predictions": predictions, **labels, "model_version": self.version}

    def _answer_v2(self, request: InferRequest, limits):
        """Predict in the open inference protocol: one tensor for each name."""
        parameters = request.parameters or {}
        signature = self._signature(parameters.get("signature_name", "serving_default"))
        specs = _inputs(signature)
        names = [tensor.name for tensor in request.inputs]
        if sorted(names) != sorted(specs):
            raise InvalidInput(
                "the request must have one tensor of each of these names: "
                f"{', '.join(specs)}. Received: {shortened(names)}"
            )
        arrays = {}
        for tensor in request.inputs:
            name, shape = tensor.name, tensor.shape
            datatype = _v2_type(specs[name].dtype)
            if tensor.datatype != datatype:
                declared = shortened(tensor.datatype)
                raise InvalidInput(f"{name} is {declared}, not {datatype}")
            values = np.array(tensor.data, dtype=object)
            _check_lists(name, values)
            forms = tuple(shape), (math.prod(shape),)  # nested or flat
            if min(shape, default=1) < 1 or values.shape not in forms:
                raise InvalidInput(
                    f"{name} holds data of shape {[*values.shape]}, which is not the "
                    f"`shape` {shortened(shape)}"
                )
            _check_limit(shape[0] if shape else 1, limits.max_rows, TOO_MANY_ROWS)
            arrays[name] = values.reshape(shape)
        outputs = yield from self._run(signature, arrays, limits.max_values)
        return InferResponse(
            response_id=request.id or str(uuid.uuid4()),
            model_name=request.model_name,
            model_version=self.version,
            infer_outputs=[
                InferOutput(name, [*array.shape], from_np_dtype(array.dtype), array)
                for name, array in outputs.items()
            ],
            parameters={"labels": json.dumps(self.labels)} if self.labels else None,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def _signature(self, name: object = "serving_default"):
        signatures = self._loaded.signatures
        if not isinstance(name, str) or name not in signatures:
            raise InvalidInput(
                f"there is no signature {shortened(name)}; "
                f"there are {', '.join(sorted(signatures))}"
            )
        return signatures[name]

    def _run(self, signature, inputs: Mapping[str, object], max_values: int):
        """The outputs by name, from arrays or JSON values by name."""
        arrays = {k: _to_array(k, x, inputs[k]) for k, x in _inputs(signature).items()}
        if len({array.shape[:1] for array in arrays.values()}) > 1:
            rows = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
            raise InvalidInput(f"the inputs differ in their number of rows: {rows}")
        rows = len(next(iter(arrays.values()))) if _is_by_row(signature) else 0
        parts = []
        start = 0
        while start < rows:
            part_rows = self._part_rows.get(signature.name, 1)  # below 1: a row is long
            if rows > part_rows:
                yield
            least = math.ceil(rows / PARTS) if signature.name in self._part_rows else 1
            count = min(max(least, int(part_rows)), rows - start)
            began = time.perf_counter()
            part = {key: x[start : start + count] for key, x in arrays.items()}
            parts.append(_compute(signature, part))
            seconds = time.perf_counter() - began
            if seconds > PART_SECONDS or count >= int(part_rows):
                faster = min(GROWTH, PART_SECONDS / seconds)
                self._part_rows[signature.name] = count * faster
            sizes = {name: x.shape[1:] for name, x in parts[0].items()}
            if any(x.shape != (count, *sizes[k]) for k, x in parts[-1].items()):
                break  # not by row after all
            values = rows * sum(map(math.prod, sizes.values()))
            _check_limit(values, max_values, TOO_MANY_VALUES)
            start += count
        if parts and start == rows:
            return {k: np.concatenate([part[k] for part in parts]) for k in sizes}
        yield  # may take long
        outputs = _compute(signature, arrays)
        values = sum(output.size for output in outputs.values())
        _check_limit(values, max_values, TOO_MANY_VALUES)
        return outputs


def _check_limit(count: int, limit: int, sentence: str) -> None:
    if count > limit:
        raise HTTPException(413, sentence.format(count, limit))


def _is_by_row(signature) -> bool:
    """Whether rows of the outputs belong to rows of the inputs, by their shapes."""
    specs = *_inputs(signature).values(), *signature.structured_outputs.values()
    return all(spec.shape.rank and spec.shape[0] is None for spec in specs)


def _compute(signature, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    try:
        outputs = signature(**{name: tf.constant(x) for name, x in arrays.items()})
        return {name: _from_tensor(outputs[name]) for name in sorted(outputs)}
    except tf.errors.InvalidArgumentError as error:
        raise InvalidInput(first_line(error.message)) from None
    except UnicodeError:
        raise InvalidInput("an input or output is not valid UTF-8") from None


def _inputs(signature) -> Specs:
    # In the order of their names, which differs from load to load otherwise.
    return dict(sorted(signature.structured_input_signature[1].items()))


def _describe(specs: Specs) -> list[dict]:
    """Inputs or outputs as the V2 protocol's model metadata."""
    return [
        {
            "name": name,
            "datatype": _v2_type(spec.dtype),
            "shape": [-1 if size is None else size for size in spec.shape],
        }
        for name, spec in sorted(specs.items())
    ]


def _v2_type(dtype: tf.DType) -> str:
    half = dtype.is_floating and dtype.size < 4  # has no JSON form in the protocol
    return from_np_dtype(np.dtype((tf.float32 if half else dtype).as_numpy_dtype))


def _from_tensor(output: tf.Tensor) -> np.ndarray:
    """An array that both protocols can write as JSON."""
    if output.dtype == tf.string:
        return np.vectorize(bytes.decode, otypes=[object])(output.numpy())
    if output.dtype.is_floating and output.dtype.size < 4:
        output = tf.cast(output, tf.float32)
    return np.asarray(output.numpy())


def _to_array(name: str, spec: tf.TensorSpec, values: object) -> np.ndarray:
    """An array of exactly these JSON values; a value of another type is an error."""
    # `tf.constant` would take booleans for numbers, and integers that overflow.
    array, dtype = np.array(values, dtype=object), spec.dtype
    allowed = {int, float} if dtype.is_floating else {bool} if dtype.is_bool else {int}
    allowed = {str} if dtype == tf.string else allowed
    _check_lists(name, array)
    if {type(value) for value in array.ravel().tolist()} - allowed:
        wrong = next(i for i, x in np.ndenumerate(array) if type(x) not in allowed)
        raise InvalidInput(
            f"{_place(name, array, wrong)}, but must hold "
            f"{' or '.join(sorted(kind.__name__ for kind in allowed))}"
        )
    if not spec.shape.is_compatible_with(array.shape) or 0 in array.shape:
        expected = str(spec.shape).replace("None", "any")
        raise InvalidInput(f"{name} has shape {array.shape}, but must have {expected}")
    try:
        with np.errstate(over="ignore"):  # an overflow to infinity is rejected below
            converted = array.astype(dtype.as_numpy_dtype)
    except OverflowError:
        raise InvalidInput(f"{name} holds a number beyond {dtype.name}") from None
    if dtype.is_floating and not np.isfinite(converted).all():
        wrong = tuple(np.argwhere(~np.isfinite(converted))[0].tolist())
        raise InvalidInput(
            f"{_place(name, array, wrong)}, which is NaN or beyond {dtype.name}"
        )
    return converted


def _check_lists(name: str, array: np.ndarray) -> None:
    """Raise `InvalidInput` for the lists that NumPy left, because they are ragged."""
    if lengths := {len(x) for x in array.ravel().tolist() if type(x) is list}:
        raise InvalidInput(
            f"{name} must hold lists of equal length and depth. Received lists of "
            f"lengths {shortened(sorted(lengths))}"
        )


def _place(name: str, array: np.ndarray, index: tuple[int, ...]) -> str:
    """The beginning of a sentence on one value, which is spelled as in JSON."""
    value = json.dumps(array[index], default=repr)
    value = value if len(value) <= 40 else f"{value[:40]}..."
    return f"{name}{[*index] if index else ''} holds {value}"
