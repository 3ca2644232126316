"""Writes the DICOM results of one case into a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tmi.runtime.dicom_results.capture import make_capture
from tmi.runtime.dicom_results.objects import Origin, make_report, make_segmentation
from tmi.runtime.dicom_results.source import SourceSeries
from tmi.runtime.serving.results import Prediction
from tmi.toolkit.cases.case import Case
from tmi.toolkit.imaging.volume import read_mask

REPORT_FILE, SEGMENTATION_FILE, CAPTURE_FILE = "report.dcm", "liver.dcm", "outline.dcm"
MM3_PER_ML = 1000.0


@dataclass(frozen=True, kw_only=True)
class DicomResults:
    """Files that were written."""

    files: tuple[str, ...]
    """Names of the structured report, and of segmentation and secondary capture where there are any."""
    no_segmentation: str | None
    """Why there is no segmentation and no secondary capture; None: there are both."""


def write_dicom_results(
    prediction: Prediction, case: Case, source: SourceSeries, out: Path, origin: Origin
) -> DicomResults:
    """Write report.dcm and, if the case has a mask on the grid of the series, liver.dcm and outline.dcm.

    Args:
        prediction: prediction of the case.
        case: the case.
        source: its series, compared with the case.
        out: an existing folder.
        origin: what made the objects.

    Raises:
        InputRejectedError: the mask cannot be read.
        OSError: the folder cannot be written.
    """
    segmentation, capture, volume_ml, why = None, None, None, None
    if not case.has_mask:
        why = "the case has no mask"
    else:
        mask = read_mask(case, source.ct)
        planes, hu = source.on_slices(mask), source.on_slices(source.ct)
        if planes is None or hu is None:
            why = "the import repaired the CT, so its grid is not that of the slices"
        else:
            segmentation = make_segmentation(source, planes != 0, origin)
            capture = make_capture(source, hu, planes != 0, origin)
            voxel_mm3 = abs(float(np.linalg.det(mask.affine_xyz[:3, :3])))
            volume_ml = np.count_nonzero(mask.array_DHW) * voxel_mm3 / MM3_PER_ML
    report = make_report(prediction, source, origin, segmentation=segmentation, liver_ml=volume_ml)
    objects = {REPORT_FILE: report, SEGMENTATION_FILE: segmentation, CAPTURE_FILE: capture}
    written = {name: data for name, data in objects.items() if data is not None}
    for name, data in written.items():
        data.save_as(out / name)
    return DicomResults(files=tuple(written), no_segmentation=why)
