"""Convert a CT in Hounsfield units to the network's input: window, scale, resample.

    v = clip(hu, low, high);  v = to_low + (v - low) / (high - low) * (to_high - to_low);  trilinear to [D,H,W]

The interpolation equals torch's `interpolate(mode="trilinear", align_corners=False)`: output voxel i samples the input
at (i + 0.5) * n_in / n_out - 0.5, clamped at the border, separably along each axis. Axes whose size does not change are
skipped. With `ct.antialias` an axis that shrinks is averaged over each output voxel's extent instead
(`tmi.toolkit.imaging.box_filter`); its output voxels have the same centres.

The computation uses numpy in float32 on a thread pool, one chunk of a few output slices at a time. A chunk is windowed,
scaled and resampled while it is in the CPU cache, so no intermediate copy of the volume is made at the CT's size. A
chunk is started as soon as its input planes are read, before the rest of the file.
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
from tmi.toolkit.imaging.box_filter import BoxTaps, averaged, box_taps
from tmi.toolkit.imaging.volume import Volume

CHUNK_SLICES = 8
"""Output slices per chunk; a chunk is the work of one thread."""
TILE_VOXELS = 2**17
"""Voxels of a plane processed at a time if only the depth is resampled; 512 KiB of float32 fit the CPU cache."""
INT16 = np.iinfo(np.int16)

Taps = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]
"""Interpolation taps of one axis: for each output index the lower and upper input index and the upper one's weight."""


