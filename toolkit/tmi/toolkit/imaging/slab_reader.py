"""Fill a volume from its file: worker threads convert and reorient slabs while the next one is decompressed."""

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
from tmi.toolkit.imaging.nifti import NiftiFile, no_affine_error

Convert = Callable[[NDArray[np.generic], NDArray[np.generic]], bool]
"""Convert(stored, out): write converted voxels to `out`, a view of the volume; both are slabs [x, y, z] in the file's
axis order. Returns False if a value does not fit the volume's dtype."""
PlanesCallback = Callable[[NDArray[np.generic], int, int], None]
"""Callback(array_DHW, start, stop); called from worker threads, in any order, once planes start:stop are filled."""


def orientation_of(file: NiftiFile) -> NDArray[np.float64]:
    """Return the orientation of a file's axes as nibabel defines it.

    Returns:
        [3, 2]: for each stored axis the canonical axis (x 0, y 1, z 2) and the direction (1 or -1).

    Raises:
        InputRejectedError: `KIND-affine`: the affine assigns no canonical axis to a stored axis.
    """
    orientation = nib.orientations.io_orientation(file.affine_xyz)
    if np.isnan(orientation).any():
        raise no_affine_error(file.name, file.case_id, file.kind)
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
    """Read all voxels of a file into an array in canonical orientation.

    At most `available_cores()` + 2 slabs are held in memory besides the array. An error in the file takes precedence
    over an error that `convert` raises.

    Args:
        file: a file whose header was read.
        array_DHW: array of canonical shape; every voxel is written.
        convert: called on the pool's threads, once per slab.
        pool: thread pool.
        on_planes_ready: called once per slab if the file's last axis is the depth axis, else once at the end.
        timer: receives the seconds of disk reads under `read`.
        empty: allocates the arrays of the slabs.

    Returns:
        True if every slab was converted; False if `convert` returned False, with the array only partly filled.

    Raises:
        InputRejectedError: `KIND-unreadable`, `KIND-affine`.
    """
    orientation = orientation_of(file)
    target_xyz = to_stored_axes(array_DHW, orientation)
    # slabs lie along the file's last axis: if that is canonical z, a slab is a range of D, reversed if stored downwards
    depth, along_depth, ascending = array_DHW.shape[0], orientation[2, 0] == 2, orientation[2, 1] > 0
    free_slots = Semaphore(available_cores() + 2)  # bounds the decompressed slabs that wait for a thread

    def convert_slab(stored: NDArray[np.generic], start: int, stop: int) -> bool:
        try:
            fits = convert(stored, target_xyz[:, :, start:stop])
        finally:
            free_slots.release()
        if fits and on_planes_ready is not None and along_depth:
            on_planes_ready(array_DHW, *((start, stop) if ascending else (depth - stop, depth - start)))
        return fits

    pending: list[Future[bool]] = []
    for start, stop, stored in file.slabs(timer, empty=empty):
        free_slots.acquire()
        pending.append(pool.submit(convert_slab, stored, start, stop))
        del stored  # the slab's memory returns to the pool once its thread is finished with it
    results = [future.result() for future in pending]  # wait for every slab: no thread may write after the return
    fits = all(results)
    if fits and on_planes_ready is not None and not along_depth:
        on_planes_ready(array_DHW, 0, depth)
    return fits


def to_stored_axes(array_DHW: NDArray[np.generic], orientation: NDArray[np.float64]) -> NDArray[np.generic]:
    """Return a view of a canonical array with the axis order and directions of the file.

    Args:
        array_DHW: array in canonical orientation.
        orientation: [3, 2], as returned by `orientation_of`.
    """
    view_xyz = array_DHW.transpose(2, 1, 0).transpose([int(axis) for axis in orientation[:, 0]])
    return view_xyz[tuple(slice(None, None, int(step)) for step in orientation[:, 1])]
