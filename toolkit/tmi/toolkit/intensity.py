"""From Hounsfield units to the network's input: window, scale, resample.

    v = clip(hu, low, high);  v = to_low + (v - low) / (high - low) * (to_high - to_low);  trilinear to [D,H,W]

The resampling is that of torch's `interpolate(mode="trilinear", align_corners=False)`: output voxel i samples the input
at (i + 0.5) * n_in / n_out - 0.5, clamped at the border, separably along each axis. It is done in numpy, in float32 and
slab by slab along depth, so that no copy of the whole volume is made at the CT's own size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.config import CtConfig
from tmi.toolkit.volume import Volume


def prepare_ct(ct: Volume, config: CtConfig) -> Float[np.ndarray, "1 D H W"]:
    """Windowed, scaled and resampled volume, float32 [1,D,H,W] within `config.scale_to`."""
    source = ct.array_DHW
    depth, height, width = config.shape_DHW
    out = np.empty((1, depth, height, width), dtype=np.float32)
    below, above, weight = _taps(source.shape[0], depth, nearest=config.depth_resampling == "nearest")
    planes: dict[int, NDArray[np.float32]] = {}
    for d in range(depth):
        needed = {int(below[d]), int(above[d])} if weight[d] else {int(below[d])}
        planes = {z: p for z, p in planes.items() if z in needed}
        for z in needed - set(planes):
            planes[z] = _resample_plane(_windowed(source[z], config), height, width)
        plane = planes[int(below[d])]
        if weight[d]:
            plane = plane + weight[d] * (planes[int(above[d])] - plane)
        out[0, d] = plane
    return out


def _windowed(plane_HW: NDArray[np.generic], config: CtConfig) -> NDArray[np.float32]:
    low, high = config.window_hu
    to_low, to_high = config.scale_to
    scaled = np.clip(plane_HW.astype(np.float32), np.float32(low), np.float32(high))
    scaled -= np.float32(low)
    scaled *= np.float32((to_high - to_low) / (high - low))
    scaled += np.float32(to_low)
    return scaled


def _taps(
    n_in: int, n_out: int, *, nearest: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each output index, the two input indices and the weight of the second."""
    if nearest:
        index = np.minimum((np.arange(n_out) * (n_in / n_out)).astype(np.intp), n_in - 1)
        return index, index, np.zeros(n_out, dtype=np.float32)
    position = np.maximum((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0.0)
    below = np.minimum(position.astype(np.intp), n_in - 1)
    above = np.minimum(below + 1, n_in - 1)
    return below, above, (position - below).astype(np.float32)


def _resample_plane(plane_HW: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    if plane_HW.shape[0] != height:
        below, above, weight = _taps(plane_HW.shape[0], height)
        low = plane_HW[below]
        plane_HW = low + weight[:, None] * (plane_HW[above] - low)
    if plane_HW.shape[1] != width:
        below, above, weight = _taps(plane_HW.shape[1], width)
        low = plane_HW[:, below]
        plane_HW = low + weight[None, :] * (plane_HW[:, above] - low)
    return plane_HW


def onto_ct_grid(
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
    below, above, weight = (_nearest_back if nearest else _taps)(values_DHW.shape[0], shape_DHW[0])
    for z in range(shape_DHW[0]):
        plane = values_DHW[below[z]]
        if weight[z]:
            plane = plane + weight[z] * (values_DHW[above[z]] - plane)
        out[z] = _resample_plane(plane, shape_DHW[1], shape_DHW[2])
    return out


def _nearest_back(n_in: int, n_ct: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """As `_taps`, from the input slices back to the CT's, where each input slice is a copy of one CT slice."""
    source, _, _ = _taps(n_ct, n_in, nearest=True)
    read = np.unique(source)
    middle = [np.flatnonzero(source == z).mean() for z in read]
    position = np.interp(np.arange(n_ct), read, middle)
    below = np.minimum(position.astype(np.intp), n_in - 1)
    return below, np.minimum(below + 1, n_in - 1), (position - below).astype(np.float32)
