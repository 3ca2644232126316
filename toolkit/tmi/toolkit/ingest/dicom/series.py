"""Grouping of DICOM files into series, and selection of one CT series.

Files with the same SeriesInstanceUID form a series. Files with an empty UID are grouped by modality, storage class,
series number, size, orientation, pixel spacing, thickness and kernel. Localizers are excluded from every series. By
default the only CT series is selected, or the only original one of several; otherwise the user has to choose.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tmi.toolkit.cases.case import access_error, is_system_entry
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.ingest.dicom.headers import (
    READ_ERRORS,
    SliceHeader,
    is_dicom_file,
    other_file_error,
    read_headers,
    unreadable_file_error,
)
from tmi.toolkit.ingest.image_files import is_image_file
from tmi.toolkit.storage.file_kinds import file_kind, is_packed

DICOM_NAME = re.compile(r"\.(dcm|dicom)(\.(gz|bz2|xz|zst|zip|7z))?$", re.IGNORECASE)
"""Ending of the name of a DICOM file, compressed or not."""
MAX_FILES = 50_000
"""Limit on the number of files; an export of one examination has fewer."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Files of one series."""

    number: int
    """Number in the listing, from 1."""
    slices: tuple[SliceHeader, ...]
    """Images without localizers, in path order."""
    n_localizers: int
    """Number of localizers among the files."""

    @property
    def is_ct(self) -> bool:
        """Whether every image is a CT image."""
        return bool(self.slices) and all(s.is_ct for s in self.slices)

    @property
    def is_original(self) -> bool:
        """Whether the images were acquired by the scanner, not reformatted from other images (ImageType)."""
        return all("DERIVED" not in s.image_type[:1] and "SECONDARY" not in s.image_type[1:2] for s in self.slices)

    def summary(self) -> str:
        """Return one line for the listing, without free text, dates and UIDs."""
        if not self.slices:
            return f"{self.number}: localizers only"
        first = self.slices[0]
        parts = [first.modality or "no modality", f"{len(self.slices)} images of {first.shape[0]}x{first.shape[1]}"]
        if first.spacing is not None:
            parts.append(f"pixels of {first.spacing[0]:.3g} mm")
        if first.thickness is not None:
            parts.append(f"{first.thickness:g} mm thick")
        parts.append("original" if self.is_original else "derived")
        return f"{self.number}: {', '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class DicomFolder:
    """Series of a folder."""

    series: tuple[Series, ...]
    non_dicom: int
    """Number of files that are not DICOM."""


def scan_folder(path: Path, *, case_id: str) -> DicomFolder:
    """Read the header of every DICOM file at or below `path`, in path order.

    Raises:
        InputRejectedError: dicom-unreadable: a file with DICOM content or suffix cannot be parsed; dicom-not-ct: no
            DICOM file.
        UsageError: `path` does not exist, or holds more than `MAX_FILES` files.
    """
    files = list_files(path, case_id)
    headers: list[SliceHeader] = []
    non_dicom = 0
    for number, file in enumerate(files, start=1):
        try:
            if not is_dicom_file(file):
                if DICOM_NAME.search(file.name):
                    raise other_file_error(file, number, case_id)
                non_dicom += 1
                continue
            found = read_headers(file, number)
        except READ_ERRORS as error:
            raise unreadable_file_error(number, case_id, cause=error) from error
        headers += found
        non_dicom += not found
    if not headers and (images := sum(is_image_file(file) for file in files)):
        raise InputRejectedError(
            f"the folder holds no DICOM file, but {images} of NIfTI, NRRD or MetaImage",
            fix="give the file itself",
            code="dicom-not-ct",
            case_id=case_id,
        )
    if not headers:
        raise _no_dicom_error(files, case_id)
    return DicomFolder(series=_group_into_series(headers), non_dicom=non_dicom)


def _no_dicom_error(files: list[Path], case_id: str) -> InputRejectedError:
    """Return the error for files of which none is DICOM; archives among them are named."""
    try:
        packed = [kind for file in files if is_packed(kind := file_kind(file))]
    except OSError as error:
        return access_error("a file of the series", error, case_id)
    if not packed:
        return _not_ct_error("no DICOM file found", case_id)
    noun = "file" if len(packed) == 1 else "files"
    what = f"no DICOM file found, but {len(packed)} packed {noun}, of which the first is {packed[0]}"
    return InputRejectedError(what, fix="unpack the series", code="dicom-not-ct", case_id=case_id)


