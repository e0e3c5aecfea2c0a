"""A model server on the folders that `export` writes: KServe, for kdrop's models.

    python -m kdrop.serving saved_models/spiral-inverted-dropout  # one model
    python -m kdrop.serving saved_models --port 8501              # each one below it

The newest version of a model answers. A newer one takes over when it appears, after its
warm-up requests; requests under way end on the version that they began with.

V1, TensorFlow Serving's form: a row for each example, a bare value if the signature has
one input, an object of the inputs' names if it has several:

    POST /v1/models/NAME:predict
    {"signature_name": "serve", "instances": [[0.1, 0.2], [0.3, 0.4]]}

    {"predictions": [[0.1, 0.9], [0.8, 0.2]],  # objects, if there are several outputs
     "labels": ["red", "blue"],                # assets/labels.txt: names of the columns
     "model_version": "3"}

The last two are not TensorFlow Serving's; `labels` is left out where a model has none.
Without a `signature_name` it is `serving_default`.

V2, the open inference protocol: `POST /v2/models/NAME/infer`, with the signature's name
in `parameters`; the answer's `parameters` hold the labels as a JSON list.

A request that cannot be answered gets a status of 4xx and `{"error": one sentence}`.
Health: `/v2/health/ready`, `/v2/models/NAME/ready`. Prometheus metrics: `/metrics`.
"""

import argparse
import asyncio
import json
import logging
import reprlib
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kdrop.data import BadInput
from kdrop.export import WARM_UP, versions

try:
    import orjson
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelRepository
    from kserve.errors import InvalidInput, ModelNotFound
    from kserve.model_server import app
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.server import RESTServer
    from kserve.protocol.rest.v2_datamodels import InferenceRequest
    from tensorflow_serving.apis import prediction_log_pb2
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"kdrop.serving: {missing}; pip install '.[serve]'", file=sys.stderr)
    sys.exit(2)

POLL = 1.0  # seconds between looks at the folder, as TensorFlow Serving's
GRACE = 30  # seconds that requests under way have to end after SIGTERM

log = logging.getLogger("kdrop.serving")


