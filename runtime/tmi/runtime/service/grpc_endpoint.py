"""The service over gRPC: `GRPCInferenceService` of the Open Inference Protocol, with the queue and limits of HTTP.

A method reads its message after the request was admitted, as HTTP reads its body: a message that is not read stays at
the client but for the window of HTTP/2. Methods with an empty request do not read it at all.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any

import grpc

from tmi.runtime.service.access import missing_token
from tmi.runtime.service.grpc_messages import (
    message_type,
    read_infer_request,
    read_message,
    require_model,
    write_infer_response,
)
from tmi.runtime.service.outputs import MODEL, MODEL_VERSION
from tmi.runtime.service.request_errors import RequestError, no_load_parameters
from tmi.runtime.service.request_log import LogRecord, ObservedRequest
from tmi.runtime.service.service import EXTENSIONS, PredictionService
from tmi.runtime.service.uploads import case_of_tensors
from tmi.runtime.serving.results import Prediction
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.storage.bounded_files import CERTIFICATE_BYTES, read_bytes

SERVICE = "inference.GRPCInferenceService"
HEALTH = ("ServerLive", "ServerReady")
"""Methods that need no token."""
STATUS_OF: Mapping[str, grpc.StatusCode] = MappingProxyType(
    {
        "bad-request": grpc.StatusCode.INVALID_ARGUMENT,
        "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
        "not-found": grpc.StatusCode.NOT_FOUND,
        "load-running": grpc.StatusCode.ABORTED,
        "bundle-rejected": grpc.StatusCode.FAILED_PRECONDITION,
        "body-timeout": grpc.StatusCode.DEADLINE_EXCEEDED,
        "queue-full": grpc.StatusCode.UNAVAILABLE,
        "client-gone": grpc.StatusCode.CANCELLED,
        "failed": grpc.StatusCode.INTERNAL,
        "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""Code of an error of a request -> its status (docs/serve.md). A message that is too large is rejected by gRPC."""
REJECTED = grpc.StatusCode.FAILED_PRECONDITION
"""Status of a case that a check rejected."""
CODE_KEY, ISSUES_KEY = "tmi-code", "tmi-issues-bin"
"""Trailing metadata: code of an error, and issues of a rejected case as JSON."""
MAX_ISSUES_BYTES = 4096
"""Most bytes of issues in trailing metadata; a client takes 8 KiB of metadata."""
READERS = 4
"""Messages of methods other than the inference that are read at a time."""
IDENTITY_ONLY = 1
"""Set of message encodings that are read: none but the plain one; a compressed message could grow without limit."""

Respond = Callable[["_Call"], Awaitable[bytes]]


