"""Geometry of a DICOM series, computed from the position and orientation of all its slices.

Let r be the row direction, c the column direction (LPS unit vectors) and n = r x c. A slice with ImagePositionPatient P
lies at n.P along the normal, with in-plane offset (r.P, c.P). The offset is constant in a straight stack; it is linear
in n.P if the gantry was tilted. Any other geometry is rejected with a check code; gaps, uneven steps, duplicate slices
and gantry tilt can be repaired by `tmi.toolkit.ingest.dicom.ct`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.dicom.headers import MAX_SLICE_PIXELS, SliceHeader
from tmi.toolkit.ingest.image_files import MAX_VOXELS

SAME_POSITION_MM = 0.01
"""Slices closer than this along the normal share a position."""
OFF_GRID_STEPS = 0.1
"""Tolerance, in slice steps, of a slice position from the regular grid."""
IN_PLANE_PIXELS = 0.1
"""Tolerance, in pixels, of the in-plane offset of a slice."""
THICKNESS_MM = 0.01
"""Slices of one series differ by at most this in thickness: headers round it differently."""
GAP_STEPS = 1.5
"""A step longer than this many median steps is a gap."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices sorted along the normal, one or more at each position."""

    positions: tuple[tuple[SliceHeader, ...], ...]
    """Slices by position; feet to head for an axial series with standard orientation."""
    along_mm: FloatArray
    """(positions,): coordinate n.P along the normal."""
    offset_mm: FloatArray
    """(positions, 2): in-plane offset (r.P, c.P)."""
    axes: FloatArray
    """(3, 3): columns r, c, n in LPS."""
    spacing_mm: tuple[float, float]
    """Pixel distance along r (between columns), then along c (between rows)."""

    @property
    def step_mm(self) -> float:
        """Median distance between neighbouring positions."""
        return float(np.median(np.diff(self.along_mm)))


def series_error(code: str, message: str, fix: str, case_id: str) -> InputRejectedError:
    """Return the error that rejects the series."""
    return InputRejectedError(message, fix=fix, code=code, case_id=case_id)


def build_stack(slices: Sequence[SliceHeader], *, case_id: str) -> Stack:
    """Check that all slices belong to one series and sort them along the normal.

    Raises:
        InputRejectedError: dicom-multiframe, ct-8bit, ct-not-hu, dicom-no-geometry, dicom-mixed-series,
            dicom-unreadable (implausible sizes), ct-few-slices (fewer than two positions).
    """
    _require_images(slices, case_id)
    _require_one_kind(slices, case_id)
    row, column = (np.mean([s.orientation[i : i + 3] for s in slices if s.orientation], axis=0) for i in (0, 3))
    row = row / np.linalg.norm(row)
    # Gram-Schmidt: headers may deviate from orthogonal directions by up to 1e-2 (`_has_geometry`).
    column = column - row * (row @ column)
    column = column / np.linalg.norm(column)
    axes = np.stack([row, column, np.cross(row, column)], axis=1)
    # (slices, 3): r.P, c.P, n.P
    coordinates = np.array([s.position for s in slices], dtype=np.float64) @ axes
    order = np.argsort(coordinates[:, 2], kind="stable")
    groups: list[list[int]] = []
    for i in order:
        if groups and coordinates[i, 2] - coordinates[groups[-1][0], 2] < SAME_POSITION_MM:
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    if len(groups) < 2:
        raise series_error("ct-few-slices", "all slices lie at one position", "give the whole series", case_id)
    first = [g[0] for g in groups]
    spacing = slices[0].spacing or (0.0, 0.0)
    return Stack(
        positions=tuple(tuple(slices[i] for i in sorted(g, key=lambda i: slices[i].number)) for g in groups),
        along_mm=coordinates[first, 2],
        offset_mm=coordinates[first, :2],
        axes=axes,
        spacing_mm=(spacing[1], spacing[0]),
    )


def _require_images(slices: Sequence[SliceHeader], case_id: str) -> None:
    fix = "export the series again from the archive"
    if any(s.is_multiframe for s in slices):
        raise series_error(
            "dicom-multiframe",
            "the series is stored as multi-frame images without the functional groups of enhanced CT",
            "convert it to one file per slice (for example with dcm4che's emf2sf), or give it as NIfTI or NRRD",
            case_id,
        )
    if any(s.samples != 1 or s.bits <= 8 for s in slices):
        raise series_error(
            "ct-8bit",
            "the images are 8-bit or coloured: a display copy without Hounsfield units",
            "export the original CT series",
            case_id,
        )
    if any(s.rescale_type not in ("", "HU", "US") for s in slices):
        raise series_error("ct-not-hu", "the rescale type of the images is not HU", "export the CT in HU", case_id)
    if any(s.shape[0] * s.shape[1] > MAX_SLICE_PIXELS or min(s.shape) < 1 for s in slices):
        raise series_error("dicom-unreadable", "an image is empty or declares an implausible size", fix, case_id)
    if sum(s.shape[0] * s.shape[1] for s in slices) > MAX_VOXELS:
        raise series_error("dicom-unreadable", "the series declares an implausible size", fix, case_id)
    if not all(_has_geometry(s) for s in slices):
        raise series_error(
            "dicom-no-geometry", "position, orientation or pixel spacing of an image is missing or not numeric",
            fix, case_id,
        )  # fmt: skip