def list_files(path: Path, case_id: str) -> list[Path]:
    """Return the regular files at or below `path`, sorted; links to folders are followed, each folder once.

    What operating systems and file servers put into a folder is left out (`is_system_entry`).

    Raises:
        InputRejectedError: case-unreadable: a folder cannot be listed, so slices could be missing.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path} does not exist", fix="give the folder of the DICOM files")
    files: list[Path] = []
    folders, visited = [path], {path.resolve()}
    try:
        while folders:
            for entry in sorted(folders.pop().iterdir()):
                if is_system_entry(entry.name):
                    continue
                if entry.is_dir():
                    if (target := entry.resolve()) not in visited:
                        visited.add(target)
                        folders.append(entry)
                elif entry.is_file():
                    files.append(entry)
                if len(files) + len(visited) > MAX_FILES:
                    raise UsageError(
                        f"{path} holds more than {MAX_FILES} files", fix="give the folder of one examination"
                    )
    except OSError as error:
        raise access_error("a folder of the series", error, case_id) from error
    return sorted(files)


def _group_into_series(headers: list[SliceHeader]) -> tuple[Series, ...]:
    groups: dict[object, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        groups[header.series_uid or _fallback_series_key(header)].append(header)
    ordered = sorted(groups.values(), key=lambda g: (g[0].series_number or 0, g[0].number))
    series = []
    for number, group in enumerate(ordered, start=1):
        images = tuple(h for h in group if not h.is_localizer)
        series.append(Series(number=number, slices=images, n_localizers=len(group) - len(images)))
    return tuple(series)


def _fallback_series_key(header: SliceHeader) -> tuple[object, ...]:
    """Return the grouping key of a file with an empty series UID; rounding absorbs float noise between slices."""
    orientation = tuple(round(v, 2) for v in header.orientation or ())
    spacing = tuple(round(v, 3) for v in header.spacing or ())
    return (
        header.modality, header.sop_class, header.series_number, header.shape, orientation, spacing,
        header.is_localizer, header.kernel, None if header.thickness is None else round(header.thickness, 2),
    )  # fmt: skip


def choose_series(folder: DicomFolder, wanted: str | None, *, case_id: str) -> Series:
    """Select one CT series.

    Args:
        folder: series to choose from.
        wanted: SeriesInstanceUID, or number in the listing; None applies the default rule.
        case_id: case id for error messages.

    Raises:
        InputRejectedError: dicom-not-ct: no CT series, or `wanted` is not a CT; dicom-series: several CT series, or
            `wanted` does not exist.
    """
    listing = "\n  ".join(s.summary() for s in folder.series)
    if wanted is not None:
        matches = [s for s in folder.series if wanted in (str(s.number), *(h.series_uid for h in s.slices[:1]))]
        if not matches:
            raise InputRejectedError(
                f"the requested series does not exist; the folder holds\n  {listing}",
                fix="give the number of one of them with --series",
                code="dicom-series",
                case_id=case_id,
            )
        if not matches[0].is_ct:
            raise _not_ct_error(f"the requested series is not a CT\n  {matches[0].summary()}", case_id)
        return matches[0]
    candidates = [s for s in folder.series if s.is_ct]
    if not candidates and any(h.is_secondary_capture and h.modality == "CT" for s in folder.series for h in s.slices):
        raise _not_ct_error(
            f"the CT is stored as secondary capture: screen captures, not the series\n  {listing}", case_id
        )
    if not candidates:
        raise _not_ct_error(f"none of the series is a CT\n  {listing}", case_id)
    original = [s for s in candidates if s.is_original]
    if len(candidates) > 1 and len(original) != 1:
        raise InputRejectedError(
            f"found {len(original or candidates)} CT series\n  {listing}",
            fix="choose one with --series NUMBER",
            code="dicom-series",
            case_id=case_id,
        )
    return candidates[0] if len(candidates) == 1 else original[0]


def _not_ct_error(message: str, case_id: str) -> InputRejectedError:
    return InputRejectedError(
        message,
        fix="give the folder of a CT series; MR, PET, dose reports and screenshots are not accepted",
        code="dicom-not-ct",
        case_id=case_id,
    )
