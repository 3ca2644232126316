"""Filling a volume from its file: while one slab is inflated, other threads put those before it into place."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from threading import Semaphore

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.compute.buffer_pool import ArrayAllocator
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.compute.stage_timer import StageTimer
from tmi.toolkit.imaging.nifti import NiftiFile, no_affine

Convert = Callable[[NDArray[np.generic], NDArray[np.generic]], bool]
"""Turns stored voxels (first) into their part of the volume (second), both [x, y, some z] in the file's own order;
False where they do not fit its type."""
PlanesCallback = Callable[[NDArray[np.generic], int, int], None]
"""PlanesCallback in any thread and order that `array_DHW[lower:upper]` is filled."""


def orientation_of(file: NiftiFile) -> NDArray[np.float64]:
    """For each stored axis the canonical axis (x 0, y 1, z 2) and the direction (1 or -1).

    Raises:
        InputRejectedError: `KIND-affine`: the affine leaves an axis without a direction.
    """
    orientation = nib.orientations.io_orientation(file.affine_xyz)
    if np.isnan(orientation).any():
        raise no_affine(file.path, file.case_id, file.kind)
    return np.asarray(orientation)


def fill_volume(
    file: NiftiFile,
    array_DHW: NDArray[np.generic],
    convert: Convert,
    *,
    pool: Executor,
    on_planes_ready: PlanesCallback | None = None,
    timer: StageTimer | None = None,
    empty: ArrayAllocator = np.empty,
) -> bool:
    """Read a file through into an array in canonical order.

    At most `available_cores()` + 2 slabs are held besides the array. What is wrong with the file is raised before what
    `convert` raises of its values.

    Args:
        file: its header was read.
        array_DHW: canonical shape; every voxel is written.
        convert: called in the threads of the pool, a slab each.
        pool: the threads.
        on_planes_ready: told of finished planes as soon as there are any: at the end where the file is not stored along
        depth.
        timer: told how long the disk took.
        empty: makes the arrays of the slabs.

    Returns:
        False where `convert` did; the array is then not filled.

    Raises:
        InputRejectedError: `KIND-unreadable`, `KIND-affine`.
    """
    orientation = orientation_of(file)
    target_xyz = to_stored_axes(array_DHW, orientation)
    depth, along_depth, upwards = array_DHW.shape[0], orientation[2, 0] == 2, orientation[2, 1] > 0
    room = Semaphore(available_cores() + 2)

    def put(stored: NDArray[np.generic], first: int, last: int) -> bool:
        try:
            fits = convert(stored, target_xyz[:, :, first:last])
        finally:
            room.release()
        if fits and on_planes_ready is not None and along_depth:
            on_planes_ready(array_DHW, *((first, last) if upwards else (depth - last, depth - first)))
        return fits

    pending: list[Future[bool]] = []
    for first, last, stored in file.slabs(timer, empty=empty):
        room.acquire()
        pending.append(pool.submit(put, stored, first, last))
        del stored
    outcomes = [one.result() for one in pending]  # of every one: none may still write when this returns
    fits = all(outcomes)
    if fits and on_planes_ready is not None and not along_depth:
        on_planes_ready(array_DHW, 0, depth)
    return fits


def to_stored_axes(array_DHW: NDArray[np.generic], orientation: NDArray[np.float64]) -> NDArray[np.generic]:
    """A view of a canonical array whose axes and directions are those of the file."""
    view_xyz = array_DHW.transpose(2, 1, 0).transpose([int(axis) for axis in orientation[:, 0]])
    return view_xyz[tuple(slice(None, None, int(step)) for step in orientation[:, 1])]
