"""Import of a liver mask (NIfTI, NRRD, MetaImage, DICOM SEG, RTSTRUCT) onto the voxel grid of its CT."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tmi.toolkit.cases.case import MASK_FILE, access_error
from tmi.toolkit.cases.provenance import Repair
from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.imaging.mask_resampling import place_mask, resample_mask
from tmi.toolkit.imaging.volume import Volume, grid_difference
from tmi.toolkit.ingest.dicom.headers import (
    READ_ERRORS,
    is_dicom_file,
    open_dicom,
)
from tmi.toolkit.ingest.dicom.series import list_files
from tmi.toolkit.ingest.image_files import LoadedCt, is_image_file, read_image, unknown_format_error
from tmi.toolkit.ingest.mask_labels import ChosenLabel, Wanted, choose_labels, join_labels, split_labels
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.bounded_files import is_access_error
from tmi.toolkit.storage.hashing import sha256_file

MAX_LABELS = 4096
"""A file with more distinct values is an image, not a label map."""


@dataclass(frozen=True, kw_only=True)
class ImportedMask:
    """A binary mask on the grid of the CT."""

    volume: Volume
    """Boolean voxels."""
    source: Mapping[str, Any]
    """Description of the source for `case.json`, without identifying values."""
    label: ChosenLabel
    """Label that was selected, or the joined ones."""
    findings: tuple[Issue, ...] = ()
    """Warnings of the reader."""
    repairs: tuple[Repair, ...] = ()
    """Requested repairs that were applied."""


def import_mask(
    path: Path, ct: LoadedCt, *, wanted: Wanted | None, fixes: Collection[str], case_id: str
) -> ImportedMask:
    """Read one label of a mask, or several joined ones, and place it on the grid of the CT.

    Args:
        path: image file, DICOM SEG or RTSTRUCT file, or folder with exactly one of these.
        ct: CT that the mask belongs to.
        wanted: labels, segments or ROIs, by number or name; None selects the liver (`choose_labels`).
        fixes: `mask-grid` allows nearest-neighbour resampling from another grid.
        case_id: case id for error messages.

    Raises:
        InputRejectedError: mask-..., dicom-patient-mismatch, dicom-syntax, case-unreadable.
        UsageError: `path` is a folder with no such file or several; `wanted` contains an empty item.
    """
    parts = split_labels(wanted)
    file = _only_file(path, case_id) if path.is_dir() else path
    if not file.exists():
        raise _input_error("mask-missing", "the mask file does not exist", "correct the path", case_id)
    if is_image_file(file):
        return _from_image(file, ct, wanted, fixes, case_id)
    if len(parts) < 2:
        return _from_dicom(file, ct, parts[0] if parts else None, fixes, case_id)
    if isinstance(wanted, str):
        try:  # a name may contain a comma
            return _from_dicom(file, ct, wanted, fixes, case_id)
        except InputRejectedError as error:
            if error.code != "mask-label":
                raise
    return _join([_from_dicom(file, ct, part, fixes, case_id) for part in parts])


def _join(masks: list[ImportedMask]) -> ImportedMask:
    """Return the union of masks on one grid."""
    array = np.logical_or.reduce([m.volume.array_DHW for m in masks])
    label = join_labels([m.label for m in masks])
    source = {**masks[0].source, "voxels": int(np.count_nonzero(array))}
    source.update({key: label.recorded for key in ("segment", "roi") if key in source})
    return ImportedMask(
        volume=replace(masks[0].volume, array_DHW=array),
        source=source,
        label=label,
        findings=tuple(dict.fromkeys(f for m in masks for f in m.findings)),
        repairs=masks[0].repairs,
    )


def _from_image(path: Path, ct: LoadedCt, wanted: Wanted | None, fixes: Collection[str], case_id: str) -> ImportedMask:
    image = read_image(path, kind="mask", case_id=case_id)
    labels = _as_labels(image.volume, case_id)
    values, counts = np.unique(labels.array_DHW, return_counts=True)
    if values.size > MAX_LABELS:
        raise _input_error("mask-unreadable", "the mask file holds an image, not labels", "give the mask", case_id)
    present = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v != 0}
    label = choose_labels(wanted, image.label_names, present, case_id=case_id)
    mask = Volume(array_DHW=np.isin(labels.array_DHW, label.numbers), affine_xyz=labels.affine_xyz)
    kind = "segmentation-nrrd" if image.is_segmentation else "label-map"
    source = {"kind": kind, "label": label.recorded, "labels": len(present)}
    read = _ReadMask(volume=mask, label=label, source=source, path=path, cropped=image.is_segmentation)
    return _place_on_grid(read, ct, fixes, case_id)


def _as_labels(volume: Volume, case_id: str) -> Volume:
    array = volume.array_DHW
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise _input_error("mask-nan", "the mask file holds voxels that are not finite", "export it again", case_id)
        rounded = np.rint(array)
        if np.abs(array - rounded).max() > 1e-3 or np.abs(rounded).max() > 2**31:
            raise _input_error(
                "mask-values", "the mask file holds fractions, not labels", "export it as integers", case_id
            )
        array = rounded.astype(np.int64)
    return Volume(array_DHW=array, affine_xyz=volume.affine_xyz)


def _only_file(folder: Path, case_id: str) -> Path:
    """Return the only image or DICOM file at or below a folder.

    Raises:
        UsageError: there is none, or several.
    """
    files = list_files(folder, case_id)
    images = [p for p in files if is_image_file(p)]
    try:
        dicom = [p for p in files if not is_image_file(p) and is_dicom_file(p)]
    except OSError as error:
        raise access_error("a file of the mask's folder", error, case_id) from error
    if len(images) + len(dicom) != 1:
        raise UsageError(
            f"the mask {folder} is a folder of {len(images)} images and {len(dicom)} DICOM files",
            fix="give the mask file itself: NIfTI, NRRD, MetaImage, DICOM SEG or RTSTRUCT",
        )
    return (images or dicom)[0]


def _from_dicom(
    path: Path, ct: LoadedCt, wanted: str | int | None, fixes: Collection[str], case_id: str
) -> ImportedMask:
    from tmi.toolkit.ingest.dicom.rtstruct import read_rtstruct
    from tmi.toolkit.ingest.dicom.seg import read_seg

    try:
        if not is_dicom_file(path):
            raise unknown_format_error(path, kind="mask", case_id=case_id)
        with quiet():
            data = open_dicom(path)
            modality = str(data.get("Modality", "")).strip().upper()
            patient_id = str(data.get("PatientID") or "").strip()
            frame = str(data.get("FrameOfReferenceUID") or "").strip()
    except READ_ERRORS as error:
        if is_access_error(error):
            raise access_error("the mask file", error, case_id) from error
        raise _input_error(
            "mask-unreadable",
            "the mask file is DICOM, but truncated or damaged",
            "copy or export it again",
            case_id,
        ) from error
    if patient_id and ct.patient_id and patient_id != ct.patient_id:
        raise _input_error(
            "dicom-patient-mismatch",
            "CT and mask have different patient ids in their DICOM headers",
            "give the mask that was drawn on this CT",
            case_id,
        )
    findings: tuple[Issue, ...] = ()
    if frame and ct.frame_of_reference and frame != ct.frame_of_reference:
        message = "CT and mask have different frames of reference, so their coordinates may not agree"
        findings = (Issue.of("dicom-frame-mismatch", message, "check that the mask lies on the liver"),)
    if modality == "SEG":
        volume, label = read_seg(data, path, ct.volume, wanted, case_id=case_id)
        source = {"kind": "dicom-seg", "segment": label.number}
        read = _ReadMask(volume=volume, label=label, source=source, path=path, cropped=True)
        imported = _place_on_grid(read, ct, fixes, case_id)
        return _add_findings(imported, findings)
    if modality == "RTSTRUCT":
        volume, label, rtstruct_findings = read_rtstruct(data, ct.volume, wanted, case_id=case_id)
        source = {"kind": "rtstruct", "roi": label.number}
        read = _ReadMask(volume=volume, label=label, source=source, path=path, cropped=True)
        imported = _place_on_grid(read, ct, fixes, case_id)
        return _add_findings(imported, findings + rtstruct_findings)
    raise _input_error(
        "mask-unreadable",
        "the mask file is DICOM, but neither SEG nor RTSTRUCT",
        "give the segmentation, not an image series",
        case_id,
    )


def _add_findings(mask: ImportedMask, findings: tuple[Issue, ...]) -> ImportedMask:
    return replace(mask, findings=findings + mask.findings)


@dataclass(frozen=True, kw_only=True)
class _ReadMask:
    """The selected label of a mask file, on the file's grid."""

    volume: Volume
    label: ChosenLabel
    source: dict[str, Any]
    """Its description in `case.json`, without voxels and digest."""
    path: Path
    cropped: bool
    """Whether the format may store a cut-out of the CT grid (DICOM SEG, RTSTRUCT, 3D Slicer's NRRD). A mask in any
    other format must cover the whole CT: a smaller one belongs to another series.
    """


