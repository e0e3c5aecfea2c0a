"""KServe's REST server of the models in a folder."""

import logging
import socket
import threading
import warnings
from pathlib import Path

from fastapi.exceptions import FastAPIDeprecationWarning, RequestValidationError
from fastapi.responses import JSONResponse
from kserve import InferRequest, ModelRepository
from kserve.errors import InvalidInput, ModelNotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from kserve.protocol.rest.v1_endpoints import V1Endpoints
from kserve.protocol.rest.v2_datamodels import InferenceRequest
from starlette.routing import Route

from kdrop.serving.served_model import ServedModel
from kdrop.serving.versions import model_folders, versions

POLL_INTERVAL = 1.0  # seconds between scans of the folder, as in TensorFlow Serving
GRACE_PERIOD = 30  # seconds for running requests to finish after SIGTERM

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


class _DataPlane(DataPlane):
    def decode(self, body, *args, **kwargs):
        # KServe itself answers 500 to a binary request that it cannot read.
        try:
            request, attributes = super().decode(body, *args, **kwargs)
            if isinstance(request, bytes):  # no JSON content type, as from `curl -d`
                return super().decode(request, headers=None)
            if isinstance(request, InferRequest) and isinstance(body, bytes):
                InferenceRequest.model_validate(request.to_rest()[0])
        except InvalidInput:
            raise
        except Exception as error:
            kind = type(error).__name__
            raise InvalidInput(f"the request cannot be read ({kind})") from None
        return request, attributes


class Server(RESTServer):
    """A REST server whose application is `kserve.model_server.app`."""

    def __init__(self, models: ServedFolder, port: int):
        repository = ModelRepositoryExtension(models)
        app = "kserve.model_server:app"
        data_plane = _DataPlane(models)
        super().__init__(app, data_plane, repository, port, grace_period=GRACE_PERIOD)

    def _add_middlewares(self, app):
        """Leave out KServe's timing of each request, whose log is disabled."""

    def _register_endpoints(self, app):
        # FastAPI tries its routes in turn and validates parameters, which takes longer
        # than a small model. A plain route in front avoids both.
        endpoints = V1Endpoints(self.dataplane, self.model_repository_extension)

        async def predict(request):
            return await endpoints.predict(request.path_params["model_name"], request)

        path = "/v1/models/{model_name}:predict"
        app.router.routes.insert(0, Route(path, predict, methods=["POST"]))
        super()._register_endpoints(app)

    def _add_exception_handlers(self, app):
        async def invalid_request(_, error) -> JSONResponse:
            first = error.errors()[0]
            field = " ".join(str(part) for part in first["loc"])
            return JSONResponse({"error": f"{field}: {first['msg']}"}, status_code=400)

        super()._add_exception_handlers(app)
        app.add_exception_handler(RequestValidationError, invalid_request)


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
