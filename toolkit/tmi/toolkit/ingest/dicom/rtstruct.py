"""Reader of RTSTRUCT masks (PS3.3 A.19): rasterises the contours of one ROI on the slices of the CT.

World coordinates assign a contour to a slice. The referenced SOP instances are ignored, because they are often missing.
A voxel is inside if a ray from its centre crosses the contours of its slice an odd number of times (even-odd rule), so
a contour inside another one is a hole. If several contour planes lie near one slice, the nearest plane is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.compute.quiet import quiet
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.ingest.dicom.headers import READ_ERRORS
from tmi.toolkit.ingest.image_files import RawFinding
from tmi.toolkit.ingest.mask_labels import ChosenLabel, choose_label

CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR", ""})
"""Contour geometric types that enclose an area."""
FLAT_VOXELS = 0.2
"""Maximum extent of one contour across its plane, in slices."""
SAME_PLANE_VOXELS = 0.02
"""Contours closer than this along the slice axis, in slices, lie on one plane."""
Points = NDArray[np.float64]


def read_rtstruct(
    data: Any, ct: Volume, wanted: str | int | None, *, case_id: str
) -> tuple[Volume, ChosenLabel, tuple[RawFinding, ...]]:
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
            names, contours = _read_contours(data)
    except READ_ERRORS as error:
        raise InputRejectedError(
            "the mask file cannot be read as RTSTRUCT",
            fix="copy or export it again: it is truncated or damaged",
            code="mask-unreadable",
            case_id=case_id,
        ) from error
    label = choose_label(wanted, names, {n: len(c) for n, c in contours.items() if c}, case_id=case_id)
    # LPS mm -> RAS mm -> CT voxel indices (x, y, z).
    to_voxel = np.linalg.inv(ct.affine_xyz) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    placed = [points @ to_voxel[:3, :3].T + to_voxel[:3, 3] for points in contours[label.number]]
    axis = _flat_axis(placed, case_id)
    mask_XYZ, findings = _rasterize(placed, axis, ct.array_DHW.shape[::-1])
    if not mask_XYZ.any():
        raise InputRejectedError(
            "the contours enclose no voxel of the CT",
            fix="give the CT on which the contours were drawn",
            code="mask-empty",
            case_id=case_id,
        )
    mask_DHW = np.ascontiguousarray(mask_XYZ.transpose(2, 1, 0))
    return Volume(array_DHW=mask_DHW, affine_xyz=ct.affine_xyz), label, findings


def _read_contours(data: Any) -> tuple[Mapping[int, tuple[str, ...]], Mapping[int, list[Points]]]:
    names = {int(r.ROINumber): (str(r.get("ROIName", "")).strip(),) for r in data.StructureSetROISequence}
    contours: dict[int, list[Points]] = {n: [] for n in names}
    for roi in data.get("ROIContourSequence") or ():
        for contour in roi.get("ContourSequence") or ():
            values = np.array([float(v) for v in contour.get("ContourData") or ()])
            if values.size % 3 or not np.isfinite(values).all() or (values.size and np.abs(values).max() > 1e6):
                raise ValueError("contour data")
            if values.size >= 9 and str(contour.get("ContourGeometricType", "")).upper() in CLOSED:
                contours.setdefault(int(roi.ReferencedROINumber), []).append(values.reshape(-1, 3))
    return names, contours


def _flat_axis(placed: Sequence[Points], case_id: str) -> int:
    """Return the grid axis (0 to 2 for x, y, z) that is normal to every contour."""
    extent = np.array([np.ptp(points, axis=0) for points in placed]).max(axis=0)
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
    placed: Sequence[Points], axis: int, shape_XYZ: tuple[int, ...]
) -> tuple[NDArray[np.bool_], tuple[RawFinding, ...]]:
    """Fill contours (points, 3), in voxel indices, slice by slice along `axis`; return the mask and the warnings."""
    in_plane = [a for a in range(3) if a != axis]
    planes: list[tuple[float, list[Points]]] = []
    for points in sorted(placed, key=lambda p: float(p[:, axis].mean())):
        position = float(points[:, axis].mean())
        if planes and position - planes[-1][0] < SAME_PLANE_VOXELS:
            planes[-1][1].append(points[:, in_plane])
        else:
            planes.append((position, [points[:, in_plane]]))
    positions = np.array([position for position, _ in planes])
    mask = np.zeros(shape_XYZ, dtype=np.bool_)
    slices = np.moveaxis(mask, axis, 0)  # a view: writing a slice fills `mask`
    empty = 0
    for k in range(slices.shape[0]):
        nearest = int(np.abs(positions - k).argmin())
        if abs(positions[nearest] - k) <= 0.5:
            slices[k] = fill_even_odd(planes[nearest][1], slices.shape[1:])
        elif positions[0] < k < positions[-1]:
            empty += 1
    findings: list[RawFinding] = []
    if empty:
        findings.append(("mask-gap", f"{empty} slices inside the structure have no contour", "draw it on every slice"))
    outside = int(((positions < -0.5) | (positions > slices.shape[0] - 0.5)).sum())
    if outside:
        findings.append(
            (
                "mask-outside",
                f"contours on {outside} planes lie outside the CT",
                "give a CT that covers the whole liver",
            )
        )
    return mask, tuple(findings)


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