class StreamingResampler:
    """Prepares one CT for the network; can start before the whole CT is read.

    Args:
        config: window, scale and shape.
        pool: threads that compute the chunks.
        empty: allocates the output array.
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
        """Submit the chunks whose input planes are complete; callable from any thread, in any order of planes.

        Args:
            array_DHW: the CT, filled in `array_DHW[lower:upper]`.
            lower: first of the new planes.
            upper: one past the last of the new planes.
        """
        with self._lock:
            if self._array_DHW is None:
                self._begin(array_DHW)
            if array_DHW is not self._array_DHW:
                return  # planes of an array that was discarded
            self._ready_D[lower:upper] = True
            ready = [chunk for chunk in self._waiting if self._ready_D[chunk.first : chunk.last].all()]
            self._waiting = [chunk for chunk in self._waiting if chunk not in ready]
            self._submitted += [(chunk, self._pool.submit(chunk.compute)) for chunk in ready]

    def finish(self, ct: Volume) -> Float[np.ndarray, "1 D H W"]:
        """Compute the remaining chunks, also on the calling thread, and return the prepared volume.

        Args:
            ct: the whole CT.
        """
        if self._array_DHW is not ct.array_DHW:
            # chunks of a discarded int16 array must end before those of the float32 array overwrite the output
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
        """Wait for the submitted chunks; compute those that no thread has started yet.

        The pool starts with the oldest chunk, so this thread starts with the newest.
        """
        for chunk, future in reversed(self._submitted):
            if future.cancel():
                chunk.compute()
            else:
                future.result()


def prepare_ct(
    ct: Volume, config: CtConfig, resampler: StreamingResampler | None = None
) -> Float[np.ndarray, "1 D H W"]:
    """Window, scale and resample a CT.

    Args:
        ct: the whole CT, in HU.
        config: window, scale and shape.
        resampler: resampler with the same settings that was started while the CT was read; None starts one here.

    Returns:
        float32 [1,D,H,W] of `config.shape_DHW`, within `config.scale_to`.
    """
    if resampler is not None:
        return resampler.finish(ct)
    with worker_pool() as pool:
        return StreamingResampler(config, pool).finish(ct)


class _ResamplePlan:
    """State shared by the chunks of one volume: input, output, interpolation taps and order of the axes."""

    def __init__(self, source_DHW: NDArray[np.generic], out_DHW: NDArray[np.float32], config: CtConfig) -> None:
        self.source_DHW, self.out_DHW, self.config = source_DHW, out_DHW, config
        (d_in, h_in, w_in), (d_out, h_out, w_out) = source_DHW.shape, out_DHW.shape
        self.depth = _interpolation_taps(d_in, d_out, nearest=config.depth_resampling == "nearest")
        self.depth_box = box_taps(d_in, d_out) if config.antialias and d_out < d_in else None
        """Replaces `depth` if the slices are averaged."""
        self.height = _plane_taps(h_in, h_out, antialias=config.antialias)
        self.width = _plane_taps(w_in, w_out, antialias=config.antialias)
        self.in_plane = self.height is not None or self.width is not None
        self.depth_first = d_out < d_in
        """Interpolate along D before H and W: cheaper if the output has fewer slices, so fewer planes are resampled."""
        self.rows_first = h_out < h_in
        """Interpolate along H before W, for the same reason."""

    def windowed(self, z: int, rows: slice, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Return rows of input plane `z`, windowed and scaled, and resampled in the plane unless depth is first."""
        tile_HW = _windowed(self.source_DHW[z, rows], self.config, out)
        return self.resampled(tile_HW) if self.in_plane and not self.depth_first else tile_HW

    def resampled(self, plane_HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Interpolate a plane to the output's height and width."""
        for rows in (True, False) if self.rows_first else (False, True):
            taps = self.height if rows else self.width
            if taps is not None:
                resample = averaged if isinstance(taps, BoxTaps) else _resampled
                plane_HW = resample(plane_HW, taps, axis=0 if rows else 1)  # type: ignore[arg-type]
        return plane_HW


class _Chunk:
    """Output slices `begin:end`, computed from the input planes `first:last`."""

    def __init__(self, plan: _ResamplePlan, begin: int, end: int) -> None:
        self._plan, self._begin, self._end = plan, begin, end
        below, above, _ = plan.depth
        if plan.depth_box is not None:
            below, above = plan.depth_box.index_KO[0], plan.depth_box.index_KO[-1]
        self.first, self.last = int(below[begin]), int(above[end - 1]) + 1

    def compute(self) -> None:
        """Write the output slices."""
        height, width = self._plan.source_DHW.shape[1:]
        # in-plane interpolation needs whole planes; without it rows are independent and small tiles stay in the cache
        step = height if self._plan.in_plane else max(1, TILE_VOXELS // width)
        for row in range(0, height, step):
            rows = slice(row, row + step)
            if self._plan.depth_box is None:
                self._compute_rows(rows)
            else:
                self._average_rows(rows, self._plan.depth_box)

    def _average_rows(self, rows: slice, taps: BoxTaps) -> None:
        """Write rows of the output slices as means over the input planes; a plane in two slices is windowed once."""
        plan = self._plan  # the depth shrinks, so it is resampled before the plane
        shared: tuple[int, NDArray[np.float32]] | None = None
        total = part = None
        for d in range(self._begin, self._end):
            planes = taps.planes(d)
            for k, (z, weight) in enumerate(planes):
                tile = shared[1] if shared is not None and shared[0] == z else plan.windowed(z, rows, None)
                if k == len(planes) - 1:
                    shared = (z, tile)
                if k == 0:
                    total = np.multiply(tile, weight, out=total)
                else:
                    part = np.multiply(tile, weight, out=part)
                    total += part
            assert total is not None  # a slice covers at least one plane
            if plan.in_plane:
                plan.out_DHW[d] = plan.resampled(total)
            else:
                plan.out_DHW[d, rows] = total

    def _compute_rows(self, rows: slice) -> None:
        plan = self._plan
        below_D, above_D, weight_D = plan.depth
        tiles: dict[int, NDArray[np.float32]] = {}  # input plane -> its prepared rows; consecutive slices share planes
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
                # below + weight * (above - below), into a scratch buffer if the plane is still to be resampled
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
    """Clip HU to the window and scale them linearly to `config.scale_to`."""
    low, high = config.window_hu
    to_low, to_high = config.scale_to
    scaled: NDArray[np.float32]
    integral = low == int(low) and high == int(high)
    # clipping and the difference to `low` are exact in int16 if window and width fit it, with half the memory traffic
    if plane_HW.dtype == np.int16 and integral and INT16.min <= low and high <= INT16.max and high - low <= INT16.max:
        inside_HW = np.clip(plane_HW, np.int16(low), np.int16(high))
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
    """Return the taps of an axis; torch's half-pixel convention for linear, floor(i * n_in / n_out) for nearest."""
    if nearest:
        index = np.minimum((np.arange(n_out) * (n_in / n_out)).astype(np.intp), n_in - 1)
        return index, index, np.zeros(n_out, dtype=np.float32)
    # a position below 0 is clamped here; above n_in - 1 both taps are the last index, so its weight has no effect
    position = np.maximum((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0.0)
    below = np.minimum(position.astype(np.intp), n_in - 1)
    above = np.minimum(below + 1, n_in - 1)
    return below, above, (position - below).astype(np.float32)


def _plane_taps(n_in: int, n_out: int, *, antialias: bool) -> Taps | BoxTaps | None:
    """Taps of an axis of the plane; None if its size does not change."""
    if n_in == n_out:
        return None
    return box_taps(n_in, n_out) if antialias and n_out < n_in else _interpolation_taps(n_in, n_out)


def _resampled(plane_HW: NDArray[np.float32], taps: Taps, *, axis: int) -> NDArray[np.float32]:
    """Interpolate a plane along one axis: low + weight * (high - low)."""
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
    """Interpolate values on the network's input grid, such as a saliency map, linearly at the CT's voxels.

    This inverts the geometry of `prepare_ct`: CT voxel z lies at input position (z + 0.5) * n_in / n_ct - 0.5, clamped
    at the border. If `depth_resampling` is `nearest`, a CT slice lies at the middle of the input slices copied from it.

    Args:
        values_DHW: values on the input grid, [D,H,W] of `config.shape_DHW`.
        shape_DHW: shape of the CT.
        config: settings that the CT was prepared with.

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
    """Return taps from the input's slices to the CT's slices if each input slice is a copy of one CT slice.

    A copied CT slice lies at the mean index of its copies; positions of the other CT slices are interpolated.
    """
    source, _, _ = _interpolation_taps(n_ct, n_in, nearest=True)
    copied = np.unique(source)
    middle = [np.flatnonzero(source == z).mean() for z in copied]
    position = np.interp(np.arange(n_ct), copied, middle)
    below = np.minimum(position.astype(np.intp), n_in - 1)
    return below, np.minimum(below + 1, n_in - 1), (position - below).astype(np.float32)
