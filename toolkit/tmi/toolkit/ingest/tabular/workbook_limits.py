"""Limits of an Excel workbook, checked before openpyxl reads it.

A small workbook can unpack to gigabytes, or hold millions of styles or empty rows, for each of which openpyxl makes
objects. Its parts are therefore measured first, and their elements are counted by a parser that makes no objects.
"""

from __future__ import annotations

import zipfile
from typing import BinaryIO
from xml.parsers import expat

WORKBOOK_BYTES = 32 * 2**20
"""Limit on the size of a workbook; that of a cohort has below 1 MB."""
MAX_PARTS = 2000
"""Limit on the number of files in a workbook."""
MAX_UNPACKED_BYTES = 64 * 2**20
"""Limit on the unpacked size of all files."""
MAX_SHEET_CELLS = 500_000
"""Limit on the cells of a sheet, empty ones included."""
MAX_SHEET_ELEMENTS = 3 * MAX_SHEET_CELLS
"""Limit on the elements of all sheets and their texts; a cell has two or three."""
MAX_OTHER_ELEMENTS = 100_000
"""Limit on the elements of styles, names and other parts; openpyxl makes an object for each."""
DATA_ROOTS = ("worksheet", "sst")
"""Root elements of sheets and of the table of texts."""


class _ExcessError(Exception):
    """A part has too many elements, or a document type."""


def workbook_excess(stream: BinaryIO) -> str | None:
    """Return why a workbook is too large to be read, as the predicate of a sentence; None if it is not.

    Args:
        stream: the workbook.

    Raises:
        zipfile.BadZipFile: it is no workbook. Other errors of `zipfile`: it is damaged.
    """
    with zipfile.ZipFile(stream) as parts:
        files = parts.infolist()
        if len(files) > MAX_PARTS:
            return f"has more than {MAX_PARTS:,} files"
        if sum(part.file_size for part in files) > MAX_UNPACKED_BYTES:
            return f"unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB"
        counts = {True: MAX_SHEET_ELEMENTS, False: MAX_OTHER_ELEMENTS}
        for part in files:
            try:
                _count(parts.read(part), counts)
            except _ExcessError as error:
                return str(error)
    return None


def _count(data: bytes, left: dict[bool, int]) -> None:
    """Subtract the elements of a part from those that are left for its kind; what is no XML has none."""
    parser = expat.ParserCreate(namespace_separator=" ")
    is_data: bool | None = None

    def start(name: str, attributes: object) -> None:
        nonlocal is_data
        if is_data is None:
            is_data = name.rpartition(" ")[2] in DATA_ROOTS
        left[is_data] -= 1
        if left[is_data] < 0:
            raise _ExcessError("has too many cells" if is_data else "has too many styles or names")

    def doctype(*_: object) -> None:
        raise _ExcessError("has a document type, which workbooks never have")

    parser.StartElementHandler, parser.StartDoctypeDeclHandler = start, doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError:  # a picture, or damaged: openpyxl reports it if it reads the part
        return
