"""Repairs of a case folder, selected by the code of the check they fix and recorded in case.json.

A repair changes only what is known to be wrong and adds no invented data. The repaired file replaces the old one
atomically. The record keeps the digest of the old file, not its content.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import CASE_RECORD_FILE, CT_FILE, MASK_FILE, RADIOMICS_FILE, Case, reading
from tmi.toolkit.cases.provenance import Repair, add_repair, read_case_record
from tmi.toolkit.errors import InputRejectedError, TmiError, UsageError
from tmi.toolkit.imaging.mask_resampling import resample_mask
from tmi.toolkit.imaging.nifti import MAX_VOXELS, is_sheared
from tmi.toolkit.imaging.volume import Volume, read_ct, read_labels, require_same_grid
from tmi.toolkit.qc.image_checks import MM_PER_UNIT, TILT_DEGREES, check_ct, tilt_degrees
from tmi.toolkit.storage.hashing import sha256_file
from tmi.toolkit.storage.outputs import output_lock

AIR_HU = -1024
STALE = f"; an existing {RADIOMICS_FILE} is older than this repair"


@dataclass(frozen=True, kw_only=True)
class AppliedRepair:
    """A repair that was applied to a case."""

    case_id: str
    """The case."""
    code: str
    """Code of the check that it fixes."""
    file: str
    """File that was replaced."""
    what: str
    """Description of the change."""


Change = tuple[Path, Volume, str]
"""File to write, its new content, description of the change."""


def _convert_spacing(case: Case) -> list[Change]:
    """Convert to millimetres if the header declares another unit and the sizes are plausible in that unit."""
    ct = read_ct(case)
    factor = MM_PER_UNIT.get(ct.unit)
    if factor is None or "ct-spacing" not in {issue.code for issue in check_ct(ct)}:
        return []
    converted = _scaled(ct, factor)
    if "ct-spacing" in {issue.code for issue in check_ct(converted)}:
        return []
    what = f"voxel sizes converted from the header's unit ({ct.unit}) to millimetres"
    changes = [(case.ct, converted, what)]
    if case.mask.exists():
        mask = _scaled(read_labels(case), factor)
        require_same_grid(case.case_id, mask.array_DHW.shape, mask.affine_xyz, converted)
        changes.append((case.mask, mask, what))
    return changes


def _scaled(volume: Volume, factor: float) -> Volume:
    return Volume(array_DHW=volume.array_DHW, affine_xyz=np.diag([factor] * 3 + [1.0]) @ volume.affine_xyz, unit="mm")


def _declare_mm(case: Case) -> list[Change]:
    """Set the header's unit to millimetres; voxel sizes stay."""
    ct = read_ct(case)
    if "ct-unit" not in {issue.code for issue in check_ct(ct)}:
        return []
    return [(case.ct, ct, f"unit in the header corrected from {ct.unit} to mm")]


def _straighten(case: Case) -> list[Change]:
    """Resample CT (linear) and mask (nearest) to a grid along the patient's axes with the same voxel sizes."""
    ct = read_ct(case)
    if not is_sheared(ct.affine_xyz) and tilt_degrees(ct) <= TILT_DEGREES:
        return []
    from scipy.ndimage import affine_transform

    affine, shape_xyz = _straight_grid(ct, case.case_id)
    # affine_transform maps output indices to input indices: new voxel -> world -> old voxel
    to_input = np.linalg.inv(ct.affine_xyz) @ affine
    array_XYZ = affine_transform(
        ct.array_DHW.transpose(2, 1, 0),
        to_input,
        output_shape=shape_xyz,
        output=np.float32,
        order=1,
        cval=AIR_HU,
    )
    if ct.array_DHW.dtype == np.int16:
        array_XYZ = np.rint(array_XYZ).astype(np.int16)
    straight = Volume(array_DHW=np.ascontiguousarray(array_XYZ.transpose(2, 1, 0)), affine_xyz=affine, unit="mm")
    what = f"resampled to the patient's axes, {'x'.join(map(str, shape_xyz))} voxels"
    changes = [(case.ct, straight, f"{what}, linear, air outside{STALE}")]
    if case.mask.exists():
        labels = read_labels(case)
        require_same_grid(case.case_id, labels.array_DHW.shape, labels.affine_xyz, ct)
        changes.append((case.mask, resample_mask(labels, straight), f"{what}, nearest neighbour"))
    return changes


def _straight_grid(ct: Volume, case_id: str) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Return affine and shape (x, y, z) of the smallest grid along the patient's axes that contains the volume."""
    spacing = np.array(ct.spacing_DHW_mm[::-1])
    corners = np.array([(*c, 1) for c in itertools.product(*[(0, n - 1) for n in ct.array_DHW.shape[::-1]])]).T
    world = (ct.affine_xyz @ corners)[:3]
    # 1e-6 keeps rounding errors from adding a plane
    shape = np.ceil((world.max(axis=1) - world.min(axis=1)) / spacing - 1e-6).astype(int) + 1
    if int(np.prod(shape, dtype=np.int64)) > MAX_VOXELS:
        raise InputRejectedError(
            f"{CT_FILE} would have too many voxels along the patient's axes",
            fix="crop it, or export the series again",
            code="ct-oblique",
            case_id=case_id,
        )
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = world.min(axis=1)
    return affine, (int(shape[0]), int(shape[1]), int(shape[2]))


