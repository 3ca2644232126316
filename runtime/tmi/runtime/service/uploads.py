"""Files of a request as a case in memory: tensors of the Open Inference Protocol, or parts of a form.

Nothing is decoded here: `CaseBytes` gives the files to the readers that a case folder has.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tmi.runtime.service.protocol import BYTES, FP64, InferRequest, Tensor, require_known
from tmi.runtime.service.request_errors import bad_request
from tmi.toolkit.cases.case import (
    CASE_RECORD_FILE,
    CLINICAL_FILE,
    CT_FILE,
    MASK_FILE,
    MAX_NAME_BYTES,
    RADIOMICS_FILE,
    RADIOMICS_RECORD_FILE,
    MaskLabel,
    parse_mask_label,
)
from tmi.toolkit.cases.file_bytes import CaseBytes
from tmi.toolkit.errors import UsageError
from tmi.toolkit.radiomics.table import require_features, table_text

CASE_ID, MASK_LABEL = "case_id", "mask_label"
DEFAULT_CASE_ID = "case"
"""Id of a case that is given none."""
FILE_OF: Mapping[str, str] = MappingProxyType(
    {"ct": CT_FILE, "liver": MASK_FILE, "radiomics": RADIOMICS_FILE, "clinical": CLINICAL_FILE}
)
"""Input of the model, and field of a form -> file of a case folder."""
FORM_FILES = frozenset({*FILE_OF.values(), CASE_RECORD_FILE, RADIOMICS_RECORD_FILE})
"""Names of files that a form may hold."""
IMAGES = ("ct", "liver")
"""Inputs that are no text: their elements in JSON are base64."""
MAX_PARTS = 16
"""Largest number of parts of a form."""
logging.getLogger("python_multipart").setLevel(logging.CRITICAL + 1)  # its messages quote the request


def case_of_tensors(request: InferRequest) -> CaseBytes:
    """Return the case of a request.

    Raises:
        RequestError: an input is unknown, or has another datatype or shape than the model's.
        InputRejectedError: `radiomics-value`: a feature is infinite.
    """
    require_known(request.inputs, {**FILE_OF, CASE_ID: None}, kind="input")
    case_id = _case_id(_one(request.inputs[CASE_ID])) if CASE_ID in request.inputs else DEFAULT_CASE_ID
    label = _mask_label(request.parameters.get(MASK_LABEL))
    files = {
        FILE_OF[name]: _table(tensor, case_id) if tensor.datatype == FP64 else _one(tensor)
        for name, tensor in request.inputs.items()
        if name != CASE_ID
    }
    return CaseBytes(case_id=case_id, files=files, mask_label=label)


def _one(tensor: Tensor) -> bytes:
    if tensor.datatype != BYTES or not isinstance(tensor.values, tuple) or len(tensor.values) != 1:
        raise bad_request(f"input {tensor.name} is not one element of BYTES", fix="give shape [1, 1] and BYTES")
    return tensor.values[0]


def _table(tensor: Tensor, case_id: str) -> bytes:
    """Features as the text of a radiomics.csv, whose numbers parse to the same bits."""
    if FILE_OF.get(tensor.name) != RADIOMICS_FILE or not isinstance(tensor.values, np.ndarray):
        raise bad_request(f"input {tensor.name} is not one element of BYTES", fix="give shape [1, 1] and BYTES")
    return table_text(require_features(tensor.values, case_id=case_id)).encode()


def case_of_form(content_type: str, body: bytes) -> CaseBytes:
    """Return the case of a form (`multipart/form-data`).

    A part is a file of the case by the name of its field (`ct`, `liver`, `radiomics`, `clinical`, or a file name of a
    case folder), else by its file name. The fields `case_id` and `mask_label` are texts.

    Raises:
        RequestError: the body is no such form, or a part is unknown.
    """
    files: dict[str, bytes] = {}
    texts: dict[str, bytes] = {}
    for name, filename, data in _parts(content_type, body):
        file = next((known for known in (FILE_OF.get(name), name, filename) if known in FORM_FILES), None)
        if file is None and name not in (CASE_ID, MASK_LABEL):
            fix = f"name the fields {', '.join(FILE_OF)}, {CASE_ID}, {MASK_LABEL}, or the files as in a case folder"
            raise bad_request("a part of the form is no file of a case", fix=fix)
        key, into = (name, texts) if file is None else (file, files)
        if key in into:
            raise bad_request(f"the form has {key} twice", fix="give each file once")
        into[key] = data
    case_id = _case_id(texts[CASE_ID]) if CASE_ID in texts else DEFAULT_CASE_ID
    label = texts.get(MASK_LABEL)
    return CaseBytes(
        case_id=case_id,
        files=files,
        mask_label=_mask_label(None if label is None else label.decode("utf-8", errors="replace")),
    )


def _parts(content_type: str, body: bytes) -> list[tuple[str, str, bytes]]:
    """Name of the field, name of the file and content of each part."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise bad_request("the body is no form", fix="send multipart/form-data, as `curl -F` does")
    parts: list[tuple[dict[str, bytes], list[bytes]]] = []
    pending: dict[str, bytearray] = {"name": bytearray(), "value": bytearray()}

    def begin() -> None:
        if len(parts) >= MAX_PARTS:
            raise bad_request(f"the form has more than {MAX_PARTS} parts", fix="send the files of one case")
        parts.append(({}, []))

    def header_end() -> None:
        parts[-1][0][pending["name"].decode("latin-1").lower()] = bytes(pending["value"])
        pending["name"].clear()
        pending["value"].clear()

    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": begin,
                "on_header_field": lambda data, start, end: pending["name"].extend(data[start:end]),
                "on_header_value": lambda data, start, end: pending["value"].extend(data[start:end]),
                "on_header_end": header_end,
                "on_end": end,
                "on_part_data": lambda data, start, end: parts[-1][1].append(data[start:end]),
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise bad_request("the form is malformed", fix="send multipart/form-data, as `curl -F` does") from error
    if not ended:  # a file that was cut off must not be read as a whole one
        raise bad_request("the form ends before its last boundary", fix="send the whole form")
    found = []
    for headers, chunks in parts:
        _, fields = parse_options_header(headers.get("content-disposition", b""))
        name, filename = (fields.get(key, b"").decode("utf-8", errors="replace") for key in (b"name", b"filename"))
        found.append((name, filename, chunks[0] if len(chunks) == 1 else b"".join(chunks)))
    return found


def _case_id(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise bad_request("the case id is not UTF-8", fix="give a case id of printable characters") from error
    if not 0 < len(data) <= MAX_NAME_BYTES or not text.isprintable():
        raise bad_request(
            f"the case id is empty, longer than {MAX_NAME_BYTES} bytes or not printable",
            fix="give a case id of printable characters",
        )
    return text


def _mask_label(given: Any) -> MaskLabel | None:
    if given is None:
        return None
    if not isinstance(given, str | int) or isinstance(given, bool):
        raise bad_request("mask_label is no number", fix="give the label of the liver, or several: 1,2")
    try:
        return parse_mask_label(str(given).split(","))
    except UsageError as error:
        raise bad_request(error.what, fix="give the label of the liver, or several: 1,2") from error
