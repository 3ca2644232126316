"""A liver mask of any kind on its CT's grid: NIfTI, NRRD, MetaImage, DICOM SEG, RTSTRUCT."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tmi.toolkit.cases.case import MASK_FILE
from tmi.toolkit.cases.provenance import Repair
from tmi.toolkit.compute.quiet import quiet
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.imaging.mask_resampling import place_mask, resample_mask
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.ingest.dicom.headers import READ_ERRORS, looks_like_dicom, open_dicom
from tmi.toolkit.ingest.image_files import RawFinding, ReadCt, is_image_file, read_image
from tmi.toolkit.ingest.mask_labels import ChosenLabel, choose_label
from tmi.toolkit.storage.hashing import sha256_file

MAX_LABELS = 4096


@dataclass(frozen=True, kw_only=True)
class ImportedMask:
    """A mask on the CT's grid."""

    volume: Volume
    """Booleans."""
    source: Mapping[str, Any]
    """What the case's record says of it; nothing that identifies."""
    label: ChosenLabel
    """Which label it is."""
    findings: tuple[RawFinding, ...] = ()
    """Warnings of the reader."""
    repairs: tuple[Repair, ...] = ()
    """What was repaired on request."""


def import_mask(
    path: Path, ct: ReadCt, *, wanted: str | int | None, fixes: Collection[str], case_id: str
) -> ImportedMask:
    """Read one label of a mask and put it onto the CT's grid.

    Args:
        path: an image file, a DICOM SEG or RTSTRUCT file, or a folder that holds one such DICOM file.
        ct: the CT as it was read.
        wanted: label, segment or ROI, by number or name; None chooses by rule.
        fixes: `mask-grid` allows nearest-neighbour resampling from another grid.
        case_id: for the error texts.

    Raises:
        InputRejectedError: mask-..., dicom-patient-mismatch.
    """
    if is_image_file(path):
        return _from_image(path, ct, wanted, fixes, case_id)
    return _from_dicom(_dicom_file(path, case_id), ct, wanted, fixes, case_id)


def _from_image(path: Path, ct: ReadCt, wanted: str | int | None, fixes: Collection[str], case_id: str) -> ImportedMask:
    image = read_image(path, kind="mask", case_id=case_id)
    labels = _as_labels(image.volume, case_id)
    values, counts = np.unique(labels.array_DHW, return_counts=True)
    if values.size > MAX_LABELS:
        raise _input_error("mask-unreadable", "the mask file holds no labels but an image", "give the mask", case_id)
    present = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v != 0}
    names = _segment_names(image.metadata)
    label = choose_label(wanted, names, present, case_id=case_id)
    inside = Volume(array_DHW=labels.array_DHW == label.number, affine_xyz=labels.affine_xyz)
    source = {"kind": "segmentation-nrrd" if names else "label-map", "label": label.number, "labels": len(present)}
    return _on_grid(inside, ct, label, source, path, fixes, case_id, cropped=bool(names))


def _as_labels(volume: Volume, case_id: str) -> Volume:
    array = volume.array_DHW
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise _input_error("mask-nan", "the mask file holds voxels that are not finite", "export it again", case_id)
        rounded = np.rint(array)
        if np.abs(array - rounded).max() > 1e-3 or np.abs(rounded).max() > 2**31:
            raise _input_error(
                "mask-unreadable", "the mask file holds fractions, not labels", "export it as integers", case_id
            )
        array = rounded.astype(np.int64)
    return Volume(array_DHW=array, affine_xyz=volume.affine_xyz)


def _segment_names(metadata: Mapping[str, str]) -> dict[int, tuple[str, ...]]:
    """Label value -> name, from the segments that 3D Slicer writes into an NRRD's header."""
    names: dict[int, tuple[str, ...]] = {}
    for key, value in metadata.items():
        prefix, _, field = key.partition("_")
        if field == "LabelValue" and prefix.startswith("Segment") and value.strip().isdecimal():
            name = metadata.get(f"{prefix}_Name", "").strip()
            names[int(value)] = (name,) if name else ()
    return names


def _dicom_file(path: Path, case_id: str) -> Path:
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and looks_like_dicom(p)]
        if len(files) != 1:
            raise UsageError(f"{path} holds {len(files)} DICOM files", fix="give the DICOM SEG or RTSTRUCT file itself")
        return files[0]
    if not path.is_file():
        raise _input_error("mask-missing", "the mask file is not there", "correct the path", case_id)
    return path


