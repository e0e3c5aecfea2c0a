"""KServe's REST server of the models in a folder."""

import asyncio
import logging
import os
import socket
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from fastapi import Response
from fastapi.exceptions import FastAPIDeprecationWarning
from kserve import ModelRepository
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from kserve.errors import InvalidInput, ModelNotFound
from kserve.metrics import PREDICT_HIST_TIME, get_labels
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from kserve.protocol.rest.v2_datamodels import InferenceRequest
from pydantic import ValidationError
from starlette.routing import Route

from kdrop.serving.served_model import ServedModel
from kdrop.serving.versions import model_folders, versions

POLL_INTERVAL = 1.0  # seconds between scans of the folder, as in TensorFlow Serving
GRACE_PERIOD = 30  # seconds for running requests to finish after SIGTERM

JSON = {"content-type": "application/json"}

log = logging.getLogger("kdrop.serving")


class ServedFolder(ModelRepository):
    """The model in a folder, or the models in the folders below it.

    Of each model, the newest version that can be loaded is served. A request finishes
    on the version that it began with.
    """

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.folder = folder.resolve()
        self._files_of_broken: dict[Path, object] = {}  # by version folder

    def refresh(self) -> None:
        """Load new models and new versions."""
        for folder in model_folders(self.folder):
            for version in reversed(versions(folder)):
                path = folder / str(version)
                loaded = getattr(self.models.get(folder.name), "version", None)
                if loaded == path.name or self._load(path):
                    break

    def _load(self, path: Path) -> bool:
        """Load a version, unless it is broken."""
        files = sorted((str(p), p.stat().st_mtime_ns) for p in path.rglob("*"))
        if self._files_of_broken.get(path) == files:
            return False
        try:
            self.update(ServedModel(path))
        except Exception as error:  # TensorFlow may raise any for a broken file
            self._files_of_broken[path] = files
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.error("skipped %s, which cannot be loaded: %s", path, reason)
            return False
        log.info("serving %s", path)
        return True

    def watch(self, stop: threading.Event) -> None:
        """Refresh once every `POLL_INTERVAL` until `stop` is set."""
        while not stop.wait(POLL_INTERVAL):
            try:
                self.refresh()
            except OSError as error:  # a folder may vanish during the scan
                log.error("%s cannot be read: %s", self.folder, error)

    def unload(self, name: str) -> None:
        raise InvalidInput(
            f"{name} cannot be unloaded: all models in the served folder are loaded"
        )


def read_request(plane: DataPlane, name: str, protocol: str, body: bytes, headers):
    """The request and its CloudEvent attributes; raises `InvalidInput` alone."""
    binary = INFERENCE_CONTENT_LENGTH_HEADER in headers
    content: Any = body
    try:
        if protocol == "v2" and not binary:
            content = InferenceRequest.model_validate_json(body)
        request, attributes = plane.decode(content, headers, protocol, name)
        if isinstance(request, bytes):  # no JSON content type, as from `curl -d`
            return plane.decode(body, None)
        if protocol == "v2" and binary:
            rest: Any = request
            InferenceRequest.model_validate(rest.to_rest()[0])
        return request, attributes
    except InvalidInput:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        field = " ".join(map(str, first["loc"])) or "the request"
        raise InvalidInput(f"{field}: {first['msg']}") from None
    except Exception as error:  # KServe raises any
        kind = type(error).__name__
        raise InvalidInput(f"the request cannot be read ({kind})") from None


class Server(RESTServer):
    """A REST server whose application is `kserve.model_server.app`."""

    def __init__(self, models: ServedFolder, port: int):
        plane, repository = DataPlane(models), ModelRepositoryExtension(models)
        app = "kserve.model_server:app"
        super().__init__(app, plane, repository, port, grace_period=GRACE_PERIOD)
        # More threads than cores would only wait for each other.
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def _add_middlewares(self, app):
        """Leave out KServe's timing of each request, whose log is disabled."""

    def _register_endpoints(self, app):
        # Plain routes in front: KServe's own take longer than a small model.
        for path in ("/v1/models/{name}:predict", "/v2/models/{name}/infer"):
            app.router.routes.insert(0, Route(path, self._answer, methods=["POST"]))
        super()._register_endpoints(app)

    async def _answer(self, request):
        name, protocol = request.path_params["name"], request.url.path[1:3]
        arguments = name, protocol, await request.body(), dict(request.headers)
        # In a thread, a slow model delays neither health checks nor other models.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._respond, *arguments)

    def _respond(self, name, protocol, body, headers) -> Response:
        model: Any = self.dataplane.get_model_from_registry(name)
        with PREDICT_HIST_TIME.labels(**get_labels(name)).time():
            request, attributes = read_request(
                self.dataplane, name, protocol, body, headers
            )
            answer = model.predict(request)
            content, more = self.dataplane.encode(name, answer, headers, attributes)
        if not isinstance(content, bytes):
            content, more = orjson.dumps(content), {**JSON, **more}
        return Response(content, headers=more)


def configure_logs() -> None:
    """Log what the server does, but not single requests or errors of clients."""

    def is_server_error(record: logging.LogRecord) -> bool:
        error = record.exc_info and record.exc_info[1]
        return not isinstance(error, (InvalidInput, ModelNotFound))

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    warnings.simplefilter("ignore", FastAPIDeprecationWarning)  # caused by KServe
    logging.getLogger("kserve").addFilter(is_server_error)
    for name in ("kserve.trace", "uvicorn.access"):  # a line or more for each request
        logging.getLogger(name).setLevel(logging.WARNING)


def run(models: ServedFolder, listener: socket.socket) -> None:
    """Serve the models on a bound socket until SIGTERM or SIGINT."""
    host, port = listener.getsockname()[:2]
    server = Server(models, port)
    stop = threading.Event()
    watcher = threading.Thread(target=models.watch, args=(stop,))
    watcher.start()
    log.info("listening at http://%s:%d", host, port)
    try:
        server.run(sockets=[listener])
    finally:
        stop.set()
        watcher.join()
