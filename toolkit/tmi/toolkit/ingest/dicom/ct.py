"""Reader of a CT volume from a DICOM series, with all checks of the series and the requested repairs.

The affine is computed from all slices: the directions are their mean orientation, origin and step follow from the first
and the last position. Slope and intercept are applied per slice. A defect rejects the series with its check code,
unless that code is in `fixes` and the defect can be repaired; each repair is recorded as a `Repair`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from tmi.toolkit.cases.case import CT_FILE
from tmi.toolkit.cases.provenance import Repair
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.ingest.dicom.geometry import (
    Stack,
    build_stack,
    find_gaps,
    fit_shear,
    gantry_tilt_degrees,
    is_uniform,
    series_error,
)
from tmi.toolkit.ingest.dicom.headers import SliceHeader
from tmi.toolkit.ingest.dicom.pixels import decode_hu
from tmi.toolkit.ingest.dicom.series import DicomFolder, Series, choose_series, scan_folder
from tmi.toolkit.ingest.image_files import MAX_VOXELS, LoadedCt, canonical_volume
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file

AIR_HU = -1024
"""Value of repaired padding and of the margins that shearing adds."""
MAX_MISSING_SLICES = 2
"""Longest gap, in slices, that is interpolated."""
Slice = NDArray[np.generic]


def read_dicom_ct(path: Path, *, series: str | None, fixes: Collection[str], case_id: str) -> LoadedCt:
    """Read the CT series at or below `path`.

    Args:
        path: folder, searched recursively, or one file.
        series: SeriesInstanceUID or number in the listing; None applies the default rule (`choose_series`).
        fixes: codes of the repairs that may be applied.
        case_id: case id for error messages.

    Raises:
        InputRejectedError: any dicom-... code of `CHECKS` with severity error, ct-8bit, ct-not-hu, ct-few-slices.
        UsageError: `path` does not exist.
    """
    folder = scan_folder(path, case_id=case_id)
    chosen = choose_series(folder, series, case_id=case_id)
    repairs: list[Repair] = []
    findings: list[Issue] = []
    # The kind of image comes first: a multi-frame image without functional groups has no rescale.
    stack = build_stack(chosen.slices, case_id=case_id)
    _require_rescale(chosen.slices, fixes, repairs, case_id)
    slices, images, n_padding = _decode(stack, fixes, repairs, case_id)
    if len({(s.slope, s.intercept) for s in slices}) > 1:
        message = "slope and intercept differ between slices"
        findings.append(Issue.of("dicom-rescale-differs", message, "nothing to do: each slice was rescaled by its own"))
    if n_padding and "ct-padding" in fixes:
        message = f"{n_padding} voxels that the series marks as padding set to {AIR_HU} HU"
        repairs.append(Repair(code="ct-padding", file=CT_FILE, what=message))
    # The tilt has to be corrected first: interpolation along the normal assumes a straight stack.
    images, origin_mm = _straighten(stack, images, fixes, repairs, case_id)
    images, along_mm = _resample_uniform(stack, images, fixes, repairs, case_id)
    return LoadedCt(
        volume=_to_volume(stack, images, along_mm, origin_mm),
        source=_describe_source(folder, chosen, slices),
        findings=tuple(findings),
        repairs=tuple(repairs),
        patient_id=slices[0].patient_id or None,
        frame_of_reference=slices[0].frame_of_reference or None,
        date=slices[0].date or None,
    )


def _require_rescale(
    slices: tuple[SliceHeader, ...], fixes: Collection[str], repairs: list[Repair], case_id: str
) -> None:
    if any(s.slope == 0.0 for s in slices):
        raise series_error("ct-not-hu", "an image has a slope of 0", "export the CT series again", case_id)
    missing = sum(s.slope is None or s.intercept is None for s in slices)
    if not missing:
        return
    if "dicom-no-rescale" not in fixes:
        raise series_error(
            "dicom-no-rescale",
            f"{missing} of {len(slices)} images have no slope or intercept, so their values are not in HU",
            "export the series again; if the stored values are HU, import with --fix dicom-no-rescale",
            case_id,
        )
    message = f"slope 1 and intercept 0 assumed for {missing} images without them"
    repairs.append(Repair(code="dicom-no-rescale", file=CT_FILE, what=message))


def _decode(
    stack: Stack, fixes: Collection[str], repairs: list[Repair], case_id: str
) -> tuple[list[SliceHeader], list[Slice], int]:
    """Decode one image per position.

    Returns:
        The headers, the images (rows, columns) in HU, and the number of padding voxels that differ from `AIR_HU`.
    """
    headers: list[SliceHeader] = []
    images: list[Slice] = []
    n_padding = copies = differing = 0
    opened: dict[Path, Any] = {}
    for first, *others in stack.positions:
        image, padding = decode_hu(first, case_id=case_id, opened=opened)
        for other in others:
            if np.array_equal(image, decode_hu(other, case_id=case_id, opened=opened)[0]):
                copies += 1
            else:
                differing += 1
        padding = padding & (image != AIR_HU)
        n_padding += int(padding.sum())
        if "ct-padding" in fixes:
            image = np.where(padding, np.asarray(AIR_HU, dtype=image.dtype), image)
        headers.append(first)
        images.append(_compact(image))
    if differing:
        raise _colocated_error(stack, case_id)
    if copies and "dicom-duplicate-slice" not in fixes:
        raise series_error(
            "dicom-duplicate-slice",
            f"{copies} slices are duplicates with identical pixels",
            "export the series again, or drop the duplicates with --fix dicom-duplicate-slice",
            case_id,
        )
    if copies:
        message = f"{copies} slices left out that duplicate another slice at the same position"
        repairs.append(Repair(code="dicom-duplicate-slice", file=CT_FILE, what=message))
    return headers, images, n_padding


def _colocated_error(stack: Stack, case_id: str) -> InputRejectedError:
    counts = {len(p) for p in stack.positions}
    # The same number of images at every position indicates a time series, not an accidental mixture.
    if len(counts) == 1:
        return series_error(
            "dicom-4d",
            f"{counts.pop()} different images at every position: the series contains several time points or phases",
            "export one phase as a separate series",
            case_id,
        )
    return series_error(
        "dicom-mixed-series",
        "slices of two series are mixed: different images at one position",
        "export the one series again from the archive, into an empty folder",
        case_id,
    )


def _compact(image: Slice) -> Slice:
    """Cast to int16 if the values are integers in range, else to float32."""
    if image.dtype.kind == "f":
        return image.astype(np.float32)
    bounds = np.iinfo(np.int16)
    fits = bounds.min <= image.min() and image.max() <= bounds.max
    return image.astype(np.int16 if fits else np.float32)


def _straighten(
    stack: Stack, images: list[Slice], fixes: Collection[str], repairs: list[Repair], case_id: str
) -> tuple[list[Slice], NDArray[np.float64]]:
    """Shift the slices of a tilted gantry to their in-plane positions on a common, larger grid.

    Returns:
        The images, and the in-plane origin (2,) of the stack along r and c in mm.
    """
    degrees = gantry_tilt_degrees(stack, case_id=case_id)
    if degrees == 0.0:
        return images, stack.offset_mm.mean(axis=0)
    if "dicom-gantry-tilt" not in fixes:
        raise series_error(
            "dicom-gantry-tilt",
            f"the gantry was tilted by {degrees:.1f} degrees, so the slices form a sheared stack",
            "resample it to a straight stack with --fix dicom-gantry-tilt",
            case_id,
        )
    spacing = np.array(stack.spacing_mm)
    # (positions, 2): shift of each slice along r and c in pixels, relative to the first slice
    shift = np.outer(stack.along_mm - stack.along_mm[0], fit_shear(stack)) / spacing
    low = shift.min(axis=0)
    margin = np.ceil(np.ptp(shift, axis=0)).astype(int) + 1
    rows, columns = images[0].shape
    if (rows + margin[1]) * (columns + margin[0]) * len(images) > MAX_VOXELS:
        raise series_error(
            "dicom-unreadable", "the tilted series declares an implausible extent", "export it again", case_id
        )
    sheared = []
    for image, (along_row, along_column) in zip(images, shift - low, strict=True):
        # The direction r runs along image axis 1 (columns), c along axis 0 (rows).
        wide = _shift_linear(image.astype(np.float32), along_row, axis=1, size=columns + int(margin[0]))
        sheared.append(_cast_like(_shift_linear(wide, along_column, axis=0, size=rows + int(margin[1])), image))
    message = f"slices sheared by {degrees:.1f} degrees onto a straight grid, linear interpolation in plane"
    repairs.append(Repair(code="dicom-gantry-tilt", file=CT_FILE, what=message))
    return sheared, stack.offset_mm[0] + low * spacing


def _shift_linear(image: NDArray[np.float32], pixels: float, *, axis: int, size: int) -> NDArray[np.float32]:
    """Shift an image along one axis by linear interpolation, padded with `AIR_HU` to `size` pixels."""
    start = math.floor(pixels)
    near, far = (_pad_to(image, offset, axis, size) for offset in (start, start + 1))
    weight = np.float32(pixels - start)
    shifted: NDArray[np.float32] = near * (1 - weight) + far * weight
    return shifted


def _pad_to(image: NDArray[np.float32], start: int, axis: int, size: int) -> NDArray[np.float32]:
    """Place an image at pixel `start` of an axis with `size` pixels; the rest is `AIR_HU`."""
    end = min(size, start + image.shape[axis])
    before, after = start, size - end
    widths = [(0, 0), (0, 0)]
    widths[axis] = (before, after)
    cropped = image.take(range(end - start), axis=axis)
    return np.pad(cropped, widths, constant_values=AIR_HU)


def _cast_like(image: NDArray[np.float32], reference: Slice) -> Slice:
    return np.rint(image).astype(reference.dtype) if reference.dtype.kind == "i" else image


def _resample_uniform(
    stack: Stack, images: list[Slice], fixes: Collection[str], repairs: list[Repair], case_id: str
) -> tuple[list[Slice], NDArray[np.float64]]:
    """Interpolate missing slices and resample uneven steps, if requested.

    Returns:
        The images on a regular grid along the normal, and their positions in mm.
    """
    along, gaps = stack.along_mm, find_gaps(stack)
    total = sum(n for _, n in gaps)
    if gaps and "dicom-missing-slice" not in fixes:
        where = ", ".join(f"after slice {i + 1}" for i, _ in gaps[:5])
        raise series_error(
            "dicom-missing-slice",
            f"{total} of {along.size + total} slices are missing ({where}{', ...' if len(gaps) > 5 else ''})",
            "fetch the series again from the archive; gaps of up to two slices are interpolated with "
            "--fix dicom-missing-slice",
            case_id,
        )
    if max((n for _, n in gaps), default=0) > MAX_MISSING_SLICES:
        raise series_error(
            "dicom-missing-slice",
            f"{max(n for _, n in gaps)} adjacent slices are missing, too many to interpolate",
            "fetch the series again from the archive",
            case_id,
        )
    if gaps:
        missing_after = dict(gaps)
        along = np.concatenate(
            [np.linspace(a, b, missing_after.get(i, 0) + 1, endpoint=False) for i, (a, b) in enumerate(pairwise(along))]
            + [along[-1:]]
        )
        images = _interpolate_slices(images, stack.along_mm, along)
        message = f"{total} missing slices interpolated linearly from their neighbours"
        repairs.append(Repair(code="dicom-missing-slice", file=CT_FILE, what=message))
    if is_uniform(along):
        return images, along
    step, steps = float(np.median(np.diff(along))), np.diff(along)
    if "dicom-nonuniform-spacing" not in fixes or steps.max() > (MAX_MISSING_SLICES + 1) * step:
        raise series_error(
            "dicom-nonuniform-spacing",
            f"the slice distance varies between {steps.min():.3g} and {steps.max():.3g} mm",
            "export the series again; if it was acquired so, resample it with --fix dicom-nonuniform-spacing",
            case_id,
        )
    grid = np.arange(along[0], along[-1] + 1e-6, step)
    if grid.size * images[0].size > MAX_VOXELS:
        raise series_error("dicom-unreadable", "the series declares an implausible extent", "export it again", case_id)
    message = f"slices resampled linearly to {step:.3g} mm from steps of {steps.min():.3g} to {steps.max():.3g} mm"
    repairs.append(Repair(code="dicom-nonuniform-spacing", file=CT_FILE, what=message))
    return _interpolate_slices(images, along, grid), grid


def _interpolate_slices(
    images: list[Slice], source_mm: NDArray[np.float64], target_mm: NDArray[np.float64]
) -> list[Slice]:
    """Interpolate images linearly along the normal; an image at a target position is returned unchanged."""
    interpolated = []
    for position in target_mm:
        # source_mm[i] <= position < source_mm[i + 1], clipped to the first and the last interval
        i = min(max(int(np.searchsorted(source_mm, position, side="right")) - 1, 0), len(images) - 2)
        weight = np.float32(min(max((position - source_mm[i]) / (source_mm[i + 1] - source_mm[i]), 0.0), 1.0))
        near, far = images[i], images[i + 1]
        if weight in (0.0, 1.0):
            interpolated.append(far if weight else near)
        else:
            mixed = near.astype(np.float32) * (1 - weight) + far.astype(np.float32) * weight
            interpolated.append(_cast_like(mixed, near))
    return interpolated


def _to_volume(
    stack: Stack, images: list[Slice], along_mm: NDArray[np.float64], origin_mm: NDArray[np.float64]
) -> Volume:
    dtype = np.int16 if all(i.dtype == np.int16 for i in images) else np.float32
    array_XYZ = np.stack([i.astype(dtype, copy=False).T for i in images], axis=2)
    affine = np.eye(4)
    # The mean step, so that the last slice lies exactly at its position.
    step = (along_mm[-1] - along_mm[0]) / (along_mm.size - 1)
    affine[:3, :3] = stack.axes * np.array([*stack.spacing_mm, step])
    affine[:3, 3] = stack.axes @ np.array([*origin_mm, along_mm[0]])
    # DICOM geometry is LPS; negating x and y gives RAS.
    return canonical_volume(array_XYZ, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def _describe_source(folder: DicomFolder, chosen: Series, headers: list[SliceHeader]) -> dict[str, Any]:
    """Return the description for `case.json`: counts, codes and a digest; no free text, date or UID."""
    syntaxes = Counter(UID(s.syntax).name if UID(s.syntax).is_transfer_syntax else "other" for s in headers)
    rescale = {(s.slope, s.intercept) for s in headers}
    return {
        "kind": "dicom",
        "images": len(headers),
        "planning_views_left_out": chosen.n_localizers,
        "other_series_left_out": len(folder.series) - 1,
        "other_files_left_out": folder.non_dicom,
        "transfer_syntax": sorted(syntaxes),
        "rescale": list(next(iter(rescale))) if len(rescale) == 1 else "differs between slices",
        "sha256": sha256_bytes("".join(sha256_file(path) for path in dict.fromkeys(s.path for s in headers)).encode()),
    }
