"""Transfer a mask onto its CT's grid by world coordinates.

With index -> mm affines A_mask and A_ct, T = A_ct^-1 A_mask maps mask voxel indices to CT voxel indices. If T is a
signed permutation plus an integer shift, the grids share their voxels and `place_mask` copies the labels exactly. Any
other T needs `resample_mask`: each CT voxel takes the label of the nearest mask voxel.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.imaging.volume import GRID_TOLERANCE_VOXELS, Volume


@dataclass(frozen=True, kw_only=True)
class PlacedMask:
    """A mask that was copied onto the CT's grid without resampling."""

    volume: Volume
    """The mask on the CT's grid; 0 outside the mask's own grid."""
    outside: int
    """Number of non-zero mask voxels that lie outside the CT."""
    covers: bool
    """Whether the mask's own grid covers every voxel of the CT."""


def place_mask(mask: Volume, ct: Volume) -> PlacedMask | None:
    """Copy the mask onto the CT's grid without resampling.

    Args:
        mask: labels or booleans; may cover a part of the CT's grid, or extend beyond it.
        ct: volume whose grid is the target.

    Returns:
        The placed mask; None if the two grids do not share their voxels.
    """
    source_XYZ = mask.array_DHW.transpose(2, 1, 0)
    transform = np.linalg.inv(ct.affine_xyz) @ mask.affine_xyz  # mask index -> CT index
    permutation = np.rint(transform[:3, :3])
    # a signed permutation has exactly one entry of +-1 in each row and column
    if not np.array_equal(np.abs(permutation).sum(axis=0), np.ones(3)) or not np.array_equal(
        np.abs(permutation).sum(axis=1), np.ones(3)
    ):
        return None
    rounded = np.eye(4)
    rounded[:3, :3], rounded[:3, 3] = permutation, np.rint(transform[:3, 3])
    # an affine deviation is largest at a corner of the grid
    corners = np.array([(*c, 1) for c in itertools.product(*[(0, n - 1) for n in source_XYZ.shape])]).T
    if np.abs((transform - rounded) @ corners).max() > GRID_TOLERANCE_VOXELS:
        return None
    axes = np.abs(permutation).argmax(axis=1)  # CT axis i is mask axis axes[i]
    reoriented = source_XYZ.transpose(*axes)
    signs = permutation[np.arange(3), axes]
    reoriented = reoriented[tuple(slice(None, None, int(s)) for s in signs)]
    # CT index of the first reoriented voxel; a reversed axis starts with the mask's last voxel, at shift - (n - 1)
    start = [int(rounded[i, 3]) - (n - 1 if signs[i] < 0 else 0) for i, n in enumerate(reoriented.shape)]
    target_XYZ = np.zeros(ct.array_DHW.shape[::-1], dtype=source_XYZ.dtype)
    target_slices, source_slices = [], []
    for first, mask_size, ct_size in zip(start, reoriented.shape, target_XYZ.shape, strict=True):
        low, high = max(first, 0), min(first + mask_size, ct_size)
        target_slices.append(slice(low, max(low, high)))  # empty if the grids do not overlap
        source_slices.append(slice(low - first, max(low, high) - first))
    inside = reoriented[tuple(source_slices)]
    target_XYZ[tuple(target_slices)] = inside
    outside = int(np.count_nonzero(source_XYZ)) - int(np.count_nonzero(inside))
    covers = inside.shape == target_XYZ.shape
    array_DHW = np.ascontiguousarray(target_XYZ.transpose(2, 1, 0))
    return PlacedMask(volume=Volume(array_DHW=array_DHW, affine_xyz=ct.affine_xyz), outside=outside, covers=covers)


def resample_mask(mask: Volume, ct: Volume) -> Volume:
    """Resample the mask onto the CT's grid with nearest-neighbour interpolation.

    Each CT voxel takes the label of the nearest mask voxel in world coordinates, or 0 outside the mask's grid. Labels
    are not mixed. Coarser masks become blocky and finer ones lose detail, so callers resample only on request and
    record it.

    Args:
        mask: labels or booleans.
        ct: volume whose grid is the target.
    """
    to_mask = np.linalg.inv(mask.affine_xyz) @ ct.affine_xyz  # CT index -> mask index
    depth, height, width = ct.array_DHW.shape
    source_XYZ = mask.array_DHW.transpose(2, 1, 0)
    limit = np.array(source_XYZ.shape)
    target_DHW: NDArray[np.generic] = np.zeros(ct.array_DHW.shape, dtype=mask.array_DHW.dtype)
    along_x = to_mask[:3, 0, None, None] * np.arange(width)
    plane = along_x + to_mask[:3, 1, None, None] * np.arange(height)[:, None] + to_mask[:3, 3, None, None]  # [3, H, W]
    for d in range(depth):
        # halves are rounded up; rounding them to even would map two neighbouring CT voxels to one mask voxel
        index = np.floor(plane + to_mask[:3, 2, None, None] * d + 0.5 + 1e-9).astype(np.int64)
        inside = ((index >= 0) & (index < limit[:, None, None])).all(axis=0)
        x, y, z = index[:, inside]
        target_DHW[d][inside] = source_XYZ[x, y, z]
    return Volume(array_DHW=target_DHW, affine_xyz=ct.affine_xyz)
