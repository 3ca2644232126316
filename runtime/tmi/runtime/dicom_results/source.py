"""The DICOM series that a case was imported from: patient, study and slices of the results.

A result object takes its patient and study from this series, so a series of another patient would file the prediction
under the wrong person. The series is therefore read again, with the repairs of the import, and must equal the case's CT
in grid and voxels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import CT_FILE, Case
from tmi.toolkit.cases.provenance import read_case_record
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.imaging.volume import Volume, grid_difference, read_ct
from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
from tmi.toolkit.ingest.dicom.headers import READ_ERRORS, open_dicom
from tmi.toolkit.ingest.dicom.series import choose_series, scan_folder

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
"""Unique identifiers without which a result cannot refer to the series."""
IN_FILE_META = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}
"""Identifiers that the head of a file repeats, where an export has blanked them in the data set."""
MAX_DISTANCE = 0.02
"""Largest distance, in voxels, between a pixel of a slice and the nearest voxel of the case."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class SourceSeries:
    """Slices of the series of a case."""

    slices: tuple[Any, ...]
    """pydicom data sets of the slices, pixels included, in the order of their positions."""
    ct: Volume
    """CT of the case."""

    def on_slices(self, volume: Volume) -> NDArray[np.generic] | None:
        """Values of a volume on the CT grid at the pixels of the slices; None: the grids differ (a repaired CT).

        Args:
            volume: CT in HU or mask, [D, H, W] in canonical orientation.

        Returns:
            [slices, rows, columns].
        """
        array_XYZ = np.transpose(volume.array_DHW, (2, 1, 0))
        to_index: NDArray[np.float64] = (np.linalg.inv(volume.affine_xyz) @ LPS_TO_RAS).astype(np.float64)
        planes = []
        for data in self.slices:
            index = _indices(data, to_index)
            nearest = np.rint(index).astype(np.int64)
            inside = bool((nearest >= 0).all() and (nearest < array_XYZ.shape).all())
            if not inside or float(np.abs(index - nearest).max()) > MAX_DISTANCE:
                return None
            planes.append(array_XYZ[nearest[..., 0], nearest[..., 1], nearest[..., 2]])
        return np.stack(planes)


def _indices(data: Any, to_index: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel indices [rows, columns, 3] of the pixels of a slice."""
    origin = np.array([float(v) for v in data.ImagePositionPatient])
    orientation = np.array([float(v) for v in data.ImageOrientationPatient])
    between_rows, between_columns = (float(v) for v in data.PixelSpacing)
    across = np.arange(int(data.Columns))[None, :, None] * between_columns * orientation[:3]
    down = np.arange(int(data.Rows))[:, None, None] * between_rows * orientation[3:]
    lps = origin + across + down
    index: NDArray[np.float64] = lps @ to_index[:3, :3].T + to_index[:3, 3]
    return index


def read_source(path: Path, case: Case, *, series: str | None = None) -> SourceSeries:
    """Read the series of a case and compare it with the case's CT.

    Args:
        path: folder of the series, searched recursively.
        case: the imported case.
        series: SeriesInstanceUID or number in the listing; None: the rule of `tmi import`.

    Raises:
        UsageError: the series is not that of the case, or lacks what a result needs.
        InputRejectedError: as in `read_dicom_ct`, or the case has no readable CT.
    """
    record = read_case_record(case, case_id=case.case_id)
    repairs = () if record is None else record.repairs
    fixes = {repair.code for repair in repairs if repair.file == CT_FILE}
    imported = read_dicom_ct(path, series=series, fixes=fixes, case_id=case.case_id).volume
    ct = read_ct(case)
    difference = grid_difference(imported.grid, ct.grid)
    if difference is None and not np.array_equal(imported.array_DHW, ct.array_DHW):
        difference = f"{np.count_nonzero(imported.array_DHW != ct.array_DHW)} voxels differ"
    if difference is not None:
        raise UsageError(
            f"the DICOM series in {path} is not the CT of case {case.case_id}: {difference}",
            fix="give the series that the case was imported from, or import the case again",
        )
    chosen = choose_series(scan_folder(path, case_id=case.case_id), series, case_id=case.case_id)
    if any(header.frame is not None for header in chosen.slices):
        raise UsageError(
            f"the series in {path} is enhanced multi-frame CT, to which results as DICOM cannot refer yet",
            fix="give the same CT as a single-frame series (for example converted with dcm4che's emf2sf)",
        )
    slices = tuple(_read_slice(header.path, header.number, case) for header in chosen.slices)
    _require_references(slices, path)
    return SourceSeries(slices=tuple(sorted(slices, key=_position)), ct=ct)


def _read_slice(path: Path, number: int, case: Case) -> Any:
    try:
        data = open_dicom(path)
    except READ_ERRORS as error:
        raise InputRejectedError(
            f"file {number} of the series cannot be read",
            fix="export the series again",
            code="dicom-unreadable",
            case_id=case.case_id,
        ) from error
    head = getattr(data, "file_meta", None)  # a file without a preamble has none
    for name, repeated in IN_FILE_META.items():
        if not _has(data, name) and _has(head, repeated):
            setattr(data, name, getattr(head, repeated))
    return data


def _has(data: Any, name: str) -> bool:
    return bool(str(getattr(data, name, "") or "").strip())


def _position(data: Any) -> float:
    """Position of a slice along the normal of its plane, in mm."""
    orientation = [float(v) for v in data.ImageOrientationPatient]
    normal = np.cross(orientation[:3], orientation[3:])
    return float(np.dot(normal, [float(v) for v in data.ImagePositionPatient]))


def _require_references(slices: tuple[Any, ...], path: Path) -> None:
    for name in UIDS:
        missing = sum(not _has(data, name) for data in slices)
        if missing:
            raise UsageError(
                f"{missing} of {len(slices)} slices of the series in {path} have no {name}, to which results refer",
                fix="take the series from the PACS; an export that blanks its identifiers cannot be filed",
            )
    for name in ("StudyInstanceUID", "PatientID", "FrameOfReferenceUID"):
        if len({str(getattr(data, name, "")) for data in slices}) > 1:
            raise UsageError(f"the slices of the series in {path} have several values of {name}", fix="give one series")
    repeated = [uid for uid, count in Counter(str(data.SOPInstanceUID) for data in slices).items() if count > 1]
    if repeated:
        raise UsageError(f"two slices of the series in {path} have one SOPInstanceUID", fix="give one series")
