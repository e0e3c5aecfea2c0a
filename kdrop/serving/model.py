"""One version of an exported model in memory, and its answers in both protocols.

What is wrong with a request is raised as KServe's `InvalidInput`, in one sentence.
"""

import json
import reprlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tensorflow as tf
from kserve import InferOutput, InferRequest, InferResponse
from kserve.errors import InvalidInput
from tensorflow_serving.apis import prediction_log_pb2

from kdrop.serving.saved_model import WARM_UP

DEFAULT = "serving_default"
Specs = Mapping[str, tf.TensorSpec]


@dataclass(frozen=True)
class Servable:
    """A version of a model: named signatures on NumPy arrays."""

    version: int
    loaded: Any  # owns the variables that the signatures read
    labels: Sequence[str]

    @classmethod
    def load(cls, path: Path) -> "Servable":
        """Read a version and run its warm-up requests."""
        file = path / "assets" / "labels.txt"
        labels = file.read_text().splitlines() if file.exists() else []
        found = cls(int(path.name), tf.saved_model.load(str(path)), labels)
        if (path / WARM_UP).exists():
            for record in tf.data.TFRecordDataset(str(path / WARM_UP)):
                told = prediction_log_pb2.PredictionLog()  # ty: ignore[missing-attribute]
                told.ParseFromString(record.numpy())
                request = told.predict_log.request
                arrays = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
                found.run(request.model_spec.signature_name, arrays)
        return found

    def inputs(self, signature: object = DEFAULT) -> Specs:
        known = self.loaded.signatures
        if not isinstance(signature, str) or signature not in known:
            raise InvalidInput(
                f"there is no signature {reprlib.repr(signature)}; "
                f"there are {', '.join(sorted(known))}"
            )
        return known[signature].structured_input_signature[1]

    def outputs(self, signature: str = DEFAULT) -> Specs:
        return self.loaded.signatures[signature].structured_outputs

    def run(self, signature: str, arrays: Mapping[str, np.ndarray]):
        tensors = {name: tf.constant(array) for name, array in arrays.items()}
        try:
            outputs = self.loaded.signatures[signature](**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise InvalidInput(error.message.splitlines()[0]) from None
        return {name: _readable(name, output) for name, output in outputs.items()}


def describe(specs: Specs) -> list[dict[str, object]]:
    """The specifications as V2's model metadata."""
    return [
        {
            "name": name,
            "datatype": _v2_type(spec.dtype),
            "shape": [-1 if size is None else size for size in spec.shape],
        }
        for name, spec in specs.items()
    ]


def answer_v1(servable: Servable, request: object) -> dict[str, object]:
    """A prediction in TensorFlow Serving's row format: one row for each instance."""
    if isinstance(request, bytes):  # not declared to be JSON, as by a plain `curl -d`
        try:
            request = orjson.loads(request)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"the request is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise InvalidInput('the request must be an object with the field "instances"')
    signature = request.get("signature_name", DEFAULT)
    specs = servable.inputs(signature)
    rows = request.get("instances")
    if not isinstance(rows, list) or not rows:
        raise InvalidInput('"instances" must be a list of at least one row')
    if len(specs) == 1 and not any(isinstance(row, dict) for row in rows):
        columns = {name: rows for name in specs}
    else:
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or row.keys() != specs.keys():
                raise InvalidInput(
                    f"row {number} must be an object of these: {', '.join(specs)}"
                )
        columns = {name: [row[name] for row in rows] for name in specs}
    arrays = {name: _array(name, spec, columns[name]) for name, spec in specs.items()}
    outputs = servable.run(signature, _fitting(specs, arrays))
    for name, output in outputs.items():
        if output.shape[:1] != (len(rows),):
            raise InvalidInput(
                f"output {name} has shape {output.shape} and no row for each instance; "
                "the V2 protocol answers it"
            )
    if len(outputs) == 1:
        (predictions,) = (output.tolist() for output in outputs.values())
    else:
        values = zip(*(output.tolist() for output in outputs.values()), strict=True)
        predictions = [dict(zip(outputs, row, strict=True)) for row in values]
    labels = {"labels": servable.labels} if servable.labels else {}
    version = {"model_version": str(servable.version)}
    return {"predictions": predictions, **labels, **version}


def answer_v2(servable: Servable, request: InferRequest) -> InferResponse:
    """A prediction in the open inference protocol: one tensor for each name."""
    signature = (request.parameters or {}).get("signature_name", DEFAULT)
    specs = servable.inputs(signature)
    if sorted(given.name for given in request.inputs) != sorted(specs):
        raise InvalidInput(f'"inputs" must be these, once each: {", ".join(specs)}')
    arrays = {}
    for given in request.inputs:
        name, spec = given.name, specs[given.name]
        if given.datatype != _v2_type(spec.dtype):
            declared = reprlib.repr(given.datatype)
            raise InvalidInput(f"{name} is {declared}, not {_v2_type(spec.dtype)}")
        array = _array(name, spec, given.data)
        try:
            arrays[name] = array.reshape(given.shape)
            if min(given.shape, default=0) < 0:  # NumPy's "what is left"
                raise ValueError
        except (ValueError, OverflowError):
            raise InvalidInput(
                f"{name} holds {array.size} values, which do not fill the shape "
                f"{reprlib.repr(given.shape)}"
            ) from None
    outputs = servable.run(signature, _fitting(specs, arrays))
    return InferResponse(
        response_id=request.id or str(uuid.uuid4()),
        model_name=request.model_name,
        model_version=str(servable.version),
        infer_outputs=[
            InferOutput(
                name=name,
                shape=list(output.shape),
                datatype=_v2_type(tf.as_dtype(output.dtype)),
                data=output,
            )
            for name, output in outputs.items()
        ],
        parameters={"labels": json.dumps(servable.labels)} if servable.labels else None,
        use_binary_outputs=request.use_binary_outputs,
        requested_outputs=request.request_outputs,
    )


def _array(name: str, spec: tf.TensorSpec, values: object) -> np.ndarray:
    """Values as they came out of JSON, none of them changed by a conversion."""
    found = np.array(values, dtype=object)
    dtype = spec.dtype
    wanted = {int, float} if dtype.is_floating else {bool} if dtype.is_bool else {int}
    wanted = {str} if dtype == tf.string else wanted
    strange = {type(value) for value in found.ravel().tolist()} - wanted
    if strange:
        raise InvalidInput(
            f"{name} holds {min(kind.__name__ for kind in strange)}, but must hold "
            f"{' or '.join(sorted(kind.__name__ for kind in wanted))}, in lists of "
            "equal length"
        )
    if dtype == tf.string:
        return _mapped(name, str.encode, found)
    try:
        with np.errstate(over="ignore"):  # infinite then, and told below
            array = found.astype(dtype.as_numpy_dtype)
    except OverflowError:
        raise InvalidInput(f"{name} holds a number beyond {dtype.name}") from None
    if dtype.is_floating and not np.isfinite(array).all():
        raise InvalidInput(f"{name} holds NaN or a number beyond {dtype.name}")
    return array


def _fitting(specs: Specs, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, spec in specs.items():
        shape = arrays[name].shape
        if not spec.shape.is_compatible_with(shape) or 0 in shape:
            wanted = str(spec.shape).replace("None", "any")
            raise InvalidInput(f"{name} has shape {shape}, but must have {wanted}")
    if len({array.shape[:1] for array in arrays.values()}) > 1:
        rows = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise InvalidInput(f"the inputs differ in their number of rows: {rows}")
    return arrays


def _mapped(name: str, function, array: np.ndarray) -> np.ndarray:
    """An object array with each string encoded, or each one decoded."""
    try:
        texts = [function(text) for text in array.ravel().tolist()]
    except UnicodeError:
        raise InvalidInput(f"{name} holds text that is not valid UTF-8") from None
    return np.array(texts, dtype=object).reshape(array.shape)


def _readable(name: str, tensor: tf.Tensor) -> np.ndarray:
    # Neither protocol has a JSON form for narrower floats.
    if tensor.dtype.is_floating and tensor.dtype.size < 4:
        tensor = tf.cast(tensor, tf.float32)
    array = np.asarray(tensor.numpy())
    return _mapped(name, bytes.decode, array) if tensor.dtype == tf.string else array


def _v2_type(dtype: tf.DType) -> str:
    if dtype == tf.string:
        return "BYTES"
    if dtype.is_floating:
        return f"FP{8 * max(4, dtype.size)}"
    return dtype.name.upper()
