"""Serve exported models over REST with KServe.

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
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kdrop.errors import UserError
from kdrop.serving.saved_model import versions

try:
    from fastapi.exceptions import FastAPIDeprecationWarning, RequestValidationError
    from fastapi.responses import JSONResponse
    from kserve import InferRequest, Model, ModelRepository
    from kserve.errors import InvalidInput, ModelNotFound
    from kserve.model_server import app
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.server import RESTServer
    from kserve.protocol.rest.v1_endpoints import V1Endpoints
    from kserve.protocol.rest.v2_datamodels import InferenceRequest
    from starlette.routing import Route

    from kdrop.serving.model import Servable, answer_v1, answer_v2, describe
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sentence = f"KServe is not installed ({missing}); pip install '.[serve]'"
    print(f"kdrop.serving: {sentence}", file=sys.stderr)
    sys.exit(2)

POLL = 1.0  # seconds between looks at the folder, as TensorFlow Serving's
GRACE = 30  # seconds that requests under way have to end after SIGTERM

log = logging.getLogger("kdrop.serving")


class ServedModel(Model):
    """The newest version of one folder that can be loaded."""

    servable: Servable  # once it is `ready`

    def __init__(self, folder: Path):
        super().__init__(folder.name)
        self.folder = folder
        self._broken: dict[int, object] = {}  # what the files of a version looked like
        # More threads than cores would only wait for each other.
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def refresh(self) -> None:
        """Change to the newest version, or keep the present one if that is broken."""
        for version in reversed(versions(self.folder)):
            if self.ready and self.servable.version == version:
                return
            path = self.folder / str(version)
            files = sorted((str(p), p.stat().st_mtime_ns) for p in path.rglob("*"))
            if self._broken.get(version) == files:
                continue
            try:
                self.servable = Servable.load(path)
            except Exception as error:  # whatever TensorFlow makes of a broken file
                self._broken[version] = files
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                log.error("%s is left out, as it cannot be loaded: %s", path, reason)
                continue
            self.ready = True
            log.info("%s is served", path)
            return

    def get_input_types(self):
        return describe(self.servable.inputs())

    def get_output_types(self):
        return describe(self.servable.outputs())

    async def predict(self, payload, headers=None, response_headers=None):
        answer = answer_v2 if isinstance(payload, InferRequest) else answer_v1
        servable = self.servable  # a request ends on the version that it begins with
        # In a thread, so that a slow model delays neither health nor other models.
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: answer(servable, payload)
        )


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


class _Server(RESTServer):
    def _add_middlewares(self, app):
        """KServe's would time each request for a log that is not kept."""

    def _register_endpoints(self, app):
        # First, and without FastAPI's look at the parameters: it tries one route after
        # the other, in more time than a small model takes.
        endpoints = V1Endpoints(self.dataplane, self.model_repository_extension)

        async def predict(request):
            return await endpoints.predict(request.path_params["model_name"], request)

        path = "/v1/models/{model_name}:predict"
        app.router.routes.insert(0, Route(path, predict, methods=["POST"]))
        super()._register_endpoints(app)


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
        raise UserError(f"{host} port {port} cannot be served: {reason}") from None
    return bound


def serve(folder: Path, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        UserError: No folder, no model in it, or an address that cannot be had.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    models = ServedFolder(folder)
    with _bind(host, port) as bound:
        models.refresh()
        if not models.models:
            raise UserError(
                f"{folder} holds no model that can be served, as {folder}/1 would be "
                f"or {folder}/NAME/1"
            )
        app.add_exception_handler(RequestValidationError, _unreadable)
        server = _Server(
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
    warnings.simplefilter("ignore", FastAPIDeprecationWarning)  # of KServe's own calls
    logging.getLogger("kserve").addFilter(_worth_a_trace)
    for chatty in ("kserve.trace", "uvicorn.access"):  # a line or more for each request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: sys.exit(0))
    try:
        serve(options.folder, options.host, options.port)
    except UserError as error:
        print(f"kdrop.serving: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
