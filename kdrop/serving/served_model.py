"""One version of an exported model in memory, and its answers to requests.

Errors in a request are raised as KServe's `InvalidInput`, in one sentence.
"""

import json
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shortened

import numpy as np
import tensorflow as tf
from kserve import InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput
from kserve.utils.numpy_codec import from_np_dtype

from kdrop.serving.signatures import read_requests

Specs = Mapping[str, tf.TensorSpec]


class ServedModel(Model):
    """A version folder, loaded and warmed up."""

    def __init__(self, path: Path):
        super().__init__(path.parent.name)
        self.version = path.name
        file = path / "assets" / "labels.txt"
        self.labels = file.read_text().splitlines() if file.exists() else []
        self._loaded = tf.saved_model.load(str(path))  # it owns the variables
        for signature, tensors in read_requests(path):
            self._loaded.signatures[signature](**tensors)
        self.ready = True

    def get_input_types(self):
        return _describe(_inputs(self._signature()))

    def get_output_types(self):
        return _describe(self._signature().structured_outputs)

    def predict(self, payload, headers=None, response_headers=None):
        """The answer in the protocol of the request."""
        v2 = isinstance(payload, InferRequest)
        return self._answer_v2(payload) if v2 else self._answer_v1(payload)

    def _answer_v1(self, request) -> dict[str, object]:
        """Predict in TensorFlow Serving's row format: one row for each instance."""
        if not isinstance(request, dict):
            raise InvalidInput("the request must be an object with `instances`")
        signature = self._signature(request.get("signature_name", "serving_default"))
        rows = request.get("instances")
        if not isinstance(rows, list) or not rows:
            raise InvalidInput("`instances` must be a list of at least one row")
        specs = _inputs(signature)
        if len(specs) == 1 and not any(isinstance(row, dict) for row in rows):
            rows = [dict.fromkeys(specs, row) for row in rows]  # bare values
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or row.keys() != specs.keys():
                raise InvalidInput(
                    f"row {number} must be an object with the fields {', '.join(specs)}"
                )
        columns = {name: [row[name] for row in rows] for name in specs}
        outputs = self._run(signature, columns)
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

    def _answer_v2(self, request: InferRequest) -> InferResponse:
        """Predict in the open inference protocol: one tensor for each name."""
        parameters = request.parameters or {}
        signature = self._signature(parameters.get("signature_name", "serving_default"))
        specs = _inputs(signature)
        if sorted(tensor.name for tensor in request.inputs) != sorted(specs):
            raise InvalidInput(
                f"`inputs` must have each of these names once: {', '.join(specs)}"
            )
        arrays = {}
        for tensor in request.inputs:
            name, shape = tensor.name, tensor.shape
            datatype = _v2_type(specs[name].dtype)
            if tensor.datatype != datatype:
                declared = shortened(tensor.datatype)
                raise InvalidInput(f"{name} is {declared}, not {datatype}")
            values = np.array(tensor.data, dtype=object)
            if min(shape, default=1) < 1 or math.prod(shape) != values.size:
                raise InvalidInput(
                    f"{name} holds {values.size} values, which do not fill the shape "
                    f"{shortened(shape)}"
                )
            arrays[name] = values.reshape(shape)
        outputs = self._run(signature, arrays)
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

    @staticmethod
    def _run(signature, inputs: Mapping[str, object]) -> dict[str, np.ndarray]:
        """The outputs by name, from arrays or JSON values by name."""
        arrays = {
            name: _to_array(name, spec, inputs[name])
            for name, spec in _inputs(signature).items()
        }
        if len({array.shape[:1] for array in arrays.values()}) > 1:
            rows = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
            raise InvalidInput(f"the inputs differ in their number of rows: {rows}")
        try:
            tensors = {name: tf.constant(array) for name, array in arrays.items()}
            outputs = signature(**tensors)
            return {name: _from_tensor(output) for name, output in outputs.items()}
        except tf.errors.InvalidArgumentError as error:
            raise InvalidInput(error.message.splitlines()[0]) from None
        except UnicodeError:
            raise InvalidInput("an input or output is not valid UTF-8") from None


def _inputs(signature) -> Specs:
    return signature.structured_input_signature[1]


def _describe(specs: Specs) -> list[dict]:
    """Inputs or outputs as the V2 protocol's model metadata."""
    return [
        {
            "name": name,
            "datatype": _v2_type(spec.dtype),
            "shape": [-1 if size is None else size for size in spec.shape],
        }
        for name, spec in specs.items()
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
    if wrong := {type(value) for value in array.ravel().tolist()} - allowed:
        raise InvalidInput(
            f"{name} holds {min(kind.__name__ for kind in wrong)}, but must hold "
            f"{' or '.join(sorted(kind.__name__ for kind in allowed))}, in lists of "
            "equal length"
        )
    if not spec.shape.is_compatible_with(array.shape) or 0 in array.shape:
        expected = str(spec.shape).replace("None", "any")
        raise InvalidInput(f"{name} has shape {array.shape}, but must have {expected}")
    try:
        with np.errstate(over="ignore"):  # an overflow to infinity is rejected below
            array = array.astype(dtype.as_numpy_dtype)
    except OverflowError:
        raise InvalidInput(f"{name} holds a number beyond {dtype.name}") from None
    if dtype.is_floating and not np.isfinite(array).all():
        raise InvalidInput(f"{name} holds NaN or a number beyond {dtype.name}")
    return array
