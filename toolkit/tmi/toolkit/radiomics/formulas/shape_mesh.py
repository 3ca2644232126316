"""Surface area, volume and diameters of a mask's mesh, equal to pyradiomics' C code but without its quadratic cost.

pyradiomics computes a marching-cubes surface (Lorensen 1987) whose vertices lie half way between voxels, and compares
each vertex with every other one for the diameters. Area and volume are sums over cubes of 2x2x2 voxels, of which there
are 256 kinds. The contribution of each kind is measured once per voxel size, in the C code's order of operations; for a
mask it remains to determine the kind of each cube. For the diameters only blocks of vertices that can contain the
widest pair are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from tmi.toolkit.radiomics.formulas.marching_cubes import triangles

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
    spacing = np.array(spacing_DHW_mm)
    area, volume = np.zeros(256), np.zeros(256)
    for triangle_area, tetrahedra in zip(*_triangle_measures((0, 0, 0), spacing), strict=True):
        area += triangle_area
        volume += tetrahedra
    kinds = np.arange(256, dtype=np.uint8)
    corners = np.unpackbits(kinds[:, None], axis=1, bitorder="little").reshape(256, 2, 2, 2)
    shifts = np.zeros((256, 3))
    for axis in range(3):
        # Volume of two neighbouring cubes, of which the second is this one: the first layer of its voxels comes twice.
        first = corners.take([0], axis=axis + 1)
        layers = np.concatenate([first, first], axis=axis + 1).reshape(256, 8)
        before = np.packbits(layers, axis=1, bitorder="little")[:, 0]
        both = volume[before]
        offset = (int(axis == 0), int(axis == 1), int(axis == 2))
        for tetrahedra in _triangle_measures(offset, spacing)[1]:
            both += tetrahedra
        shifts[:, axis] = both / 6 - volume[before] / 6 - volume / 6
    return area, volume / 6, shifts


def _triangle_measures(
    offset_DHW: tuple[int, int, int], spacing: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return area in mm2 [5, 256] and 6 times the tetrahedron's volume in mm3 [5, 256] of the triangles of every kind.

    Args:
        offset_DHW: position of the cube in voxels.
        spacing: voxel size in millimetres.
    """
    vertices, signs = triangles()
    a, b, c = np.moveaxis((np.array(offset_DHW, dtype=np.float64) + vertices) * spacing, (2, 3), (0, 1))
    x, y, z = _cross(a, b)
    tetrahedra = signs * (x * c[0] + y * c[1] + z * c[2])
    x, y, z = _cross(a - c, b - c)
    return 0.5 * np.sqrt(x * x + y * y + z * z).T, tetrahedra.T


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return the components of the cross product of vectors whose components are along the first axis."""
    return a[1] * b[2] - b[1] * a[2], a[2] * b[0] - b[2] * a[0], a[0] * b[1] - b[0] * a[1]


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
