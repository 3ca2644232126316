"""Names of a label map in the extension of its NIfTI header, as TotalSegmentator and Connectome Workbench write them.

The extension is XML: `<LabelTable><Label Key="5" ...><![CDATA[liver]]></Label>...`. Extensions precede the voxels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from xml.etree import ElementTree

from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.nifti import NIFTI_READ_ERRORS, NiftiFile, open_stream, unreadable_error
from tmi.toolkit.storage.bounded_files import open_regular

MAX_EXTENSION_BYTES = 4 * 2**20
"""Extensions behind this offset are not read; the table of 117 classes takes 15 kB."""
MAX_NAMES = 4096


def read_label_names(file: NiftiFile) -> dict[int, tuple[str, ...]]:
    """Return label value -> its name in the header's extension; empty if the header has no table of names.

    Raises:
        InputRejectedError: `KIND-unreadable`: the table is damaged; `mask-label`: it gives one label two names.
    """
    try:
        with open_regular(file.path) as disk, open_stream(disk, file.path) as stream:
            data = stream.read(min(file.offset, MAX_EXTENSION_BYTES)) or b""
        tables = [part for part in _extensions(data) if b"<LabelTable" in part]
        pairs = [pair for table in tables for pair in _parse(table)]
    except (*NIFTI_READ_ERRORS, struct.error, ElementTree.ParseError) as error:
        raise unreadable_error(file.name, file.case_id, file.kind) from error
    names: dict[int, tuple[str, ...]] = {}
    for number, name in pairs:
        if names.setdefault(number, (name,)) != (name,):
            raise InputRejectedError(
                f"{file.name} gives label {number} two names in its header",
                fix="export the mask again; its header does not say which of the two names is right",
                code="mask-label",
                case_id=file.case_id,
            )
    return names


def _extensions(data: bytes) -> Iterator[bytes]:
    """Yield the contents of the extensions in the bytes before the voxels."""
    order = "<" if struct.unpack("<i", data[:4])[0] in (348, 540) else ">"
    position = struct.unpack(f"{order}i", data[:4])[0]
    if len(data) < position + 4 or data[position] == 0:  # the first of four bytes flags extensions
        return
    position += 4
    while position + 8 <= len(data):
        size = struct.unpack(f"{order}i", data[position : position + 4])[0]
        if size < 8:
            return
        yield data[position + 8 : position + size]
        position += size


def _parse(table: bytes) -> Iterator[tuple[int, str]]:
    """Yield label and name of each entry with a name.

    Raises:
        ValueError: the table has a document type (and so may have entities), no integer key, or too many entries.
    """
    text = table.strip(b"\0 \r\n\t")
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError("document type")
    labels = list(ElementTree.fromstring(text).iter("Label"))
    if len(labels) > MAX_NAMES:
        raise ValueError("too many labels")
    for label in labels:
        key, name = label.get("Key", "").strip(), (label.text or "").strip()
        if not key.removeprefix("-").isdecimal() or len(key) > 10:
            raise ValueError("key")
        if name and int(key) != 0:  # 0 is the background
            yield int(key), name
