"""Surface area, volume and diameters of a mask's mesh, equal to pyradiomics' C code but without its quadratic cost.

pyradiomics computes a marching-cubes surface (Lorensen 1987) whose vertices lie half way between voxels, and compares
each vertex with every other one for the diameters. Area and volume are sums over cubes of 2x2x2 voxels, of which there
are 256 kinds. The contribution of each kind is measured once per voxel size with pyradiomics' own C code; for a mask it
remains to determine the kind of each cube. For the diameters only blocks of vertices that can contain the widest pair
are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from tmi.toolkit.radiomics.pyradiomics import load

BLOCK = 16
"""Edge length of the blocks of vertices, in half voxels."""

Spacing = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Measures of the surface mesh that the shape features need."""

    area_mm2: float
    """Surface area."""
    volume_mm3: float
    """Enclosed volume."""
    diameters_mm: tuple[float, float, float, float]
    """Largest distance between two vertices of equal z, of equal y, of equal x, and of all vertices."""


@lru_cache(maxsize=8)
def _cube_measures(
    spacing_DHW_mm: Spacing,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Measure the contribution of each of the 256 kinds of cube to area and volume.

    The volume is a sum of signed tetrahedra between triangles and the origin, a . (b x c) / 6. It changes linearly with
    the cube's position, so three differences per kind describe a cube anywhere.

    Args:
        spacing_DHW_mm: voxel size in millimetres.

    Returns:
        Area in mm2 [256], volume in mm3 of the cube at the origin [256], and the change of that volume in mm3 when the
        cube is moved by one voxel along D, H, W [256, 3].
    """
    measure = load().cShape.calculate_coefficients
    spacing = np.array(spacing_DHW_mm)
    # bit k of the kind is voxel k of the cube in C order
    corners = np.array([[(kind >> bit) & 1 for bit in range(8)] for kind in range(256)], dtype=np.int8)
    corners = corners.reshape(256, 2, 2, 2)
    at_origin = np.array([measure(cube, spacing)[:2] for cube in corners])
    shifts = np.zeros((256, 3))
    for kind, cube in enumerate(corners):
        for axis in range(3):
            # Repeat the cube's first layer in front of it: the array then holds a cube of a known kind at 0 and this
            # cube at 1. Subtracting both volumes at the origin leaves the effect of the shift.
            first = cube.take([0], axis=axis)
            shifted = np.concatenate([first, cube], axis=axis)
            layer = np.concatenate([first, first], axis=axis).ravel()
            layer_kind = int((layer.astype(np.int64) << np.arange(8)).sum())
            shifts[kind, axis] = measure(shifted, spacing)[1] - at_origin[layer_kind, 1] - at_origin[kind, 1]
    return at_origin[:, 0], at_origin[:, 1], shifts


def measure_mesh(mask_DHW: NDArray[np.bool_], spacing_DHW_mm: Spacing) -> Mesh:
    """Return area, volume and diameters of the mask's surface mesh.

    Args:
        mask_DHW: bool; the mask may touch the border of the array.
        spacing_DHW_mm: voxel size in millimetres along D, H, W.
    """
    padded = np.pad(mask_DHW, 1).astype(np.uint8)
    kind = np.zeros(tuple(n - 1 for n in padded.shape), dtype=np.uint8)
    for bit, (z, y, x) in enumerate(np.ndindex(2, 2, 2)):
        window = tuple(slice(o, n - 1 + o) for o, n in zip((z, y, x), padded.shape, strict=True))
        kind |= padded[window] << bit
    # kinds 0 (outside) and 255 (inside) contain no surface
    positions = np.nonzero((kind != 0) & (kind != 255))
    area, volume, shifts = _cube_measures(spacing_DHW_mm)
    kinds = kind[positions]
    shift_volume = sum(float((shifts[kinds, axis] * positions[axis]).sum()) for axis in range(3))
    return Mesh(
        area_mm2=float(area[kinds].sum()),
        volume_mm3=float(volume[kinds].sum()) + shift_volume,
        diameters_mm=_diameters(padded, spacing_DHW_mm),
    )


def _diameters(padded_DHW: NDArray[np.uint8], spacing_DHW_mm: Spacing) -> tuple[float, float, float, float]:
    """Return the diameters within planes of equal z, y and x, and in 3D, in mm."""
    crossings = []
    for axis in range(3):
        # a vertex lies between two neighbours of which one is in the mask; half voxels keep coordinates integer
        crossing = np.argwhere(np.diff(padded_DHW.astype(np.int8), axis=axis)) * 2
        crossing[:, axis] += 1
        crossings.append(crossing)
    vertices_V3 = np.concatenate(crossings)
    scale = np.array(spacing_DHW_mm) / 2
    planar = []
    for axis in range(3):
        order = np.argsort(vertices_V3[:, axis], kind="stable")
        planes = np.split(vertices_V3[order], np.flatnonzero(np.diff(vertices_V3[order, axis])) + 1)
        planar.append(_widest_in_groups(planes, scale))
    return planar[0], planar[1], planar[2], float(np.sqrt(_widest_squared(vertices_V3, scale, 0.0)))


def _widest_in_groups(groups: list[NDArray[Any]], scale: NDArray[np.float64]) -> float:
    """Return the largest distance within any group; groups whose bounding box is too small are skipped."""
    spans = [float((((g.max(axis=0) - g.min(axis=0)) * scale) ** 2).sum()) for g in groups]
    best = 0.0
    # in descending order of the box diagonal, an upper bound of the distance
    for k in np.argsort(spans)[::-1]:
        if spans[k] <= best:
            break
        best = max(best, _widest_squared(groups[k], scale, best))
    return float(np.sqrt(best))


def _widest_squared(
    points_V3: Int[NDArray[np.int64], "V 3"], scale: Float[NDArray[np.float64], "3"], lower_bound: float
) -> float:
    """Return the largest squared distance between two points, or `lower_bound` if that is larger.

    Args:
        points_V3: vertices in half voxels.
        scale: mm per half voxel along D, H, W.
        lower_bound: a squared distance in mm2 that is already reached.
    """
    # sort the points by block of BLOCK^3 half voxels and record the bounding box of each of the K blocks
    cell_V3 = points_V3 // BLOCK
    cell_V3 -= cell_V3.min(axis=0)
    size = cell_V3.max(axis=0) + 1
    cell_V = np.ravel_multi_index(tuple(cell_V3.T), tuple(size))
    order = np.argsort(cell_V, kind="stable")
    starts = np.flatnonzero(np.diff(cell_V[order], prepend=-1))
    sorted_mm_V3 = points_V3[order] * scale
    blocks = np.split(sorted_mm_V3, starts[1:])
    low_K3, high_K3 = np.minimum.reduceat(sorted_mm_V3, starts), np.maximum.reduceat(sorted_mm_V3, starts)
    # upper bound of the distance between points of two blocks: opposite ends of their boxes
    reach = np.maximum(high_K3[:, None] - low_K3[None], high_K3[None] - low_K3[:, None])
    bound_KK = np.triu((reach**2).sum(axis=2))
    best = lower_bound
    pairs = np.flatnonzero(bound_KK.ravel() > lower_bound)
    for pair in pairs[np.argsort(bound_KK.ravel()[pairs])[::-1]]:
        a, b = divmod(int(pair), len(blocks))
        if bound_KK[a, b] <= best:
            break
        difference = blocks[a][:, None] - blocks[b][None]
        best = max(best, float(np.einsum("abk,abk->ab", difference, difference).max()))
    return best