def _resample_mask(case: Case) -> list[Change]:
    """Assign each CT voxel the label of the nearest mask voxel in world coordinates."""
    ct, labels = read_ct(case), read_labels(case)
    try:
        require_same_grid(case.case_id, labels.array_DHW.shape, labels.affine_xyz, ct)
    except InputRejectedError:
        resampled = resample_mask(labels, ct)
        before, after = (int(np.count_nonzero(m.array_DHW)) for m in (labels, resampled))
        if not after:
            return []  # the mask lies outside the CT: the finding stays
        what = f"resampled onto the CT's grid, nearest neighbour: {before} -> {after} voxels{STALE}"
        return [(case.mask, resampled, what)]
    return []


def _clip_padding(case: Case) -> list[Change]:
    """Set all values below `AIR_HU` to it."""
    ct = read_ct(case)
    values: NDArray[Any] = ct.array_DHW
    count = int(np.count_nonzero(values < AIR_HU))
    if not count:
        return []
    clipped = np.maximum(ct.array_DHW, ct.array_DHW.dtype.type(AIR_HU))
    volume = Volume(array_DHW=clipped, affine_xyz=ct.affine_xyz, unit="mm")
    return [(case.ct, volume, f"{count} voxels below {AIR_HU} HU set to {AIR_HU} HU")]


REPAIRS: Mapping[str, Callable[[Case], list[Change]]] = MappingProxyType(
    {
        "ct-spacing": _convert_spacing,
        "ct-unit": _declare_mm,
        "ct-sheared": _straighten,
        "ct-oblique": _straighten,
        "mask-grid": _resample_mask,
        "ct-padding": _clip_padding,
    }
)
"""Code of a check -> its repair, in the order in which repairs are applied."""


def parse_codes(texts: Sequence[str]) -> tuple[str, ...]:
    """Parse comma-separated codes and return them in the order of `REPAIRS`.

    Raises:
        UsageError: a code has no repair, or there is no code.
    """
    requested = {c.strip() for text in texts for c in text.split(",") if c.strip()}
    unknown = sorted(requested - set(REPAIRS))
    if unknown or not requested:
        raise UsageError(
            f"there is no repair {unknown[0]!r}" if unknown else "--fix names no repair",
            fix=f"repairs are {', '.join(REPAIRS)}; for other codes follow the fix of the finding",
        )
    return tuple(c for c in REPAIRS if c in requested)


def repair(case: Case, codes: Sequence[str]) -> list[AppliedRepair]:
    """Apply and record those of the selected repairs that the case needs; other files are not modified.

    A case that cannot be read for another reason is left unchanged; its check reports the reason.

    Raises:
        InputRejectedError: case-files: another process repairs the case, or a file cannot be written; files
            of earlier repairs are.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(output_lock(case.folder / CASE_RECORD_FILE, kind="case"))
        except TmiError as error:
            raise InputRejectedError(error.what, fix=error.fix, code="case-files", case_id=case.case_id) from error
        return _repair(case, codes)


def _repair(case: Case, codes: Sequence[str]) -> list[AppliedRepair]:
    applied: list[AppliedRepair] = []
    for code in codes:
        try:
            with reading(case.case_id):
                read_case_record(case.folder, case_id=case.case_id)  # no repair without a readable record
                changes = REPAIRS[code](case)
        except InputRejectedError:
            continue
        for path, volume, what in changes:
            try:
                before = sha256_file(path)
                _write(path, volume)
                record = Repair(code=code, file=path.name, what=what, before_sha256=before)
                add_repair(case.folder, record, case_id=case.case_id)
            except OSError as error:
                raise InputRejectedError(
                    f"repaired {path.name} cannot be written ({error.strerror or type(error).__name__})",
                    fix="make the folder writable and free space on its disk, or repair a copy of the case",
                    code="case-files",
                    case_id=case.case_id,
                ) from error
            applied.append(AppliedRepair(case_id=case.case_id, code=code, file=path.name, what=what))
    return applied


def _write(path: Path, volume: Volume) -> None:
    """Write a volume atomically as NIfTI in RAS+ order, with both affines and the unit set."""
    array = volume.array_DHW.transpose(2, 1, 0)
    if path.name == MASK_FILE:
        array = array.astype(np.min_scalar_type(int(array.max())) if int(array.min()) >= 0 else np.int32)
    image = nib.Nifti1Image(array, volume.affine_xyz)
    image.set_qform(volume.affine_xyz, code=1)
    image.set_sform(volume.affine_xyz, code=1)
    image.header.set_xyzt_units("mm")
    part = path.with_name(f".part-{path.name}")
    try:
        nib.save(image, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