class GrpcEndpoint:
    """A gRPC server of a service, in the event loop of the HTTP server.

    Args:
        service: the service.
        log: receives a record of each request.
        bound: socket of `bind` with the address; it is closed before gRPC binds the address itself.
        tls: certificate, its key and the authority of client certificates (PEM files); None: no TLS.
    """

    def __init__(
        self,
        service: PredictionService,
        *,
        log: LogRecord,
        bound: socket.socket,
        tls: tuple[Path, Path, Path | None] | None = None,
    ) -> None:
        self._service, self._log, self._bound = service, log, bound
        host, self.port = bound.getsockname()[:2]
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        """Address that clients connect to."""
        self._credentials = None if tls is None else _credentials(*tls)
        self._server: Any = None
        self._readers = asyncio.Semaphore(READERS)

    async def start(self) -> None:
        """Listen.

        Raises:
            UsageError: the address cannot be bound.
        """
        settings = self._service.settings
        idle_ms = int(settings.idle_s * 1000)
        self._server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # a second service on the same port is an error, not a random choice
                ("grpc.max_receive_message_length", settings.max_request_bytes),
                ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
                ("grpc.max_connection_idle_ms", idle_ms),
                ("grpc.server_handshake_timeout_ms", idle_ms),
                ("grpc.keepalive_time_ms", idle_ms),
            )
        )
        methods: Mapping[str, Respond] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_load,
        }
        # On the wire a call with one message is a stream of one: so the handler decides when the message is read.
        handlers = {
            name: grpc.stream_unary_rpc_method_handler(partial(self._handle, name, respond))
            for name, respond in methods.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self._bound.close()
        try:
            if self._credentials is None:
                self._server.add_insecure_port(self.address)
            else:
                self._server.add_secure_port(self.address, self._credentials)
        except RuntimeError as error:
            raise UsageError(f"address {self.address} cannot be bound for gRPC", fix="give another port") from error
        await self._server.start()

    async def stop(self) -> None:
        """Take no new request, and return when every accepted one has its response."""
        if self._server is not None:
            await self._server.stop(self._service.settings.timeout_s + 1)

    async def _handle(self, name: str, respond: Respond, messages: Any, context: Any) -> bytes:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        observed = ObservedRequest(self._service.metrics, self._log, metadata.get("x-request-id", ""))
        call = _Call(context, self._service)
        end = partial(observed.end, method="gRPC", route=f"{SERVICE}/{name}", is_probe=name in HEALTH)
        response, error, failure = b"", None, None
        try:
            denied = (
                None if name in HEALTH else missing_token(self._service.settings, metadata.get("authorization", ""))
            )
            if denied is not None:
                raise denied
            response = await respond(call)
        except (RequestError, InputRejectedError) as raised:
            error, failure = raised, raised.__cause__ if getattr(raised, "code", None) == "failed" else None
        except asyncio.CancelledError:
            end(status=grpc.StatusCode.CANCELLED.name, code="client-gone", size=call.size)
            raise
        except Exception as raised:  # noqa: BLE001 - top level: a fault of the program is counted, and its text is kept
            error = RequestError("failed", "unexpected error of the service", fix="see its log by the request id")
            failure = raised
        status = grpc.StatusCode.OK if error is None else _status(error)
        label = "ok" if error is None else error.code  # of the metrics; "ok" is no code of an error
        end(status=status.name, code=label, size=call.size, failure=failure)
        trailing = (("x-request-id", observed.id), *(() if error is None else _trailing(error)))
        if error is not None:
            await context.abort(status, f"{error.what}; fix: {error.fix}", trailing)
        context.set_trailing_metadata(trailing)
        return response

    async def _live(self, call: _Call) -> bytes:
        return _message("ServerLiveResponse", live=self._service.is_live)

    async def _ready(self, call: _Call) -> bytes:
        return _message("ServerReadyResponse", ready=self._service.is_ready)

    async def _server_metadata(self, call: _Call) -> bytes:
        extensions = list(EXTENSIONS)
        return _message("ServerMetadataResponse", name=MODEL, version=self._service.version, extensions=extensions)

    async def _model_ready(self, call: _Call) -> bytes:
        await self._require_model(call, "ModelReadyRequest")
        return _message("ModelReadyResponse", ready=self._service.is_ready)

    async def _model_metadata(self, call: _Call) -> bytes:
        await self._require_model(call, "ModelMetadataRequest")
        fields = self._service.metadata()
        return _message("ModelMetadataResponse", **{k: v for k, v in fields.items() if k != "parameters"})

    async def _repository_index(self, call: _Call) -> bytes:
        request = await self._small_message(call, "RepositoryIndexRequest")
        models = self._service.repository_index(only_ready=request.ready)
        return _message("RepositoryIndexResponse", models=[message_type("ModelIndex")(**entry) for entry in models])

    async def _repository_load(self, call: _Call) -> bytes:
        request = await self._small_message(call, "RepositoryModelLoadRequest")
        require_model(request.model_name, "", known=(MODEL, MODEL_VERSION))
        if request.parameters:
            raise no_load_parameters()
        await self._service.load()
        return _message("RepositoryModelLoadResponse")

    async def _small_message(self, call: _Call, kind: str) -> Any:
        async with self._readers:
            return read_message(kind, await call.read(monotonic() + self._service.settings.timeout_s))

    async def _require_model(self, call: _Call, kind: str) -> None:
        request = await self._small_message(call, kind)
        require_model(request.name, request.version, known=(MODEL, MODEL_VERSION))

    async def _infer(self, call: _Call) -> bytes:
        remaining = call.context.time_remaining()
        seconds = self._service.settings.timeout_s
        deadline = monotonic() + (seconds if remaining is None else min(seconds, remaining))
        self._service.admit()
        try:
            name, version, request = await asyncio.to_thread(read_infer_request, await call.read(deadline))
            require_model(name, version, known=(MODEL, MODEL_VERSION))
            self._service.require_outputs(request)
            case = await asyncio.to_thread(case_of_tensors, request)
            never: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # gRPC cancels this call instead
            served = await self._service.predict(case, deadline=deadline, gone=never)
            if not isinstance(served.result, Prediction):
                raise served.result.to_error()
            head = {"model_name": MODEL, "model_version": MODEL_VERSION}
            return write_infer_response(head, self._service.tensors(served), request)
        finally:
            self._service.leave()


class _Call:
    """One call: its message is read at most once."""

    def __init__(self, context: Any, service: PredictionService) -> None:
        self.context, self._idle_s = context, service.settings.idle_s
        self.size: int | None = None
        """Bytes of the message; None: it was not read."""

    async def read(self, deadline: float) -> bytes:
        """Return the message.

        Raises:
            RequestError: `body-timeout`; `bad-request`: there is none.
        """
        try:
            data = await asyncio.wait_for(self.context.read(), max(0.0, min(self._idle_s, deadline - monotonic())))
        except TimeoutError as error:
            raise RequestError(
                "body-timeout", "the request was not sent completely in time", fix="send it again"
            ) from error
        if not isinstance(data, bytes):
            raise RequestError("bad-request", "the request has no message", fix="send the message of the protocol")
        self.size = len(data)
        return data


def _credentials(certificate: Path, key: Path, client_ca: Path | None) -> Any:
    read = partial(read_bytes, max_bytes=CERTIFICATE_BYTES)
    return grpc.ssl_server_credentials(
        [(read(key), read(certificate))],
        root_certificates=None if client_ca is None else read(client_ca),
        require_client_auth=client_ca is not None,
    )


def _message(kind: str, **fields: Any) -> bytes:
    serialized: bytes = message_type(kind)(**fields).SerializeToString()
    return serialized


def _status(error: RequestError | InputRejectedError) -> grpc.StatusCode:
    return STATUS_OF[error.code] if isinstance(error, RequestError) else REJECTED


def _trailing(error: RequestError | InputRejectedError) -> tuple[tuple[str, str | bytes], ...]:
    """Code, issues that fit, and when to try again."""
    if isinstance(error, RequestError):
        again = error.headers.get("retry-after")
        return ((CODE_KEY, error.code), *(() if again is None else (("retry-after", again),)))
    issues = [issue.to_dict() for issue in error.issues]
    while len(text := json.dumps(issues).encode()) > MAX_ISSUES_BYTES:
        issues.pop()
    return (CODE_KEY, error.code), (ISSUES_KEY, text)
