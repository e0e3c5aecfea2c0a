"""KServe's REST server of the models in a folder: limits, turns and routes.

What is no JSON is refused here; `served_model` checks the inputs and answers.
"""

import asyncio
import logging
import os
import socket
import textwrap
import threading
import warnings
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from reprlib import repr as shortened
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.exceptions import FastAPIDeprecationWarning
from fastapi.responses import JSONResponse
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from kserve.errors import InvalidInput, ModelNotFound
from kserve.metrics import PREDICT_HIST_TIME, get_labels
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from kserve.protocol.rest.v2_datamodels import InferenceRequest
from pydantic import ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from kdrop.serving.limits import Limits
from kdrop.serving.page import page
from kdrop.serving.served_folder import ServedFolder

GRACE_PERIOD = 30  # seconds for running requests to finish after SIGTERM
BODY_SECONDS = 60  # for a body to arrive
SHORT = 2**16  # bytes; a request with a larger body is long from the start
BODIES = 8  # limit of all bodies in memory, in units of `max_bytes` or, if more, 1 MiB
LONG_REQUESTS = 4  # computed in turn; others wait, so that the first end first
JSON = {"content-type": "application/json"}

log = logging.getLogger("kdrop.serving")


class StrictRequest(InferenceRequest):
    """A V2 request without other fields, such as V1's `signature_name`."""

    model_config = ConfigDict(extra="forbid")


def read_request(plane: DataPlane, name: str, protocol: str, body: bytes, headers):
    """The request and its CloudEvent attributes; raises `InvalidInput` alone."""
    binary = INFERENCE_CONTENT_LENGTH_HEADER in headers
    content: Any = body
    try:
        if protocol == "v2" and binary:
            size = int(headers[INFERENCE_CONTENT_LENGTH_HEADER])
            if size < 0:
                raise InvalidInput("the length of the JSON is negative")
            fields = orjson.loads(body[:size])
            if unknown := fields.keys() - StrictRequest.model_fields.keys():
                raise InvalidInput(f"{min(unknown)}: Extra inputs are not permitted")
            _check_sizes(fields["inputs"], len(body) - size)
        elif protocol == "v2":
            content = StrictRequest.model_validate_json(body)
            _check_sizes(map(dict, content.inputs), 0)
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


def _check_sizes(tensors: Iterable[dict], rest: int) -> None:
    """Raise `InvalidInput` unless the binary tensors fill the rest of the body."""
    sizes = []
    for tensor in tensors:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if (size is None) == (tensor.get("data") is None):
            raise InvalidInput("an input must have either data or a binary_data_size")
        sizes.append(size or 0)
    if min(sizes, default=0) < 0 or sum(sizes) != rest:
        raise InvalidInput(
            f"the binary inputs have {sum(sizes)} bytes, but {rest} follow the JSON"
        )


