"""A service on a free port of this machine in a thread, and requests to it by the standard library alone."""

from __future__ import annotations

import base64
import http.client
import json
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmi.runtime.service.app import build_app
from tmi.runtime.service.grpc_endpoint import GrpcEndpoint
from tmi.runtime.service.protocol import BINARY_HEADER
from tmi.runtime.service.served_model import OpenAgain, ServedModel
from tmi.runtime.service.server import Listener, bind
from tmi.runtime.service.service import PredictionService, ServiceSettings
from tmi.runtime.serving.predictor import Predictor

INFER = "/v2/models/tmi/infer"
FILES = {"ct": "ct.nii.gz", "liver": "liver.nii.gz", "radiomics": "radiomics.csv", "clinical": "clinical.json"}


@dataclass(frozen=True)
class Response:
    """One response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as a document."""
        return json.loads(self.body)

    @property
    def tensors(self) -> dict[str, Any]:
        """Data of each output; of a binary response the raw bytes."""
        size = self.headers.get(BINARY_HEADER)
        if size is None:
            return {output["name"]: output["data"] for output in self.json["outputs"]}
        at, found = int(size), {}
        for output in json.loads(self.body[:at])["outputs"]:
            if "data" in output:
                found[output["name"]] = output["data"]
                continue
            count = output["parameters"]["binary_data_size"]
            found[output["name"]], at = self.body[at : at + count], at + count
        assert at == len(self.body)
        return found


@dataclass
class Client:
    """Sends requests, each on a connection of its own."""

    port: int
    service: PredictionService
    listener: Listener
    log: list[dict[str, Any]] = field(default_factory=list)
    grpc_port: int = 0

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def __call__(self, path: str, body: Any = None, *, method: str | None = None, **headers: str) -> Response:
        """Send a request; `_` in the name of a header is `-`."""
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if body is None else "POST"), path, body=body, headers=named)
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Response(response.status, received, response.read())
        finally:
            connection.close()

    def infer(self, inputs: Mapping[str, Any], **parameters: Any) -> Response:
        """Send a request of the protocol with binary data."""
        body, size = binary_request(inputs, **parameters)
        return self(INFER, body, **{BINARY_HEADER: str(size)})

    def metric(self, name: str) -> float:
        """Value of a metric, with its labels as they are written."""
        lines = self("/metrics").body.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


@contextmanager
def running_service(
    predictor: Predictor,
    *,
    predict: Callable[..., Iterator[Any]] | None = None,
    on_listening: Callable[[int], None] = lambda port: None,
    open_again: OpenAgain | None = None,
    over_grpc: bool = False,
    grpc_tls: tuple[Path, Path, Path | None] | None = None,
    **settings: Any,
) -> Iterator[Client]:
    """Serve with a predictor, or with another function that predicts; ends by draining.

    `on_listening` gets the port when the service says that it listens.
    """

    def exact(cases: Sequence[Any]) -> Iterator[Any]:
        return predictor.stream(cases, exact=True)

    log: list[dict[str, Any]] = []

    def record(level: str, fields: Mapping[str, Any]) -> None:
        log.append({"level": level, **fields})

    service = PredictionService(
        ServedModel(bundle=predictor.bundle, engine=predictor.engine_record, predict=predict or exact),
        settings=ServiceSettings(**settings),
        version="1.2.3",
        open_again=open_again,
        log=record,
    )
    endpoint = GrpcEndpoint(service, log=record, bound=bind("127.0.0.1", 0), tls=grpc_tls) if over_grpc else None
    listener = Listener(build_app(service, log=record), service, grpc=endpoint)
    bound = bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    listening = threading.Event()

    def announce() -> None:
        on_listening(port)
        listening.set()

    thread = threading.Thread(target=listener.serve_on, args=(bound,), kwargs={"on_listening": announce})
    thread.start()
    while not listening.is_set():
        assert thread.is_alive()
        thread.join(0.005)
    try:
        yield Client(port, service, listener, log, 0 if endpoint is None else endpoint.port)
    finally:
        listener.drain()
        thread.join(60)
        assert not thread.is_alive()


def files_of(folder: Path, *names: str) -> dict[str, bytes]:
    """Inputs of the model that a case folder has, or those that are named."""
    return {name: (folder / file).read_bytes() for name, file in FILES.items() if name in (names or FILES)}


def binary_request(inputs: Mapping[str, Any], **parameters: Any) -> tuple[bytes, int]:
    """Body of a request with binary data, and the length of its JSON; an array of numbers is FP64."""
    entries, blobs = [], []
    for name, value in inputs.items():
        is_bytes = isinstance(value, bytes)
        blob = raw_element(value)
        shape = [1, 1] if is_bytes else [1, len(value)]
        blobs.append(blob)
        entries.append(
            {
                "name": name,
                "datatype": "BYTES" if is_bytes else "FP64",
                "shape": shape,
                "parameters": {"binary_data_size": len(blob)},
            }
        )
    text = json.dumps({"inputs": entries, **parameters}).encode()
    return b"".join((text, *blobs)), len(text)


def raw_element(value: Any) -> bytes:
    """Raw data of one element of BYTES, or of an array of numbers."""
    if isinstance(value, bytes):
        return struct.pack("<I", len(value)) + value
    data: bytes = value.astype("<f8").tobytes()
    return data


def json_request(inputs: Mapping[str, bytes], **parameters: Any) -> bytes:
    """Body of a request in JSON alone: images in base64, other files as text."""
    entries = [
        {
            "name": name,
            "datatype": "BYTES",
            "shape": [1],
            "data": [base64.b64encode(value).decode() if name in ("ct", "liver") else value.decode()],
        }
        for name, value in inputs.items()
    ]
    return json.dumps({"inputs": entries, **parameters}).encode()


def form(parts: Mapping[str, bytes], *, filenames: Mapping[str, str] | None = None) -> tuple[bytes, str]:
    """Body of a form and its content type."""
    boundary = uuid.uuid4().hex
    pieces = []
    for name, data in parts.items():
        filename = f'; filename="{filenames[name]}"' if filenames and name in filenames else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'
        pieces += [head.encode(), data, b"\r\n"]
    return b"".join((*pieces, f"--{boundary}--\r\n".encode())), f"multipart/form-data; boundary={boundary}"