def _from_dicom(path: Path, ct: ReadCt, wanted: str | int | None, fixes: Collection[str], case_id: str) -> ImportedMask:
    from tmi.toolkit.ingest.dicom.rtstruct import read_rtstruct
    from tmi.toolkit.ingest.dicom.seg import read_seg

    try:
        if not looks_like_dicom(path):
            raise ValueError("no DICOM")
        with quiet():
            data = open_dicom(path)
            modality = str(data.get("Modality", "")).strip().upper()
            patient_id = str(data.get("PatientID") or "").strip()
            frame = str(data.get("FrameOfReferenceUID") or "").strip()
    except READ_ERRORS as error:
        raise _input_error(
            "mask-unreadable",
            "the mask file cannot be read",
            "give NIfTI, NRRD, MHA, DICOM SEG or RTSTRUCT; copy the file again if it is one",
            case_id,
        ) from error
    if patient_id and ct.patient_id and patient_id != ct.patient_id:
        raise _input_error(
            "dicom-patient-mismatch",
            "CT and mask name different patients in their DICOM headers",
            "give the mask that was drawn on this CT",
            case_id,
        )
    found: tuple[RawFinding, ...] = ()
    if frame and ct.frame_of_reference and frame != ct.frame_of_reference:
        what = "CT and mask name different frames of reference, so their coordinates may not agree"
        found = (("dicom-frame-mismatch", what, "look whether the mask lies on the liver"),)
    if modality == "SEG":
        volume, label = read_seg(data, path, ct.volume, wanted, case_id=case_id)
        source = {"kind": "dicom-seg", "segment": label.number}
        imported = _on_grid(volume, ct, label, source, path, fixes, case_id, cropped=True)
        return _add_findings(imported, found)
    if modality == "RTSTRUCT":
        volume, label, more = read_rtstruct(data, ct.volume, wanted, case_id=case_id)
        source = {"kind": "rtstruct", "roi": label.number}
        imported = _on_grid(volume, ct, label, source, path, fixes, case_id, cropped=True)
        return _add_findings(imported, found + more)
    raise _input_error(
        "mask-unreadable",
        "the mask file is DICOM, but neither SEG nor RTSTRUCT",
        "give the segmentation, not an image series",
        case_id,
    )


def _add_findings(mask: ImportedMask, found: tuple[RawFinding, ...]) -> ImportedMask:
    return ImportedMask(
        volume=mask.volume, source=mask.source, label=mask.label, findings=found + mask.findings, repairs=mask.repairs
    )


def _on_grid(
    mask: Volume, ct: ReadCt, label: ChosenLabel, source: dict[str, Any], path: Path, fixes: Collection[str],
    case_id: str, *, cropped: bool,
) -> ImportedMask:  # fmt: skip
    """Exactly where the voxels coincide, by resampling where that was asked for, else not at all."""
    target, digest = ct.volume, sha256_file(path)
    have, want = mask.array_DHW.shape, target.array_DHW.shape
    placed = place_mask(mask, target)
    found: list[RawFinding] = []
    repairs: list[Repair] = []
    if placed is not None and (cropped or placed.covers):
        volume = placed.volume
        if placed.outside:
            what = f"{placed.outside} voxels of the mask lie outside the CT"
            found.append(("mask-outside", what, "give a CT that covers the whole liver"))
    elif "mask-grid" in fixes:
        volume = resample_mask(mask, target)
        what = f"resampled to the nearest neighbour from {_size(have)} to {_size(want)} voxels by world coordinates"
        repairs.append(Repair(code="mask-grid", file=MASK_FILE, what=what, before_sha256=digest))
    else:
        raise _input_error(
            "mask-grid",
            f"the mask lies on another grid than the CT ({_size(have)} against {_size(want)} voxels, depth last)",
            "export it again from the same series, or resample it with --fix mask-grid",
            case_id,
        )
    voxels = int(np.count_nonzero(volume.array_DHW))
    if not voxels:
        raise _input_error("mask-empty", "no voxel of the mask lies on the CT", "give the mask of this CT", case_id)
    return ImportedMask(
        volume=volume,
        source={**source, "voxels": voxels, "sha256": digest},
        label=label,
        findings=tuple(found),
        repairs=tuple(repairs),
    )


def _size(shape_DHW: tuple[int, ...]) -> str:
    return "x".join(map(str, reversed(shape_DHW)))


def _input_error(code: str, what: str, fix: str, case_id: str) -> InputRejectedError:
    return InputRejectedError(what, fix=fix, code=code, case_id=case_id)
