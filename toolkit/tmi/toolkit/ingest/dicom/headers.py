"""Reader of single DICOM files: parses the header of a slice and decodes its pixels to Hounsfield units.

Headers are read without pixels and restricted to `HEADER_TAGS`. PatientID, FrameOfReferenceUID and dates stay in memory
for comparisons between files; they are never written and never part of a message. Messages identify a file by its
position in the sorted list of paths, because file names often contain the patient's name.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.errors import InputRejectedError

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
CT_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
"""CT, enhanced CT and legacy converted enhanced CT image storage."""
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
"""Media storage directory (DICOMDIR)."""
HEADER_TAGS = [
    "SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "ImageType", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "BitsStored", "BitsAllocated", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "ConvolutionKernel", "PatientID", "FrameOfReferenceUID",
    "AcquisitionDate", "SeriesDate", "StudyDate",
]  # fmt: skip
"""Keywords of the elements that `read_header` parses; no other element is read."""


@dataclass(frozen=True, kw_only=True)
class SliceHeader:
    """Parsed header of one DICOM file."""

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

    @property
    def is_localizer(self) -> bool:
        """Whether the image is a localizer (scout view)."""
        return bool({"LOCALIZER", "SCOUT"} & set(self.image_type))

    @property
    def is_ct(self) -> bool:
        """Whether modality and storage class denote a CT image."""
        if self.modality not in ("CT", ""):
            return False
        return self.sop_class in CT_CLASSES or (self.sop_class == "" and self.modality == "CT")


def is_dicom_file(path: Path) -> bool:
    """Return whether the file starts with the DICOM preamble, or with an element of group 0002 or 0008."""
    with path.open("rb") as stream:
        start = stream.read(132)
    return start[128:132] == b"DICM" or start[:4] in (b"\x08\x00\x05\x00", b"\x08\x00\x00\x00", b"\x02\x00\x00\x00")


def open_dicom(path: Path, *, tags: list[str] | None = None) -> Any:
    """Read a pydicom data set; with `tags`, these elements only, without pixels.

    Raises:
        READ_ERRORS: the file is damaged or exceeds `MAX_FILE_BYTES`.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError("file too large")
    meta = pydicom.filereader.read_file_meta_info(path) if _has_preamble(path) else {}
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        _require_inflatable(path)
    if tags is None:
        return pydicom.dcmread(path, force=True)
    return pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(tags))


