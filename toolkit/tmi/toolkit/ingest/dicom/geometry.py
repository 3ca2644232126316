"""Where the slices of a series lie, from the position and orientation of all of them.

With row direction r, column direction c (LPS, unit length) and n = r x c, a slice at position P lies at n.P along the
normal. In one straight stack the in-plane offset (r.P, c.P) is the same for all; in one scanned with a tilted gantry
it runs linearly with n.P. Every departure has a code; `Stack` holds what is left to be repaired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.dicom.headers import MAX_SLICE_PIXELS, SliceHeader
from tmi.toolkit.ingest.image_files import MAX_VOXELS

SAME_POSITION_MM = 0.01
"""Slices nearer to each other than this lie at one place."""
OFF_GRID_STEPS = 0.1
"""How far, in slice steps, a slice may lie from its place on the even grid."""
IN_PLANE_PIXELS = 0.1
"""How far, in pixels, slices may be shifted in their plane."""
GAP_STEPS = 1.5
"""A step longer than this many usual steps is a gap."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices in the order of the normal, one or more at each place."""

    positions: tuple[tuple[SliceHeader, ...], ...]
    """Slices by place, feet to head for an axial series."""
    along_mm: FloatArray
    """Place along the normal."""
    offset_mm: FloatArray
    """(places, 2): in-plane offset along r and c."""
    axes: FloatArray
    """3x3: columns r, c, n in LPS."""
    spacing_mm: tuple[float, float]
    """Between columns (along r), between rows (along c)."""

    @property
    def step_mm(self) -> float:
        """The usual distance between neighbours."""
        return float(np.median(np.diff(self.along_mm)))


def series_error(code: str, what: str, fix: str, case_id: str) -> InputRejectedError:
    """A refusal of the series."""
    return InputRejectedError(what, fix=fix, code=code, case_id=case_id)


def stack(slices: Sequence[SliceHeader], *, case_id: str) -> Stack:
    """Check that the slices are of one kind and put them in order.

    Raises:
        InputRejectedError: dicom-multiframe, ct-not-hu, dicom-no-geometry, dicom-mixed-series, dicom-unreadable (absurd
            sizes), ct-few-slices (no two places).
    """
    _require_images(slices, case_id)
    _require_one_kind(slices, case_id)
    row, column = (np.mean([s.orientation[i : i + 3] for s in slices if s.orientation], axis=0) for i in (0, 3))
    row = row / np.linalg.norm(row)
    column = column - row * (row @ column)
    column = column / np.linalg.norm(column)
    axes = np.stack([row, column, np.cross(row, column)], axis=1)
    at = np.array([s.position for s in slices], dtype=np.float64) @ axes
    order = np.argsort(at[:, 2], kind="stable")
    groups: list[list[int]] = []
    for i in order:
        if groups and at[i, 2] - at[groups[-1][0], 2] < SAME_POSITION_MM:
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    if len(groups) < 2:
        raise series_error("ct-few-slices", "the series has slices at one place only", "give the whole series", case_id)
    first = [g[0] for g in groups]
    spacing = slices[0].spacing or (0.0, 0.0)
    return Stack(
        positions=tuple(tuple(slices[i] for i in sorted(g, key=lambda i: slices[i].number)) for g in groups),
        along_mm=at[first, 2],
        offset_mm=at[first, :2],
        axes=axes,
        spacing_mm=(spacing[1], spacing[0]),
    )


