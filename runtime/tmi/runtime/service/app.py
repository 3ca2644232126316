"""HTTP application of the service: routes, access, bodies, errors, and one record in the log for each request.

No response, log record or metric holds content of a request but the case id in the response of its own request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from tmi.runtime.service.access import foreign_request, missing_token
from tmi.runtime.service.metrics import CONTENT_TYPE
from tmi.runtime.service.outputs import MODEL, MODEL_VERSION
from tmi.runtime.service.protocol import BINARY_HEADER, parse_object, parse_request, write_response
from tmi.runtime.service.request_errors import REJECTED, RequestError, bad_request, no_load_parameters
from tmi.runtime.service.request_log import LogRecord, ObservedRequest
from tmi.runtime.service.service import EXTENSIONS, PredictionService
from tmi.runtime.service.uploads import IMAGES, case_of_form, case_of_tensors
from tmi.runtime.serving.results import CaseResult, Prediction, RejectedCase
from tmi.toolkit.errors import InputRejectedError

HEALTH = ("/v2/health/live", "/v2/health/ready")
"""Paths that need no token."""
OK, FAILED = 200, 500
REPOSITORY_INDEX, LOAD = "/v2/repository/index", f"/v2/repository/models/{MODEL}/load"
REPOSITORY_BYTES = 2**16
"""Largest body of a request for the repository."""
MODEL_PATHS = (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/{MODEL_VERSION}")


def build_app(service: PredictionService, *, log: LogRecord) -> ObservedApp:
    """Return the application of a service."""
    handlers = _Handlers(service)
    routes = [
        Route("/v2", handlers.server),
        Route(HEALTH[0], handlers.live),
        Route(HEALTH[1], handlers.ready),
        *(Route(path, handlers.model) for path in MODEL_PATHS),
        *(Route(f"{path}/ready", handlers.ready) for path in MODEL_PATHS),
        *(Route(f"{path}/infer", handlers.infer, methods=["POST"]) for path in MODEL_PATHS),
        Route("/cases", handlers.cases, methods=["POST"]),
        Route(REPOSITORY_INDEX, handlers.repository_index, methods=["POST"]),
        Route(LOAD, handlers.load, methods=["POST"]),
        Route("/metrics", handlers.metrics),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={RequestError: _request_error, HTTPException: _http_error, InputRejectedError: _rejection},
    )
    app.router.redirect_slashes = False
    return ObservedApp(app, service, paths=frozenset(route.path for route in routes), log=log)


class ObservedApp:
    """The application with access control, headers, the log and the counting of each request around it."""

    def __init__(self, app: Starlette, service: PredictionService, *, paths: frozenset[str], log: LogRecord) -> None:
        self._app, self._service, self._paths, self._log = app, service, paths, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        observed = ObservedRequest(self._service.metrics, self._log, headers.get("x-request-id", ""))
        path = scope["path"] if scope["path"] in self._paths else "other"
        outcome: dict[str, Any] = {"status": FAILED, "code": "failed", "sent": False}
        scope["outcome"] = outcome

        async def observed_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcome["status"], outcome["sent"] = message["status"], True
                added = MutableHeaders(scope=message)
                added["x-request-id"], added["cache-control"] = observed.id, "no-store"
                added["x-content-type-options"] = "nosniff"
            await send(message)

        failure: BaseException | None = None
        try:
            if (denied := _denied(self._service, scope, headers)) is not None:
                outcome["code"] = denied.code
                await _error_response(denied)(scope, receive, observed_send)
            else:
                outcome["code"] = "ok"
                await self._app(scope, receive, observed_send)
        except Exception as error:  # noqa: BLE001 - top level: a fault of the program must not end the connection bare
            failure, outcome["code"] = error, "failed"
            if not outcome["sent"]:
                fault = RequestError("failed", "unexpected error of the service", fix="see its log by the request id")
                await _error_response(fault)(scope, receive, observed_send)
        observed.end(
            method=scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other",
            route=path,
            status=outcome.get("status_in_log", outcome["status"]),
            code=outcome["code"],
            size=outcome.get("bytes"),
            failure=failure or outcome.get("failure"),
            is_probe=path in (*HEALTH, "/metrics"),
        )


def _denied(service: PredictionService, scope: Scope, headers: Headers) -> RequestError | None:
    """Error of a request that has no access."""
    foreign = foreign_request(service.settings, headers)
    if foreign is not None or scope["path"] in HEALTH:
        return foreign
    return missing_token(service.settings, headers.get("authorization", ""))


class _Handlers:
    """Responses of each route."""

    def __init__(self, service: PredictionService) -> None:
        self._service = service

    async def server(self, request: Request) -> Response:
        return JSONResponse({"name": MODEL, "version": self._service.version, "extensions": list(EXTENSIONS)})

    async def live(self, request: Request) -> Response:
        is_live = self._service.is_live
        return JSONResponse({"live": is_live}, status_code=OK if is_live else 503)

    async def ready(self, request: Request) -> Response:
        is_ready = self._service.is_ready
        return JSONResponse({"name": MODEL, "ready": is_ready}, status_code=OK if is_ready else 503)

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._service.metadata())

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), media_type=None, headers={"content-type": CONTENT_TYPE})

    async def infer(self, request: Request) -> Response:
        json_bytes = _length(request.headers.get(BINARY_HEADER), BINARY_HEADER)

        async def predict(body: bytes, deadline: float) -> Response:
            inference = await asyncio.to_thread(parse_request, body, json_bytes=json_bytes, base64_names=IMAGES)
            del body
            self._service.require_outputs(inference)
            case = await asyncio.to_thread(case_of_tensors, inference)
            served = await self._service.predict(case, deadline=deadline, gone=_gone(request))
            if not isinstance(served.result, Prediction):
                return _rejected(request, served.result)
            head = {"model_name": MODEL, "model_version": MODEL_VERSION}
            data, headers = write_response(head, self._service.tensors(served), inference)
            return Response(data, headers=headers)

        return await self._admitted(request, predict)

    async def cases(self, request: Request) -> Response:
        content_type = request.headers.get("content-type", "")

        async def predict(body: bytes, deadline: float) -> Response:
            case = await asyncio.to_thread(case_of_form, content_type, body)
            del body
            served = await self._service.predict(case, deadline=deadline, gone=_gone(request))
            if isinstance(served.result, RejectedCase):
                request.scope["outcome"]["code"] = served.result.code
            status = OK if isinstance(served.result, Prediction) else REJECTED
            return Response(self._service.document(served), status_code=status, media_type="application/json")

        return await self._admitted(request, predict)

    async def _admitted(self, request: Request, predict: Callable[[bytes, float], Any]) -> Response:
        """Read the body and predict, in a place of the queue."""
        deadline = monotonic() + self._service.settings.timeout_s
        self._service.admit()
        try:
            # No name here holds the body: the prediction frees it as soon as the case is made of it.
            body_limit = self._service.settings.max_request_bytes
            response: Response = await predict(await self._body(request, deadline, body_limit), deadline)
            return response
        finally:
            self._service.leave()

    async def repository_index(self, request: Request) -> Response:
        only_ready = (await self._repository_request(request)).get("ready", False)
        return JSONResponse(self._service.repository_index(only_ready=only_ready is True))

    async def load(self, request: Request) -> Response:
        if (await self._repository_request(request)).get("parameters"):
            raise no_load_parameters()
        swapped = await self._service.load()
        head = {"model_name": MODEL, "model_version": MODEL_VERSION}
        return JSONResponse({**head, "bundle": self._service.bundle.digest, "swapped": swapped})

    async def _repository_request(self, request: Request) -> dict[str, Any]:
        deadline = monotonic() + self._service.settings.timeout_s
        body = await self._body(request, deadline, REPOSITORY_BYTES)
        return parse_object(body) if body else {}

    async def _body(self, request: Request, deadline: float, limit: int) -> bytes:
        settings = self._service.settings
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(
                "encoding-unsupported", "the body is compressed", fix="send it as it is: its images are compressed"
            )
        length = _length(request.headers.get("content-length"), "content-length")
        if length is not None and length > limit:
            raise _too_large(limit)
        body = bytearray()
        while True:
            seconds = min(settings.idle_s, deadline - monotonic())
            try:
                message = await asyncio.wait_for(request.receive(), timeout=max(0.0, seconds))
            except TimeoutError as error:
                raise RequestError(
                    "body-timeout", "the request was not sent completely in time", fix="send it again"
                ) from error
            if message["type"] == "http.disconnect":
                raise RequestError("client-gone", "the client closed the connection", fix="send the whole request")
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                request.scope["outcome"]["bytes"] = len(body)
                return bytes(body)


async def _gone(request: Request) -> None:
    """Wait until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _length(text: str | None, name: str) -> int | None:
    if text is not None and not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise bad_request(f"{name} is no number of bytes", fix="give a number of bytes")
    return None if text is None else int(text)


