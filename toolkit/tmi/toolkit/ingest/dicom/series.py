"""A folder of DICOM files, sorted into series, and the one CT series in it that is meant.

Rule: files of the same SeriesInstanceUID are one series; where the UID is empty, files of the same modality, storage
class, orientation, size, pixel spacing and series number are. Planning views (localizers) are left out of every series.
Of the CT series the only one is taken; of several, the only original one; else the user must choose.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.ingest.dicom.headers import READ_ERRORS, SliceHeader, looks_like_dicom, read_header, unreadable

MAX_FILES = 50_000
"""A folder with more files is no export of one examination."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Files that belong together."""

    number: int
    """Number in the listing, from 1."""
    slices: tuple[SliceHeader, ...]
    """Its images, planning views left out, in the order of paths."""
    n_localizers: int
    """Planning views among its files."""

    @property
    def is_ct(self) -> bool:
        """Whether every image is a CT image."""
        return bool(self.slices) and all(s.is_ct for s in self.slices)

    @property
    def is_original(self) -> bool:
        """Whether its images come from the scanner rather than from a reformation of others."""
        return all("DERIVED" not in s.image_type[:1] and "SECONDARY" not in s.image_type[1:2] for s in self.slices)

    def summary(self) -> str:
        """One line for the listing, without free text, dates and UIDs."""
        if not self.slices:
            return f"{self.number}: planning views only"
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
    """What a folder holds."""

    series: tuple[Series, ...]
    non_dicom: int
    """Files that are not DICOM, left out."""


def scan(path: Path, *, case_id: str) -> DicomFolder:
    """Read the header of every DICOM file at or below `path`, in the order of paths.

    Raises:
        InputRejectedError: dicom-unreadable: a file that is or should be DICOM cannot be parsed; dicom-not-ct: no
        DICOM.
        UsageError: the folder is not there, or holds an absurd number of files.
    """
    files = list(_files(path))
    headers: list[SliceHeader] = []
    non_dicom = 0
    for number, file in enumerate(files, start=1):
        try:
            if not looks_like_dicom(file):
                if file.suffix.lower() in (".dcm", ".dicom"):
                    raise unreadable(number, case_id)
                non_dicom += 1
                continue
            header = read_header(file, number)
        except READ_ERRORS as error:
            raise unreadable(number, case_id) from error
        if header is None:
            non_dicom += 1
        else:
            headers.append(header)
    if not headers:
        raise _not_ct("no DICOM file is there", case_id)
    return DicomFolder(series=_grouped(headers), non_dicom=non_dicom)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise UsageError(f"{path} is not there", fix="give the folder of the DICOM files")
    files: list[Path] = []
    for file in path.rglob("*"):
        if file.is_file():
            files.append(file)
            if len(files) > MAX_FILES:
                raise UsageError(f"{path} holds more than {MAX_FILES} files", fix="give the folder of one examination")
    yield from sorted(files)


def _grouped(headers: list[SliceHeader]) -> tuple[Series, ...]:
    groups: dict[object, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        groups[header.series_uid or _read_header(header)].append(header)
    ordered = sorted(groups.values(), key=lambda g: (g[0].series_number or 0, g[0].number))
    found = []
    for number, group in enumerate(ordered, start=1):
        images = tuple(h for h in group if not h.is_localizer)
        found.append(Series(number=number, slices=images, n_localizers=len(group) - len(images)))
    return tuple(found)


def _read_header(header: SliceHeader) -> tuple[object, ...]:
    """What stands in for an empty series UID."""
    orientation = tuple(round(v, 2) for v in header.orientation or ())
    spacing = tuple(round(v, 3) for v in header.spacing or ())
    return (
        header.modality, header.sop_class, header.series_number, header.shape, orientation, spacing,
        header.is_localizer, header.kernel, header.thickness,
    )  # fmt: skip


def choose(folder: DicomFolder, wanted: str | None, *, case_id: str) -> Series:
    """The CT series that is meant.

    Args:
        folder: what was found.
        wanted: a SeriesInstanceUID, or the number of the listing; None chooses by rule.
        case_id: for the error texts.

    Raises:
        InputRejectedError: dicom-not-ct, dicom-series: several CT series, or none of that name.
    """
    listing = "\n  ".join(s.summary() for s in folder.series)
    if wanted is not None:
        named = [s for s in folder.series if wanted in (str(s.number), *(h.series_uid for h in s.slices[:1]))]
        if not named:
            raise InputRejectedError(
                f"no such series; there are\n  {listing}",
                fix="give the number of one of them with --series",
                code="dicom-series",
                case_id=case_id,
            )
        if not named[0].is_ct:
            raise _not_ct(f"the series asked for is no CT\n  {named[0].summary()}", case_id)
        return named[0]
    candidates = [s for s in folder.series if s.is_ct]
    if not candidates:
        raise _not_ct(f"none of the series is a CT\n  {listing}", case_id)
    original = [s for s in candidates if s.is_original]
    if len(candidates) > 1 and len(original) != 1:
        raise InputRejectedError(
            f"{len(original or candidates)} CT series are there\n  {listing}",
            fix="choose one with --series NUMBER",
            code="dicom-series",
            case_id=case_id,
        )
    return candidates[0] if len(candidates) == 1 else original[0]


def _not_ct(what: str, case_id: str) -> InputRejectedError:
    return InputRejectedError(
        what,
        fix="give the folder of a CT series; MR, PET, dose reports and screenshots are not accepted",
        code="dicom-not-ct",
        case_id=case_id,
    )
