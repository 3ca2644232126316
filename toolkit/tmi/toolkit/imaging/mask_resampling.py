"""Putting a mask onto its CT's grid by world coordinates; array order is never compared.

With index -> mm affines A_mask and A_ct, T = A_ct^-1 A_mask maps mask voxels to CT voxels. Where T moves whole voxels
onto whole voxels (a signed permutation and a whole shift), the mask is placed exactly. Else it has to be resampled:
each CT voxel takes the label of the nearest mask voxel.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.imaging.volume import GRID_TOLERANCE_VOXELS, Volume


@dataclass(frozen=True, kw_only=True)
class PlacedMask:
    """A mask whose voxels were moved onto the CT's grid, none of them resampled."""

    volume: Volume
    """On the CT's grid; 0 where the mask says nothing."""
    outside: int
    """Non-zero voxels that fell outside the CT."""
    covers: bool
    """Whether the mask's own grid covers every voxel of the CT."""


def place_mask(mask: Volume, ct: Volume) -> PlacedMask | None:
    """The mask on the CT's grid without resampling; None where the grids do not share their voxels.

    Args:
        mask: labels or booleans; may cover a part of the CT's grid, or reach beyond it.
        ct: its grid is the target.
    """
    source_XYZ = mask.array_DHW.transpose(2, 1, 0)
    move = np.linalg.inv(ct.affine_xyz) @ mask.affine_xyz
    turn = np.rint(move[:3, :3])
    if not np.array_equal(np.abs(turn).sum(axis=0), np.ones(3)) or not np.array_equal(
        np.abs(turn).sum(axis=1), np.ones(3)
    ):
        return None
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = turn, np.rint(move[:3, 3])
    corners = np.array([(*c, 1) for c in itertools.product(*[(0, n - 1) for n in source_XYZ.shape])]).T
    if np.abs((move - whole) @ corners).max() > GRID_TOLERANCE_VOXELS:
        return None
    axes = np.abs(turn).argmax(axis=1)
    turned = source_XYZ.transpose(*axes)
    signs = turn[np.arange(3), axes]
    turned = turned[tuple(slice(None, None, int(s)) for s in signs)]
    start = [int(whole[i, 3]) - (n - 1 if signs[i] < 0 else 0) for i, n in enumerate(turned.shape)]
    target_XYZ = np.zeros(ct.array_DHW.shape[::-1], dtype=source_XYZ.dtype)
    into, out_of = [], []
    for first, have, room in zip(start, turned.shape, target_XYZ.shape, strict=True):
        low, high = max(first, 0), min(first + have, room)
        into.append(slice(low, max(low, high)))
        out_of.append(slice(low - first, max(low, high) - first))
    inside = turned[tuple(out_of)]
    target_XYZ[tuple(into)] = inside
    outside = int(np.count_nonzero(source_XYZ)) - int(np.count_nonzero(inside))
    covers = inside.shape == target_XYZ.shape
    array_DHW = np.ascontiguousarray(target_XYZ.transpose(2, 1, 0))
    return PlacedMask(volume=Volume(array_DHW=array_DHW, affine_xyz=ct.affine_xyz), outside=outside, covers=covers)


def resample_mask(mask: Volume, ct: Volume) -> Volume:
    """The mask on the CT's grid: each CT voxel takes the nearest mask voxel's label, 0 where there is none.

    Nearest by world coordinates; labels stay what they are. Coarser masks come out blocky and finer ones lose detail,
    so this is done only where it was asked for, and recorded.
    """
    back = np.linalg.inv(mask.affine_xyz) @ ct.affine_xyz
    depth, height, width = ct.array_DHW.shape
    source_XYZ = mask.array_DHW.transpose(2, 1, 0)
    limit = np.array(source_XYZ.shape)
    target_DHW: NDArray[np.generic] = np.zeros(ct.array_DHW.shape, dtype=mask.array_DHW.dtype)
    along_x = back[:3, 0, None, None] * np.arange(width)
    plane = along_x + back[:3, 1, None, None] * np.arange(height)[:, None] + back[:3, 3, None, None]
    for d in range(depth):
        # half a voxel is rounded up on every axis, so that neighbours never fall on each other
        index = np.floor(plane + back[:3, 2, None, None] * d + 0.5 + 1e-9).astype(np.int64)
        known = ((index >= 0) & (index < limit[:, None, None])).all(axis=0)
        x, y, z = index[:, known]
        target_DHW[d][known] = source_XYZ[x, y, z]
    return Volume(array_DHW=target_DHW, affine_xyz=ct.affine_xyz)