def _too_large(limit: int) -> RequestError:
    return RequestError(
        "too-large",
        f"the request is larger than {limit / 2**20:g} MiB",
        fix="send compressed images (.nii.gz), or start with a larger --max-request-mib",
    )


def _rejected(request: Request, result: CaseResult | InputRejectedError) -> Response:
    """Response of a case that a check rejected."""
    assert isinstance(result, RejectedCase | InputRejectedError)
    request.scope["outcome"]["code"] = result.code
    issues = [issue.to_dict() for issue in result.issues]
    return JSONResponse(
        {"error": result.what, "code": result.code, "fix": result.fix, "issues": issues}, status_code=REJECTED
    )


async def _rejection(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputRejectedError)
    return _rejected(request, error)


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    outcome = request.scope["outcome"]
    outcome["code"], outcome["status_in_log"] = error.code, error.status
    if error.status == FAILED:
        outcome["failure"] = error.__cause__
    return _error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown path or method."""
    assert isinstance(error, HTTPException)
    code = "method-not-allowed" if error.status_code == 405 else "not-found"
    what = "this path has no such method" if code == "method-not-allowed" else "the service has no such path"
    return await _request_error(
        request, RequestError(code, what, fix="see docs/serve.md for the paths", headers=error.headers)
    )


def _error_response(error: RequestError) -> Response:
    return JSONResponse(error.to_dict(), status_code=error.status, headers=error.headers)