@dataclass(frozen=True)
class Version:
    """A version of a model in memory: its signatures run on NumPy arrays."""

    number: int
    loaded: Any  # owns the variables that the signatures read
    labels: Sequence[str]

    @classmethod
    def load(cls, path: Path) -> "Version":
        """Read a version and run its warm-up requests."""
        file = path / "assets" / "labels.txt"
        labels = file.read_text().splitlines() if file.exists() else []
        version = cls(int(path.name), tf.saved_model.load(str(path)), labels)
        if (path / WARM_UP).exists():
            for record in tf.data.TFRecordDataset(str(path / WARM_UP)):
                told = prediction_log_pb2.PredictionLog()  # ty: ignore[missing-attribute]
                told.ParseFromString(record.numpy())
                request = told.predict_log.request
                arrays = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
                version.run(request.model_spec.signature_name, arrays)
        return version

    def inputs(self, signature: object) -> Mapping[str, tf.TensorSpec]:
        known = self.loaded.signatures
        if not isinstance(signature, str) or signature not in known:
            there_are = ", ".join(sorted(known))
            raise InvalidInput(
                f"there is no signature {reprlib.repr(signature)}, but {there_are}"
            )
        return known[signature].structured_input_signature[1]

    def run(self, signature: str, arrays: Mapping[str, np.ndarray]):
        tensors = {name: tf.constant(array) for name, array in arrays.items()}
        try:
            outputs = self.loaded.signatures[signature](**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise InvalidInput(error.message.splitlines()[0]) from None
        return {name: _wide(output).numpy() for name, output in outputs.items()}


def _wide(tensor):
    # Neither protocol has a JSON form for narrower floats.
    narrow = tensor.dtype.is_floating and tensor.dtype.size < 4
    return tf.cast(tensor, tf.float32) if narrow else tensor


def _v2_type(dtype: tf.DType) -> str:
    if dtype.is_floating:
        return f"FP{8 * max(4, dtype.size)}"
    return dtype.name.upper()


def _array(name: str, spec: tf.TensorSpec, values: object) -> np.ndarray:
    """Numbers as they came out of JSON: nothing is converted that changes a value."""
    found = np.array(values, dtype=object)
    dtype = spec.dtype
    wanted = {int, float} if dtype.is_floating else {bool} if dtype.is_bool else {int}
    strange = {type(value) for value in found.ravel().tolist()} - wanted
    if strange:
        allowed = " or ".join(sorted(kind.__name__ for kind in wanted))
        raise InvalidInput(
            f"{name} holds {min(kind.__name__ for kind in strange)}, but must hold "
            f"{allowed} in lists of equal length"
        )
    try:
        with np.errstate(over="ignore"):  # told below
            array = found.astype(dtype.as_numpy_dtype)
    except OverflowError:
        raise InvalidInput(f"{name} holds a number beyond {dtype.name}") from None
    if dtype.is_floating and not np.isfinite(array).all():
        raise InvalidInput(f"{name} holds NaN or a number beyond {dtype.name}")
    return array


def _checked(specs: Mapping[str, tf.TensorSpec], arrays: dict[str, np.ndarray]):
    for name, spec in specs.items():
        shape = arrays[name].shape
        if not spec.shape.is_compatible_with(shape) or 0 in shape:
            wanted = str(spec.shape).replace("None", "any")
            raise InvalidInput(f"{name} has the shape {shape}, but must have {wanted}")
    if len({array.shape[:1] for array in arrays.values()}) > 1:
        sizes = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise InvalidInput(f"the inputs differ in their number of rows: {sizes}")
    return arrays


def _answer_v1(version: Version, request: object) -> dict[str, object]:
    if isinstance(request, bytes):  # not declared to be JSON: `curl -d` alone
        try:
            request = orjson.loads(request)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"the request is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise InvalidInput('the request must be an object with the field "instances"')
    signature = request.get("signature_name", "serving_default")
    specs = version.inputs(signature)
    rows = request.get("instances")
    if not isinstance(rows, list) or not rows:
        raise InvalidInput('"instances" must be a list of at least one row')
    if len(specs) == 1 and not any(isinstance(row, dict) for row in rows):
        columns = {name: rows for name in specs}
    else:
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or row.keys() != specs.keys():
                raise InvalidInput(
                    f"row {number} must be an object of {', '.join(specs)}"
                )
        columns = {name: [row[name] for row in rows] for name in specs}
    arrays = {name: _array(name, specs[name], columns[name]) for name in specs}
    outputs = version.run(signature, _checked(specs, arrays))
    if len(outputs) == 1:
        (predictions,) = (output.tolist() for output in outputs.values())
    else:
        values = zip(*(output.tolist() for output in outputs.values()), strict=True)
        predictions = [dict(zip(outputs, row, strict=True)) for row in values]
    labels = {"labels": version.labels} if version.labels else {}
    return {
        "predictions": predictions,
        **labels,
        "model_version": str(version.number),
    }


def _answer_v2(version: Version, request: InferRequest) -> InferResponse:
    signature = (request.parameters or {}).get("signature_name", "serving_default")
    specs = version.inputs(signature)
    if sorted(given.name for given in request.inputs) != sorted(specs):
        raise InvalidInput(f"the inputs must be {', '.join(specs)}, each once")
    arrays = {}
    for given in request.inputs:
        spec = specs[given.name]
        if given.datatype != _v2_type(spec.dtype):
            raise InvalidInput(
                f"{given.name} is declared as {reprlib.repr(given.datatype)}, but "
                f"must be {_v2_type(spec.dtype)}"
            )
        array = _array(given.name, spec, given.data)
        if min(given.shape, default=0) < 0 or array.size != np.prod(given.shape):
            raise InvalidInput(
                f"{given.name} holds {array.size} numbers, which the shape "
                f"{reprlib.repr(given.shape)} does not"
            )
        arrays[given.name] = array.reshape(given.shape)
    outputs = version.run(signature, _checked(specs, arrays))
    return InferResponse(
        response_id=request.id or str(uuid.uuid4()),
        model_name=request.model_name,
        model_version=str(version.number),
        infer_outputs=[
            InferOutput(
                name=name,
                shape=list(output.shape),
                datatype=_v2_type(tf.as_dtype(output.dtype)),
                data=output,
            )
            for name, output in outputs.items()
        ],
        parameters={"labels": json.dumps(version.labels)} if version.labels else None,
        use_binary_outputs=request.use_binary_outputs,
        requested_outputs=request.request_outputs,
    )


class ServedModel(Model):
    """The newest version of one folder that can be loaded."""

    version: Version  # once it is `ready`

    def __init__(self, folder: Path):
        super().__init__(folder.name)
        self.folder = folder
        self._broken: dict[int, object] = {}  # what a broken version looked like

    def refresh(self) -> None:
        """Change to the newest version; keep the present one if that is broken."""
        for number in reversed(versions(self.folder)):
            if self.ready and self.version.number == number:
                return
            path = self.folder / str(number)
            seen = sorted((str(p), p.stat().st_mtime_ns) for p in path.rglob("*"))
            if self._broken.get(number) == seen:
                continue
            try:
                self.version = Version.load(path)
            except Exception as error:  # whatever TensorFlow makes of a broken file
                self._broken[number] = seen
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                log.error("%s cannot be loaded, so it is left out: %s", path, reason)
                continue
            self.ready = True
            log.info("%s is served", path)
            return

    def get_input_types(self):
        return _described(self.version.inputs("serving_default"))

    def get_output_types(self):
        signature = self.version.loaded.signatures["serving_default"]
        return _described(signature.structured_outputs)

    async def predict(self, payload, headers=None, response_headers=None):
        answer = _answer_v2 if isinstance(payload, InferRequest) else _answer_v1
        return await asyncio.to_thread(answer, self.version, payload)


def _described(specs: Mapping[str, tf.TensorSpec]) -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "datatype": _v2_type(spec.dtype),
            "shape": [-1 if size is None else size for size in spec.shape],
        }
        for name, spec in specs.items()
    ]


