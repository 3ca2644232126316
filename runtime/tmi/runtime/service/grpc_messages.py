"""Messages of the Open Inference Protocol over gRPC: tensors of a request, and a response.

The message types are those of the protocol's `open_inference_grpc.proto` (Apache-2.0) and of its model repository
extension, as NVIDIA's clients send them, built from a table: no generated
code that fits one version of protobuf only. Responses hold raw data, which NVIDIA's client reads alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from tmi.runtime.service.protocol import (
    BYTES,
    MAX_TENSORS,
    SHARED_MEMORY,
    InferRequest,
    Tensor,
    Values,
    checked_tensor,
    raw_data,
    raw_values,
    require_known,
)
from tmi.runtime.service.request_errors import RequestError, bad_request
from tmi.toolkit.storage.terminal_text import printable

PACKAGE = "inference"
_TENSOR = "string name, string datatype, int64* shape"
_MESSAGES: Mapping[str, str] = MappingProxyType(
    {
        "ServerLiveResponse": "bool live",
        "ServerReadyResponse": "bool ready",
        "ModelReadyRequest": "string name, string version",
        "ModelReadyResponse": "bool ready",
        "ServerMetadataResponse": "string name, string version, string* extensions",
        "ModelMetadataRequest": "string name, string version",
        "TensorMetadata": _TENSOR,
        "ModelMetadataResponse": (
            "string name, string* versions, string platform, TensorMetadata* inputs, TensorMetadata* outputs"
        ),
        "InferParameter": (
            "bool? bool_param, int64? int64_param, string? string_param, double? double_param, uint64? uint64_param"
        ),
        "InferTensorContents": (
            "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, "
            "uint64* uint64_contents, float* fp32_contents, double* fp64_contents, bytes* bytes_contents"
        ),
        "InferInputTensor": f"{_TENSOR}, InferParameter@ parameters, InferTensorContents contents",
        "InferRequestedOutputTensor": "string name, InferParameter@ parameters",
        "ModelInferRequest": (
            "string model_name, string model_version, string id, InferParameter@ parameters, "
            "InferInputTensor* inputs, InferRequestedOutputTensor* outputs, bytes* raw_input_contents"
        ),
        "InferOutputTensor": f"{_TENSOR}, InferParameter@ parameters, InferTensorContents contents",
        "ModelInferResponse": (
            "string model_name, string model_version, string id, InferParameter@ parameters, "
            "InferOutputTensor* outputs, bytes* raw_output_contents"
        ),
        "RepositoryIndexRequest": "string repository_name, bool ready",
        "ModelIndex": "string name, string version, string state, string reason",
        "RepositoryIndexResponse": "ModelIndex* models",
        "ModelRepositoryParameter": "bool? bool_param, int64? int64_param, string? string_param, bytes? bytes_param",
        "RepositoryModelLoadRequest": "string repository_name, string model_name, ModelRepositoryParameter@ parameters",
        "RepositoryModelLoadResponse": "",
    }
)
"""Message -> its fields, whose numbers count from 1. `*`: repeated; `?`: one of them; `@`: map from string."""


@cache
def message_type(name: str) -> Any:
    """Class of a message."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


@cache
def _pool() -> Any:
    """A pool of its own: a program may hold another definition of the same package."""
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="open_inference_grpc.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if "?" in fields:
            message.oneof_decl.add(name="parameter_choice")
        for number, field in enumerate(fields.split(", ") if fields else (), start=1):
            _add_field(message, number, *field.split(" "))
    pool.Add(file)
    return pool


def _add_field(message: Any, number: int, kind: str, name: str) -> None:
    base, mark = kind.rstrip("*?@"), kind[-1]
    proto = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=number)
    field.label = proto.LABEL_REPEATED if mark in "*@" else proto.LABEL_OPTIONAL
    if mark == "@":
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add_field(entry, 1, "string", "key")
        _add_field(entry, 2, base, "value")
        base = f"{message.name}.ParametersEntry"
    if base[0].isupper():
        field.type, field.type_name = proto.TYPE_MESSAGE, f".{PACKAGE}.{base}"
    else:
        field.type = getattr(proto, f"TYPE_{base.upper()}")
    if mark == "?":
        field.oneof_index = 0


def read_message(name: str, data: bytes) -> Any:
    """Parse a message.

    Raises:
        RequestError: `bad-request`: it is none of this type.
    """
    message = message_type(name)()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise bad_request(f"the request is no {name}", fix="send the message of the protocol") from error
    return message


def read_infer_request(data: bytes) -> tuple[str, str, InferRequest]:
    """Return name and version of the model, and the request of an inference.

    Raises:
        RequestError: `bad-request`: it does not follow the protocol.
    """
    message = read_message("ModelInferRequest", data)
    if max(len(message.inputs), len(message.outputs)) > MAX_TENSORS:
        raise bad_request("the request has too many tensors", fix=f"give at most {MAX_TENSORS}")
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise bad_request(
            "raw_input_contents has another number of entries than inputs", fix="give one for each input, in order"
        )
    inputs: dict[str, Tensor] = {}
    for number, entry in enumerate(message.inputs):
        tensor = _tensor(entry, raw[number] if raw else None)
        if tensor.name in inputs:
            raise bad_request(f"input {tensor.name} is given twice", fix="give each input once")
        inputs[tensor.name] = tensor
    for output in message.outputs:
        if {SHARED_MEMORY, "classification"} & set(output.parameters):
            raise bad_request("an output uses shared memory or classification", fix="leave these parameters out")
    request = InferRequest(
        id=message.id,
        inputs=inputs,
        outputs={output.name: True for output in message.outputs} or None,
        binary=True,
        parameters=_parameters(message.parameters),
    )
    return message.model_name, message.model_version, request


def _tensor(entry: Any, raw: bytes | None) -> Tensor:
    def values(name: str, datatype: str) -> Values:
        if raw is not None:
            if entry.HasField("contents"):
                raise bad_request(f"input {name} has raw data and contents", fix="give one of the two")
            return raw_values(raw, name, datatype)
        if datatype == BYTES:
            return tuple(entry.contents.bytes_contents)
        return np.array(entry.contents.fp64_contents, dtype=np.float64)

    return checked_tensor(entry.name, entry.datatype, list(entry.shape), _parameters(entry.parameters), values)


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in given.items()}
    return {name: getattr(given[name], choice) for name, choice in chosen.items() if choice is not None}


def write_infer_response(head: Mapping[str, str], tensors: Sequence[Tensor], request: InferRequest) -> bytes:
    """Return the message of a response with the wanted tensors.

    Args:
        head: name and version of the model.
        tensors: every output.
        request: the request; it says which outputs are wanted.

    Raises:
        RequestError: an unknown output is wanted.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    wanted = list(by_name if request.outputs is None else request.outputs)
    require_known(dict.fromkeys(wanted), by_name, kind="output")
    response = message_type("ModelInferResponse")(**head, id=request.id)
    for tensor in map(by_name.__getitem__, wanted):
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(raw_data(tensor))
    serialized: bytes = response.SerializeToString()
    return serialized


def require_model(name: str, version: str, *, known: tuple[str, str]) -> None:
    """Raise if a request is for another model; no version means the served one.

    Raises:
        RequestError: `not-found`.
    """
    if name != known[0] or version not in ("", known[1]):
        what = f"the service has no model {printable(name)[:80]} of this version"
        raise RequestError("not-found", what, fix=f"call model {known[0]}, version {known[1]}")
