"""Read a CT and its mask as arrays in one orientation, and write arrays back onto the CT's file grid.

Axis order and orientation are handled in this module only. NIfTI files store voxels as (x, y, z) in any orientation.
Each volume is reoriented to canonical RAS+ and held as array_DHW = canonical_xyz.transpose(2, 1, 0): D increases
towards superior, H towards anterior, W towards the patient's right. `affine_xyz` maps canonical (x, y, z) indices to
world millimetres. Grids are compared by world coordinates, never by array order.

Voxels are read in slabs (`tmi.toolkit.imaging.nifti`). While one slab is decompressed, worker threads reorient and
scale the previous ones into the volume and may pass finished planes on. No second full-size array is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import CT_FILE, MASK_FILE, Case
from tmi.toolkit.cases.loaded import LoadedCase
from tmi.toolkit.compute.buffer_pool import ArrayAllocator
from tmi.toolkit.compute.cpu import worker_pool
from tmi.toolkit.compute.stage_timer import StageTimer
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.case_images import open_image
from tmi.toolkit.imaging.nifti import NiftiFile, open_nifti
from tmi.toolkit.imaging.slab_reader import fill_volume, orientation_of
from tmi.toolkit.imaging.voxel_values import integer_labels, is_integer, require_int32, to_float32_hu, to_int16_hu

GRID_TOLERANCE_VOXELS = 0.05
"""Largest distance between the corners of two equal grids, in units of the smallest voxel edge."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Shape and affine of a volume in canonical orientation."""

    shape_DHW: tuple[int, int, int]
    """Number of voxels along D, H, W."""
    affine_xyz: NDArray[np.float64]
    """4x4, canonical (x, y, z) index -> RAS+ millimetres."""

    @property
    def spacing_DHW_mm(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along D, H, W."""
        # column k of the affine is the step of one voxel along axis k, in mm
        x, y, z = (float(v) for v in np.linalg.norm(self.affine_xyz[:3, :3], axis=0))
        return z, y, x


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume in canonical orientation."""

    array_DHW: NDArray[np.generic]
    """Voxels: int16 or float32 in HU for a CT, bool for a mask, int32 for labels."""
    affine_xyz: NDArray[np.float64]
    """4x4, canonical (x, y, z) index -> RAS+ millimetres."""
    unit: str = "unknown"
    """Unit of length declared by the file. It is not applied: millimetres are assumed, and a check compares."""
    several_labels: bool = False
    """True for a mask that merges several labels of its file because no label was selected."""

    @property
    def grid(self) -> Grid:
        """Shape and affine of the volume."""
        d, h, w = self.array_DHW.shape
        return Grid(shape_DHW=(d, h, w), affine_xyz=self.affine_xyz)

    @property
    def spacing_DHW_mm(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along D, H, W."""
        return self.grid.spacing_DHW_mm


class CtReadCallbacks(Protocol):
    """Hooks that process a CT while the rest of it is still being read."""

    def on_grid_ready(self, grid: Grid) -> None:
        """Called once, before any voxel is read."""

    def on_planes_ready(self, array_DHW: NDArray[np.generic], lower: int, upper: int) -> None:
        """Called from worker threads, in any order, once `array_DHW[lower:upper]` is filled.

        The array may be discarded and re-read as float32 if a value overflows int16; only the array returned by
        `read_ct` is final.
        """


def read_ct(
    case: Case,
    *,
    pool: Executor | None = None,
    callbacks: CtReadCallbacks | None = None,
    timer: StageTimer | None = None,
    empty: ArrayAllocator = np.empty,
) -> Volume:
    """Read the case's CT in HU as a contiguous array: int16 if all values fit exactly, else float32.

    Args:
        case: the case.
        pool: threads that reorient and scale the slabs; None creates a pool for this call.
        callbacks: called when the grid is known and when planes are filled.
        timer: receives the seconds of disk reads under `read`.
        empty: allocates the array.

    Raises:
        InputRejectedError: ct-missing, ct-unreadable, ct-not-3d, ct-affine, ct-forms, ct-nan.
    """

    def read() -> Volume:
        file = open_image(case, "ct")
        return read_ct_file(file, pool=pool, callbacks=callbacks, timer=timer, empty=empty)

    if not isinstance(case, LoadedCase):
        return read()
    ct, first = _read_once(case, CT_FILE, read)
    if callbacks is not None and not first:
        callbacks.on_grid_ready(ct.grid)
        callbacks.on_planes_ready(ct.array_DHW, 0, ct.array_DHW.shape[0])
    return ct


def read_ct_file(
    file: NiftiFile,
    *,
    pool: Executor | None = None,
    callbacks: CtReadCallbacks | None = None,
    timer: StageTimer | None = None,
    empty: ArrayAllocator = np.empty,
) -> Volume:
    """Read an opened CT as `read_ct` does; the file need not belong to a case folder.

    Raises:
        InputRejectedError: ct-unreadable, ct-affine, ct-nan.
    """
    if pool is None:
        with worker_pool() as pool:
            return read_ct_file(file, pool=pool, callbacks=callbacks, timer=timer, empty=empty)
    grid = _canonical_grid(file)
    if callbacks is not None:
        callbacks.on_grid_ready(grid)
    on_planes_ready = None if callbacks is None else callbacks.on_planes_ready
    array_DHW: NDArray[np.generic] | None = None
    if is_integer(file):
        array_DHW = empty(grid.shape_DHW, np.int16)
        if not fill_volume(
            file,
            array_DHW,
            partial(to_int16_hu, file),
            pool=pool,
            on_planes_ready=on_planes_ready,
            timer=timer,
            empty=empty,
        ):
            array_DHW = None  # a value overflows int16: no plausible CT, so a second read as float32 is acceptable
    if array_DHW is None:
        array_DHW = empty(grid.shape_DHW, np.float32)
        fill_volume(
            file,
            array_DHW,
            partial(to_float32_hu, file),
            pool=pool,
            on_planes_ready=on_planes_ready,
            timer=timer,
            empty=empty,
        )
    return Volume(array_DHW=array_DHW, affine_xyz=grid.affine_xyz, unit=file.unit)


def _read_once(case: LoadedCase, name: str, read: Callable[[], Volume]) -> tuple[Volume, bool]:
    """Volume of a file of a loaded case, read-only, and whether this call decoded it; its bytes are then dropped."""
    first = False

    def decode() -> Volume:
        nonlocal first
        first = True
        try:
            volume = read()
        finally:
            case.release(name)
        volume.array_DHW.flags.writeable = False
        return volume

    return case.once(f"{name} voxels", decode), first


def read_mask(case: Case, ct: Volume | Grid, *, empty: ArrayAllocator = np.empty) -> Volume:
    """Read the case's liver mask (bool) on the CT's grid; that of a loaded case once.

    Args:
        case: the case; `mask_label` selects the voxels of its labels, None those of every non-zero label.
        ct: the CT or its grid.
        empty: allocates the array.

    Raises:
        InputRejectedError: mask-missing, mask-unreadable, mask-not-3d, mask-affine, mask-forms, mask-grid, mask-nan,
            mask-values, mask-empty.
    """
    if isinstance(case, LoadedCase):
        return _read_once(case, MASK_FILE, lambda: _read_mask(case, ct, empty=empty))[0]
    return _read_mask(case, ct, empty=empty)


def _read_mask(case: Case, ct: Volume | Grid, *, empty: ArrayAllocator) -> Volume:
    file = open_image(case, "mask")
    grid = _canonical_grid(file)
    require_same_grid(case.case_id, grid.shape_DHW, grid.affine_xyz, ct)
    mask_DHW = empty(grid.shape_DHW, np.bool_)
    labels: set[int] = set()
    wanted = (case.mask_label,) if isinstance(case.mask_label, int) else case.mask_label
    found: list[bool] = []  # whether a slab has the first label: a tumour without its liver is no liver

    def select(stored: NDArray[np.generic], out: NDArray[np.generic]) -> bool:
        values = integer_labels(stored, file)
        if wanted is None:
            np.not_equal(values, 0, out=out)
        else:
            np.equal(values, wanted[0], out=out)
            found.append(bool(out.any()))
            for label in wanted[1:]:
                np.logical_or(out, values == label, out=out)
        # minimum and maximum suffice to detect more than one label
        if wanted is None and len(labels) < 2 and out.any():
            selected = values[out]
            labels.update((int(selected.min()), int(selected.max())))
        return True

    with worker_pool() as pool:
        fill_volume(file, mask_DHW, select, pool=pool, empty=empty)
    if not (any(found) if wanted is not None else mask_DHW.any()):
        suffix = "" if wanted is None else f" of label {wanted[0]}"
        raise InputRejectedError(
            f"{MASK_FILE} has no voxel{suffix}",
            code="mask-empty",
            case_id=case.case_id,
            fix="segment the liver, or choose its label with --mask-label",
        )
    return Volume(array_DHW=mask_DHW, affine_xyz=ct.affine_xyz, unit=file.unit, several_labels=len(labels) > 1)


def read_labels(case: Case) -> Volume:
    """Read the mask's labels (int32) on the mask's own grid; the input of a grid repair.

    Raises:
        InputRejectedError: as `read_mask`, except mask-grid and mask-empty.
    """
    return read_label_file(open_nifti(case.mask, case_id=case.case_id, kind="mask"))


def read_label_file(file: NiftiFile) -> Volume:
    """Read the labels (int32) of an opened mask on its own grid.

    Raises:
        InputRejectedError: mask-unreadable, mask-affine, mask-nan, mask-values.
    """
    grid = _canonical_grid(file)
    labels = np.empty(grid.shape_DHW, dtype=np.int32)

    def copy(stored: NDArray[np.generic], out: NDArray[np.generic]) -> bool:
        np.copyto(out, require_int32(integer_labels(stored, file), file), casting="unsafe")
        return True

    with worker_pool() as pool:
        fill_volume(file, labels, copy, pool=pool)
    return Volume(array_DHW=labels, affine_xyz=grid.affine_xyz, unit=file.unit)


def require_same_grid(
    case_id: str, shape_DHW: tuple[int, ...], affine_xyz: NDArray[np.float64], ct: Volume | Grid
) -> None:
    """Reject a mask whose grid differs from the CT's in shape or in the world coordinates of its corners.

    Raises:
        InputRejectedError: mask-grid.
    """
    ct = ct.grid if isinstance(ct, Volume) else ct
    grid = Grid(shape_DHW=(shape_DHW[0], shape_DHW[1], shape_DHW[2]), affine_xyz=affine_xyz)
    if difference := grid_difference(grid, ct):
        raise InputRejectedError(
            f"{MASK_FILE} lies on another grid than {CT_FILE}: {difference}",
            fix="resample the mask onto the CT (tmi check --fix mask-grid), or export it again from the same series",
            code="mask-grid",
            case_id=case_id,
        )


def grid_difference(mask: Grid, ct: Grid) -> str | None:
    """Return in what the grid of a mask differs from that of its CT; None if they are equal within the tolerance.

    Sizes and distances are reported in the order x, y, z, in which viewers of NIfTI show them.
    """
    parts = []
    same_shape = mask.shape_DHW == ct.shape_DHW
    tolerance_mm = GRID_TOLERANCE_VOXELS * min(ct.spacing_DHW_mm)
    distance = corner_distance_mm(ct.shape_DHW, mask.affine_xyz, ct.affine_xyz)
    if same_shape and distance <= tolerance_mm:
        return None
    if not same_shape:
        sizes = ("x".join(map(str, reversed(grid.shape_DHW))) for grid in (mask, ct))
        parts.append("{} against {} voxels".format(*sizes))
    # what each difference moves the last voxel by, so that rounding in a header is not named
    steps = [np.array(grid.spacing_DHW_mm[::-1]) for grid in (mask, ct)]
    last = np.array(ct.shape_DHW[::-1]) - 1
    if (np.abs(steps[0] - steps[1]) * last).max() > tolerance_mm / 4:
        digits = next(n for n in range(3, 18) if len({_triple(s, n) for s in steps}) > 1)
        parts.append(f"voxels of {_triple(steps[0], digits)} against {_triple(steps[1], digits)} mm")
    axes = [grid.affine_xyz[:3, :3] / np.linalg.norm(grid.affine_xyz[:3, :3], axis=0) for grid in (mask, ct)]
    # |a - b| of unit vectors is 2 sin(angle / 2)
    turn = 2 * np.arcsin(np.clip(np.linalg.norm(axes[0] - axes[1], axis=0) / 2, 0, 1))
    if (turn * last * steps[1]).max() > tolerance_mm / 4:
        parts.append(f"axes turned by {np.degrees(turn.max()):.2g} degrees")
    shift = mask.affine_xyz[:3, 3] - ct.affine_xyz[:3, 3]
    if np.linalg.norm(shift) > tolerance_mm / 4:
        parts.append(f"first voxels {np.linalg.norm(shift):.3g} mm apart")
    if same_shape:
        parts.append(f"corners up to {distance:.1f} mm apart")
    return ", ".join(parts)


def _triple(values: NDArray[np.float64], digits: int) -> str:
    return " x ".join(f"{v:.{digits}g}" for v in values)


def corner_distance_mm(
    shape_DHW: tuple[int, ...], one_xyz: NDArray[np.float64], other_xyz: NDArray[np.float64]
) -> float:
    """Return the largest distance in mm between corresponding corner voxels of two grids of the same shape.

    Args:
        shape_DHW: shape of both grids.
        one_xyz: 4x4 affine of one grid.
        other_xyz: 4x4 affine of the other grid.
    """
    last = [n - 1 for n in reversed(shape_DHW)]
    corners = np.array(np.meshgrid(*[(0, n) for n in last], [1])).reshape(4, -1)  # homogeneous (x, y, z, 1), [4, 8]
    return float(np.linalg.norm(((one_xyz - other_xyz) @ corners)[:3], axis=0).max())


def _canonical_grid(file: NiftiFile) -> Grid:
    """Return the grid of the file's volume after reorientation to RAS+."""
    orientation = orientation_of(file)
    # column 0 of the orientation is the canonical axis of each stored axis: sorting by it gives sizes in x, y, z
    x, y, z = (n for _, n in sorted(zip(orientation[:, 0], file.shape_xyz, strict=True)))
    affine = file.affine_xyz @ nib.orientations.inv_ornt_aff(orientation, file.shape_xyz)
    return Grid(shape_DHW=(z, y, x), affine_xyz=np.asarray(affine, dtype=np.float64))


def write_on_ct_grid(values_DHW: NDArray[np.floating], case: Case, path: Path) -> None:
    """Write one value per CT voxel as a float32 NIfTI file on the grid of the CT's file.

    The reorientation of `read_ct` is inverted: shape, axis order and affine equal those of the CT's file.

    Args:
        values_DHW: values in the orientation and shape of the volume that `read_ct` returns.
        case: the case that the CT belongs to.
        path: file to write; its name ends in `.nii.gz`.

    Raises:
        InputRejectedError: ct-missing, ct-unreadable, ct-not-3d, ct-affine, ct-forms.
        ValueError: the shape of the values differs from the CT's.
    """
    file = open_image(case, "ct")
    if values_DHW.shape != (shape_DHW := _canonical_grid(file).shape_DHW):
        raise ValueError(f"values of shape {values_DHW.shape} on a CT of shape {shape_DHW}")
    canonical = np.array([[0, 1], [1, 1], [2, 1]], dtype=np.float64)
    to_stored = nib.orientations.ornt_transform(canonical, orientation_of(file))
    stored = nib.orientations.apply_orientation(values_DHW.transpose(2, 1, 0), to_stored)
    image = nib.Nifti1Image(np.asarray(stored, dtype=np.float32), file.affine_xyz)
    # set both forms, so that readers agree whichever of the two they use
    image.set_sform(file.affine_xyz, code=1)
    image.set_qform(file.affine_xyz, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """An anatomical plane in the radiological display convention: the patient faces the viewer."""

    name: str
    """`axial`, `coronal` or `sagittal`."""
    axis: int
    """Axis of [D,H,W] perpendicular to the plane, along which its slices are numbered."""
    marks: tuple[str, str, str, str]
    """Anatomical direction at the left, right, top and bottom edge of the image: R, L, A, P, S or I."""

    def picture(self, volume_DHW: NDArray[np.generic], index: int) -> NDArray[np.generic]:
        """Return slice `index` as a view, with rows from top to bottom and columns from left to right."""
        chosen: list[int | slice] = [slice(None, None, -1)] * 3
        chosen[self.axis] = index
        return volume_DHW[tuple(chosen)]

    def pixel_mm(self, volume: Volume) -> tuple[float, float]:
        """Return the height and width in mm of a pixel of the image."""
        first, second = (s for axis, s in enumerate(volume.spacing_DHW_mm) if axis != self.axis)
        return first, second


PLANES: tuple[Plane, Plane, Plane] = (
    Plane(name="axial", axis=0, marks=("R", "L", "A", "P")),
    Plane(name="coronal", axis=1, marks=("R", "L", "S", "I")),
    Plane(name="sagittal", axis=2, marks=("A", "P", "S", "I")),
)
"""D increases towards superior, H towards anterior, W towards the patient's right. Each image is the slice with both
axes reversed: the patient's right is on the left, and anterior (axial) or superior (coronal, sagittal) is on top."""
