"""Reader of single DICOM files: recognises them and parses the headers of their slices.

Headers are read without pixels and restricted to `HEADER_TAGS`. PatientID, FrameOfReferenceUID and dates stay in memory
for comparisons between files; they are never written and never part of a message. Messages identify a file by its
position in the sorted list of paths, because file names often contain the patient's name.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tmi.toolkit.cases.case import access_error
from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.dicom.functional_groups import ENHANCED_CT_CLASSES, GROUP_TAGS, frames_of
from tmi.toolkit.storage.bounded_files import is_access_error, open_regular
from tmi.toolkit.storage.file_kinds import file_kind, is_packed

READ_ERRORS = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError,
    AssertionError, struct.error, zlib.error, InvalidDicomError,
    BytesLengthException,
)  # fmt: skip
"""Exceptions that pydicom, its decoders and highdicom raise on damaged files; they share no common base type."""
MAX_SLICE_PIXELS = 4096 * 4096
"""Limit on rows times columns in the header; a larger slice is rejected before decoding."""
MAX_FILE_BYTES = 2 * 2**30
"""Limit on the size of a file, and on the inflated size of a deflated one."""
CT_CLASSES = ENHANCED_CT_CLASSES | {"1.2.840.10008.5.1.4.1.1.2"}
"""CT, enhanced CT and legacy converted enhanced CT image storage."""
SECONDARY_CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary capture image storage; its multi-frame classes start with this UID."""
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
"""Media storage directory (DICOMDIR)."""
HEAD_BYTES = 2**12
"""Number of bytes from which DICOM is recognised."""
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Value representations with a length of 32 bits (PS3.5 7.1.2)."""
UNDEFINED_LENGTH = 0xFFFFFFFF
HEADER_TAGS = [
    "SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "ImageType", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "BitsStored", "BitsAllocated", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "ConvolutionKernel", "PatientID", "FrameOfReferenceUID",
    "AcquisitionDate", "SeriesDate", "StudyDate",
]  # fmt: skip
"""Keywords of the elements that `read_headers` parses; besides them, only functional groups are read."""


@dataclass(frozen=True, kw_only=True)
class SliceHeader:
    """Parsed header of one slice: a single-frame DICOM file, or one frame of an enhanced CT object."""

    number: int
    """Position of the file in the sorted list of paths, from 1."""
    path: Path
    syntax: str
    """Transfer syntax UID."""
    sop_class: str
    modality: str
    series_uid: str
    series_number: int | None
    image_type: tuple[str, ...]
    shape: tuple[int, int]
    """(rows, columns); zeros if the file holds no image."""
    frames: int
    samples: int
    bits: int
    slope: float | None
    intercept: float | None
    rescale_type: str
    padding: tuple[float, float] | None
    """Lowest and highest stored value that marks padding."""
    position: tuple[float, ...] | None
    """ImagePositionPatient: centre of the first pixel in LPS mm."""
    orientation: tuple[float, ...] | None
    """ImageOrientationPatient: unit direction of a row, then of a column, in LPS."""
    spacing: tuple[float, ...] | None
    """PixelSpacing: mm between rows, then mm between columns."""
    thickness: float | None
    kernel: str
    patient_id: str
    frame_of_reference: str
    date: str
    frame: int | None
    """Index of the frame in an enhanced CT object, from 0; None if the file is one slice."""
    stack: str
    """StackID of the frame, or an empty string."""

    @property
    def is_localizer(self) -> bool:
        """Whether the image is a localizer (scout view)."""
        return bool({"LOCALIZER", "SCOUT"} & set(self.image_type))

    @property
    def is_multiframe(self) -> bool:
        """Whether the file is multi-frame, without functional groups from which its frames could be read."""
        return self.frame is None and (self.frames > 1 or self.sop_class in ENHANCED_CT_CLASSES)

    @property
    def is_secondary_capture(self) -> bool:
        """Whether the image is a screen capture."""
        return f"{self.sop_class}.".startswith(f"{SECONDARY_CAPTURE_CLASS}.")

    @property
    def is_ct(self) -> bool:
        """Whether modality and storage class denote a CT image."""
        if self.modality not in ("CT", ""):
            return False
        return self.sop_class in CT_CLASSES or (self.sop_class == "" and self.modality == "CT")


def is_dicom_file(path: Path) -> bool:
    """Return whether the file starts with the DICOM preamble, or with elements of group 0002 or 0008."""
    with open_regular(path) as stream:
        start, size = stream.read(HEAD_BYTES), os.fstat(stream.fileno()).st_size
    return start[128:132] == b"DICM" or _starts_with_elements(start, size)


def _starts_with_elements(start: bytes, size: int) -> bool:
    """Return whether a file without preamble starts with up to three little-endian elements of ascending tags."""
    at, last = 0, 0
    for _ in range(3):
        if len(start) < at + 12:
            break  # the element before is long, or the file is short
        group, number, length = struct.unpack_from("<HHI", start, at)
        representation, header = start[at + 4 : at + 6], 8
        if representation in LONG_VRS:
            length, header = struct.unpack_from("<I", start, at + 8)[0], 12
        elif representation.isalpha() and representation.isupper():
            length = struct.unpack_from("<H", start, at + 6)[0]
        tag = group << 16 | number
        if tag <= last or (not at and group not in (0x0002, 0x0008)):
            return False
        if length == UNDEFINED_LENGTH:
            break
        last, at = tag, at + header + length
        if at > size:
            return False
    return last > 0


def open_dicom(path: Path, *, tags: list[str] | None = None) -> Any:
    """Read a pydicom data set; with `tags`, these elements only, without pixels.

    Raises:
        READ_ERRORS: the file is damaged or exceeds `MAX_FILE_BYTES`.
    """
    with open_regular(path, max_bytes=MAX_FILE_BYTES) as stream:
        if _is_deflated(stream):
            _require_inflatable(stream)
        if tags is None:
            return pydicom.dcmread(stream, force=True)
        return pydicom.dcmread(stream, force=True, stop_before_pixels=True, specific_tags=list(tags))


def _is_deflated(stream: BinaryIO) -> bool:
    """Return whether the file's meta information names the deflated transfer syntax; the stream is rewound."""
    meta: Any = {}
    if stream.read(132)[128:] == b"DICM":
        meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    stream.seek(0)
    return bool(meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian)


