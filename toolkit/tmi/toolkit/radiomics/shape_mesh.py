"""Surface, volume and diameters of a mask's mesh, equal to pyradiomics' C code and without its square cost.

pyradiomics lays a marching-cubes surface through the mask with its vertices half way between voxels, and then compares
every vertex with every other one. The surface and the volume are sums over cubes of 2x2x2 voxels, of which there are
256 kinds. What one cube of each kind adds is asked of the C code itself, once for a voxel size; a mask then costs a
count of its kinds. The diameters are found by comparing only those blocks of vertices that could hold the widest pair.
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
"""Edge, in half voxels, of the blocks that vertices are compared in."""

Spacing = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """What the shape features need of the surface."""

    area_mm2: float
    """Surface."""
    volume_mm3: float
    """Volume inside it."""
    diameters_mm: tuple[float, float, float, float]
    """Widest distance between vertices of one z, of one y, of one x, and of all."""


@lru_cache(maxsize=8)
def _cubes(spacing_DHW_mm: Spacing) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What each of the 256 kinds of cube adds: area [256], volume about its own corner [256], and how that volume
    changes when the cube is moved by one voxel along each axis [256, 3].
    """
    measure = load().cShape.calculate_coefficients
    spacing = np.array(spacing_DHW_mm)
    corners = np.array([[(kind >> bit) & 1 for bit in range(8)] for kind in range(256)], dtype=np.int8)
    corners = corners.reshape(256, 2, 2, 2)
    alone = np.array([measure(cube, spacing)[:2] for cube in corners])
    moves = np.zeros((256, 3))
    for kind, cube in enumerate(corners):
        for axis in range(3):
            # the cube behind one more layer of voxels that repeats its first: the layer's own cube is a known kind
            first = cube.take([0], axis=axis)
            behind = np.concatenate([first, cube], axis=axis)
            layer = np.concatenate([first, first], axis=axis).ravel()
            known = int((layer.astype(np.int64) << np.arange(8)).sum())
            moves[kind, axis] = measure(behind, spacing)[1] - alone[known, 1] - alone[kind, 1]
    return alone[:, 0], alone[:, 1], moves


def measure_mesh(mask_DHW: NDArray[np.bool_], spacing_DHW_mm: Spacing) -> Mesh:
    """Area, volume and diameters of the mask's surface.

    Args:
        mask_DHW: the mask; it may reach the array's ends.
        spacing_DHW_mm: voxel size.
    """
    padded = np.pad(mask_DHW, 1).astype(np.uint8)
    kind = np.zeros(tuple(n - 1 for n in padded.shape), dtype=np.uint8)
    for bit, (z, y, x) in enumerate(np.ndindex(2, 2, 2)):
        ends = tuple(slice(o, n - 1 + o) for o, n in zip((z, y, x), padded.shape, strict=True))
        kind |= padded[ends] << bit
    places = np.nonzero((kind != 0) & (kind != 255))
    area, volume, moves = _cubes(spacing_DHW_mm)
    kinds = kind[places]
    moved = sum(float((moves[kinds, axis] * places[axis]).sum()) for axis in range(3))
    return Mesh(
        area_mm2=float(area[kinds].sum()),
        volume_mm3=float(volume[kinds].sum()) + moved,
        diameters_mm=_diameters(padded, spacing_DHW_mm),
    )


def _diameters(padded_DHW: NDArray[np.uint8], spacing_DHW_mm: Spacing) -> tuple[float, float, float, float]:
    halves = []
    for axis in range(3):
        crossed = np.argwhere(np.diff(padded_DHW.astype(np.int8), axis=axis)) * 2
        crossed[:, axis] += 1
        halves.append(crossed)
    vertices_V3 = np.concatenate(halves)
    scale = np.array(spacing_DHW_mm) / 2
    flat = []
    for axis in range(3):
        order = np.argsort(vertices_V3[:, axis], kind="stable")
        groups = np.split(vertices_V3[order], np.flatnonzero(np.diff(vertices_V3[order, axis])) + 1)
        flat.append(_widest_of(groups, scale))
    return flat[0], flat[1], flat[2], float(np.sqrt(_widest_squared(vertices_V3, scale, 0.0)))


def _widest_of(groups: list[NDArray[Any]], scale: NDArray[np.float64]) -> float:
    """The widest distance inside any group; groups whose box is too small are passed over."""
    spans = [float((((g.max(axis=0) - g.min(axis=0)) * scale) ** 2).sum()) for g in groups]
    best = 0.0
    for k in np.argsort(spans)[::-1]:
        if spans[k] <= best:
            break
        best = max(best, _widest_squared(groups[k], scale, best))
    return float(np.sqrt(best))


def _widest_squared(
    points_V3: Int[NDArray[np.int64], "V 3"], scale: Float[NDArray[np.float64], "3"], known: float
) -> float:
    """The largest squared distance between two points, or `known` where that is larger."""
    cell_V3 = points_V3 // BLOCK
    cell_V3 -= cell_V3.min(axis=0)
    size = cell_V3.max(axis=0) + 1
    cell_V = np.ravel_multi_index(tuple(cell_V3.T), tuple(size))
    order = np.argsort(cell_V, kind="stable")
    starts = np.flatnonzero(np.diff(cell_V[order], prepend=-1))
    placed_V3 = points_V3[order] * scale
    blocks = np.split(placed_V3, starts[1:])
    low_K3, high_K3 = np.minimum.reduceat(placed_V3, starts), np.maximum.reduceat(placed_V3, starts)
    reach = np.maximum(high_K3[:, None] - low_K3[None], high_K3[None] - low_K3[:, None])
    bound_KK = np.triu((reach**2).sum(axis=2))
    best = known
    pairs = np.flatnonzero(bound_KK.ravel() > known)
    for pair in pairs[np.argsort(bound_KK.ravel()[pairs])[::-1]]:
        a, b = divmod(int(pair), len(blocks))
        if bound_KK[a, b] <= best:
            break
        apart = blocks[a][:, None] - blocks[b][None]
        best = max(best, float(np.einsum("abk,abk->ab", apart, apart).max()))
    return best
