"""Reader of DICOM SEG masks (PS3.3 A.51) with highdicom: binary, fractional (threshold 0.5) or label map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import ImplicitVRLittleEndian

from tmi.toolkit.cases.case import access_error
from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.ingest.dicom.headers import READ_ERRORS
from tmi.toolkit.ingest.dicom.pixels import is_decodable
from tmi.toolkit.ingest.image_files import MAX_VOXELS, canonical_volume, is_valid_affine
from tmi.toolkit.ingest.mask_labels import ChosenLabel, choose_label
from tmi.toolkit.storage.bounded_files import is_access_error

LIVER_CODES = frozenset({("T-62000", "SRT"), ("10200004", "SCT"), ("T-62000", "99SDM"), ("T-62000", "SNM3")})
"""SNOMED codes (value, scheme) of the liver as segmented property type."""


def read_seg(
    data: Any, path: Path, ct: Volume, wanted: str | int | None, *, case_id: str
) -> tuple[Volume, ChosenLabel]:
    """Read one segment as a boolean volume on the grid of the SEG frames.

    Args:
        data: parsed header of the file.
        path: SEG file.
        ct: CT that the mask belongs to; gives the slice step if the SEG has a single frame.
        wanted: segment number, label, code value or code meaning of the property type; None selects the liver.
        case_id: case id for error messages.

    Raises:
        InputRejectedError: mask-unreadable, mask-label, mask-empty, dicom-syntax, case-unreadable.
    """
    from highdicom.seg import segread

    if not is_decodable(str(getattr(data, "file_meta", {}).get("TransferSyntaxUID") or ImplicitVRLittleEndian)):
        raise InputRejectedError(
            "the DICOM SEG has a compression without an installed decoder",
            code="dicom-syntax",
            case_id=case_id,
            fix="export it uncompressed, or as RLE, JPEG 2000 or JPEG-LS",
        )
    try:
        with quiet():
            frames = int(data.get("NumberOfFrames") or 1)
            if frames < 1 or math.prod((frames, int(data.Rows), int(data.Columns))) > MAX_VOXELS:
                raise _unreadable_error(case_id)
            names = _segment_names(data)
    except READ_ERRORS as error:
        raise _unreadable_error(case_id) from error
    label = choose_label(wanted, names, dict.fromkeys(names, 1), case_id=case_id)
    try:
        with quiet():
            volume = segread(path).get_volume(segment_numbers=[label.number], combine_segments=False)
            array, affine = np.asarray(volume.array)[..., 0], np.asarray(volume.affine, dtype=np.float64)
    except (*READ_ERRORS, MemoryError) as error:
        if is_access_error(error):
            raise access_error("the mask file", error, case_id) from error
        raise _unreadable_error(case_id) from error
    if array.ndim != 3 or not is_valid_affine(affine):
        raise _unreadable_error(case_id)
    # DICOM geometry is LPS; negating x and y gives RAS.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    if array.shape[0] == 1:
        affine[:3, 0] = _ct_step_along(affine[:3, 0], ct)
    return canonical_volume(array >= 0.5, affine), label


def _segment_names(data: Any) -> Mapping[int, tuple[str, ...]]:
    """Return segment number -> label, code value and code meaning; plus `liver` if the code is a liver code."""
    names: dict[int, tuple[str, ...]] = {}
    for segment in data.SegmentSequence:
        code = segment.SegmentedPropertyTypeCodeSequence[0]
        value, scheme = str(code.get("CodeValue", "")), str(code.get("CodingSchemeDesignator", ""))
        candidates = [str(segment.get("SegmentLabel", "")), value, str(code.get("CodeMeaning", ""))]
        if (value, scheme) in LIVER_CODES:
            candidates.append("liver")
        if int(segment.SegmentNumber) in names:
            raise ValueError("two segments have one number")
        names[int(segment.SegmentNumber)] = tuple(n.strip() for n in candidates if n.strip())
    return names


def _ct_step_along(normal: np.ndarray[Any, Any], ct: Volume) -> np.ndarray[Any, Any]:
    """Scale the frame normal to one CT step (mm): a single frame does not define a slice distance."""
    unit = normal / np.linalg.norm(normal)
    steps = ct.affine_xyz[:3, :3]
    along = np.abs(unit @ (steps / np.linalg.norm(steps, axis=0)))
    # The CT axis closest to the normal gives the step.
    return np.asarray(unit * np.linalg.norm(steps[:, int(along.argmax())]))


def _unreadable_error(case_id: str) -> InputRejectedError:
    return InputRejectedError(
        "the mask file cannot be read as DICOM SEG",
        fix="copy or export it again: it is truncated or damaged, or its frames form no regular grid",
        code="mask-unreadable",
        case_id=case_id,
    )
