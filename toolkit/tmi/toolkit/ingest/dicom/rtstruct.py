"""Reader of RTSTRUCT masks (PS3.3 A.19): rasterises the contours of one ROI on the slices of the CT.

World coordinates assign a contour to a slice. The referenced SOP instances are ignored, because they are often missing.
`tmi.toolkit.ingest.dicom.contours` combines the contours of a slice: a contour inside another one is a hole, repeats
count once, and contours that cross are united. If several contour planes lie near one slice, the nearest one is used,
and a warning counts the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.ingest.dicom.contours import Contour, fill_contours
from tmi.toolkit.ingest.dicom.headers import READ_ERRORS
from tmi.toolkit.ingest.mask_labels import ChosenLabel, choose_label
from tmi.toolkit.issues.issue import Issue

XOR = "CLOSEDPLANAR_XOR"
CLOSED = frozenset({"CLOSED_PLANAR", XOR, ""})
"""Contour geometric types that enclose an area."""
FLAT_VOXELS = 0.2
"""Maximum extent of one contour across its plane, in slices."""
SAME_PLANE_VOXELS = 0.1
"""Contours closer than this along the slice axis, in slices, lie on one plane."""


@dataclass(frozen=True, kw_only=True)
class _Structures:
    """Contours of a file, by ROI number."""

    names: Mapping[int, tuple[str, ...]]
    contours: Mapping[int, list[Contour]]
    open: Counter[int]
    """Number of contours that enclose no area: open ones, single points, and those of fewer than three points."""
    other_length: Counter[int]
    """Number of contours with another number of points than they declare."""


def read_rtstruct(
    data: Any, ct: Volume, wanted: str | int | None, *, case_id: str
) -> tuple[Volume, ChosenLabel, tuple[Issue, ...]]:
    """Rasterise one ROI to a boolean volume on the grid of the CT.

    Args:
        data: parsed data set of the file.
        ct: CT that defines the grid.
        wanted: name or number of the ROI; None selects the ROI named liver, or the only one with contours.
        case_id: case id for error messages.

    Returns:
        The mask, the selected ROI and the warnings.

    Raises:
        InputRejectedError: mask-unreadable, mask-label, mask-empty, mask-grid.
    """
    try:
        with quiet():
            structures = _read_contours(data)
    except READ_ERRORS as error:
        raise InputRejectedError(
            "the mask file cannot be read as RTSTRUCT",
            fix="copy or export it again: it is truncated or damaged",
            code="mask-unreadable",
            case_id=case_id,
        ) from error
    contours = structures.contours
    label = choose_label(wanted, structures.names, {n: len(c) for n, c in contours.items() if c}, case_id=case_id)
    # LPS mm -> RAS mm -> CT voxel indices (x, y, z).
    to_voxel = np.linalg.inv(ct.affine_xyz) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    placed = [replace(c, points=c.points @ to_voxel[:3, :3].T + to_voxel[:3, 3]) for c in contours[label.number]]
    axis = _flat_axis(placed, case_id)
    try:
        mask_XYZ, findings = _rasterize(placed, axis, ct.array_DHW.shape[::-1])
    except ValueError as error:
        raise InputRejectedError(
            "a slice has more overlapping contours than a structure can have",
            fix="export the structure again, with one contour for each part of a slice",
            code="mask-unreadable",
            case_id=case_id,
        ) from error
    if not mask_XYZ.any():
        raise InputRejectedError(
            "the contours enclose no voxel of the CT",
            fix="give the CT on which the contours were drawn",
            code="mask-empty",
            case_id=case_id,
        )
    if structures.open[label.number]:
        message = f"{structures.open[label.number]} contours enclose no area (open, or fewer than three points)"
        findings += (Issue.of("mask-contours", message, "inspect the mask: these contours were left out"),)
    if structures.other_length[label.number]:
        message = f"{structures.other_length[label.number]} contours have another number of points than they declare"
        findings += (Issue.of("mask-contours", message, "inspect the mask, or export the structure again"),)
    mask_DHW = np.ascontiguousarray(mask_XYZ.transpose(2, 1, 0))
    return Volume(array_DHW=mask_DHW, affine_xyz=ct.affine_xyz), label, findings


def _read_contours(data: Any) -> _Structures:
    numbers = [int(r.ROINumber) for r in data.StructureSetROISequence]
    if len(set(numbers)) < len(numbers):
        raise ValueError("two ROIs have one number")
    names = {int(r.ROINumber): (str(r.get("ROIName", "")).strip(),) for r in data.StructureSetROISequence}
    contours: dict[int, list[Contour]] = {n: [] for n in names}
    open_, other_length = Counter[int](), Counter[int]()
    for roi in data.get("ROIContourSequence") or ():
        for contour in roi.get("ContourSequence") or ():
            number = int(roi.ReferencedROINumber)
            values = np.array([float(v) for v in contour.get("ContourData") or ()])
            if values.size % 3 or not np.isfinite(values).all() or (values.size and np.abs(values).max() > 1e6):
                raise ValueError("contour data")
            if any(float(v) for v in contour.get("ContourOffsetVector") or ()):
                raise ValueError("the retired offset vector, which programs apply or ignore")
            declared = contour.get("NumberOfContourPoints")
            other_length[number] += declared is not None and int(declared) != values.size // 3
            kind = str(contour.get("ContourGeometricType", "")).strip().upper()
            if values.size >= 9 and kind in CLOSED:
                closed = Contour(points=values.reshape(-1, 3), is_xor=kind == XOR)
                contours.setdefault(number, []).append(closed)
            else:
                open_[number] += values.size > 0
    return _Structures(names=names, contours=contours, open=open_, other_length=other_length)


def _flat_axis(placed: Sequence[Contour], case_id: str) -> int:
    """Return the grid axis (0 to 2 for x, y, z) that is normal to every contour."""
    extent = np.array([np.ptp(c.points, axis=0) for c in placed]).max(axis=0)
    axis = int(extent.argmin())
    if extent[axis] > FLAT_VOXELS:
        raise InputRejectedError(
            "the contours do not lie in the slices of the CT",
            fix="give the CT on which the contours were drawn",
            code="mask-grid",
            case_id=case_id,
        )
    return axis


def _rasterize(
    placed: Sequence[Contour], axis: int, shape_XYZ: tuple[int, ...]
) -> tuple[NDArray[np.bool_], tuple[Issue, ...]]:
    """Fill contours (points, 3), in voxel indices, slice by slice along `axis`; return the mask and the warnings.

    Raises:
        ValueError: too many contours of one slice overlap.
    """
    in_plane = [a for a in range(3) if a != axis]
    planes: list[tuple[float, list[Contour]]] = []
    for contour in sorted(placed, key=lambda c: float(c.points[:, axis].mean())):
        position = float(contour.points[:, axis].mean())
        if not planes or position - planes[-1][0] >= SAME_PLANE_VOXELS:
            planes.append((position, []))
        planes[-1][1].append(replace(contour, points=contour.points[:, in_plane]))
    positions = np.array([position for position, _ in planes])
    mask = np.zeros(shape_XYZ, dtype=np.bool_)
    slices = np.moveaxis(mask, axis, 0)  # a view: writing a slice fills `mask`
    shape = slices.shape[1], slices.shape[2]
    gaps = empty = crossing = 0
    used = np.zeros(positions.shape, dtype=np.bool_)
    for k in range(slices.shape[0]):
        nearest = int(np.abs(positions - k).argmin())
        if abs(positions[nearest] - k) <= 0.5:
            used[nearest] = True
            filled = fill_contours(planes[nearest][1], shape)
            slices[k] = filled.mask
            empty += not filled.mask.any()
            crossing += filled.united > 0 or filled.self_crossing > 0
        elif positions[0] < k < positions[-1]:
            gaps += 1
    beyond = (positions < -0.5) | (positions > slices.shape[0] - 0.5)
    outside = sum(
        bool(far) or any((c.points < -1.0).any() or (c.points > np.array(shape)).any() for c in contours)
        for far, (_, contours) in zip(beyond, planes, strict=True)
    )
    unused = int(np.count_nonzero(~used & ~beyond))
    return mask, tuple(_findings(gaps=gaps, empty=empty, crossing=crossing, unused=unused, outside=outside))


def _findings(*, gaps: int, empty: int, crossing: int, unused: int, outside: int) -> Iterator[Issue]:
    if gaps:
        yield Issue.of("mask-gap", f"{gaps} slices inside the structure have no contour", "draw it on every slice")
    if empty:
        message = f"the contours of {empty} slices enclose no voxel"
        yield Issue.of(
            "mask-contours", message, "inspect these slices: the contours are tiny, or cancel each other out"
        )
    if crossing:
        message = f"contours cross on {crossing} slices; those that cross each other were united"
        yield Issue.of("mask-contours", message, "inspect these slices in the mask")
    if unused:
        message = f"contours on {unused} planes were left out: others lie nearer to the slices of the CT"
        yield Issue.of("mask-contours", message, "inspect the mask, or give the CT on which the contours were drawn")
    if outside:
        yield Issue.of(
            "mask-outside",
            f"contours on {outside} planes lie outside the CT",
            "give a CT that covers the whole liver",
        )