def _has_geometry(s: SliceHeader) -> bool:
    if s.position is None or s.orientation is None or s.spacing is None or min(s.spacing) < 1e-3:
        return False
    row, column = np.array(s.orientation[:3]), np.array(s.orientation[3:])
    norms = np.linalg.norm(row), np.linalg.norm(column)
    return bool(max(abs(n - 1.0) for n in norms) < 1e-2 and abs(row @ column) < 1e-2)


def _require_one_kind(slices: Sequence[SliceHeader], case_id: str) -> None:
    first = slices[0]
    varies = {
        "size": any(s.shape != first.shape for s in slices),
        "orientation": not _close([s.orientation for s in slices], 1e-3),
        "pixel spacing": not _close([s.spacing for s in slices], 1e-3),
        "slice thickness": _differ_in_thickness(slices),
        "reconstruction kernel": len({s.kernel for s in slices}) > 1,
        "frame of reference": len({s.frame_of_reference for s in slices}) > 1,
        "stack": len({s.stack for s in slices}) > 1,
        "patient": len({s.patient_id for s in slices}) > 1,
    }
    if names := [name for name, does_vary in varies.items() if does_vary]:
        raise series_error(
            "dicom-mixed-series",
            f"slices of two series are mixed: they differ in {', '.join(names)}",
            "export the one series again from the archive, into an empty folder",
            case_id,
        )


def _differ_in_thickness(slices: Sequence[SliceHeader]) -> bool:
    known = [s.thickness for s in slices if s.thickness is not None]
    if len(known) < len(slices):
        return bool(known)
    return max(known) - min(known) > THICKNESS_MM and not _is_acquired_in_blocks(slices)


def _is_acquired_in_blocks(slices: Sequence[SliceHeader]) -> bool:
    """Return whether thickness and slice step change together, from one block of the stack to the next.

    This is one series with two collimations; its steps are checked like those of any series. Slices of two series lie
    between each other, or have the same step.
    """
    orientation = np.array(slices[0].orientation, dtype=np.float64)
    normal = np.cross(orientation[:3], orientation[3:])
    stack = sorted((float(normal @ np.array(s.position)), round(s.thickness or 0.0, 1)) for s in slices)
    blocks = [(thickness, [z for z, _ in block]) for thickness, block in groupby(stack, key=lambda s: s[1])]
    thicknesses = [thickness for thickness, _ in blocks]
    if len(set(thicknesses)) < len(blocks) or min(thicknesses) <= 0 or any(len(z) < 2 for _, z in blocks):
        return False
    ratios = [float(np.median(np.diff(z))) / thickness for thickness, z in blocks]
    return bool(0 < max(ratios) <= (1 + OFF_GRID_STEPS) * min(ratios))


def _close(values: Sequence[tuple[float, ...] | None], tolerance: float) -> bool:
    array = np.array(values, dtype=np.float64)
    return bool((np.ptp(array, axis=0) <= tolerance).all())


def gantry_tilt_degrees(stack: Stack, *, case_id: str) -> float:
    """Return the gantry tilt in degrees, arctan(|shear|); 0 for a straight stack.

    Raises:
        InputRejectedError: dicom-mixed-series: the in-plane offsets are not linear in the position.
    """
    limit = IN_PLANE_PIXELS * min(stack.spacing_mm)
    drift = stack.offset_mm - stack.offset_mm.mean(axis=0)
    if np.abs(drift).max() <= limit:
        return 0.0
    slope = fit_shear(stack)
    residual = drift - np.outer(stack.along_mm - stack.along_mm.mean(), slope)
    if np.abs(residual).max() > limit:
        raise series_error(
            "dicom-mixed-series",
            "slices of two series are mixed: they are shifted against each other in their plane",
            "export the one series again from the archive, into an empty folder",
            case_id,
        )
    return float(np.degrees(np.arctan(np.linalg.norm(slope))))


def fit_shear(stack: Stack) -> FloatArray:
    """Return the shear (2,): least-squares slope of the in-plane offset (r, c) per mm along the normal."""
    along = stack.along_mm - stack.along_mm.mean()
    slope: FloatArray = along @ (stack.offset_mm - stack.offset_mm.mean(axis=0)) / float(along @ along)
    return slope


def find_gaps(stack: Stack) -> list[tuple[int, int]]:
    """Return (index of the slice before the gap, number of missing slices) for each gap.

    A gap is a step near an integer multiple of the median step. Other long steps count as non-uniform spacing.
    """
    steps = np.diff(stack.along_mm) / stack.step_mm
    multiple = np.rint(steps)
    fits = np.abs(steps - multiple) <= OFF_GRID_STEPS * multiple
    return [(int(i), int(multiple[i]) - 1) for i in np.flatnonzero((steps > GAP_STEPS) & fits)]


def is_uniform(along_mm: FloatArray) -> bool:
    """Return whether positions lie on a regular grid from the first to the last, within `OFF_GRID_STEPS`."""
    step = (along_mm[-1] - along_mm[0]) / (along_mm.size - 1)
    ideal = along_mm[0] + step * np.arange(along_mm.size)
    return bool(np.abs(along_mm - ideal).max() <= OFF_GRID_STEPS * abs(step))
