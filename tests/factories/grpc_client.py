"""Requests over gRPC by grpcio alone: raw messages of the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from factories.service import raw_element
from tmi.runtime.service.grpc_messages import message_type


@dataclass(frozen=True)
class Reply:
    """Status of a call, its message, and its trailing metadata."""

    status: str
    message: Any
    details: str
    trailing: Mapping[str, Any]

    @property
    def code(self) -> str | None:
        """Code of the error."""
        return self.trailing.get("tmi-code")

    @property
    def issues(self) -> Any:
        """Issues of a rejected case."""
        return json.loads(self.trailing["tmi-issues-bin"])

    @property
    def tensors(self) -> dict[str, Any]:
        """Data of each output, as the JSON of HTTP has it."""
        found: dict[str, Any] = {}
        for output, raw in zip(self.message.outputs, self.message.raw_output_contents, strict=True):
            is_text = output.datatype == "BYTES"
            found[output.name] = [raw[4:].decode()] if is_text else np.frombuffer(raw).tolist()
            assert not is_text or int.from_bytes(raw[:4], "little") == len(raw) - 4
        return found


def call(
    port: int,
    method: str,
    request: Any = b"",
    *,
    kind: str | None = None,
    metadata: Mapping[str, str] | None = None,
    timeout: float = 60,
    compression: Any = None,
    root: bytes | None = None,
    identity: tuple[bytes, bytes] | None = None,
) -> Reply:
    """Call a method on a connection of its own; the message of the response has type `kind`."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    if root is None:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
    else:
        key, certificate = identity or (None, None)
        credentials = grpc.ssl_channel_credentials(root, key, certificate)
        channel = grpc.secure_channel(f"localhost:{port}", credentials, options=options)
    with closing(channel):
        ask = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        try:
            raw, done = ask.with_call(
                data, timeout=timeout, metadata=tuple((metadata or {}).items()), compression=compression
            )
        except grpc.RpcError as error:
            return Reply(error.code().name, None, error.details(), dict(error.trailing_metadata() or ()))
        message = message_type(kind or f"{method}Response")()
        message.ParseFromString(raw)
        return Reply("OK", message, "", dict(done.trailing_metadata()))


def infer_message(inputs: Mapping[str, Any], *, in_contents: bool = False, **fields: Any) -> Any:
    """A request of an inference; an array of numbers is FP64."""
    message = message_type("ModelInferRequest")(model_name="tmi", **fields)
    for name, value in inputs.items():
        is_bytes = isinstance(value, bytes)
        shape = [1, 1] if is_bytes else [1, len(value)]
        entry = message.inputs.add(name=name, datatype="BYTES" if is_bytes else "FP64", shape=shape)
        if not in_contents:
            message.raw_input_contents.append(raw_element(value))
        elif is_bytes:
            entry.contents.bytes_contents.append(value)
        else:
            entry.contents.fp64_contents.extend(value)
    return message


def infer(port: int, inputs: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None, **fields: Any) -> Reply:
    """Call `ModelInfer`."""
    return call(port, "ModelInfer", infer_message(inputs, **fields), metadata=metadata)
