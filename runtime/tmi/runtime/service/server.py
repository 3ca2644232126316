"""Servers of the service: socket, TLS, token, and a run that ends when accepted requests have their responses."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tmi.runtime.service.app import ObservedApp
from tmi.runtime.service.request_errors import RequestError
from tmi.runtime.service.service import PredictionService
from tmi.toolkit.errors import UsageError

if TYPE_CHECKING:
    from tmi.runtime.service.grpc_endpoint import GrpcEndpoint

BACKLOG = 256
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
"""Names of this machine."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet, so that a port in use is found before a bundle is opened.

    Raises:
        UsageError: the address does not exist here, is in use or not permitted.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"host {host} has no address here", fix="give an address of this machine: --host") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        reason = {errno.EADDRINUSE: "is in use", errno.EACCES: "is not permitted to this user"}.get(
            error.errno or 0, "cannot be bound"
        )
        raise UsageError(f"address {host}:{port} {reason}", fix="give another --port or --host") from error
    return bound


def tls_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Return the TLS settings; with the certificate of an authority every client needs a certificate of it.

    Raises:
        UsageError: a file cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password="")  # no question for a passphrase on a terminal
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(
            f"the TLS certificate, its key or the client authority cannot be used: {reason}",
            fix="give PEM files that belong together, with a key without a passphrase",
        ) from error
    return context


class Listener(uvicorn.Server):
    """A server that ends after the first SIGTERM or Ctrl-C when accepted requests have their responses.

    Args:
        app: the application.
        service: its service; it stops being ready with the first signal.
        tls: TLS settings; None: plain HTTP.
        grpc: serves over gRPC beside HTTP; None: HTTP alone.
        on_second_signal: called by a second signal.
        load_on_hangup: whether SIGHUP loads the bundle again; False: it ends the process, as a terminal's should.
    """

    def __init__(
        self,
        app: ObservedApp,
        service: PredictionService,
        *,
        tls: ssl.SSLContext | None = None,
        grpc: GrpcEndpoint | None = None,
        on_second_signal: Callable[[], None] = lambda: None,
        load_on_hangup: bool = False,
    ) -> None:
        idle_s = service.settings.idle_s

        class Protocol(H11Protocol):
            """Closes a connection whose next request does not begin, or whose header is not complete, in time."""

            _timer: asyncio.TimerHandle | None = None

            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                self._watch()

            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                self._watch()

            def _watch(self) -> None:
                """Start the timer with the first bytes of a header, and stop it with the last."""
                if not self._between_requests():
                    if self._timer is not None:
                        self._timer.cancel()
                        self._timer = None
                elif self._timer is None:
                    self._timer = self.loop.call_later(idle_s, self._close_unused)

            def _close_unused(self) -> None:
                self._timer = None
                if self._between_requests() and not self.transport.is_closing():
                    self.transport.close()

            def _between_requests(self) -> bool:
                return self.cycle is None or self.cycle.response_complete

        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=max(1, int(idle_s)),
                timeout_graceful_shutdown=int(service.settings.timeout_s) + 1,
                ssl_context_factory=None if tls is None else lambda config, default: tls,
            )
        )
        self._service, self._grpc, self._on_second_signal = service, grpc, on_second_signal
        self._on_listening: Callable[[], None] = lambda: None
        self._load_on_hangup = load_on_hangup
        self._loop: asyncio.AbstractEventLoop | None = None
        self._load: asyncio.Task[None] | None = None

    def serve_on(self, bound: socket.socket, *, on_listening: Callable[[], None] = lambda: None) -> None:
        """Serve until a signal or `drain`; returns when every accepted request has its response.

        Args:
            bound: the socket of `bind`.
            on_listening: called once clients can connect.
        """
        self._on_listening = on_listening
        asyncio.run(self.serve(sockets=[bound]))
        self._service.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then call `on_listening`: a client that is started by its message must not be rejected."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        if self._grpc is not None:
            await self._grpc.start()
        self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new request over HTTP and gRPC, and wait until accepted ones have their responses."""
        over_grpc = () if self._grpc is None else (self._grpc.stop(),)
        await asyncio.gather(super().shutdown(sockets=sockets), *over_grpc)

    def drain(self) -> None:
        """Take no new connection any more; `serve_on` returns when accepted requests have their responses."""
        self._service.draining = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second signal ends at once."""
        if self.should_exit:
            self._on_second_signal()
        self.drain()

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """Load the bundle again in the event loop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_load)

    def _begin_load(self) -> None:
        self._load = asyncio.create_task(self._load_again())

    async def _load_again(self) -> None:
        with suppress(RequestError):  # the service logs and counts it
            await self._service.load()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals meanwhile; they are not raised again at the end, so that the exit code is 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = dict.fromkeys(SIGNALS, self.handle_exit)
        if self._load_on_hangup:
            handlers[signal.SIGHUP] = self.handle_hangup
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, earlier in before.items():
                signal.signal(number, earlier)