class ServedFolder(ModelRepository):
    """The model in a folder, or those in the folders below it."""

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.folder = folder.resolve()

    def refresh(self) -> None:
        below = [p for p in self.folder.glob("*") if not p.name.startswith(".")]
        for folder in [self.folder] if versions(self.folder) else sorted(below):
            if versions(folder):
                model = self.get_model(folder.name)
                if not isinstance(model, ServedModel):
                    model = ServedModel(folder)
                model.refresh()
                if model.ready:
                    self.update(model)

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(POLL):
            try:
                self.refresh()
            except OSError as error:  # a folder that vanishes under the eyes
                log.error("%s cannot be read: %s", self.folder, error)

    def unload(self, name: str) -> None:
        raise InvalidInput(f"{name} is served as long as its folder holds it")


class _Plane(DataPlane):
    def decode(self, body, *args, **kwargs):
        # KServe itself answers 500 to a binary request that it cannot read.
        try:
            request, attributes = super().decode(body, *args, **kwargs)
            if isinstance(request, InferRequest) and isinstance(body, bytes):
                InferenceRequest.model_validate(request.to_rest()[0])
        except InvalidInput:
            raise
        except Exception as error:
            kind = type(error).__name__
            raise InvalidInput(f"the request cannot be read ({kind})") from None
        return request, attributes


async def _unreadable(_, error) -> JSONResponse:
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    return JSONResponse({"error": f"{where}: {first['msg']}"}, status_code=400)


def _worth_a_trace(record: logging.LogRecord) -> bool:
    """What a client got wrong is told to the client."""
    wrong = record.exc_info and record.exc_info[1]
    return not isinstance(wrong, (InvalidInput, ModelNotFound))


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{host} port {port} cannot be served: {reason}") from None
    return bound


def serve(folder: Path, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        BadInput: No folder, no model in it, or an address that cannot be had.
    """
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}")
    models = ServedFolder(folder)
    with _bind(host, port) as bound:
        models.refresh()
        if not models.models:
            raise BadInput(
                f"{folder} holds no model that can be served, as {folder}/1 would be "
                f"or {folder}/NAME/1"
            )
        app.add_exception_handler(RequestValidationError, _unreadable)
        server = RESTServer(
            "kserve.model_server:app",
            _Plane(models),
            ModelRepositoryExtension(models),
            port,
            grace_period=GRACE,
        )
        stop = threading.Event()
        watcher = threading.Thread(target=models.watch, args=(stop,))
        watcher.start()
        log.info("at http://%s:%d", *bound.getsockname()[:2])
        try:
            server.run(sockets=[bound])
        finally:
            stop.set()
            watcher.join()


def main() -> int:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser("kdrop.serving", description=description)
    parser.add_argument("folder", type=Path, help="of a model, or of several")
    parser.add_argument("--host", default="127.0.0.1", help="address; own: %(default)s")
    parser.add_argument("--port", type=int, default=8501, help="own: %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("kserve").addFilter(_worth_a_trace)
    for chatty in ("kserve.trace", "uvicorn.access"):  # a line or more for each request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: sys.exit(0))
    try:
        serve(options.folder, options.host, options.port)
    except BadInput as error:
        print(f"kdrop.serving: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
