"""Open Inference Protocol v2: tensors of a request, from JSON or its binary extension, and tensors of a response.

With the header `Inference-Header-Content-Length` the body is a JSON object of that many bytes and the raw data of the
tensors behind it, in order. An element of type BYTES is its length, four bytes in little endian, and its bytes.
Messages do not quote the request, which holds patient data.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.service.request_errors import RequestError, bad_request
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.terminal_text import printable

BYTES, FP64 = "BYTES", "FP64"
BINARY_HEADER = "inference-header-content-length"
MAX_TENSORS = 32
"""Largest number of tensors of a request."""
MAX_AXES = 4
"""Largest number of axes of a tensor."""
SHARED_MEMORY = "shared_memory_region"
Values = tuple[bytes, ...] | NDArray[np.float64]
"""Elements of `BYTES`, or the numbers of `FP64` without their shape; NaN for null."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor."""

    name: str
    """Its name."""
    datatype: str
    """`BYTES` or `FP64`."""
    shape: tuple[int, ...]
    """Its shape."""
    values: Values
    """Its elements."""


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A request of an inference."""

    id: str | None
    """Its `id`, which the response repeats."""
    inputs: Mapping[str, Tensor]
    """Name -> tensor."""
    outputs: Mapping[str, bool] | None
    """Name of each wanted output -> whether as binary data; None: every output."""
    binary: bool
    """Whether outputs that are not named are binary data."""
    parameters: Mapping[str, Any]
    """Parameters of the request."""


def parse_request(body: bytes, *, json_bytes: int | None, base64_names: Sequence[str] = ()) -> InferRequest:
    """Parse the body of a request.

    Args:
        body: the body.
        json_bytes: value of the header `Inference-Header-Content-Length`; None: the whole body is JSON.
        base64_names: inputs of type BYTES whose elements in JSON are base64; those of others are text.

    Raises:
        RequestError: the body does not follow the protocol.
    """
    if json_bytes is not None and not 0 <= json_bytes <= len(body):
        raise bad_request(
            "Inference-Header-Content-Length is not the length of a part of the body", fix="give the bytes of the JSON"
        )
    binary = memoryview(b"" if json_bytes is None else body)[json_bytes or 0 :]
    document = parse_object(body if json_bytes is None else body[:json_bytes])
    parameters = _object(document, "parameters")
    inputs: dict[str, Tensor] = {}
    for entry in _objects(document, "inputs"):
        tensor, used = _tensor(entry, binary, base64_names)
        binary = binary[used:]
        if tensor.name in inputs:
            raise bad_request(f"input {tensor.name} is given twice", fix="give each input once")
        inputs[tensor.name] = tensor
    if len(binary):
        raise bad_request("the binary data is longer than its tensors", fix="give binary_data_size of each tensor")
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise bad_request("id is not a text", fix="give the id as a text")
    as_binary = parameters.get("binary_data_output", False)
    return InferRequest(
        id=request_id,
        inputs=inputs,
        outputs=_outputs(document, default=as_binary is True) if "outputs" in document else None,
        binary=as_binary is True,
        parameters=parameters,
    )


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        RequestError: it is none.
    """
    try:
        document = parse_json(data)
    except DocumentError as error:
        raise bad_request(f"the request {error.reason}", fix="send the JSON object of the protocol") from error
    if not isinstance(document, dict):
        raise bad_request("the request is no JSON object", fix="send the JSON object of the protocol")
    return document


