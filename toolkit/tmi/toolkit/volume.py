"""Reading a CT and its mask, and going back to its grid: the one place that knows axis order and orientation.

NIfTI files hold voxels as (x, y, z) in any orientation. Here every volume is brought to canonical RAS+ orientation and
held as array_DHW = canonical_xyz.transpose(2, 1, 0): D grows towards superior, H towards anterior, W towards the
patient's right. `affine_xyz` maps canonical (x, y, z) indices to world millimetres. A mask lies on the CT's grid only
when its world coordinates say so; array order is never compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.case import CT_FILE, MASK_FILE, Case
from tmi.toolkit.errors import InputRefusedError
from tmi.toolkit.nifti_file import NiftiFile, no_affine, open_nifti

SLAB_BYTES = 2**24
"""Voxels are converted in slabs of about this size, so that no second whole volume of a wide type exists."""
WHOLE = 1e-3
"""How far a mask's value may lie from a whole number (a scaled uint8 is off by rounding)."""
GRID_TOLERANCE_VOXELS = 0.05
"""How far apart, in voxels, the corners of two grids may lie to be taken for the same grid."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume in canonical orientation."""

    array_DHW: NDArray[np.generic]
    """Voxels: int16 or float32 in HU for a CT, bool for a mask."""
    affine_xyz: NDArray[np.float64]
    """4x4, canonical (x, y, z) index -> RAS+ millimetres."""
    unit: str = "unknown"
    """Unit of length that the file declares; millimetres are taken whatever it says, and a check compares."""
    several_labels: bool = False
    """A mask taken from several values of its file, because no label was asked for."""

    @property
    def spacing_DHW_mm(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along D, H, W."""
        x, y, z = (float(v) for v in np.linalg.norm(self.affine_xyz[:3, :3], axis=0))
        return z, y, x


def read_ct(case: Case) -> Volume:
    """The case's CT in HU; int16 where the file's values fit exactly, else float32.

    Raises:
        InputRefusedError: ct-missing, ct-unreadable, ct-not-3d, ct-affine, ct-forms, ct-nan.
    """
    file = open_nifti(case.ct, case_id=case.case_id, kind="ct")
    stored_DHW, affine = _canonical(file)
    return Volume(array_DHW=_hounsfield(stored_DHW, file), affine_xyz=affine, unit=file.unit)


def read_mask(case: Case, ct: Volume) -> Volume:
    """The case's liver mask (bool) on the CT's grid; `case.mask_label` selects its voxels.

    Raises:
        InputRefusedError: mask-missing, mask-unreadable, mask-not-3d, mask-affine, mask-forms, mask-grid, mask-nan,
            mask-values, mask-empty.
    """
    file = open_nifti(case.mask, case_id=case.case_id, kind="mask")
    require_same_grid(case.case_id, *_canonical_grid(file), ct)
    stored_DHW, _ = _canonical(file)
    inside = np.empty(stored_DHW.shape, dtype=np.bool_)
    labels: set[int] = set()
    for slab in _slabs(stored_DHW):
        values = _labels(stored_DHW[slab], file)
        inside[slab] = values != 0 if case.mask_label is None else values == case.mask_label
        if case.mask_label is None and len(labels) < 2:
            taken = values[inside[slab]]
            labels |= {int(taken.min()), int(taken.max())} if taken.size else set()
    if not inside.any():
        which = "" if case.mask_label is None else f" of label {case.mask_label}"
        raise InputRefusedError(
            f"{MASK_FILE} has no voxel{which}",
            code="mask-empty",
            case_id=case.case_id,
            fix="segment the liver, or choose its label with --mask-label",
        )
    return Volume(array_DHW=inside, affine_xyz=ct.affine_xyz, unit=file.unit, several_labels=len(labels) > 1)


def read_labels(case: Case) -> Volume:
    """The mask's labels on its own grid, whatever the CT's is: what a repair of the grid starts from.

    Raises:
        InputRefusedError: as `read_mask`, less mask-grid and mask-empty.
    """
    file = open_nifti(case.mask, case_id=case.case_id, kind="mask")
    stored_DHW, affine = _canonical(file)
    labels = np.empty(stored_DHW.shape, dtype=np.int32)
    for slab in _slabs(stored_DHW):
        labels[slab] = _labels(stored_DHW[slab], file)
    return Volume(array_DHW=labels, affine_xyz=affine, unit=file.unit)


def require_same_grid(case_id: str, shape_DHW: tuple[int, ...], affine_xyz: NDArray[np.float64], ct: Volume) -> None:
    """Refuse a mask whose grid is not the CT's, by the world coordinates of the corners.

    Raises:
        InputRefusedError: mask-grid.
    """
    mend = "resample the mask onto the CT (tmi check --fix mask-grid), or export it again from the same series"
    if tuple(shape_DHW) != ct.array_DHW.shape:
        have, want = ("x".join(map(str, reversed(s))) for s in (shape_DHW, ct.array_DHW.shape))
        raise InputRefusedError(
            f"{MASK_FILE} lies on another grid than {CT_FILE} ({have} against {want} voxels)",
            fix=mend,
            code="mask-grid",
            case_id=case_id,
        )
    distance = corner_distance_mm(shape_DHW, affine_xyz, ct.affine_xyz)
    if distance > GRID_TOLERANCE_VOXELS * min(ct.spacing_DHW_mm):
        raise InputRefusedError(
            f"{MASK_FILE} lies on another grid than {CT_FILE} (corners up to {distance:.1f} mm apart)",
            fix=mend,
            code="mask-grid",
            case_id=case_id,
        )


def corner_distance_mm(
    shape_DHW: tuple[int, ...], one_xyz: NDArray[np.float64], other_xyz: NDArray[np.float64]
) -> float:
    """Largest distance in mm between the same corner voxel of two grids of one shape."""
    last = [n - 1 for n in reversed(shape_DHW)]
    corners = np.array(np.meshgrid(*[(0, n) for n in last], [1])).reshape(4, -1)
    return float(np.linalg.norm(((one_xyz - other_xyz) @ corners)[:3], axis=0).max())


def _canonical_grid(file: NiftiFile) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape (D, H, W) and affine of a file once it is brought to RAS+."""
    orientation = _orientation(file)
    shape = tuple(n for _, n in sorted(zip(orientation[:, 0], file.shape_xyz, strict=True)))
    affine = file.affine_xyz @ nib.orientations.inv_ornt_aff(orientation, file.shape_xyz)
    return shape[::-1], np.asarray(affine, dtype=np.float64)


def _canonical(file: NiftiFile) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Stored voxels seen as array_DHW in RAS+ order (a view), and the affine that goes with them."""
    orientation = _orientation(file)
    stored = nib.orientations.apply_orientation(file.stored_xyz(), orientation).transpose(2, 1, 0)
    return stored, _canonical_grid(file)[1]


def _orientation(file: NiftiFile) -> NDArray[np.float64]:
    orientation = nib.orientations.io_orientation(file.affine_xyz)
    if np.isnan(orientation).any():
        raise no_affine(file.path, file.case_id, file.kind)
    return np.asarray(orientation)


def _slabs(array: NDArray[np.generic]) -> Iterator[tuple[slice, ...]]:
    """Index tuples that cut an array, along the axis that is slowest in memory, into pieces of about `SLAB_BYTES`."""
    axis = int(np.argmax(np.abs(array.strides)))
    step = max(1, SLAB_BYTES * array.shape[axis] // max(array.nbytes, 1))
    for start in range(0, array.shape[axis], step):
        yield tuple(slice(start, start + step) if a == axis else slice(None) for a in range(array.ndim))


def _hounsfield(stored_DHW: NDArray[np.generic], file: NiftiFile) -> NDArray[np.generic]:
    """Scaled values, contiguous: int16 where the file's are whole numbers that fit, else float32."""
    slope, intercept = file.slope, file.intercept
    whole = stored_DHW.dtype.kind in "iu" and slope == int(slope) and intercept == int(intercept)
    if whole and (slope, intercept) == (1.0, 0.0) and stored_DHW.dtype == np.int16:
        return np.ascontiguousarray(stored_DHW, dtype=np.int16)  # of either byte order
    if whole:
        ends = [int(v) * int(slope) + int(intercept) for v in (stored_DHW.min(), stored_DHW.max())]
        bounds = np.iinfo(np.int16)
        if bounds.min <= min(ends) and max(ends) <= bounds.max:
            exact = np.empty(stored_DHW.shape, dtype=np.int16)
            for slab in _slabs(stored_DHW):
                exact[slab] = stored_DHW[slab].astype(np.int64) * int(slope) + int(intercept)
            return exact
    out = np.empty(stored_DHW.shape, dtype=np.float32)
    for slab in _slabs(stored_DHW):
        out[slab] = _scaled(stored_DHW[slab], file)
        if not np.isfinite(out[slab]).all():
            raise InputRefusedError(
                f"{CT_FILE} holds voxels that are not finite",
                code="ct-nan",
                case_id=file.case_id,
                fix="export the CT again from its series; NaN voxels have no Hounsfield value",
            )
    return out


def _scaled(stored: NDArray[np.generic], file: NiftiFile) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found by its infinity
        return np.asarray(stored.astype(np.float32) * np.float32(file.slope) + np.float32(file.intercept))


def _labels(stored: NDArray[np.generic], file: NiftiFile) -> NDArray[np.generic]:
    """A mask's values as whole numbers.

    Raises:
        InputRefusedError: mask-nan, mask-values.
    """
    if stored.dtype.kind in "iu" and (file.slope, file.intercept) == (1.0, 0.0):
        return stored
    values = _scaled(stored, file)
    if not np.isfinite(values).all():
        raise InputRefusedError(
            f"{MASK_FILE} holds voxels that are not finite",
            code="mask-nan",
            case_id=file.case_id,
            fix="export the mask again as integers",
        )
    whole = np.rint(values)
    if np.abs(values - whole).max() > WHOLE or np.abs(whole).max() > 2**24:
        raise InputRefusedError(
            f"{MASK_FILE} holds fractions: probabilities or an interpolated mask, not labels",
            code="mask-values",
            case_id=file.case_id,
            fix="export the mask again as whole numbers; resample masks with nearest neighbour",
        )
    return whole


def write_on_ct_grid(values_DHW: NDArray[np.floating], case: Case, path: Path) -> None:
    """Write values of the CT's voxels as a NIfTI of float32 that lies on the CT's file voxel for voxel.

    The inverse of `read_ct`'s orientation: same shape, order of axes and affine as the file has.

    Args:
        values_DHW: one value for each voxel of the volume that `read_ct` gave.
        case: whose CT it is.
        path: file to write; its name ends in `.nii.gz`.

    Raises:
        InputRefusedError: ct-missing, ct-unreadable, ct-not-3d, ct-affine, ct-forms.
        ValueError: the values are not of the CT's shape.
    """
    file = open_nifti(case.ct, case_id=case.case_id, kind="ct")
    if values_DHW.shape != _canonical_grid(file)[0]:
        raise ValueError(f"values of shape {values_DHW.shape} on a CT of shape {_canonical_grid(file)[0]}")
    canonical = np.array([[0, 1], [1, 1], [2, 1]], dtype=np.float64)
    back = nib.orientations.ornt_transform(canonical, _orientation(file))
    stored = nib.orientations.apply_orientation(values_DHW.transpose(2, 1, 0), back)
    image = nib.Nifti1Image(np.asarray(stored, dtype=np.float32), file.affine_xyz)
    image.set_sform(file.affine_xyz, code=1)
    image.set_qform(file.affine_xyz, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One of the three planes a volume is looked at in, as radiologists do: the patient faces the viewer."""

    name: str
    """`axial`, `coronal` or `sagittal`."""
    axis: int
    """Axis of [D,H,W] that counts the plane's slices."""
    marks: tuple[str, str, str, str]
    """What lies at the left, right, top and bottom of the picture: R L A P S I."""

    def picture(self, volume_DHW: NDArray[np.generic], index: int) -> NDArray[np.generic]:
        """Slice `index` as rows from top to bottom and columns from left to right; a view."""
        chosen: list[int | slice] = [slice(None, None, -1)] * 3
        chosen[self.axis] = index
        return volume_DHW[tuple(chosen)]

    def pixel_mm(self, volume: Volume) -> tuple[float, float]:
        """Height and width of a pixel of the picture."""
        first, second = (s for axis, s in enumerate(volume.spacing_DHW_mm) if axis != self.axis)
        return first, second


PLANES: tuple[Plane, Plane, Plane] = (
    Plane(name="axial", axis=0, marks=("R", "L", "A", "P")),
    Plane(name="coronal", axis=1, marks=("R", "L", "S", "I")),
    Plane(name="sagittal", axis=2, marks=("A", "P", "S", "I")),
)
"""D grows to superior, H to anterior, W to the patient's right: every picture is the slice with both axes turned round,
so that the patient's right is on the left, and front (axial) or head (coronal, sagittal) is on top."""
