"""Decoder of the pixels of one DICOM slice, a file or a frame, to Hounsfield units."""

from __future__ import annotations

import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.dicom.headers import READ_ERRORS, SliceHeader, open_dicom, unreadable_file_error


def decode_hu(
    header: SliceHeader, *, case_id: str, opened: dict[Path, Any]
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Decode one slice to HU = slope * stored value + intercept (PS3.3 C.11.1).

    An integer slope and intercept give int32, others float32. JPEG lossless and 12-bit JPEG, for which pydicom has no
    free decoder, are decoded with GDCM in SimpleITK.

    Args:
        header: slice to decode.
        case_id: case id for error messages.
        opened: data set of the enhanced CT file that was read last, for its next frame; updated.

    Returns:
        The HU values and the padding mask, both (rows, columns).

    Raises:
        InputRejectedError: dicom-syntax, dicom-unreadable.
    """
    slope, intercept = (1.0 if header.slope is None else header.slope), header.intercept or 0.0
    try:
        with quiet():
            data = _open(header, opened)
            if "PixelData" not in data:
                raise _no_pixels_error(header, case_id)
            if UID(header.syntax) in JPEGTransferSyntaxes:
                stored = _jpeg_pixels(data, header)
            elif is_decodable(header.syntax):
                data.file_meta.TransferSyntaxUID = UID(header.syntax)
                if UID(header.syntax) in JPEG2000TransferSyntaxes:
                    _require_jpeg_2000_size(_codestream(data, header)[: 2**16], header.shape)
                elif UID(header.syntax) in JPEGLSTransferSyntaxes:
                    _require_jpeg_size(_codestream(data, header), header.shape)
                stored = pixel_array(data, index=header.frame, correct_unused_bits=False)
            else:
                raise _unsupported_syntax_error(header, case_id)
            stored = _keep_stored_bits(stored, data)
    except (*READ_ERRORS, MemoryError) as error:
        raise unreadable_file_error(header.number, case_id, cause=error) from error
    if stored.shape != header.shape or stored.dtype.kind not in "iu":
        raise unreadable_file_error(header.number, case_id)
    # Padding is defined on stored values (PS3.3 C.7.5.1.1.2), so it is found before the rescale.
    padding = _is_padding(stored, header)
    return _rescale(stored, slope, intercept), padding


def _open(header: SliceHeader, opened: dict[Path, Any]) -> Any:
    """Return the data set of a slice; that of a multi-frame file is kept for its other frames."""
    if header.path in opened:
        return opened[header.path]
    opened.clear()
    data = open_dicom(header.path)
    if header.frame is not None:
        opened[header.path] = data
    return data


def _codestream(data: Any, header: SliceHeader) -> bytes:
    """Return the compressed codestream of a slice."""
    tables = [data.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    extended = (tables[0], tables[1]) if all(tables) else None
    count = 1 if header.frame is None else header.frames
    codestream: bytes = get_frame(data.PixelData, header.frame or 0, number_of_frames=count, extended_offsets=extended)
    return codestream


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


def is_decodable(syntax: str) -> bool:
    """Return whether pixels of this transfer syntax can be decoded here."""
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

    codestream = _codestream(data, header)
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


def _no_pixels_error(header: SliceHeader, case_id: str) -> InputRejectedError:
    return InputRejectedError(
        f"DICOM file {header.number} (in sorted path order) has a header without pixels",
        code="dicom-unreadable",
        case_id=case_id,
        fix="export the series again, with its pixels",
    )


def _unsupported_syntax_error(header: SliceHeader, case_id: str) -> InputRejectedError:
    return InputRejectedError(
        f"DICOM file {header.number} (in sorted path order) has a compression without an installed decoder",
        code="dicom-syntax",
        case_id=case_id,
        fix="export the series uncompressed or as JPEG 2000, JPEG-LS, JPEG lossless or RLE",
    )
