"""Rasterisation of the closed contours of one plane to a mask.

The contours of an RTSTRUCT do not state how they combine. These rules follow from their geometry:

- exact repeats of a contour, from any start point and in any direction, count once; so does a contour traced twice;
- a contour inside another one is a hole, a contour inside a hole is an island, and so on;
- contours that cross are united, and so are near repeats (a hole of at least `SAME_AREA` of its outer contour).

Contours of type CLOSEDPLANAR_XOR are combined by exclusive or, as PS3.3 C.8.8.6.3 defines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Mask = NDArray[np.bool_]

SAME_POINT_PIXELS = 1e-3
"""Points closer than this, in pixels, are equal when contours are compared; files store about 1e-4 mm."""
SAME_AREA = 0.9
"""A contour that covers at least this share of the contour around it is a near repeat, not a hole."""
MAX_OVERLAPPING = 500
"""Limit on the number of overlapping contours of one plane, which are compared in pairs."""


@dataclass(frozen=True, kw_only=True)
class Contour:
    """One closed contour."""

    points: Points
    """(points, 2) in pixels of the plane or (points, 3) in mm or voxels; the last point joins the first."""
    is_xor: bool = False
    """Whether the type is CLOSEDPLANAR_XOR."""


@dataclass(frozen=True, kw_only=True)
class FilledPlane:
    """Mask of one plane."""

    mask: Mask
    """(u, v): pixels whose centres are inside."""
    united: int
    """Number of contours that cross another one or nearly repeat it, and were united."""
    self_crossing: int
    """Number of contours whose filled area differs from the area that their points enclose: they cross themselves."""


def fill_contours(contours: Sequence[Contour], shape: tuple[int, int]) -> FilledPlane:
    """Fill the closed contours of one plane.

    Args:
        contours: contours with points (points, 2) of u and v in pixels; integers are pixel centres.
        shape: number of pixels along u and v.

    Raises:
        ValueError: more than `MAX_OVERLAPPING` contours overlap.
    """
    polygons = _without_repeats([c.points for c in contours if not c.is_xor])
    mask, united = _combine(polygons, shape)
    if xor := [c.points for c in contours if c.is_xor]:
        mask = mask ^ fill_even_odd(xor, shape)
    return FilledPlane(mask=mask, united=united, self_crossing=sum(_crosses_itself(p, shape) for p in polygons))


def _without_repeats(polygons: Sequence[Points]) -> list[Points]:
    """Drop exact repeats, and all but the first round of a contour traced several times."""
    distinct: dict[frozenset[tuple[bytes, bytes]], Points] = {}
    for polygon in polygons:
        corners = [row.tobytes() for row in np.rint(polygon / SAME_POINT_PIXELS).astype(np.int64)]
        # Undirected edges depend neither on the start point nor on the direction.
        edges = [(min(a, b), max(a, b)) for a, b in zip(corners, corners[1:] + corners[:1], strict=True) if a != b]
        counts = Counter(edges)
        rounds = min(counts.values(), default=1)
        if rounds > 1 and max(counts.values()) == rounds and len(corners) % rounds == 0:
            polygon = polygon[: len(corners) // rounds]
        distinct.setdefault(frozenset(counts), polygon)
    return list(distinct.values())


def _combine(polygons: Sequence[Points], shape: tuple[int, int]) -> tuple[Mask, int]:
    """Unite contours that cross, and combine the others by the even-odd rule; return mask and number united."""
    cover = np.zeros(shape, dtype=np.int32)
    for polygon in polygons:
        window, inside = _fill_window(polygon, shape)
        cover[window] += inside
    if not (cover > 1).any():
        return cover > 0, 0
    mask = np.zeros(shape, dtype=np.bool_)
    overlapping: list[tuple[Points, Mask]] = []
    for polygon in polygons:
        window, inside = _fill_window(polygon, shape)
        if not (inside & (cover[window] > 1)).any():
            mask[window] |= inside
            continue
        if len(overlapping) == MAX_OVERLAPPING:
            raise ValueError("too many overlapping contours")
        whole = np.zeros(shape, dtype=np.bool_)
        whole[window] = inside
        overlapping.append((polygon, whole))
    group = list(range(len(overlapping)))
    for i, j in combinations(range(len(overlapping)), 2):
        if group[i] != group[j] and _are_one_region(overlapping[i], overlapping[j]):
            group = [group[i] if g == group[j] else g for g in group]
    for number in set(group):
        # United regions are disjoint or nested, so exclusive or gives holes and islands.
        mask ^= np.logical_or.reduce([whole for g, (_, whole) in zip(group, overlapping, strict=True) if g == number])
    return mask, sum(n for n in Counter(group).values() if n > 1)


def _are_one_region(one: tuple[Points, Mask], other: tuple[Points, Mask]) -> bool:
    """Return whether two contours cross or are near repeats."""
    common = np.count_nonzero(one[1] & other[1])
    if not common:
        return False
    if common < min(np.count_nonzero(one[1]), np.count_nonzero(other[1])):
        return True
    areas = sorted(abs(_signed_area(polygon)) for polygon, _ in (one, other))
    return areas[0] >= SAME_AREA * areas[1]


def _signed_area(polygon: Points) -> float:
    """Return the area in pixels by the shoelace formula; positive if traced from u to v."""
    (u, v), (next_u, next_v) = polygon.T, np.roll(polygon, -1, axis=0).T
    return float((u * next_v - next_u * v).sum()) / 2


def _crosses_itself(polygon: Points, shape: tuple[int, int]) -> bool:
    if (polygon < -0.5).any() or (polygon > np.array(shape) - 0.5).any():
        return False  # clipped by the plane, so the areas cannot be compared
    # The count of pixel centres differs from the area by at most the number of pixels along the boundary.
    boundary = np.abs(polygon - np.roll(polygon, -1, axis=0)).sum() / 2 + 1
    filled = np.count_nonzero(_fill_window(polygon, shape)[1])
    return bool(abs(filled - abs(_signed_area(polygon))) > boundary)


def _fill_window(polygon: Points, shape: tuple[int, int]) -> tuple[tuple[slice, slice], Mask]:
    """Fill one contour within its bounding box; return the box and the mask inside it."""
    limits = np.array(shape)
    low = np.clip(np.floor(polygon.min(axis=0)), 0, limits).astype(int)
    high = np.clip(np.ceil(polygon.max(axis=0)) + 1, low, limits).astype(int)
    box = slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))
    return box, fill_even_odd([polygon - low], (int(high[0] - low[0]), int(high[1] - low[1])))


def fill_even_odd(polygons: Sequence[Points], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the pixels (u, v) whose centres lie inside closed polygons by the even-odd rule.

    Args:
        polygons: arrays (points, 2) of u and v in pixels; integers are pixel centres.
        shape: number of pixels along u and v.
    """
    size_u, size_v = shape
    # crossings[u, v]: number of edges that row v meets between pixel centres u - 1 and u
    crossings = np.zeros((size_u + 1, size_v), dtype=np.int32)
    for polygon in polygons:
        u0, v0 = polygon.T
        u1, v1 = np.roll(polygon, -1, axis=0).T
        low, high = np.minimum(v0, v1), np.maximum(v0, v1)
        # Half-open edges [low, high): a vertex shared by two edges counts once, and a horizontal edge never.
        first, last = np.clip(np.ceil(low), 0, size_v).astype(int), np.clip(np.ceil(high), 0, size_v).astype(int)
        counts = np.maximum(last - first, 0)
        # One entry for each pair of an edge and a row that it crosses.
        edge = np.repeat(np.arange(counts.size), counts)
        row = np.arange(edge.size) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        fraction = (row - v0[edge]) / (v1[edge] - v0[edge])
        u = u0[edge] + fraction * (u1[edge] - u0[edge])
        np.add.at(crossings, (np.clip(np.ceil(u), 0, size_u).astype(int), row), 1)
    # The cumulative sum counts the crossings at or left of each centre; an odd count is inside.
    inside: NDArray[np.bool_] = np.cumsum(crossings, axis=0)[:size_u] % 2 == 1
    return inside
