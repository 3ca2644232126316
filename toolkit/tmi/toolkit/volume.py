"""Reading a CT and its mask: the one place that knows axis order, orientation and grid.

NIfTI files hold voxels as (x, y, z) in any orientation. Here every volume is brought to canonical RAS+ orientation and
held as array_DHW = canonical_xyz.transpose(2, 1, 0): D grows towards superior, H towards anterior, W towards the
patient's right. `affine_xyz` maps canonical (x, y, z) indices to world millimetres. A mask lies on the CT's grid only
when its world coordinates say so; array order is never compared.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from tmi.toolkit.case import CT_FILE, MASK_FILE, Case
from tmi.toolkit.errors import InputRefusedError

MAX_VOXELS = 2**30
"""A header that claims more voxels is refused before anything is allocated (512 x 512 x 4096)."""
GRID_TOLERANCE_VOXELS = 0.05
"""How far apart, in voxels, the corners of two grids may lie to be taken for the same grid."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume in canonical orientation."""

    array_DHW: NDArray[np.generic]
    """Voxels: int16 or float32 in HU for a CT, bool for a mask."""
    affine_xyz: NDArray[np.float64]
    """4x4, canonical (x, y, z) index -> RAS+ millimetres."""

    @property
    def spacing_DHW_mm(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along D, H, W."""
        x, y, z = (float(v) for v in np.linalg.norm(self.affine_xyz[:3, :3], axis=0))
        return z, y, x


def read_ct(case: Case) -> Volume:
    """The case's CT in HU; int16 where the file's values fit exactly, else float32.

    Raises:
        InputRefusedError: ct-missing, ct-unreadable, ct-not-3d, ct-affine, ct-nan.
    """
    image = _load(case.ct, case.case_id, CT_FILE, "ct")
    array, affine = _canonical(image, case.case_id, CT_FILE, "ct")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputRefusedError(
            f"{CT_FILE} holds voxels that are not finite",
            code="ct-nan",
            case_id=case.case_id,
            fix="export the CT again from its series; NaN voxels have no Hounsfield value",
        )
    return Volume(array_DHW=_hounsfield(array), affine_xyz=affine)


def read_mask(case: Case, ct: Volume) -> Volume:
    """The case's liver mask (bool) on the CT's grid; `case.mask_label` selects its voxels.

    Raises:
        InputRefusedError: mask-missing, mask-unreadable, mask-not-3d, mask-affine, mask-nan, mask-grid, mask-empty.
    """
    image = _load(case.mask, case.case_id, MASK_FILE, "mask")
    array, affine = _canonical(image, case.case_id, MASK_FILE, "mask")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputRefusedError(
            f"{MASK_FILE} holds voxels that are not finite",
            code="mask-nan",
            case_id=case.case_id,
            fix="export the mask again as integers",
        )
    require_same_grid(case.case_id, array.shape, affine, ct)
    inside = array != 0 if case.mask_label is None else array == case.mask_label
    if not inside.any():
        which = "" if case.mask_label is None else f" of label {case.mask_label}"
        raise InputRefusedError(
            f"{MASK_FILE} has no voxel{which}",
            code="mask-empty",
            case_id=case.case_id,
            fix="segment the liver, or choose its label with --mask-label",
        )
    return Volume(array_DHW=inside, affine_xyz=ct.affine_xyz)


def require_same_grid(case_id: str, shape_DHW: tuple[int, ...], affine_xyz: NDArray[np.float64], ct: Volume) -> None:
    """Refuse a mask whose grid is not the CT's, by the world coordinates of the corners.

    Raises:
        InputRefusedError: mask-grid.
    """
    mend = "resample the mask onto the CT (tmi check --fix grid), or export it again from the same series"
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


def _load(path: Path, case_id: str, name: str, kind: str) -> nib.Nifti1Image:
    if not path.is_file():
        raise InputRefusedError(
            f"{name} is missing", fix=f"put {name} into the case folder", code=f"{kind}-missing", case_id=case_id
        )
    try:
        image = nib.load(path)
        shape = image.shape
        affine = np.asarray(image.affine, dtype=np.float64)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise _unreadable(case_id, name, kind) from error
    if not isinstance(image, nib.Nifti1Pair):
        raise _unreadable(case_id, name, kind)
    if len(shape) != 3 and not (len(shape) > 3 and set(shape[3:]) == {1}):
        raise InputRefusedError(
            f"{name} has {len(shape)} axes",
            fix="give one 3D volume, not a series of them",
            code=f"{kind}-not-3d",
            case_id=case_id,
        )
    if min(shape) < 1 or int(np.prod(shape, dtype=np.int64)) > MAX_VOXELS:
        raise _unreadable(case_id, name, kind)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputRefusedError(
            f"{name} has no usable affine",
            fix="export it again with its geometry",
            code=f"{kind}-affine",
            case_id=case_id,
        )
    return image


def _canonical(
    image: nib.Nifti1Image, case_id: str, name: str, kind: str
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Voxels as array_DHW in RAS+ order, values scaled as the header says, and the affine that goes with them."""
    try:
        # nibabel clears the scaling in the header of what it loads; the voxels' proxy keeps it
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
        raw = np.asanyarray(image.dataobj.get_unscaled())
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise _unreadable(case_id, name, kind) from error
    if raw.dtype.kind not in "iuf":
        raise _unreadable(case_id, name, kind)
    raw = raw.reshape(raw.shape[:3])
    orientation = nib.orientations.io_orientation(image.affine)
    if np.isnan(orientation).any():
        raise InputRefusedError(
            f"{name} has no usable affine",
            fix="export it again with its geometry",
            code=f"{kind}-affine",
            case_id=case_id,
        )
    affine = image.affine @ nib.orientations.inv_ornt_aff(orientation, raw.shape)
    array = nib.orientations.apply_orientation(raw, orientation).transpose(2, 1, 0)
    if (slope, intercept) != (1.0, 0.0):
        array = _scaled(array, slope, intercept)
    return np.ascontiguousarray(array), np.asarray(affine, dtype=np.float64)


def _scaled(array: NDArray[np.generic], slope: float, intercept: float) -> NDArray[np.generic]:
    """Header scaling; stays integer where slope and intercept are whole numbers."""
    if array.dtype.kind in "iu" and slope == int(slope) and intercept == int(intercept):
        return array.astype(np.int64) * int(slope) + int(intercept)
    return array.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _hounsfield(array: NDArray[np.generic]) -> NDArray[np.generic]:
    if array.dtype == np.int16:
        return array
    if array.dtype.kind in "iu":
        bounds = np.iinfo(np.int16)
        if array.size and bounds.min <= array.min() and array.max() <= bounds.max:
            return array.astype(np.int16)
    return array.astype(np.float32)


def _unreadable(case_id: str, name: str, kind: str) -> InputRefusedError:
    return InputRefusedError(
        f"{name} cannot be read as NIfTI",
        code=f"{kind}-unreadable",
        case_id=case_id,
        fix="copy the file again, or export it again: it is truncated, damaged or no NIfTI",
    )