def _has_preamble(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _require_inflatable(path: Path) -> None:
    """Reject a deflated data set that exceeds `MAX_FILE_BYTES`; pydicom would inflate it in one allocation."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 140)[0]
    inflater, size, chunk = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[144 + length :]
    while chunk and not inflater.eof:
        size += len(inflater.decompress(chunk, 2**24))
        chunk = inflater.unconsumed_tail
        if size > MAX_FILE_BYTES:
            raise ValueError("inflates to an implausible size")


def read_header(path: Path, number: int) -> SliceHeader | None:
    """Read the header of one file; return None for a DICOMDIR.

    Raises:
        READ_ERRORS: the file cannot be parsed.
    """
    with quiet():
        data = open_dicom(path, tags=HEADER_TAGS)
        meta = getattr(data, "file_meta", {})
        sop_class = _text(data, "SOPClassUID") or str(meta.get("MediaStorageSOPClassUID", ""))
        if sop_class == DIRECTORY_CLASS:
            return None
        if not len(data):
            raise ValueError("no element of a slice header")
        return SliceHeader(
            number=number,
            path=path,
            syntax=str(meta.get("TransferSyntaxUID") or _default_syntax(data)),
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
        )


def _default_syntax(data: Any) -> str:
    """Return the syntax of a file without a meta header: never compressed, encoding as detected by pydicom."""
    implicit, little = data.original_encoding
    return str(ImplicitVRLittleEndian if implicit or not little else ExplicitVRLittleEndian)


def decode_hu(header: SliceHeader, *, case_id: str) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Decode one slice to HU = slope * stored value + intercept (PS3.3 C.11.1).

    An integer slope and intercept give int32, others float32. JPEG lossless and 12-bit JPEG, for which pydicom has no
    free decoder, are decoded with GDCM in SimpleITK.

    Returns:
        The HU values and the padding mask, both (rows, columns).

    Raises:
        InputRejectedError: dicom-syntax, dicom-unreadable.
    """
    slope, intercept = (1.0 if header.slope is None else header.slope), header.intercept or 0.0
    try:
        with quiet():
            data = open_dicom(header.path)
            if UID(header.syntax) in JPEGTransferSyntaxes:
                stored = _jpeg_pixels(data, header)
            elif _is_decodable(header.syntax):
                data.file_meta.TransferSyntaxUID = UID(header.syntax)
                if UID(header.syntax) in JPEG2000TransferSyntaxes:
                    _require_jpeg_2000_size(bytes(data.PixelData[: 2**16]), header.shape)
                elif UID(header.syntax) in JPEGLSTransferSyntaxes:
                    _require_jpeg_size(get_frame(data.PixelData, 0, number_of_frames=1), header.shape)
                stored = pixel_array(data, correct_unused_bits=False)
            else:
                raise _unsupported_syntax_error(header, case_id)
            stored = _keep_stored_bits(stored, data)
    except (*READ_ERRORS, MemoryError) as error:
        raise unreadable_file_error(header.number, case_id) from error
    if stored.shape != header.shape or stored.dtype.kind not in "iu":
        raise unreadable_file_error(header.number, case_id)
    # Padding is defined on stored values (PS3.3 C.7.5.1.1.2), so it is found before the rescale.
    padding = _is_padding(stored, header)
    return _rescale(stored, slope, intercept), padding


def _keep_stored_bits(pixels: NDArray[Any], data: Any) -> NDArray[Any]:
    """Clear the bits that do not belong to the value (overlays, remains) and extend its sign (PS3.5 8.1.1).

    The value has BitsStored bits, the highest of which is HighBit. Decoders return all bits of a cell or codestream.

    Raises:
        ValueError: the bits do not lie in the cell.
    """
    stored, allocated = int(data.BitsStored), int(data.BitsAllocated)
    high = data.get("HighBit")
    shift = 0 if high is None else int(high) + 1 - stored
    if not (stored >= 1 and shift >= 0 and stored + shift <= allocated <= 32):
        raise ValueError("bits stored")
    if stored == allocated or pixels.dtype.kind not in "iu":
        return pixels
    values = (pixels.astype(np.int64) >> shift) & ((1 << stored) - 1)
    if int(data.PixelRepresentation) == 1:
        values -= (values >> (stored - 1)) << stored  # two's complement
    return values.astype(np.int32)


def _is_decodable(syntax: str) -> bool:
    try:
        return bool(get_decoder(UID(syntax)).is_available)
    except NotImplementedError:
        return False


def _rescale(stored: NDArray[np.generic], slope: float, intercept: float) -> NDArray[np.generic]:
    if slope.is_integer() and intercept.is_integer() and abs(slope) < 2**8 and abs(intercept) < 2**20:
        return stored.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def _is_padding(stored: NDArray[Any], header: SliceHeader) -> NDArray[np.bool_]:
    if header.padding is None:
        return np.zeros(stored.shape, dtype=np.bool_)
    low, high = header.padding
    inside: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return inside


def _jpeg_pixels(data: Any, header: SliceHeader) -> NDArray[Any]:
    """Decode the stored values of one JPEG image with GDCM.

    GDCM allocates whatever the lengths in a damaged file declare. The codestream, whose size is checked first, is
    therefore copied into a new minimal file, and GDCM reads that file.
    """
    import SimpleITK

    codestream = get_frame(data.PixelData, 0, number_of_frames=1)
    _require_jpeg_size(codestream, header.shape)
    clean = pydicom.Dataset()
    clean.file_meta = pydicom.dataset.FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = UID(header.syntax)
    clean.SOPClassUID = clean.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    clean.SOPInstanceUID = clean.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    clean.SamplesPerPixel, clean.PhotometricInterpretation = 1, "MONOCHROME2"
    clean.Rows, clean.Columns = header.shape
    for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(clean, name, int(data[name].value))
    clean.PixelData = encapsulate([codestream])
    clean["PixelData"].is_undefined_length = True
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "slice.dcm"
        clean.save_as(path, enforce_file_format=True)
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        stored: NDArray[Any] = SimpleITK.GetArrayFromImage(reader.Execute()).reshape(header.shape)
    return stored


def _require_jpeg_size(codestream: bytes, shape: tuple[int, int]) -> None:
    if _jpeg_size(codestream) != shape:
        raise ValueError("codestream size differs from rows and columns")


def _jpeg_size(codestream: bytes) -> tuple[int, int]:
    """Return (rows, columns) from the frame header of JPEG (ITU T.81, B.2.2) or JPEG-LS (T.87, C.2.2)."""
    at = 2  # after the start-of-image marker
    while at + 9 <= len(codestream) and codestream[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", codestream, at + 1)
        # SOF55 of JPEG-LS, or SOF0 to SOF15 except the markers DHT, JPG and DAC
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack_from(">HH", codestream, at + 5)
            return rows, columns
        at += 2 + length
    raise ValueError("no JPEG frame header")


def _require_jpeg_2000_size(start: bytes, shape: tuple[int, int]) -> None:
    """Compare the size in the SIZ segment (T.800, A.5.1) with the header; the decoder allocates what SIZ declares."""
    at = start.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(start) < at + 24:
        raise ValueError("no JPEG 2000 codestream")
    width, height, left, top = struct.unpack_from(">4I", start, at + 8)
    if (height - top, width - left) != shape:
        raise ValueError("codestream size differs from rows and columns")


def unreadable_file_error(number: int, case_id: str) -> InputRejectedError:
    """Return the error for a damaged file."""
    return InputRejectedError(
        f"DICOM file {number} (in sorted path order) cannot be read",
        code="dicom-unreadable",
        case_id=case_id,
        fix="copy the series again from the archive: the file is truncated or damaged",
    )


def _unsupported_syntax_error(header: SliceHeader, case_id: str) -> InputRejectedError:
    return InputRejectedError(
        f"DICOM file {header.number} (in sorted path order) has a compression without an installed decoder",
        code="dicom-syntax",
        case_id=case_id,
        fix="export the series uncompressed or as JPEG 2000, JPEG-LS, JPEG lossless or RLE",
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