def _require_inflatable(stream: BinaryIO) -> None:
    """Reject a deflated data set that exceeds `MAX_FILE_BYTES`; pydicom would inflate it in one allocation."""
    data = stream.read()
    stream.seek(0)
    length = struct.unpack_from("<I", data, 140)[0]
    inflater, size, chunk = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[144 + length :]
    while chunk and not inflater.eof:
        size += len(inflater.decompress(chunk, 2**24))
        chunk = inflater.unconsumed_tail
        if size > MAX_FILE_BYTES:
            raise ValueError("inflates to an implausible size")


def read_headers(path: Path, number: int) -> list[SliceHeader]:
    """Read the headers of one file: one for each frame of an enhanced CT object, none for a DICOMDIR, else one.

    Raises:
        READ_ERRORS: the file cannot be parsed.
    """
    with quiet():
        data = open_dicom(path, tags=HEADER_TAGS + GROUP_TAGS)
        meta = getattr(data, "file_meta", {})
        sop_class = _text(data, "SOPClassUID") or str(meta.get("MediaStorageSOPClassUID", ""))
        if sop_class == DIRECTORY_CLASS:
            return []
        if not len(data):
            raise ValueError("no element of a slice header")
        syntax = str(meta.get("TransferSyntaxUID") or _default_syntax(data))
        frames = frames_of(data) if sop_class in ENHANCED_CT_CLASSES else []
        return [
            _parse(elements, path=path, number=number, syntax=syntax, sop_class=sop_class, frame=frame)
            for frame, elements in (enumerate(frames) if frames else [(None, data)])
        ]


