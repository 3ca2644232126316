"""Radiomics of a CT and its mask through pyradiomics: exactly 1,781 features in one fixed order.

The features are those of van Griethuysen 2017 (doi:10.1158/0008-5472.CAN-17-0339) under the settings in
`tmi.toolkit.radiomics.settings`, computed on the canonical RAS+ grid without resampling.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.radiomics.fast_extractor import extract_fast, reference_path_reason
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.image_filters import to_image
from tmi.toolkit.radiomics.pyradiomics import load, pyradiomics_quiet, reference_extractor
from tmi.toolkit.radiomics.settings import SETTINGS, SETTINGS_DIGEST
from tmi.toolkit.radiomics.table import missing_features, read_table, write_table

if TYPE_CHECKING:
    from tmi.toolkit.imaging.volume import Volume

__all__ = [
    "FEATURE_NAMES",
    "SETTINGS",
    "SETTINGS_DIGEST",
    "ExtractedFeatures",
    "extract",
    "extract_reference",
    "extract_with_note",
    "missing_features",
    "read_table",
    "write_table",
]


@dataclass(frozen=True, kw_only=True)
class ExtractedFeatures:
    """The features of one mask, and what a user should know of how they were had."""

    values_F: Float[NDArray[np.float64], "1781"]
    """In the order of `FEATURE_NAMES`; NaN where a feature has no finite value."""
    note: str | None = None
    """Why the plain road was taken; None where the quick one was."""


def extract(ct: Volume, mask: Volume, *, jobs: int | None = None) -> Float[NDArray[np.float64], "1781"]:
    """The features in the order of `FEATURE_NAMES`; NaN where one has no finite value.

    Equal to `extract_reference` to 1e-6 of each value, and several times quicker. Where the installed packages do not
    allow that, a `RuntimeWarning` says so and the plain road is taken.

    Args:
        ct: Hounsfield units.
        mask: bool, on the CT's grid.
        jobs: threads to spread the image types over; None for every core this process may use.

    Raises:
        UnavailableError: pyradiomics is not installed.
        InputRejectedError: `radiomics-mask`: the mask is empty, one voxel, a line or everything; `ct-not-hu`: the CT is
            zero everywhere.
    """
    extracted = extract_with_note(ct, mask, jobs=jobs)
    if extracted.note is not None:
        warnings.warn(extracted.note, RuntimeWarning, stacklevel=2)
    return extracted.values_F


def extract_with_note(ct: Volume, mask: Volume, *, jobs: int | None = None) -> ExtractedFeatures:
    """As `extract`, with what it would warn of as a value.

    Args:
        ct: as in `extract`.
        mask: as in `extract`.
        jobs: as in `extract`.

    Raises:
        UnavailableError: as in `extract`.
        InputRejectedError: as in `extract`.
    """
    reason = reference_path_reason()
    if reason is not None:
        note = f"radiomics were extracted the slow way: {reason}"
        return ExtractedFeatures(values_F=extract_reference(ct, mask), note=note)
    require_extractable(ct, mask)
    inside_DHW = mask.array_DHW.astype(np.bool_)
    answer = extract_fast(ct.array_DHW, inside_DHW, ct.spacing_DHW_mm, jobs=jobs or available_cores())
    return ExtractedFeatures(values_F=to_feature_order(answer))


def extract_reference(ct: Volume, mask: Volume) -> Float[NDArray[np.float64], "1781"]:
    """The same by one plain call of pyradiomics: the reference that `extract` is held to.

    Args:
        ct: as in `extract`.
        mask: as in `extract`.

    Raises:
        UnavailableError: as in `extract`.
        InputRejectedError: as in `extract`.
    """
    load()
    require_extractable(ct, mask)
    image, region = to_image(ct.array_DHW, ct.spacing_DHW_mm), to_image(mask.array_DHW, ct.spacing_DHW_mm)
    with pyradiomics_quiet():
        answer = reference_extractor().execute(image, region)
    return to_feature_order(answer)


def require_extractable(ct: Volume, mask: Volume) -> None:
    """Refuse a mask that spans fewer than two axes or covers everything, and a CT without a single value.

    Raises:
        InputRejectedError: `radiomics-mask`, `ct-not-hu`.
    """
    inside_DHW = mask.array_DHW
    spans = (np.flatnonzero(inside_DHW.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1)))
    wide = sum(int(span[-1] > span[0]) for span in spans if len(span))
    if wide < SETTINGS["setting"]["minimumROIDimensions"]:
        raise InputRejectedError(
            "the mask is too small for radiomics: it is empty, one voxel or one line of voxels",
            fix="segment the liver, or name its label with --mask-label",
            code="radiomics-mask",
        )
    if inside_DHW.all():
        raise InputRejectedError(
            "the mask covers the whole CT",
            fix="segment the liver, or name its label with --mask-label",
            code="radiomics-mask",
        )
    if not ct.array_DHW.any():
        raise InputRejectedError(
            "the CT is zero everywhere", fix="export the CT again from its series", code="ct-not-hu"
        )


def to_feature_order(answer: Mapping[str, Any]) -> Float[NDArray[np.float64], "1781"]:
    """Named values in the order of `FEATURE_NAMES`: complex ones cast to real, absent or non-finite ones to NaN."""
    values_F = np.array([np.real(np.asarray(answer.get(name, np.nan))).item() for name in FEATURE_NAMES])
    return np.where(np.isfinite(values_F), values_F, np.nan).astype(np.float64)
