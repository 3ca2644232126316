"""Masks from RTSTRUCT (PS3.3 A.19): contours filled on the CT slice on which they lie.

A contour belongs to a slice by its world coordinates; the slices it references are not asked for, because they often
are not there. A voxel is inside where a ray from its centre crosses the contours of its slice an odd number of times
(even-odd rule), so a contour inside another one is a hole. Of contours on several planes near one slice, those of the
nearest plane count.
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
FLAT_VOXELS = 0.2
"""How far, in slices, the points of one contour may leave its plane."""
SAME_PLANE_VOXELS = 0.02
Points = NDArray[np.float64]


def read_rtstruct(
    data: Any, ct: Volume, wanted: str | int | None, *, case_id: str
) -> tuple[Volume, ChosenLabel, tuple[RawFinding, ...]]:
    """One ROI as booleans on the CT's grid.

    Args:
        data: the file's whole data set.
        ct: the CT whose slices are filled.
        wanted: name or number of the ROI; None chooses the one named liver, or the only one with contours.
        case_id: for the error texts.

    Raises:
        InputRejectedError: mask-unreadable, mask-label, mask-empty, mask-grid.
    """
    try:
        with quiet():
            names, contours = _contours(data)
    except READ_ERRORS as error:
        raise InputRejectedError(
            "the mask file cannot be read as RTSTRUCT",
            fix="copy it again, or export it again: it is truncated or damaged",
            code="mask-unreadable",
            case_id=case_id,
        ) from error
    label = choose_label(wanted, names, {n: len(c) for n, c in contours.items() if c}, case_id=case_id)
    to_voxel = np.linalg.inv(ct.affine_xyz) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    placed = [points @ to_voxel[:3, :3].T + to_voxel[:3, 3] for points in contours[label.number]]
    axis = _flat_axis(placed, case_id)
    mask_XYZ, found = _filled(placed, axis, ct.array_DHW.shape[::-1])
    if not mask_XYZ.any():
        raise InputRejectedError(
            "the contours enclose no voxel of the CT",
            fix="give the CT on which the contours were drawn",
            code="mask-empty",
            case_id=case_id,
        )
    mask_DHW = np.ascontiguousarray(mask_XYZ.transpose(2, 1, 0))
    return Volume(array_DHW=mask_DHW, affine_xyz=ct.affine_xyz), label, found


def _contours(data: Any) -> tuple[Mapping[int, tuple[str, ...]], Mapping[int, list[Points]]]:
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
    """The axis of the grid along which every contour is flat."""
    spread = np.array([np.ptp(points, axis=0) for points in placed]).max(axis=0)
    axis = int(spread.argmin())
    if spread[axis] > FLAT_VOXELS:
        raise InputRejectedError(
            "the contours do not lie in the CT's slices",
            fix="give the CT on which the contours were drawn",
            code="mask-grid",
            case_id=case_id,
        )
    return axis


def _filled(
    placed: Sequence[Points], axis: int, shape_XYZ: tuple[int, ...]
) -> tuple[NDArray[np.bool_], tuple[RawFinding, ...]]:
    across = [a for a in range(3) if a != axis]
    planes: list[tuple[float, list[Points]]] = []
    for points in sorted(placed, key=lambda p: float(p[:, axis].mean())):
        at = float(points[:, axis].mean())
        if planes and at - planes[-1][0] < SAME_PLANE_VOXELS:
            planes[-1][1].append(points[:, across])
        else:
            planes.append((at, [points[:, across]]))
    places = np.array([at for at, _ in planes])
    mask = np.zeros(shape_XYZ, dtype=np.bool_)
    turned = np.moveaxis(mask, axis, 0)
    empty = 0
    for k in range(turned.shape[0]):
        nearest = int(np.abs(places - k).argmin())
        if abs(places[nearest] - k) <= 0.5:
            turned[k] = fill_even_odd(planes[nearest][1], turned.shape[1:])
        elif places[0] < k < places[-1]:
            empty += 1
    found: list[RawFinding] = []
    if empty:
        found.append(("mask-gap", f"{empty} slices inside the structure have no contour", "draw it on every slice"))
    outside = int(((places < -0.5) | (places > turned.shape[0] - 0.5)).sum())
    if outside:
        found.append(
            (
                "mask-outside",
                f"contours on {outside} planes lie outside the CT",
                "give a CT that covers the whole liver",
            )
        )
    return mask, tuple(found)


def fill_even_odd(polygons: Sequence[Points], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels (u, v) whose centre lies inside the closed polygons by the even-odd rule.

    Args:
        polygons: each (points, 2): u and v in pixels, whole numbers at pixel centres.
        shape: pixels along u and v.
    """
    size_u, size_v = shape
    crossings = np.zeros((size_u + 1, size_v), dtype=np.int32)
    for polygon in polygons:
        u0, v0 = polygon.T
        u1, v1 = np.roll(polygon, -1, axis=0).T
        low, high = np.minimum(v0, v1), np.maximum(v0, v1)
        # a row is crossed by an edge from its lower end, which counts, to its upper end, which does not
        first, last = np.clip(np.ceil(low), 0, size_v).astype(int), np.clip(np.ceil(high), 0, size_v).astype(int)
        counts = np.maximum(last - first, 0)
        edge = np.repeat(np.arange(counts.size), counts)
        row = np.arange(edge.size) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        along = (row - v0[edge]) / (v1[edge] - v0[edge])
        at = u0[edge] + along * (u1[edge] - u0[edge])
        np.add.at(crossings, (np.clip(np.ceil(at), 0, size_u).astype(int), row), 1)
    inside: NDArray[np.bool_] = np.cumsum(crossings, axis=0)[:size_u] % 2 == 1
    return inside