def _parse(data: Any, *, path: Path, number: int, syntax: str, sop_class: str, frame: int | None) -> SliceHeader:
    return SliceHeader(
        number=number,
        path=path,
        syntax=syntax,
        sop_class=sop_class,
        modality=_code(_text(data, "Modality")),
        series_uid=_text(data, "SeriesInstanceUID"),
        series_number=_integer(data, "SeriesNumber", None),
        image_type=tuple(_code(v) for v in _items(data, "ImageType")),
        shape=(_integer(data, "Rows", 0) or 0, _integer(data, "Columns", 0) or 0),
        frames=_integer(data, "NumberOfFrames", 1) or 1,
        samples=_integer(data, "SamplesPerPixel", 1) or 1,
        bits=_integer(data, "BitsStored", 0) or _integer(data, "BitsAllocated", 0) or 0,
        slope=_number(data, "RescaleSlope"),
        intercept=_number(data, "RescaleIntercept"),
        rescale_type=_code(_text(data, "RescaleType")),
        padding=_padding(data),
        position=_numbers(data, "ImagePositionPatient", 3),
        orientation=_numbers(data, "ImageOrientationPatient", 6),
        spacing=_numbers(data, "PixelSpacing", 2),
        thickness=_number(data, "SliceThickness"),
        kernel="/".join(_items(data, "ConvolutionKernel")),
        patient_id=_text(data, "PatientID"),
        frame_of_reference=_text(data, "FrameOfReferenceUID"),
        date=_text(data, "AcquisitionDate") or _text(data, "SeriesDate") or _text(data, "StudyDate"),
        frame=frame,
        stack="" if frame is None else _text(data, "StackID"),
    )


def _default_syntax(data: Any) -> str:
    """Return the syntax of a file without a meta header: never compressed, encoding as detected by pydicom."""
    implicit, little = data.original_encoding
    return str(ImplicitVRLittleEndian if implicit or not little else ExplicitVRLittleEndian)


def unreadable_file_error(number: int, case_id: str, *, cause: BaseException | None = None) -> InputRejectedError:
    """Return the error for a file that cannot be opened (by `cause`), or is damaged."""
    if cause is not None and is_access_error(cause):
        return access_error(f"DICOM file {number} (in sorted path order)", cause, case_id)
    return InputRejectedError(
        f"DICOM file {number} (in sorted path order) cannot be read",
        code="dicom-unreadable",
        case_id=case_id,
        fix="copy the series again from the archive: the file is truncated or damaged",
    )


def other_file_error(path: Path, number: int, case_id: str) -> InputRejectedError:
    """Return the error for a file whose name ends in a suffix of DICOM, but whose content is no DICOM.

    Raises:
        OSError: it cannot be opened.
    """
    kind = file_kind(path)
    if kind is None or kind == "empty":
        error = unreadable_file_error(number, case_id)
        what = error.what if kind is None else f"DICOM file {number} (in sorted path order) is empty"
        return InputRejectedError(what, code=error.code, case_id=case_id, fix=error.fix)
    fix = "unpack it" if is_packed(kind) else "remove it from the folder if it is no slice, else export it again"
    return InputRejectedError(
        f"file {number} (in sorted path order) is named as DICOM, but is {kind}",
        code="dicom-unreadable",
        case_id=case_id,
        fix=fix,
    )


def _text(data: Any, name: str) -> str:
    value = data.get(name)
    return "" if value is None else str(value).strip()


def _code(value: str) -> str:
    """Return a valid DICOM code string (VR CS), or an empty string: other text could identify the patient."""
    value = value.strip().upper()
    return value if len(value) <= 16 and value.replace(" ", "").replace("_", "").isalnum() else ""


def _items(data: Any, name: str) -> list[str]:
    value = data.get(name)
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(v) for v in value]


def _integer(data: Any, name: str, default: int | None) -> int | None:
    value = data.get(name)
    return default if value is None or value == "" else int(value)


def _number(data: Any, name: str) -> float | None:
    value = data.get(name)
    if value is None or value == "":
        return None
    if not math.isfinite(float(value)):
        raise ValueError(name)
    return float(value)


def _numbers(data: Any, name: str, count: int) -> tuple[float, ...] | None:
    value = data.get(name)
    if value is None or value == "" or len(value) != count:
        return None
    numbers = tuple(float(v) for v in value)
    return numbers if all(math.isfinite(v) and abs(v) < 1e6 for v in numbers) else None


def _padding(data: Any) -> tuple[float, float] | None:
    value = _number(data, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(data, "PixelPaddingRangeLimit")
    return (value, value) if limit is None else (min(value, limit), max(value, limit))
