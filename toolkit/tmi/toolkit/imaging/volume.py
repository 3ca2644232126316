"""Reading a CT and its mask, and going back to its grid: the one place that knows axis order and orientation.

NIfTI files hold voxels as (x, y, z) in any orientation. Here every volume is brought to canonical RAS+ orientation and
held as array_DHW = canonical_xyz.transpose(2, 1, 0): D grows towards superior, H towards anterior, W towards the
patient's right. `affine_xyz` maps canonical (x, y, z) indices to world millimetres. A mask lies on the CT's grid only
when its world coordinates say so; array order is never compared.

The file's voxels arrive in slabs (`tmi.toolkit.imaging.nifti`). While one is inflated, other threads turn those before
it round and scale them, straight into the volume, and may hand finished planes on: no second whole volume of any type
exists.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import CT_FILE, MASK_FILE, Case
from tmi.toolkit.compute.buffer_pool import ArrayAllocator
from tmi.toolkit.compute.cpu import worker_pool
from tmi.toolkit.compute.stage_timer import StageTimer
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.nifti import NiftiFile, open_nifti
from tmi.toolkit.imaging.slab_reader import fill_volume, orientation_of

INT16 = np.iinfo(np.int16)
INTEGER_TOLERANCE = 1e-3
"""How far a mask's value may lie from a whole number (a scaled uint8 is off by rounding)."""
GRID_TOLERANCE_VOXELS = 0.05
"""How far apart, in voxels, the corners of two grids may lie to be taken for the same grid."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the voxels of a volume lie."""

    shape_DHW: tuple[int, int, int]
    """Voxels."""
    affine_xyz: NDArray[np.float64]
    """4x4, canonical (x, y, z) index -> RAS+ millimetres."""

    @property
    def spacing_DHW_mm(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along D, H, W."""
        x, y, z = (float(v) for v in np.linalg.norm(self.affine_xyz[:3, :3], axis=0))
        return z, y, x


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
    def grid(self) -> Grid:
        """Where its voxels lie."""
        d, h, w = self.array_DHW.shape
        return Grid(shape_DHW=(d, h, w), affine_xyz=self.affine_xyz)

    @property
    def spacing_DHW_mm(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along D, H, W."""
        return self.grid.spacing_DHW_mm


class CtReadCallbacks(Protocol):
    """Begins its own work on a CT while the rest is still being read."""

    def on_grid_ready(self, grid: Grid) -> None:
        """Told once, before any voxel is read."""

    def on_planes_ready(self, array_DHW: NDArray[np.generic], lower: int, upper: int) -> None:
        """Told in any thread and order that `array_DHW[lower:upper]` is final.

        The array may be given up, where values turn out not to fit its type; that which `read_ct` returns counts.
        """


def read_ct(
    case: Case,
    *,
    pool: Executor | None = None,
    callbacks: CtReadCallbacks | None = None,
    timer: StageTimer | None = None,
    empty: ArrayAllocator = np.empty,
) -> Volume:
    """The case's CT in HU, contiguous; int16 where the file's values fit exactly, else float32.

    Args:
        case: the case.
        pool: threads that turn and scale what is inflated here; None makes some.
        callbacks: told of every part that is ready.
        timer: told under `read` how long the disk took.
        empty: makes the array.

    Raises:
        InputRejectedError: ct-missing, ct-unreadable, ct-not-3d, ct-affine, ct-forms, ct-nan.
    """
    if pool is None:
        with worker_pool() as pool:
            return read_ct(case, pool=pool, callbacks=callbacks, timer=timer, empty=empty)
    file = open_nifti(case.ct, case_id=case.case_id, kind="ct")
    grid = _canonical_grid(file)
    if callbacks is not None:
        callbacks.on_grid_ready(grid)
    on_planes_ready = None if callbacks is None else callbacks.on_planes_ready
    array_DHW: NDArray[np.generic] | None = None
    if _is_integer(file):
        array_DHW = empty(grid.shape_DHW, np.int16)
        if not fill_volume(
            file,
            array_DHW,
            partial(_int16_hounsfield, file),
            pool=pool,
            on_planes_ready=on_planes_ready,
            timer=timer,
            empty=empty,
        ):
            array_DHW = None  # no body has such values, so nothing is lost by reading the file once more
    if array_DHW is None:
        array_DHW = empty(grid.shape_DHW, np.float32)
        fill_volume(
            file,
            array_DHW,
            partial(_hounsfield, file),
            pool=pool,
            on_planes_ready=on_planes_ready,
            timer=timer,
            empty=empty,
        )
    return Volume(array_DHW=array_DHW, affine_xyz=grid.affine_xyz, unit=file.unit)


def read_mask(case: Case, ct: Volume | Grid, *, empty: ArrayAllocator = np.empty) -> Volume:
    """The case's liver mask (bool) on the CT's grid; `case.mask_label` selects its voxels. `empty` makes the array.

    Raises:
        InputRejectedError: mask-missing, mask-unreadable, mask-not-3d, mask-affine, mask-forms, mask-grid, mask-nan,
            mask-values, mask-empty.
    """
    file = open_nifti(case.mask, case_id=case.case_id, kind="mask")
    grid = _canonical_grid(file)
    require_same_grid(case.case_id, grid.shape_DHW, grid.affine_xyz, ct)
    inside = empty(grid.shape_DHW, np.bool_)
    labels: set[int] = set()

    def select(stored: NDArray[np.generic], out: NDArray[np.generic]) -> bool:
        values = _labels(stored, file)
        np.not_equal(values, 0, out=out) if case.mask_label is None else np.equal(values, case.mask_label, out=out)
        if case.mask_label is None and len(labels) < 2 and out.any():
            taken = values[out]
            labels.update((int(taken.min()), int(taken.max())))
        return True

    with worker_pool() as pool:
        fill_volume(file, inside, select, pool=pool, empty=empty)
    if not inside.any():
        which = "" if case.mask_label is None else f" of label {case.mask_label}"
        raise InputRejectedError(
            f"{MASK_FILE} has no voxel{which}",
            code="mask-empty",
            case_id=case.case_id,
            fix="segment the liver, or choose its label with --mask-label",
        )
    return Volume(array_DHW=inside, affine_xyz=ct.affine_xyz, unit=file.unit, several_labels=len(labels) > 1)


def read_labels(case: Case) -> Volume:
    """The mask's labels on its own grid, whatever the CT's is: what a repair of the grid starts from.

    Raises:
        InputRejectedError: as `read_mask`, less mask-grid and mask-empty.
    """
    file = open_nifti(case.mask, case_id=case.case_id, kind="mask")
    grid = _canonical_grid(file)
    labels = np.empty(grid.shape_DHW, dtype=np.int32)

    def take(stored: NDArray[np.generic], out: NDArray[np.generic]) -> bool:
        np.copyto(out, _labels(stored, file), casting="unsafe")
        return True

    with worker_pool() as pool:
        fill_volume(file, labels, take, pool=pool)
    return Volume(array_DHW=labels, affine_xyz=grid.affine_xyz, unit=file.unit)


def require_same_grid(
    case_id: str, shape_DHW: tuple[int, ...], affine_xyz: NDArray[np.float64], ct: Volume | Grid
) -> None:
    """Refuse a mask whose grid is not the CT's, by the world coordinates of the corners.

    Raises:
        InputRejectedError: mask-grid.
    """
    mend = "resample the mask onto the CT (tmi check --fix mask-grid), or export it again from the same series"
    ct = ct.grid if isinstance(ct, Volume) else ct
    if tuple(shape_DHW) != ct.shape_DHW:
        have, want = ("x".join(map(str, reversed(s))) for s in (shape_DHW, ct.shape_DHW))
        raise InputRejectedError(
            f"{MASK_FILE} lies on another grid than {CT_FILE} ({have} against {want} voxels)",
            fix=mend,
            code="mask-grid",
            case_id=case_id,
        )
    distance = corner_distance_mm(shape_DHW, affine_xyz, ct.affine_xyz)
    if distance > GRID_TOLERANCE_VOXELS * min(ct.spacing_DHW_mm):
        raise InputRejectedError(
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


def _canonical_grid(file: NiftiFile) -> Grid:
    """The grid of a file once it is brought to RAS+."""
    orientation = orientation_of(file)
    x, y, z = (n for _, n in sorted(zip(orientation[:, 0], file.shape_xyz, strict=True)))
    affine = file.affine_xyz @ nib.orientations.inv_ornt_aff(orientation, file.shape_xyz)
    return Grid(shape_DHW=(z, y, x), affine_xyz=np.asarray(affine, dtype=np.float64))


def _is_integer(file: NiftiFile) -> bool:
    """Whether the file's values are whole numbers; whether they fit int16 is not known yet."""
    scaling = (file.slope, file.intercept)
    return file.dtype.kind in "iu" and all(v == int(v) and abs(v) < 2**31 for v in scaling)


def _int16_hounsfield(file: NiftiFile, stored: NDArray[np.generic], out: NDArray[np.generic]) -> bool:
    """Exact values, where they fit int16."""
    slope, intercept = int(file.slope), int(file.intercept)
    if stored.dtype.newbyteorder("=") == np.int16 and (slope, intercept) == (1, 0):
        np.copyto(out, stored)
        return True
    ends = [int(v) * slope + intercept for v in (stored.min(), stored.max())]
    if min(ends) < INT16.min or max(ends) > INT16.max:
        return False
    # whatever wraps in 32 bits ends at the right 16 of them
    values = stored.astype(np.int32)
    if slope != 1:
        values *= np.int32(slope)
    np.add(values, np.int32(intercept), out=out, casting="unsafe")
    return True


def _hounsfield(file: NiftiFile, stored: NDArray[np.generic], out: NDArray[np.generic]) -> bool:
    """Values in float32."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found by its infinity
        np.copyto(out, _scaled(stored, file), casting="same_kind")
    if not np.isfinite(out).all():
        raise InputRejectedError(
            f"{CT_FILE} holds voxels that are not finite",
            code="ct-nan",
            case_id=file.case_id,
            fix="export the CT again from its series; NaN voxels have no Hounsfield value",
        )
    return True


def _scaled(stored: NDArray[np.generic], file: NiftiFile) -> NDArray[np.generic]:
    """Value = stored * slope + intercept; float64 where there is something to compute."""
    if (file.slope, file.intercept) == (1.0, 0.0):
        return stored
    with np.errstate(over="ignore", invalid="ignore"):
        values: NDArray[np.float64] = stored.astype(np.float64)
        values *= file.slope
        values += file.intercept
    return values


def _labels(stored: NDArray[np.generic], file: NiftiFile) -> NDArray[np.generic]:
    """A mask's values as whole numbers.

    Raises:
        InputRejectedError: mask-nan, mask-values.
    """
    if stored.dtype.kind in "iu" and (file.slope, file.intercept) == (1.0, 0.0):
        return stored
    with np.errstate(over="ignore", invalid="ignore"):
        values = _scaled(stored, file).astype(np.float32)
    if not np.isfinite(values).all():
        raise InputRejectedError(
            f"{MASK_FILE} holds voxels that are not finite",
            code="mask-nan",
            case_id=file.case_id,
            fix="export the mask again as integers",
        )
    whole = np.rint(values)
    if np.abs(values - whole).max() > INTEGER_TOLERANCE or np.abs(whole).max() > 2**24:
        raise InputRejectedError(
            f"{MASK_FILE} holds fractions: probabilities or an interpolated mask, not labels",
            code="mask-values",
            case_id=file.case_id,
            fix="export the mask again as whole numbers; resample masks with nearest neighbour",
        )
    return np.asarray(whole)


def write_on_ct_grid(values_DHW: NDArray[np.floating], case: Case, path: Path) -> None:
    """Write values of the CT's voxels as a NIfTI of float32 that lies on the CT's file voxel for voxel.

    The inverse of `read_ct`'s orientation: same shape, order of axes and affine as the file has.

    Args:
        values_DHW: one value for each voxel of the volume that `read_ct` gave.
        case: whose CT it is.
        path: file to write; its name ends in `.nii.gz`.

    Raises:
        InputRejectedError: ct-missing, ct-unreadable, ct-not-3d, ct-affine, ct-forms.
        ValueError: the values are not of the CT's shape.
    """
    file = open_nifti(case.ct, case_id=case.case_id, kind="ct")
    if values_DHW.shape != (shape_DHW := _canonical_grid(file).shape_DHW):
        raise ValueError(f"values of shape {values_DHW.shape} on a CT of shape {shape_DHW}")
    canonical = np.array([[0, 1], [1, 1], [2, 1]], dtype=np.float64)
    back = nib.orientations.ornt_transform(canonical, orientation_of(file))
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
