"""The mask's geometry, worked out once and shared by every image type.

N voxels of the mask in C order of its bounding box. Texture matrices count pairs and runs of neighbours along A
directions (13 in a volume). For each direction the voxels are put into an order in which neighbours along it follow
each other, so that pairs and runs are found by comparing an array with itself shifted by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One direction through the mask."""

    order_N: Int[NDArray[np.intp], " N"]
    """Voxel numbers, sorted by line along the direction and by place on the line."""
    ends_E: Int[NDArray[np.intp], " E"]
    """Places k in `order_N` where k + 1 is not the neighbour of k along the direction."""
    has_pairs: bool
    """Whether some line holds two voxels of the mask; a direction without is left out of the run lengths."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """The mask inside its bounding box."""

    mask_DHW: Bool[NDArray[np.bool_], "D H W"]
    """The mask, cropped to its bounding box."""
    box: Box
    """Where the bounding box lies in the volume."""
    directions: tuple[Direction, ...]
    """The directions, each counted one way."""

    @property
    def count(self) -> int:
        """Voxels of the mask."""
        return len(self.flat_N)

    @cached_property
    def flat_N(self) -> Int[NDArray[np.intp], " N"]:
        """Places of the voxels in the flattened, padded box."""
        return np.flatnonzero(np.pad(self.mask_DHW, 1))

    @cached_property
    def padded_shape(self) -> tuple[int, int, int]:
        """Shape of the box with one voxel of background on every side."""
        d, h, w = (n + 2 for n in self.mask_DHW.shape)
        return d, h, w

    @cached_property
    def shifts(self) -> tuple[int, ...]:
        """Steps in the flattened, padded box to the neighbours, one a direction."""
        _, h, w = self.padded_shape
        return tuple(int(z * h * w + y * w + x) for z, y, x in neighbours(self.mask_DHW.shape))

    @cached_property
    def neighbours_N(self) -> NDArray[np.uint8]:
        """How many of a voxel's neighbours belong to the mask."""
        flat = np.zeros(int(np.prod(self.padded_shape)), dtype=np.uint8)
        flat[self.flat_N] = 1
        count = np.zeros_like(flat)
        for shift in self.shifts:
            count[:-shift] += flat[shift:]
            count[shift:] += flat[:-shift]
        return count[self.flat_N]


def neighbours(shape_DHW: tuple[int, ...]) -> NDArray[np.intp]:
    """Offsets (z, y, x) to half of the 26 neighbours, without those that a flat box has no room for; [A, 3]."""
    offsets = np.array(
        [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if (z, y, x) > (0, 0, 0)], dtype=np.intp
    )
    room = np.asarray(shape_DHW) > 1
    possible: NDArray[np.intp] = offsets[(offsets[:, ~room] == 0).all(axis=1)]
    return possible


def bounding_box(mask_DHW: NDArray[np.bool_]) -> Box:
    """The smallest box that holds the mask."""
    spans = [np.flatnonzero(mask_DHW.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1))]
    z, y, x = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return z, y, x


def find_region(mask_DHW: NDArray[np.bool_]) -> Region:
    """Crop a mask to its box and sort its voxels along every direction."""
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
    """Sort by (line, place on the line); a line is named by where it meets the plane of its first moving axis.

    `neighbours` gives offsets whose first moving axis moves forward.
    """
    along, *across = sorted(range(3), key=lambda axis: offset[axis] == 0)
    position_N = coordinates_N3[:, along]
    span = shape[along]
    key_N: Any = np.zeros(len(coordinates_N3), dtype=np.int64)
    for axis in across:
        start_N = coordinates_N3[:, axis] - position_N * offset[axis]
        key_N = key_N * (shape[axis] + 2 * span) + start_N + span
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
