"""A CT volume from a DICOM series: every check of the series, and the repairs that were asked for.

The volume's affine comes from all slices: direction from their mean orientation, origin and step from the first and the
last place. Slope and intercept are applied slice by slice. What cannot be trusted is refused with its code; a repair is
made only where its code is among `fixes`, and leaves a `Repair`.
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
from tmi.toolkit.ingest.dicom.geometry import Stack, gaps, is_uniform, series_error, shear, stack, tilt
from tmi.toolkit.ingest.dicom.headers import SliceHeader, decode_hu
from tmi.toolkit.ingest.dicom.series import DicomFolder, Series, choose, scan
from tmi.toolkit.ingest.image_files import MAX_VOXELS, ReadCt, canonical_volume
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file

AIR_HU = -1024
"""What padding and the rims of a sheared slice are set to."""
MAX_MISSING_SLICES = 2
"""A wider gap is not filled: nothing near enough is known of it."""
Slice = NDArray[np.generic]


def read_dicom_ct(path: Path, *, series: str | None, fixes: Collection[str], case_id: str) -> ReadCt:
    """Read the CT series at or below `path`.

    Args:
        path: a folder, searched with all folders in it, or one file.
        series: SeriesInstanceUID or number of the listing; None chooses by rule.
        fixes: codes of the repairs that may be made.
        case_id: for the error texts.

    Raises:
        InputRejectedError: any dicom-... code of `CHECKS` of severity error, ct-not-hu, ct-few-slices.
        UsageError: nothing is at `path`.
    """
    folder = scan(path, case_id=case_id)
    chosen = choose(folder, series, case_id=case_id)
    slices = chosen.slices
    repairs: list[Repair] = []
    found: list[tuple[str, str, str]] = []
    _require_rescale(slices, fixes, repairs, case_id)
    ordered = stack(slices, case_id=case_id)
    kept, images, padded = _decode(ordered, fixes, repairs, case_id)
    if len({(s.slope, s.intercept) for s in kept}) > 1:
        found.append(("dicom-rescale-differs", "slope and intercept differ between slices", "nothing to do: applied"))
    if padded and "ct-padding" in fixes:
        what = f"{padded} voxels that the series marks as padding set to {AIR_HU} HU"
        repairs.append(Repair(code="ct-padding", file=CT_FILE, what=what))
    origin_mm = ordered.offset_mm[0]
    images, origin_mm = _straighten(ordered, images, origin_mm, fixes, repairs, case_id)
    images, along_mm = _resample_uniform(ordered, images, fixes, repairs, case_id)
    return ReadCt(
        volume=_volume(ordered, images, along_mm, origin_mm),
        source=_source(folder, chosen, kept),
        findings=tuple(found),
        repairs=tuple(repairs),
        patient_id=kept[0].patient_id or None,
        frame_of_reference=kept[0].frame_of_reference or None,
        date=kept[0].date or None,
    )


def _require_rescale(
    slices: tuple[SliceHeader, ...], fixes: Collection[str], repairs: list[Repair], case_id: str
) -> None:
    if any(s.slope == 0.0 for s in slices):
        raise series_error("ct-not-hu", "an image has the slope 0", "export the CT series again", case_id)
    without = sum(s.slope is None or s.intercept is None for s in slices)
    if not without:
        return
    if "dicom-no-rescale" not in fixes:
        raise series_error(
            "dicom-no-rescale",
            f"{without} of {len(slices)} images have no slope or intercept, so their values are no Hounsfield units",
            "export the series again; if the values are known to be HU, import with --fix dicom-no-rescale",
            case_id,
        )
    what = f"slope 1 and intercept 0 assumed for {without} images without them"
    repairs.append(Repair(code="dicom-no-rescale", file=CT_FILE, what=what))


def _decode(
    ordered: Stack, fixes: Collection[str], repairs: list[Repair], case_id: str
) -> tuple[list[SliceHeader], list[Slice], int]:
    """One image a place; and how many voxels are marked as padding below air or above what a CT holds."""
    kept: list[SliceHeader] = []
    images: list[Slice] = []
    padded = copies = differing = 0
    for place in ordered.positions:
        image, padding = decode_hu(place[0], case_id=case_id)
        for other in place[1:]:
            if np.array_equal(image, decode_hu(other, case_id=case_id)[0]):
                copies += 1
            else:
                differing += 1
        padding = padding & (image != AIR_HU)
        padded += int(padding.sum())
        if "ct-padding" in fixes:
            image = np.where(padding, np.asarray(AIR_HU, dtype=image.dtype), image)
        kept.append(place[0])
        images.append(_compact(image))
    if differing:
        raise _colocated_error(ordered, case_id)
    if copies and "dicom-duplicate-slice" not in fixes:
        raise series_error(
            "dicom-duplicate-slice",
            f"{copies} slices are there twice, with the same pixels",
            "export the series again, or drop the copies with --fix dicom-duplicate-slice",
            case_id,
        )
    if copies:
        what = f"{copies} slices left out that are copies of another at the same place"
        repairs.append(Repair(code="dicom-duplicate-slice", file=CT_FILE, what=what))
    return kept, images, padded


def _colocated_error(ordered: Stack, case_id: str) -> InputRejectedError:
    counts = {len(p) for p in ordered.positions}
    if len(counts) == 1:
        return series_error(
            "dicom-4d",
            f"{counts.pop()} different images lie at every place: several time points or phases in one series",
            "export one phase as a series of its own",
            case_id,
        )
    return series_error(
        "dicom-mixed-series",
        "slices of two series are mixed: different images lie at one place",
        "export the one series again from the archive, into an empty folder",
        case_id,
    )


def _compact(image: Slice) -> Slice:
    """int16 where the values fit, else float32."""
    if image.dtype.kind == "f":
        return image.astype(np.float32)
    bounds = np.iinfo(np.int16)
    fits = bounds.min <= image.min() and image.max() <= bounds.max
    return image.astype(np.int16 if fits else np.float32)


def _straighten(
    ordered: Stack, images: list[Slice], origin_mm: NDArray[np.float64], fixes: Collection[str],
    repairs: list[Repair], case_id: str,
) -> tuple[list[Slice], NDArray[np.float64]]:  # fmt: skip
    """Shift the slices of a tilted gantry to where they lie, on a canvas that holds them all."""
    degrees = tilt(ordered, case_id=case_id)
    if degrees == 0.0:
        return images, ordered.offset_mm.mean(axis=0)
    if "dicom-gantry-tilt" not in fixes:
        raise series_error(
            "dicom-gantry-tilt",
            f"the gantry was tilted by {degrees:.1f} degrees, so the slices form no straight stack",
            "resample it to one with --fix dicom-gantry-tilt",
            case_id,
        )
    spacing = np.array(ordered.spacing_mm)
    place = np.outer(ordered.along_mm - ordered.along_mm[0], shear(ordered)) / spacing
    low = place.min(axis=0)
    grow = np.ceil(np.ptp(place, axis=0)).astype(int) + 1
    rows, columns = images[0].shape
    if (rows + grow[1]) * (columns + grow[0]) * len(images) > MAX_VOXELS:
        raise series_error("dicom-unreadable", "the tilted series claims an absurd extent", "export it again", case_id)
    moved = []
    for image, (along_row, along_column) in zip(images, place - low, strict=True):
        wide = _shifted(image.astype(np.float32), along_row, axis=1, size=columns + int(grow[0]))
        moved.append(_like(_shifted(wide, along_column, axis=0, size=rows + int(grow[1])), image))
    what = f"slices sheared by {degrees:.1f} degrees onto a straight grid, linear interpolation in their plane"
    repairs.append(Repair(code="dicom-gantry-tilt", file=CT_FILE, what=what))
    return moved, origin_mm + low * spacing


def _shifted(image: NDArray[np.float32], by: float, *, axis: int, size: int) -> NDArray[np.float32]:
    """The image moved by a part of a pixel along one axis, in air."""
    whole = math.floor(by)
    near, far = (_placed(image, start, axis, size) for start in (whole, whole + 1))
    part = np.float32(by - whole)
    moved: NDArray[np.float32] = near * (1 - part) + far * part
    return moved


def _placed(image: NDArray[np.float32], start: int, axis: int, size: int) -> NDArray[np.float32]:
    end = min(size, start + image.shape[axis])
    before, after = start, size - end
    widths = [(0, 0), (0, 0)]
    widths[axis] = (before, after)
    cut = image.take(range(end - start), axis=axis)
    return np.pad(cut, widths, constant_values=AIR_HU)


def _like(image: NDArray[np.float32], model: Slice) -> Slice:
    return np.rint(image).astype(model.dtype) if model.dtype.kind == "i" else image


def _resample_uniform(
    ordered: Stack, images: list[Slice], fixes: Collection[str], repairs: list[Repair], case_id: str
) -> tuple[list[Slice], NDArray[np.float64]]:
    """Images on an even grid along the normal, and their places."""
    along, missing = ordered.along_mm, gaps(ordered)
    total = sum(n for _, n in missing)
    if missing and "dicom-missing-slice" not in fixes:
        where = ", ".join(f"after slice {i + 1}" for i, _ in missing[:5])
        raise series_error(
            "dicom-missing-slice",
            f"{total} of {along.size + total} slices are missing ({where}{', ...' if len(missing) > 5 else ''})",
            "fetch the series again from the archive; up to two neighbours are interpolated with "
            "--fix dicom-missing-slice",
            case_id,
        )
    if max((n for _, n in missing), default=0) > MAX_MISSING_SLICES:
        raise series_error(
            "dicom-missing-slice",
            f"{max(n for _, n in missing)} neighbouring slices are missing, too many to interpolate",
            "fetch the series again from the archive",
            case_id,
        )
    if missing:
        filled = dict(missing)
        along = np.concatenate(
            [np.linspace(a, b, filled.get(i, 0) + 1, endpoint=False) for i, (a, b) in enumerate(pairwise(along))]
            + [along[-1:]]
        )
        images = _interpolated(images, ordered.along_mm, along)
        what = f"{total} missing slices interpolated linearly from their neighbours"
        repairs.append(Repair(code="dicom-missing-slice", file=CT_FILE, what=what))
    if is_uniform(along):
        return images, along
    step, steps = float(np.median(np.diff(along))), np.diff(along)
    if "dicom-nonuniform-spacing" not in fixes or steps.max() > (MAX_MISSING_SLICES + 1) * step:
        raise series_error(
            "dicom-nonuniform-spacing",
            f"slices lie between {steps.min():.3g} and {steps.max():.3g} mm apart",
            "export the series again; where it was scanned so, resample it with --fix dicom-nonuniform-spacing",
            case_id,
        )
    even = np.arange(along[0], along[-1] + 1e-6, step)
    if even.size * images[0].size > MAX_VOXELS:
        raise series_error("dicom-unreadable", "the series claims an absurd extent", "export it again", case_id)
    what = f"slices resampled linearly to {step:.3g} mm from steps of {steps.min():.3g} to {steps.max():.3g} mm"
    repairs.append(Repair(code="dicom-nonuniform-spacing", file=CT_FILE, what=what))
    return _interpolated(images, along, even), even


def _interpolated(images: list[Slice], have: NDArray[np.float64], want: NDArray[np.float64]) -> list[Slice]:
    """Images at other places, linearly between the two neighbours; those that are there stay as they are."""
    made = []
    for at in want:
        i = min(max(int(np.searchsorted(have, at, side="right")) - 1, 0), len(images) - 2)
        part = np.float32(min(max((at - have[i]) / (have[i + 1] - have[i]), 0.0), 1.0))
        near, far = images[i], images[i + 1]
        if part in (0.0, 1.0):
            made.append(far if part else near)
        else:
            made.append(_like(near.astype(np.float32) * (1 - part) + far.astype(np.float32) * part, near))
    return made


def _volume(ordered: Stack, images: list[Slice], along_mm: NDArray[np.float64], origin_mm: NDArray[np.float64]) -> Any:
    kind = np.int16 if all(i.dtype == np.int16 for i in images) else np.float32
    array_XYZ = np.stack([i.astype(kind, copy=False).T for i in images], axis=2)
    affine = np.eye(4)
    step = (along_mm[-1] - along_mm[0]) / (along_mm.size - 1)
    affine[:3, :3] = ordered.axes * np.array([*ordered.spacing_mm, step])
    affine[:3, 3] = ordered.axes @ np.array([*origin_mm, along_mm[0]])
    return canonical_volume(array_XYZ, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def _source(folder: DicomFolder, chosen: Series, kept: list[SliceHeader]) -> dict[str, Any]:
    """What the case's record says of the series: counts, codes and a digest."""
    syntaxes = Counter(UID(s.syntax).name if UID(s.syntax).is_transfer_syntax else "other" for s in kept)
    rescale = {(s.slope, s.intercept) for s in kept}
    return {
        "kind": "dicom",
        "images": len(kept),
        "planning_views_left_out": chosen.n_localizers,
        "other_series_left_out": len(folder.series) - 1,
        "other_files_left_out": folder.non_dicom,
        "transfer_syntax": sorted(syntaxes),
        "rescale": list(next(iter(rescale))) if len(rescale) == 1 else "differs between slices",
        "sha256": sha256_bytes("".join(sha256_file(s.path) for s in kept).encode()),
    }
