"""Kinds of files that are given in place of an image, recognised by their first bytes; a message names them."""

from __future__ import annotations

from pathlib import Path

from tmi.toolkit.storage.bounded_files import open_regular

START_BYTES = 512
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF", "a PDF document"),
    (0, b"\x89PNG\r\n", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "compressed with gzip"),
    (0, b"BZh", "compressed with bzip2"),
    (0, b"\xfd7zXZ\0", "compressed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document of 1997 to 2003"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"NRRD0", "an NRRD file"),
    (128, b"DICM", "a DICOM file"),
    (344, b"n+1\0", "a NIfTI file"),
    (344, b"ni1\0", "a NIfTI header"),
)
"""Offset, bytes, and the kind as the predicate of `is`."""
ARCHIVE = ("archive", "compressed")
"""Words in the name of a kind that is to be unpacked."""
TEXT_CONTROLS = frozenset(b"\t\n\r\f\x1b")


def file_kind(path: Path, *, data: bytes | None = None) -> str | None:
    """Return what a file is, as the predicate of `is`: `a PDF document`, `empty`, `text`; None if it is not known.

    Args:
        path: the file.
        data: its bytes; None: they are read.

    Raises:
        OSError: as in `open_regular`.
    """
    if data is None:
        with open_regular(path) as stream:
            start = stream.read(START_BYTES)
    else:
        start = data[:START_BYTES]
    if not start:
        return "empty"
    for offset, signature, kind in SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            return kind
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<html", b"<!doctype", b"<?xml")):
        return "a page of HTML or XML"
    return "text" if all(byte >= 32 or byte in TEXT_CONTROLS for byte in start) and start.isascii() else None


def is_packed(kind: str | None) -> bool:
    """Return whether a kind is an archive or compressed."""
    return kind is not None and any(word in kind for word in ARCHIVE)
