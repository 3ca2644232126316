"""`tmi serve`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmi.runtime.cli.predict import TrustLevel
from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import limit_to_cores, require_paths, resolve_bundle
from tmi.toolkit.errors import UsageError

if TYPE_CHECKING:
    from socket import socket
    from ssl import SSLContext

    from tmi.runtime.bundle.reader import Bundle
    from tmi.runtime.service.served_model import OpenAgain
    from tmi.runtime.service.service import ServiceSettings
    from tmi.runtime.serving.predictor import Predictor

INTERRUPTED = 130
"""Exit code after a second signal."""


def serve(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="The bundle. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8080,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of gRPC; 0: a free one. Default: no gRPC.", show_default=False),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="auto; on the CPU openvino, openvino-bf16, openvino-int8, onnx, onnx-int8, torchscript, eager; "
            "on a GPU trt, trt-rtx, torch-trt, onnx-cuda, onnx-cuda-fp16.",
            autocompletion=completes("auto", of="tmi.runtime.engines.registry:ENGINES"),
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="auto, or int8, bf16 or fp32 for engines that compute in it only.",
            autocompletion=completes(of="tmi.runtime.engines.precision:ALLOWED_PRECISIONS"),
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the engine. Default: all cores.", show_default=False)
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (PEM) that must have signed the bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
    trust_level: TrustLevel = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Cases taken from the queue together.")] = 4,
    max_delay_ms: Annotated[float, typer.Option(min=0, help="Milliseconds that a case waits for more.")] = 0,
    queue: Annotated[int, typer.Option(min=0, help="Cases that may wait; more get status 429.")] = 16,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds from a request to its response.")] = 300,
    max_request_mib: Annotated[float, typer.Option(min=0.001, help="Largest body of a request in MiB.")] = 256,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that requests must carry. Default: none.", show_default=False),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate of the server (PEM). Default: no TLS.", show_default=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Private key of the certificate (PEM).", show_default=False)
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="Authority (PEM) that must have issued the certificate of every client.", show_default=False),
    ] = None,
) -> None:
    """Serve predictions of a bundle over HTTP and gRPC (Open Inference Protocol v2). For research use only.

    Cases stay in memory. SIGTERM and Ctrl-C end the service when accepted requests have their responses (exit code 0);
    a second signal ends it at once (exit code 130). SIGHUP, where no terminal is the input, loads the bundle again and
    swaps it if it passes every check. --log-json logs each request as one JSON object.

    Examples:

        tmi serve ./bundle
        tmi serve ./bundle --port 8080 --grpc-port 8001
        tmi serve ./bundle --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem --log-json
    """
    import uvicorn  # noqa: F401 - a missing extra is reported before the bundle is opened

    from tmi.runtime.service.access import read_token
    from tmi.runtime.service.served_model import open_replacement
    from tmi.runtime.service.server import LOOPBACK, bind, tls_context
    from tmi.runtime.service.service import ServiceSettings
    from tmi.runtime.serving.predictor import Predictor

    require_paths(
        ("token file", token_file), ("certificate", tls_cert), ("key", tls_key), ("client authority", tls_client_ca)
    )
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("a certificate needs its key", fix="give both --tls-cert and --tls-key")
    if tls_client_ca is not None and tls_cert is None:
        raise UsageError("--tls-client-ca has no effect without TLS", fix="give --tls-cert and --tls-key")
    threads = limit_to_cores(threads, option="--threads")
    tls = None if tls_cert is None or tls_key is None else tls_context(tls_cert, tls_key, tls_client_ca)
    token = None if token_file is None else read_token(token_file)
    settings = ServiceSettings(
        max_batch=max_batch,
        max_delay_s=max_delay_ms / 1000,
        queue=queue,
        max_request_bytes=int(max_request_mib * 2**20),
        timeout_s=timeout,
        token=token,
        hosts=LOOPBACK if token is None and host in LOOPBACK else None,
    )
    if host not in LOOPBACK:
        _warn_of_open_access(host, has_token=token is not None or tls_client_ca is not None, has_tls=tls is not None)
    bundle = resolve_bundle(bundle)
    with bind(host, port) as bound, nullcontext() if grpc_port is None else bind(host, grpc_port) as grpc_bound:
        address = f"{'http' if tls is None else 'https'}://{_netloc(host)}:{bound.getsockname()[1]}"
        grpc_tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key, tls_client_ca)
        with Predictor.open(
            bundle,
            engine=engine,
            precision=precision,
            threads=threads,
            key=key,
            trust_level=trust_level,
            log=partial(echo, err=True),
        ) as predictor:
            open_predictor = partial(_open_predictor, threads=threads, trust_level=trust_level)
            open_again = partial(open_replacement, bundle, key, open_predictor)
            _run(predictor, open_again, bound, address, grpc_bound, settings=settings, tls=tls, grpc_tls=grpc_tls)


def _open_predictor(bundle: Bundle, engine: str, *, threads: int | None, trust_level: float | None) -> Predictor:
    """Open a bundle that takes the place of the running one, on the same engine."""
    from tmi.runtime.serving.predictor import Predictor

    log = partial(echo, err=True)
    return Predictor.open(bundle, engine=engine, threads=threads, trust_level=trust_level, log=log)


def _netloc(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _warn_of_open_access(host: str, *, has_token: bool, has_tls: bool) -> None:
    missing = [*(() if has_token else ("no token",)), *(() if has_tls else ("no TLS",))]
    if missing:
        echo(
            f"warning: {host} is reached from other machines, and the service has {' and '.join(missing)}",
            "  fix: give --token-file, --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy that has them",
            err=True,
            level=logging.WARNING,
        )


def _run(
    predictor: Predictor,
    open_again: OpenAgain,
    bound: socket,
    address: str,
    grpc_bound: socket | None,
    *,
    settings: ServiceSettings,
    tls: SSLContext | None,
    grpc_tls: tuple[Path, Path, Path | None] | None,
) -> None:
    """Serve until a signal; the self-test has passed."""
    from importlib.metadata import version

    from tmi.runtime.service.app import build_app
    from tmi.runtime.service.served_model import ServedModel
    from tmi.runtime.service.server import Listener
    from tmi.runtime.service.service import PredictionService

    record, bundle = predictor.engine_record, predictor.bundle
    echo(f"engine {record.name} in {record.precision} ({record.reason})", err=True)
    service = PredictionService(
        ServedModel.of_predictor(predictor),
        settings=settings,
        version=version("tmi-clnet"),
        open_again=open_again,
        log=_log,
    )
    app = build_app(service, log=_log)
    grpc = None
    if grpc_bound is not None:
        from tmi.runtime.service.grpc_endpoint import GrpcEndpoint

        grpc = GrpcEndpoint(service, log=_log, bound=grpc_bound, tls=grpc_tls)
    listener = Listener(
        app,
        service,
        tls=tls,
        grpc=grpc,
        on_second_signal=lambda: os._exit(INTERRUPTED),
        load_on_hangup=hasattr(signal, "SIGHUP") and not sys.stdin.isatty(),
    )
    over_grpc = "" if grpc is None else f", and over gRPC at {grpc.address}"
    announce = partial(
        echo,
        f"serving {bundle.folder} at {address}{over_grpc} until SIGTERM or Ctrl-C",
        err=True,
        event="serving",
        address=address,
        bundle=bundle.digest,
        engine=record.name,
        grpc_address=None if grpc is None else grpc.address,
    )
    listener.serve_on(bound, on_listening=announce)
    echo("the service has ended; every accepted request has its response", err=True, event="ended")


def _log(level: str, fields: Mapping[str, Any]) -> None:
    """Log a request: with `--log-json` as its fields, else as a line."""
    text = " ".join(f"{name}={value}" for name, value in fields.items() if name != "event")
    echo(text, err=True, level=logging.ERROR if level == "error" else logging.INFO, **fields)
