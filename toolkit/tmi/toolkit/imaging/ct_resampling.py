"""From Hounsfield units to the network's input: window, scale, resample.

    v = clip(hu, low, high);  v = to_low + (v - low) / (high - low) * (to_high - to_low);  trilinear to [D,H,W]

The resampling is that of torch's `interpolate(mode="trilinear", align_corners=False)`: output voxel i samples the input
at (i + 0.5) * n_in / n_out - 0.5, clamped at the border, separably along each axis. An axis whose size stays is left
alone. It is done in numpy, in float32, a few output slices at a time, in as many threads as there are cores: each piece
is windowed, scaled and resampled while it lies in the processor's cache, so that no copy of the whole volume is made at
the CT's own size. A piece can be made as soon as its planes are there, long before the file is read to its end.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from threading import Lock

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.compute.buffer_pool import ArrayAllocator
from tmi.toolkit.compute.cpu import worker_pool
from tmi.toolkit.config.schema import CtConfig
from tmi.toolkit.imaging.volume import Volume

CHUNK_SLICES = 8
"""Output slices that one thread makes at a time."""
TILE_VOXELS = 2**17
"""Voxels of a plane that are windowed, scaled and mixed at a time, where planes are not resampled: 512 KiB."""
INT16 = np.iinfo(np.int16)

Taps = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]
"""For each output index the two input indices and the weight of the second."""


class StreamingResampler:
    """The making of one prepared volume, which may begin before its CT is there as a whole.

    Args:
        config: window, scale and shape.
        pool: threads that do it.
        empty: makes the array of the result.
    """

    def __init__(self, config: CtConfig, pool: Executor, *, empty: ArrayAllocator = np.empty) -> None:
        self._config, self._pool = config, pool
        self._out_1DHW: NDArray[np.float32] = empty((1, *config.shape_DHW), np.float32)
        self._lock = Lock()
        self._array_DHW: NDArray[np.generic] | None = None
        self._ready_D = np.zeros(0, dtype=np.bool_)
        self._waiting: list[_Chunk] = []
        self._submitted: list[tuple[_Chunk, Future[None]]] = []

    def on_planes_ready(self, array_DHW: NDArray[np.generic], lower: int, upper: int) -> None:
        """Told in any thread and order that `array_DHW[lower:upper]` is there: makes what that is enough for."""
        with self._lock:
            if self._array_DHW is None:
                self._begin(array_DHW)
            if array_DHW is not self._array_DHW:
                return  # of an array that was given up
            self._ready_D[lower:upper] = True
            ready = [piece for piece in self._waiting if self._ready_D[piece.first : piece.last].all()]
            self._waiting = [piece for piece in self._waiting if piece not in ready]
            self._submitted += [(piece, self._pool.submit(piece.make)) for piece in ready]

    def finish(self, ct: Volume) -> Float[np.ndarray, "1 D H W"]:
        """The prepared volume, once the whole CT is there; the caller's thread helps."""
        if self._array_DHW is not ct.array_DHW:
            self._wait_all()
            with self._lock:
                self._begin(ct.array_DHW)
        self.on_planes_ready(ct.array_DHW, 0, ct.array_DHW.shape[0])
        self._wait_all()
        return self._out_1DHW

    def _begin(self, array_DHW: NDArray[np.generic]) -> None:
        self._array_DHW, self._submitted = array_DHW, []
        self._ready_D = np.zeros(array_DHW.shape[0], dtype=np.bool_)
        depth = self._out_1DHW.shape[1]
        plan = _ResamplePlan(array_DHW, self._out_1DHW[0], self._config)
        self._waiting = [_Chunk(plan, d, min(d + CHUNK_SLICES, depth)) for d in range(0, depth, CHUNK_SLICES)]

    def _wait_all(self) -> None:
        """Wait for what was begun; what no thread has taken up yet is made here, from the other end."""
        for piece, done in reversed(self._submitted):
            if done.cancel():
                piece.make()
            else:
                done.result()