def _place_on_grid(read: _ReadMask, ct: LoadedCt, fixes: Collection[str], case_id: str) -> ImportedMask:
    """Copy the mask onto the CT grid if the voxel centres coincide; otherwise resample it on request, or reject it."""
    mask, target, digest = read.volume, ct.volume, sha256_file(read.path)
    mask_shape, ct_shape = mask.array_DHW.shape, target.array_DHW.shape
    placed = place_mask(mask, target)
    findings: list[Issue] = []
    repairs: list[Repair] = []
    if placed is not None and (read.cropped or placed.covers):
        volume = placed.volume
        if placed.outside:
            message = f"{placed.outside} voxels of the mask lie outside the CT"
            findings.append(Issue.of("mask-outside", message, "give a CT that covers the whole liver"))
    elif "mask-grid" in fixes:
        volume = resample_mask(mask, target)
        message = (
            f"resampled from {_format_shape(mask_shape)} to {_format_shape(ct_shape)} voxels by world coordinates, "
            "nearest neighbour"
        )
        repairs.append(Repair(code="mask-grid", file=MASK_FILE, what=message, before_sha256=digest))
    else:
        raise _input_error(
            "mask-grid",
            f"the mask lies on another grid than the CT: {grid_difference(mask.grid, target.grid)}",
            "export it again from the same series, or resample it with --fix mask-grid",
            case_id,
        )
    voxels = int(np.count_nonzero(volume.array_DHW))
    if not voxels:
        raise _input_error("mask-empty", "no voxel of the mask lies on the CT", "give the mask of this CT", case_id)
    return ImportedMask(
        volume=volume,
        source={**read.source, "voxels": voxels, "sha256": digest},
        label=read.label,
        findings=tuple(findings),
        repairs=tuple(repairs),
    )


def _format_shape(shape_DHW: tuple[int, ...]) -> str:
    return "x".join(map(str, reversed(shape_DHW)))


def _input_error(code: str, what: str, fix: str, case_id: str) -> InputRejectedError:
    return InputRejectedError(what, fix=fix, code=code, case_id=case_id)
