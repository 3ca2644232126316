"""Opens the CT or the mask of a case: a NIfTI file of its folder, its bytes, or an array, with the same interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.arrays import CaseArrays
from tmi.toolkit.cases.case import Case
from tmi.toolkit.cases.loaded import LoadedCase
from tmi.toolkit.compute.buffer_pool import ArrayAllocator
from tmi.toolkit.compute.stage_timer import StageTimer
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.nifti import (
    MAX_VOXELS,
    SLAB_BYTES,
    NiftiFile,
    TimedBytes,
    is_usable_affine,
    no_affine_error,
    open_nifti,
    unreadable_error,
)
from tmi.toolkit.storage.bounded_files import IMAGE_BYTES


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayImage(NiftiFile):
    """An array in memory that is read as a file is: in slabs along its last axis."""

    voxels_XYZ: NDArray[Any]
    """The voxels; `path` is no file."""

    def slabs(
        self, timer: StageTimer | None = None, *, empty: ArrayAllocator = np.empty
    ) -> Iterator[tuple[int, int, NDArray[np.generic]]]:
        """Yield read-only views of the array, as `NiftiFile.slabs` yields the voxels of a file."""
        x, y, z = self.shape_xyz
        step = max(1, SLAB_BYTES // (x * y * self.dtype.itemsize))
        for start in range(0, z, step):
            stop = min(start + step, z)
            slab = self.voxels_XYZ[:, :, start:stop]
            slab.flags.writeable = False  # of this view alone
            yield start, stop, slab


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedImage(NiftiFile):
    """A file of a loaded case, which is read once."""

    case: LoadedCase
    """The case; it holds the bytes of the file until it is decoded."""

    def open_disk(self) -> TimedBytes:
        """The bytes of the file."""
        return TimedBytes(self.case.content(self.path.name, max_bytes=IMAGE_BYTES))


def open_image(case: Case, kind: Literal["ct", "mask"]) -> NiftiFile:
    """Open the CT or the mask of a case.

    Raises:
        InputRejectedError: `KIND-missing`, `KIND-unreadable`, `KIND-not-3d`, `KIND-affine`, `KIND-forms`,
            `case-unreadable`.
    """
    if isinstance(case, CaseArrays):
        return _array_image(case, kind)
    if isinstance(case, LoadedCase):
        return _loaded_image(case, kind)
    return open_nifti(case.ct if kind == "ct" else case.mask, case_id=case.case_id, kind=kind)


def _loaded_image(case: LoadedCase, kind: Literal["ct", "mask"]) -> LoadedImage:
    path = case.ct if kind == "ct" else case.mask
    read = partial(case.content, path.name, max_bytes=IMAGE_BYTES)
    # The header alone is kept: an image that names the case would be a cycle, which only the garbage collector frees.

    def header() -> NiftiFile:
        return open_nifti(path, case_id=case.case_id, kind=kind, read=read, present=case.has(path.name))

    file = case.once(f"{kind} header", header)
    return LoadedImage(case=case, **{entry.name: getattr(file, entry.name) for entry in fields(file)})


def _array_image(case: CaseArrays, kind: Literal["ct", "mask"]) -> ArrayImage:
    name = f"{kind}_XYZ"
    voxels = case.ct_XYZ if kind == "ct" else case.mask_XYZ
    affine = case.affine_xyz if kind == "ct" or case.mask_affine_xyz is None else case.mask_affine_xyz
    if voxels is None or affine is None:
        what = f"{name} is missing" if voxels is None else f"{name} has no affine"
        fix = f"give the array as {name}" if voxels is None else f"give affine_xyz with {name}"
        raise InputRejectedError(what, fix=fix, code=f"{kind}-missing", case_id=case.case_id)
    if voxels.ndim != 3:
        what = f"{name} has {voxels.ndim} axes"
        raise InputRejectedError(what, fix="give one 3D array", code=f"{kind}-not-3d", case_id=case.case_id)
    if not 0 < voxels.size <= MAX_VOXELS:
        what = "has no voxel" if voxels.size == 0 else "has more voxels than a CT has"
        raise unreadable_error(name, case.case_id, kind, what=what, fix="give the whole volume, and only it")
    matrix = np.asarray(affine, dtype=np.float64)
    if not is_usable_affine(matrix) or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise no_affine_error(name, case.case_id, kind)
    stored = voxels.view(np.uint8) if voxels.dtype == np.bool_ else voxels
    x, y, z = (int(n) for n in stored.shape)
    return ArrayImage(
        path=case.folder,
        name=name,
        case_id=case.case_id,
        kind=kind,
        shape_xyz=(x, y, z),
        dtype=stored.dtype,
        offset=0,
        slope=1.0,
        intercept=0.0,
        affine_xyz=matrix,
        unit="mm",
        voxels_XYZ=stored,
    )