class Server(RESTServer):
    """A REST server whose application is `kserve.model_server.app`.

    Each request is computed in steps, in a pool of threads; `_steps` yields between
    them. Long requests leave one thread to short ones.
    """

    def __init__(self, models: ServedFolder, port: int, limits: Limits):
        plane, repository = DataPlane(models), ModelRepositoryExtension(models)
        app = "kserve.model_server:app"
        super().__init__(app, plane, repository, port, grace_period=GRACE_PERIOD)
        self._limits = limits
        self._answering = self._bytes = 0  # requests; bytes of bodies in memory
        threads = max(2, os.cpu_count() or 1)  # more would only wait for each other
        self._threads = ThreadPoolExecutor(threads)
        self._long = asyncio.Semaphore(max(1, threads - 1))
        self._begun = asyncio.Semaphore(LONG_REQUESTS)

    def _add_middlewares(self, app):
        """Leave out KServe's timing of each request, whose log is disabled."""

    def _register_endpoints(self, app):
        # Plain routes in front, the last one first: KServe's take longer than a small
        # model, and some read bodies of any size or describe what is not served.
        app.router.routes.insert(0, Route("/", self._page))
        for path, answer in (
            ("/openapi.json", self._unknown),
            ("/v1/models/{name}:{verb}", self._unknown),
            ("/v1/models/{name}/versions/{rest:path}", self._unknown),
            ("/v2/models/{name}/versions/{rest:path}", self._unknown),
            ("/v1/models/{name}:predict", self._answer),
            ("/v2/models/{name}/infer", self._answer),
        ):
            methods = ["POST"] if answer == self._answer else ["GET", "POST"]
            app.router.routes.insert(0, Route(path, answer, methods=methods))
        super()._register_endpoints(app)

    async def _page(self, request):
        return page([*self.dataplane.model_registry.get_models().values()])

    async def _unknown(self, request):
        raise HTTPException(
            404,
            f"there is no {request.method} {request.url.path[:100]!r}: the newest "
            "version of a model answers POST /v1/models/NAME:predict and "
            "POST /v2/models/NAME/infer",
        )

    async def _answer(self, request: Request):
        name, protocol = request.path_params["name"], request.url.path[1:3]
        if self.dataplane.model_registry.get_model(name) is None:
            raise HTTPException(404, f"there is no model {shortened(name)}")
        body = bytearray()
        try:
            await self._read(request, body)
            if self._answering >= self._limits.max_requests:
                raise _busy(f"{self._answering} requests are being answered")
            self._answering += 1
            try:
                headers = dict(request.headers)
                steps = self._steps(name, protocol, bytes(body), headers)
                return await self._run_steps(request, steps, len(body) > SHORT)
            finally:
                self._answering -= 1
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            self._bytes -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        """Read the body of a request; what is too large is read but not stored."""
        limit = self._limits.max_bytes
        total = 0
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "a body must not be compressed")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    total += len(chunk)
                    if total > limit:
                        self._bytes -= len(body)
                        body.clear()
                        continue
                    # The last eighth is for short bodies.
                    others = BODIES - (total > SHORT)
                    if self._bytes > others * max(limit, 2**20):
                        raise _busy("too many bytes of other requests are in memory")
                    body += chunk
                    self._bytes += len(chunk)
        except TimeoutError:
            sentence = f"the body did not arrive within {BODY_SECONDS} s"
            raise HTTPException(408, sentence) from None
        if total > limit:
            raise HTTPException(413, f"{total} bytes are too many: send up to {limit}")

    async def _run_steps(self, request: Request, steps: Generator, is_long: bool):
        """The response, computed in threads: no request delays health checks."""
        compute = asyncio.get_running_loop().run_in_executor
        if not is_long and (response := await compute(self._threads, next, steps)):
            return response
        async with self._begun:
            while not await request.is_disconnected():
                async with self._long:
                    if response := await compute(self._threads, next, steps):
                        return response
        raise ClientDisconnect

    def _steps(self, name, protocol, body, headers) -> Generator[Response | None]:
        """Compute a response: yield `None` between steps, and the response at last."""
        model: Any = self.dataplane.get_model_from_registry(name)
        with PREDICT_HIST_TIME.labels(**get_labels(name)).time():
            decoded = read_request(self.dataplane, name, protocol, body, headers)
            answer = yield from model.answer(decoded[0], self._limits)
            content, more = self.dataplane.encode(name, answer, headers, decoded[1])
        if not isinstance(content, bytes):
            content, more = orjson.dumps(content), {**JSON, **more}
        yield Response(content, headers=more)

    def _add_exception_handlers(self, app):
        async def refused(_, error) -> JSONResponse:
            content = {"error": textwrap.shorten(str(error.detail), 300)}
            return JSONResponse(content, error.status_code, error.headers)

        async def not_found(_, error) -> JSONResponse:
            return JSONResponse({"error": "there is no such model"}, 404)

        super()._add_exception_handlers(app)
        app.add_exception_handler(HTTPException, refused)
        app.add_exception_handler(ModelNotFound, not_found)


def _busy(reason: str) -> HTTPException:
    return HTTPException(503, f"{reason}: try again", {"Retry-After": "1"})


def configure_logs() -> None:
    """Log what the server does, but not single requests or errors of clients."""

    def is_server_error(record: logging.LogRecord) -> bool:
        error = record.exc_info and record.exc_info[1]
        return not isinstance(error, (InvalidInput, ModelNotFound))

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    warnings.simplefilter("ignore", FastAPIDeprecationWarning)  # caused by KServe
    logging.getLogger("kserve").addFilter(is_server_error)
    # TensorFlow warns of them for each drop layer with weights; nothing asks for them.
    logging.getLogger("tensorflow").addFilter(
        lambda record: "unsaved custom gradients" not in record.getMessage()
    )
    for name in ("kserve.trace", "uvicorn.access"):  # a line or more for each request
        logging.getLogger(name).setLevel(logging.WARNING)


def run(models: ServedFolder, listener: socket.socket, limits: Limits) -> None:
    """Serve the models on a bound socket until SIGTERM or SIGINT."""
    listener.listen()  # who reads the address in the log can connect
    host, port = listener.getsockname()[:2]
    server = Server(models, port, limits)
    stop = threading.Event()
    watcher = threading.Thread(target=models.watch, args=(stop,))
    watcher.start()
    log.info("listening at http://%s:%d", host, port)
    try:
        server.run(sockets=[listener])
    finally:
        stop.set()
        watcher.join()
