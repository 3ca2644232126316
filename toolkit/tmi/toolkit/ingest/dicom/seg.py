"""Masks from DICOM SEG (PS3.3 A.51), through highdicom: binary, fractional (from 0.5 on) or label map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tmi.toolkit.compute.quiet import quiet
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.ingest.dicom.headers import READ_ERRORS
from tmi.toolkit.ingest.image_files import MAX_VOXELS, canonical_volume, usable
from tmi.toolkit.ingest.mask_labels import ChosenLabel, choose_label

LIVER_CODES = frozenset({("T-62000", "SRT"), ("10200004", "SCT"), ("T-62000", "99SDM"), ("T-62000", "SNM3")})
"""SNOMED's codes of the liver as segmented property type."""


def read_seg(
    data: Any, path: Path, ct: Volume, wanted: str | int | None, *, case_id: str
) -> tuple[Volume, ChosenLabel]:
    """One segment as booleans on the grid of the SEG's own frames.

    Args:
        data: the header of the file.
        path: the file.
        ct: the CT; tells the slice step where the SEG has a single frame.
        wanted: segment number, label, code value or code meaning of the property type; None chooses the liver.
        case_id: for the error texts.

    Raises:
        InputRejectedError: mask-unreadable, mask-label, mask-empty.
    """
    from highdicom.seg import segread

    try:
        with quiet():
            frames = int(data.get("NumberOfFrames") or 1)
            if frames < 1 or math.prod((frames, int(data.Rows), int(data.Columns))) > MAX_VOXELS:
                raise _unreadable(case_id)
            names = _names(data)
    except READ_ERRORS as error:
        raise _unreadable(case_id) from error
    label = choose_label(wanted, names, dict.fromkeys(names, 1), case_id=case_id)
    try:
        with quiet():
            volume = segread(path).get_volume(segment_numbers=[label.number], combine_segments=False)
            array, affine = np.asarray(volume.array)[..., 0], np.asarray(volume.affine, dtype=np.float64)
    except (*READ_ERRORS, MemoryError) as error:
        raise _unreadable(case_id) from error
    if array.ndim != 3 or not usable(affine):
        raise _unreadable(case_id)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    if array.shape[0] == 1:
        affine[:3, 0] = _one_step(affine[:3, 0], ct)
    return canonical_volume(array >= 0.5, affine), label


def _names(data: Any) -> Mapping[int, tuple[str, ...]]:
    """Segment number -> label, code value and meaning; `liver` too where the code says so."""
    found: dict[int, tuple[str, ...]] = {}
    for segment in data.SegmentSequence:
        code = segment.SegmentedPropertyTypeCodeSequence[0]
        value, scheme = str(code.get("CodeValue", "")), str(code.get("CodingSchemeDesignator", ""))
        own = [str(segment.get("SegmentLabel", "")), value, str(code.get("CodeMeaning", ""))]
        if (value, scheme) in LIVER_CODES:
            own.append("liver")
        found[int(segment.SegmentNumber)] = tuple(n.strip() for n in own if n.strip())
    return found


def _one_step(normal: np.ndarray[Any, Any], ct: Volume) -> np.ndarray[Any, Any]:
    """One CT step along the normal: a single frame does not tell how far the next would be."""
    unit = normal / np.linalg.norm(normal)
    steps = ct.affine_xyz[:3, :3]
    along = np.abs(unit @ (steps / np.linalg.norm(steps, axis=0)))
    return np.asarray(unit * np.linalg.norm(steps[:, int(along.argmax())]))


def _unreadable(case_id: str) -> InputRejectedError:
    return InputRejectedError(
        "the mask file cannot be read as DICOM SEG",
        fix="copy it again, or export it again: it is truncated, damaged, or its frames form no even grid",
        code="mask-unreadable",
        case_id=case_id,
    )