def _require_images(slices: Sequence[SliceHeader], case_id: str) -> None:
    again = "export the series again from the archive"
    if any(s.frames > 1 for s in slices):
        raise series_error(
            "dicom-multiframe",
            "the series is stored as multi-frame images",
            "convert it to one file a slice (for example dcm4che's emf2sf), or give it as NIfTI or NRRD",
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
        raise series_error(
            "ct-not-hu", "the images are rescaled to another unit than HU", "export the CT in HU", case_id
        )
    if any(s.shape[0] * s.shape[1] > MAX_SLICE_PIXELS or min(s.shape) < 1 for s in slices):
        raise series_error("dicom-unreadable", "an image is empty or claims an absurd size", again, case_id)
    if sum(s.shape[0] * s.shape[1] for s in slices) > MAX_VOXELS:
        raise series_error("dicom-unreadable", "the series claims an absurd size", again, case_id)
    if not all(_has_geometry(s) for s in slices):
        raise series_error(
            "dicom-no-geometry", "an image lacks position, orientation or pixel spacing, or they are no numbers",
            again, case_id,
        )  # fmt: skip


def _has_geometry(s: SliceHeader) -> bool:
    if s.position is None or s.orientation is None or s.spacing is None or min(s.spacing) < 1e-3:
        return False
    row, column = np.array(s.orientation[:3]), np.array(s.orientation[3:])
    norms = np.linalg.norm(row), np.linalg.norm(column)
    return bool(max(abs(n - 1.0) for n in norms) < 1e-2 and abs(row @ column) < 1e-2)


def _require_one_kind(slices: Sequence[SliceHeader], case_id: str) -> None:
    first = slices[0]
    differs = {
        "size": any(s.shape != first.shape for s in slices),
        "orientation": not _close([s.orientation for s in slices], 1e-3),
        "pixel spacing": not _close([s.spacing for s in slices], 1e-3),
        "slice thickness": len({s.thickness for s in slices}) > 1,
        "reconstruction kernel": len({s.kernel for s in slices}) > 1,
        "frame of reference": len({s.frame_of_reference for s in slices}) > 1,
        "patient": len({s.patient_id for s in slices}) > 1,
    }
    if named := [name for name, found in differs.items() if found]:
        raise series_error(
            "dicom-mixed-series",
            f"slices of two series are mixed: they differ in {', '.join(named)}",
            "export the one series again from the archive, into an empty folder",
            case_id,
        )


def _close(values: Sequence[tuple[float, ...] | None], tolerance: float) -> bool:
    array = np.array(values, dtype=np.float64)
    return bool((np.ptp(array, axis=0) <= tolerance).all())


def tilt(stack_: Stack, *, case_id: str) -> float:
    """Gantry tilt in degrees; 0 for a straight stack.

    Raises:
        InputRejectedError: dicom-mixed-series: slices are shifted in their plane, and not as a tilt would.
    """
    limit = IN_PLANE_PIXELS * min(stack_.spacing_mm)
    drift = stack_.offset_mm - stack_.offset_mm.mean(axis=0)
    if np.abs(drift).max() <= limit:
        return 0.0
    slope = shear(stack_)
    left = drift - np.outer(stack_.along_mm - stack_.along_mm.mean(), slope)
    if np.abs(left).max() > limit:
        raise series_error(
            "dicom-mixed-series",
            "slices of two series are mixed: they are shifted against each other in their plane",
            "export the one series again from the archive, into an empty folder",
            case_id,
        )
    return float(np.degrees(np.arctan(np.linalg.norm(slope))))


def shear(stack_: Stack) -> FloatArray:
    """In-plane offset along r and c by mm along the normal, by least squares."""
    along = stack_.along_mm - stack_.along_mm.mean()
    slope: FloatArray = along @ (stack_.offset_mm - stack_.offset_mm.mean(axis=0)) / float(along @ along)
    return slope


def gaps(stack_: Stack) -> list[tuple[int, int]]:
    """Places after which slices are missing, and how many, where the steps tell."""
    steps = np.diff(stack_.along_mm) / stack_.step_mm
    whole = np.rint(steps)
    fits = np.abs(steps - whole) <= OFF_GRID_STEPS * whole
    return [(int(i), int(whole[i]) - 1) for i in np.flatnonzero((steps > GAP_STEPS) & fits)]


def is_uniform(along_mm: FloatArray) -> bool:
    """Whether places lie on an even grid from the first to the last."""
    step = (along_mm[-1] - along_mm[0]) / (along_mm.size - 1)
    ideal = along_mm[0] + step * np.arange(along_mm.size)
    return bool(np.abs(along_mm - ideal).max() <= OFF_GRID_STEPS * abs(step))