def _object(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = entry.get(key, {})
    if not isinstance(value, dict):
        raise bad_request(f"{key} is no object", fix=f"give {key} as a JSON object")
    return value


def _objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = document.get(key)
    if not isinstance(entries, list) or len(entries) > MAX_TENSORS or not all(isinstance(e, dict) for e in entries):
        raise bad_request(f"{key} is no list of tensors", fix=f"give {key} as a list of at most {MAX_TENSORS} objects")
    if not all(isinstance(e.get("name"), str) for e in entries):
        raise bad_request(f"an entry of {key} has no name", fix="give each tensor its name")
    return entries


def _outputs(document: Mapping[str, Any], *, default: bool) -> dict[str, bool]:
    wanted = {}
    for entry in _objects(document, "outputs"):
        parameters = _object(entry, "parameters")
        if SHARED_MEMORY in parameters or "classification" in parameters:
            raise bad_request("an output uses shared memory or classification", fix="leave these parameters out")
        wanted[entry["name"]] = bool(parameters.get("binary_data", default))
    return wanted


def _tensor(entry: Mapping[str, Any], binary: memoryview, base64_names: Sequence[str]) -> tuple[Tensor, int]:
    """Return a tensor and the number of bytes of binary data that it used."""
    parameters, size = _object(entry, "parameters"), None

    def values(name: str, datatype: str) -> Values:
        nonlocal size
        if (size := parameters.get("binary_data_size")) is not None:
            if type(size) is not int or not 0 <= size <= len(binary) or "data" in entry:
                raise bad_request(f"input {name} has no such binary data", fix="send data or binary_data_size bytes")
            return raw_values(bytes(binary[:size]), name, datatype)
        flat = _flat(entry.get("data"), name)
        is_base64 = name in base64_names or parameters.get("content_type") == "base64"
        return _texts(flat, name, is_base64=is_base64) if datatype == BYTES else _numbers(flat, name)

    tensor = checked_tensor(entry["name"], entry.get("datatype"), entry.get("shape"), parameters, values)
    return tensor, size or 0


def checked_tensor(
    name: str, datatype: Any, shape: Any, parameters: Mapping[str, Any], values: Callable[[str, str], Values]
) -> Tensor:
    """Return an input.

    Args:
        name: its name, of any characters.
        datatype: its datatype, as the request gives it.
        shape: its shape, as the request gives it.
        parameters: its parameters.
        values: returns its elements; called with a printable name and the datatype.

    Raises:
        RequestError: one of them does not follow the protocol, or the number of elements is not that of the shape.
    """
    name = printable(name)[:80]
    if datatype not in (BYTES, FP64):
        raise bad_request(f"input {name} has a datatype that is not read", fix="see the metadata of the model")
    is_shape = isinstance(shape, list) and len(shape) <= MAX_AXES
    if not is_shape or not all(type(n) is int and 0 <= n <= 2**20 for n in shape):
        raise bad_request(f"input {name} has no usable shape", fix="give the shape of the model's metadata")
    if SHARED_MEMORY in parameters:
        raise bad_request(f"input {name} is in shared memory", fix="send the data in the request")
    elements = values(name, datatype)
    if len(elements) != math.prod(shape):
        raise bad_request(f"input {name} has another number of elements than its shape", fix="correct data or shape")
    return Tensor(name=name, datatype=datatype, shape=tuple(shape), values=elements)


def raw_values(raw: bytes, name: str, datatype: str) -> Values:
    """Elements of raw data.

    Raises:
        RequestError: it is none of this datatype.
    """
    return _bytes_elements(raw, name) if datatype == BYTES else _raw_numbers(raw, name)


def _flat(data: Any, name: str) -> list[Any]:
    """Elements of nested lists in row-major order; `parse_json` bounds the nesting."""
    if not isinstance(data, list):
        raise bad_request(f"input {name} has no data", fix="give its data as a list, or binary_data_size")
    if not any(isinstance(item, list) for item in data):
        return data
    return [value for item in data for value in (_flat(item, name) if isinstance(item, list) else [item])]


def _texts(flat: Sequence[Any], name: str, *, is_base64: bool) -> tuple[bytes, ...]:
    if not all(isinstance(item, str) for item in flat):
        raise bad_request(f"input {name} has an element that is no text", fix="give each element as a text")
    if not is_base64:
        return tuple(item.encode() for item in flat)
    try:
        return tuple(base64.b64decode(item, validate=True) for item in flat)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"input {name} is not base64", fix="encode the file, or send it as binary data") from error


def _numbers(flat: Sequence[Any], name: str) -> NDArray[np.float64]:
    if not all(item is None or type(item) in (int, float) for item in flat):
        raise bad_request(f"input {name} has an element that is no number", fix="give numbers, null where missing")
    return np.array([math.nan if item is None else float(item) for item in flat], dtype=np.float64)


def _raw_numbers(raw: bytes, name: str) -> NDArray[np.float64]:
    if len(raw) % 8:
        raise bad_request(f"input {name} is no whole number of float64", fix="send eight bytes for each number")
    return np.frombuffer(raw, dtype="<f8").astype(np.float64)


def _bytes_elements(raw: bytes, name: str) -> tuple[bytes, ...]:
    elements, at = [], 0
    while at < len(raw):
        end = at + 4 + (struct.unpack_from("<I", raw, at)[0] if at + 4 <= len(raw) else len(raw))
        if end > len(raw):
            raise bad_request(
                f"input {name} ends within an element", fix="send four bytes of length, then the bytes, of each element"
            )
        elements.append(raw[at + 4 : end])
        at = end
    return tuple(elements)


def write_response(
    head: Mapping[str, Any], tensors: Sequence[Tensor], request: InferRequest
) -> tuple[bytes, dict[str, str]]:
    """Return the body of a response with the wanted tensors, and its headers.

    Args:
        head: name and version of the model.
        tensors: every output.
        request: the request; it says which outputs are wanted, and in which form.

    Raises:
        RequestError: an unknown output is wanted.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    wanted = dict.fromkeys(by_name, request.binary) if request.outputs is None else request.outputs
    require_known(wanted, by_name, kind="output")
    entries, blobs = [], []
    for name, as_binary in wanted.items():
        tensor = by_name[name]
        entry: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if as_binary:
            blobs.append(raw_data(tensor))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = _json_values(tensor)
        entries.append(entry)
    identity = {} if request.id is None else {"id": request.id}
    text = json.dumps({**head, **identity, "outputs": entries}, allow_nan=False).encode()
    if not blobs:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", BINARY_HEADER: str(len(text))}
    return b"".join((text, *blobs)), headers


def require_known(names: Mapping[str, Any], known: Mapping[str, Any], *, kind: str) -> None:
    """Raise if a name is not known.

    Raises:
        RequestError: it is not.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        what = f"the model has no {kind} {printable(unknown[0])[:80]}"
        raise RequestError("bad-request", what, fix=f"its {kind}s are {', '.join(known)}")


def raw_data(tensor: Tensor) -> bytes:
    """Raw data of a tensor, as the binary extension and gRPC send it."""
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.astype("<f8").tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in tensor.values)


def _json_values(tensor: Tensor) -> list[Any]:
    if isinstance(tensor.values, np.ndarray):
        return [float(value) for value in tensor.values]
    return [value.decode() for value in tensor.values]
