"""Geometry of the mask, computed once and shared by all image types.

The N voxels of the mask are in C order of its bounding box. Texture matrices count pairs and runs of neighbours along A
directions (13 in 3D). For each direction the voxels are sorted so that neighbours along it are consecutive. Pairs and
runs are then found by comparing an array with itself shifted by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]
"""Slices along D, H, W."""


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Order of the mask's voxels along one direction."""

    order_N: Int[NDArray[np.intp], " N"]
    """Voxel numbers, sorted by line along the direction and by position on the line."""
    ends_E: Int[NDArray[np.intp], " E"]
    """Positions k in `order_N` whose successor k + 1 is not the neighbour along the direction."""
    has_pairs: bool
    """True if any line contains two voxels of the mask; other directions are excluded from the run lengths."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """The mask inside its bounding box."""

    mask_DHW: Bool[NDArray[np.bool_], "D H W"]
    """The mask, cropped to its bounding box."""
    box: Box
    """Position of the bounding box in the volume."""
    directions: tuple[Direction, ...]
    """The directions; of two opposite ones only one is included."""

    @property
    def count(self) -> int:
        """Number of voxels of the mask."""
        return len(self.flat_N)

    @cached_property
    def flat_N(self) -> Int[NDArray[np.intp], " N"]:
        """Indices of the voxels in the flattened, padded box."""
        return np.flatnonzero(np.pad(self.mask_DHW, 1))

    @cached_property
    def padded_shape(self) -> tuple[int, int, int]:
        """Shape of the box with one voxel of background on every side."""
        d, h, w = (n + 2 for n in self.mask_DHW.shape)
        return d, h, w

    @cached_property
    def shifts(self) -> tuple[int, ...]:
        """Index offset in the flattened, padded box from a voxel to its neighbour along each direction."""
        _, h, w = self.padded_shape
        return tuple(int(z * h * w + y * w + x) for z, y, x in neighbours(self.mask_DHW.shape))

    @cached_property
    def neighbours_N(self) -> NDArray[np.uint8]:
        """Number of each voxel's neighbours that belong to the mask."""
        flat = np.zeros(int(np.prod(self.padded_shape)), dtype=np.uint8)
        flat[self.flat_N] = 1
        count = np.zeros_like(flat)
        # adding at both ends of each shift covers both opposite neighbours; the padding absorbs shifts past the box
        for shift in self.shifts:
            count[:-shift] += flat[shift:]
            count[shift:] += flat[:-shift]
        return count[self.flat_N]


def neighbours(shape_DHW: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the offsets (z, y, x) to one of each two opposite neighbours, [A, 3].

    A is 13 in 3D; offsets along an axis of length 1 are left out.
    """
    offsets = np.array(
        [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if (z, y, x) > (0, 0, 0)], dtype=np.intp
    )
    extended = np.asarray(shape_DHW) > 1
    valid: NDArray[np.intp] = offsets[(offsets[:, ~extended] == 0).all(axis=1)]
    return valid


def bounding_box(mask_DHW: NDArray[np.bool_]) -> Box:
    """Return the smallest box that contains a non-empty mask."""
    spans = [np.flatnonzero(mask_DHW.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1))]
    z, y, x = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return z, y, x


def find_region(mask_DHW: NDArray[np.bool_]) -> Region:
    """Crop a mask to its bounding box and sort its voxels along every direction."""
    box = bounding_box(mask_DHW)
    cropped_DHW = np.ascontiguousarray(mask_DHW[box])
    coordinates_N3 = np.argwhere(cropped_DHW)
    return Region(
        mask_DHW=cropped_DHW,
        box=box,
        directions=tuple(
            _direction(coordinates_N3, offset, cropped_DHW.shape) for offset in neighbours(cropped_DHW.shape)
        ),
    )


def _direction(coordinates_N3: NDArray[np.intp], offset: NDArray[np.intp], shape: tuple[int, ...]) -> Direction:
    """Sort voxels by (line, position on the line).

    A line is identified by its intersection with the plane where the coordinate of its first non-zero axis is 0.
    `neighbours` returns offsets whose first non-zero component is positive, so the position increases along the line.
    """
    along, *across = sorted(range(3), key=lambda axis: offset[axis] == 0)  # stable: the first non-zero axis comes first
    position_N = coordinates_N3[:, along]
    span = shape[along]
    key_N: Any = np.zeros(len(coordinates_N3), dtype=np.int64)
    for axis in across:
        # the intersection may lie up to span voxels outside the box on either side: shift it to be non-negative
        start_N = coordinates_N3[:, axis] - position_N * offset[axis]
        key_N = key_N * (shape[axis] + 2 * span) + start_N + span
    # span + 1 keys per line, of which the last is unused: only neighbours on one line have keys that differ by 1
    key_N = key_N * (span + 1) + coordinates_N3[:, along]
    order_N = np.argsort(key_N)
    key_N = key_N[order_N]
    step = np.diff(key_N)
    line_N = key_N // (span + 1)
    return Direction(
        order_N=order_N,
        ends_E=np.flatnonzero(step != 1),
        has_pairs=bool((line_N[1:] == line_N[:-1]).any()),
    )
