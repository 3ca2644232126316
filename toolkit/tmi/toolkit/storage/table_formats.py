"""Formats of tables that are not read, recognised by their first bytes, with the way to a format that is."""

from __future__ import annotations

from pathlib import Path

from tmi.toolkit.storage.bounded_files import open_regular

START_BYTES = 512
RESAVE = "open it in Excel or LibreOffice and save it as .xlsx, or as CSV in UTF-8"
ZIP_NAMES = {
    ".xlsb": ("a binary Excel workbook (.xlsb)", RESAVE),
    ".ods": ("an OpenDocument spreadsheet (.ods)", RESAVE),
    ".numbers": ("a Numbers spreadsheet", "export it from Numbers as .xlsx, or as CSV in UTF-8"),
}
"""Suffix of a ZIP archive that is a table -> its name and the fix."""
SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a Parquet file", "write it as CSV in UTF-8"),
    (b"$FL2", "an SPSS file (.sav)", "export it from SPSS as .xlsx, or as CSV in UTF-8"),
    (b"$FL3", "an SPSS file (.zsav)", "export it from SPSS as .xlsx, or as CSV in UTF-8"),
    (b"<stata_dta>", "a Stata file (.dta)", "export it from Stata as .xlsx, or as CSV in UTF-8"),
    (b"\x00" * 12 + b"\xc2\xea\x81\x60", "a SAS data set", "export it from SAS as CSV in UTF-8"),
    (b"SQLite format 3", "an SQLite database", "export its table as CSV in UTF-8"),
    (b"\x00\x01\x00\x00Standard ", "an Access database", "export its table as .xlsx, or as CSV in UTF-8"),
    (b"%PDF", "a PDF document", "give the table that it was made from"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it"),
)
"""First bytes, name and fix."""


def foreign_format(path: Path, *, workbooks: tuple[str, ...] = (), data: bytes | None = None) -> tuple[str, str] | None:
    """Return what a file is, as the predicate of `is`, and the fix, if it is a table of a format that is not read.

    Args:
        path: the file.
        workbooks: suffixes, in lower case, of Excel workbooks, where the caller reads these.
        data: the bytes of the file, if it has been read.

    Raises:
        OSError: as in `open_regular`.
    """
    if data is None:
        with open_regular(path) as stream:
            data = stream.read(START_BYTES)
    start = data[:START_BYTES]
    suffix = path.suffix.lower()
    if start.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        if suffix in workbooks:
            return "an Excel workbook with a password, or of Excel 97-2003", "remove the password, or save it as .xlsx"
        return "an Excel 97-2003 workbook (.xls)", RESAVE
    if start.startswith((b"\x09\x08\x10\x00\x00\x06", b"\x09\x04\x06\x00\x00\x00", b"\x09\x02\x06\x00\x00\x00")):
        return "an Excel workbook of the 1990s (.xls)", RESAVE
    if start.startswith(b"PK\x03\x04"):
        if b"opendocument.spreadsheet" in start:
            return ZIP_NAMES[".ods"]
        if suffix in ZIP_NAMES:
            return ZIP_NAMES[suffix]
        if suffix not in workbooks:
            how = "give it the suffix .xlsx if it is an Excel workbook" if workbooks else RESAVE
            return "an Excel workbook or another ZIP archive, not text", how
        return None
    head = start.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").replace(b"\x00", b"").lower()
    if head.startswith((b"<html", b"<!doctype html", b"<table", b"<meta", b"<?xml", b"<office:")):
        return "a table in HTML or XML", RESAVE
    return next(((name, fix) for signature, name, fix in SIGNATURES if start.startswith(signature)), None)