def prepare_ct(
    ct: Volume, config: CtConfig, resampler: StreamingResampler | None = None
) -> Float[np.ndarray, "1 D H W"]:
    """Windowed, scaled and resampled volume, float32 [1,D,H,W] within `config.scale_to`.

    Args:
        ct: the whole CT.
        config: window, scale and shape.
        resampler: what was begun with the same settings while the CT was read; what is missing of it is made.
    """
    if resampler is not None:
        return resampler.finish(ct)
    with worker_pool() as pool:
        return StreamingResampler(config, pool).finish(ct)


class _ResamplePlan:
    """What all pieces of one volume share: where they come from, where they go, and the taps of each axis."""

    def __init__(self, source_DHW: NDArray[np.generic], out_DHW: NDArray[np.float32], config: CtConfig) -> None:
        self.source_DHW, self.out_DHW, self.config = source_DHW, out_DHW, config
        (d_in, h_in, w_in), (d_out, h_out, w_out) = source_DHW.shape, out_DHW.shape
        self.depth = _interpolation_taps(d_in, d_out, nearest=config.depth_resampling == "nearest")
        self.height = None if h_in == h_out else _interpolation_taps(h_in, h_out)
        self.width = None if w_in == w_out else _interpolation_taps(w_in, w_out)
        self.in_plane = self.height is not None or self.width is not None
        self.depth_first = d_out < d_in
        """Whether slices are mixed before their planes are resampled: the cheaper order where they become fewer."""
        self.rows_first = h_out < h_in

    def windowed(self, z: int, rows: slice, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Part of an input plane, windowed and scaled, and resampled unless depth comes first."""
        tile_HW = _windowed(self.source_DHW[z, rows], self.config, out)
        return self.resampled(tile_HW) if self.in_plane and not self.depth_first else tile_HW

    def resampled(self, plane_HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """A plane of the output's height and width."""
        for rows in (True, False) if self.rows_first else (False, True):
            taps = self.height if rows else self.width
            if taps is not None:
                plane_HW = _resampled(plane_HW, taps, axis=0 if rows else 1)
        return plane_HW


class _Chunk:
    """A few output slices, `begin` to `end`, and the input planes `first` to `last` that they come from."""

    def __init__(self, plan: _ResamplePlan, begin: int, end: int) -> None:
        self._plan, self._begin, self._end = plan, begin, end
        below, above, _ = plan.depth
        self.first, self.last = int(below[begin]), int(above[end - 1]) + 1

    def make(self) -> None:
        """Write the slices."""
        height, width = self._plan.source_DHW.shape[1:]
        step = height if self._plan.in_plane else max(1, TILE_VOXELS // width)
        for row in range(0, height, step):
            self._make_rows(slice(row, row + step))

    def _make_rows(self, rows: slice) -> None:
        plan = self._plan
        below_D, above_D, weight_D = plan.depth
        tiles: dict[int, NDArray[np.float32]] = {}
        free: list[NDArray[np.float32]] = []
        mixed: NDArray[np.float32] | None = None
        for d in range(self._begin, self._end):
            weight = weight_D[d]
            needed = {int(below_D[d]), int(above_D[d])} if weight else {int(below_D[d])}
            free += [tiles.pop(z) for z in set(tiles) - needed]
            for z in needed - set(tiles):
                tiles[z] = plan.windowed(z, rows, free.pop() if free and not plan.in_plane else None)
            tile = tiles[int(below_D[d])]
            out = plan.out_DHW[d] if plan.in_plane else plan.out_DHW[d, rows]
            if weight:
                mixed = np.subtract(tiles[int(above_D[d])], tile, out=mixed)
                mixed *= weight
                tile = np.add(tile, mixed, out=mixed if plan.in_plane and plan.depth_first else out)
            if plan.in_plane and plan.depth_first:
                tile = plan.resampled(tile)
            if tile is not out:
                np.copyto(out, tile)


def _windowed(
    plane_HW: NDArray[np.generic], config: CtConfig, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    low, high = config.window_hu
    to_low, to_high = config.scale_to
    scaled: NDArray[np.float32]
    whole = low == int(low) and high == int(high)
    if plane_HW.dtype == np.int16 and whole and INT16.min <= low and high <= INT16.max and high - low <= INT16.max:
        inside_HW = np.clip(plane_HW, np.int16(low), np.int16(high))  # exact, and half as many bytes
        inside_HW -= np.int16(low)
        scaled = np.multiply(inside_HW, np.float32((to_high - to_low) / (high - low)), out=out)
    else:
        scaled = np.clip(plane_HW.astype(np.float32), np.float32(low), np.float32(high), out=out)
        scaled -= np.float32(low)
        scaled *= np.float32((to_high - to_low) / (high - low))
    if to_low:
        scaled += np.float32(to_low)
    return scaled


def _interpolation_taps(n_in: int, n_out: int, *, nearest: bool = False) -> Taps:
    if nearest:
        index = np.minimum((np.arange(n_out) * (n_in / n_out)).astype(np.intp), n_in - 1)
        return index, index, np.zeros(n_out, dtype=np.float32)
    position = np.maximum((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0.0)
    below = np.minimum(position.astype(np.intp), n_in - 1)
    above = np.minimum(below + 1, n_in - 1)
    return below, above, (position - below).astype(np.float32)


def _resampled(plane_HW: NDArray[np.float32], taps: Taps, *, axis: int) -> NDArray[np.float32]:
    below, above, weight = taps
    low: NDArray[np.float32] = np.take(plane_HW, below, axis=axis)
    mixed: NDArray[np.float32] = np.take(plane_HW, above, axis=axis)
    mixed -= low
    np.multiply(mixed, weight[:, None] if axis == 0 else weight, out=mixed)
    mixed += low
    return mixed


def resample_to_ct_grid(
    values_DHW: Float[np.ndarray, "D H W"], shape_DHW: tuple[int, int, int], config: CtConfig
) -> Float[np.ndarray, "Dc Hc Wc"]:
    """Values of the network's input grid, such as a map over it, interpolated linearly at the CT's own voxels.

    Inverse of `prepare_ct`'s geometry: CT voxel z lies at input position (z + 0.5) * n_in / n_ct - 0.5, clamped at the
    border; with `depth_resampling` of `nearest`, at the input slices that were made from it.

    Args:
        values_DHW: on the input grid, [D,H,W] of `config.shape_DHW`.
        shape_DHW: the CT's.
        config: that the CT was prepared with.

    Returns:
        float32 of the CT's shape.
    """
    out = np.empty(shape_DHW, dtype=np.float32)
    nearest = config.depth_resampling == "nearest"
    below, above, weight = (_inverse_nearest_taps if nearest else _interpolation_taps)(
        values_DHW.shape[0], shape_DHW[0]
    )
    in_plane = [
        None if n == m else _interpolation_taps(n, m) for n, m in zip(values_DHW.shape[1:], shape_DHW[1:], strict=True)
    ]
    for z in range(shape_DHW[0]):
        plane = values_DHW[below[z]]
        if weight[z]:
            plane = plane + weight[z] * (values_DHW[above[z]] - plane)
        for axis, taps in enumerate(in_plane):
            plane = plane if taps is None else _resampled(plane, taps, axis=axis)
        out[z] = plane
    return out


def _inverse_nearest_taps(n_in: int, n_ct: int) -> Taps:
    """As `_interpolation_taps`, from the input slices back to the CT's, where each input slice is a copy of one CT
    slice.
    """
    source, _, _ = _interpolation_taps(n_ct, n_in, nearest=True)
    read = np.unique(source)
    middle = [np.flatnonzero(source == z).mean() for z in read]
    position = np.interp(np.arange(n_ct), read, middle)
    below = np.minimum(position.astype(np.intp), n_in - 1)
    return below, np.minimum(below + 1, n_in - 1), (position - below).astype(np.float32)
