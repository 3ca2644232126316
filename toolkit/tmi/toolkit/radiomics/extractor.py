"""Extract the 1,781 radiomic features of a CT and its mask, in one fixed order.

The features are those of pyradiomics (van Griethuysen 2017, doi:10.1158/0008-5472.CAN-17-0339) under the settings in
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
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.radiomics.fast_extractor import extract_fast, reference_path_reason
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.image_filters import to_image
from tmi.toolkit.radiomics.libraries import rejecting
from tmi.toolkit.radiomics.pyradiomics import load, pyradiomics_quiet, reference_extractor
from tmi.toolkit.radiomics.settings import SETTINGS

if TYPE_CHECKING:
    from tmi.toolkit.imaging.volume import Volume


@dataclass(frozen=True, kw_only=True)
class ExtractedFeatures:
    """Features of one mask, and a note if the whole CT was filtered."""

    values_F: Float[NDArray[np.float64], "1781"]
    """Values in the order of `FEATURE_NAMES`; NaN where a feature has no finite value."""
    note: str | None = None
    """Why the whole CT was filtered; None if the fast filters were used."""

    def issues(self, case_id: str) -> tuple[Issue, ...]:
        """Return the warning that the note is, if there is one."""
        fix = "install the versions of constraints.txt"
        return () if self.note is None else (Issue.of("radiomics-extractor", self.note, fix, case_id=case_id),)


def extract(ct: Volume, mask: Volume, *, jobs: int | None = None) -> Float[NDArray[np.float64], "1781"]:
    """Extract the features of a mask.

    The values equal those of `extract_reference` to a relative 1e-6 and are computed several times faster. If the
    installed packages do not support the fast filters, the whole CT is filtered and a `RuntimeWarning` is issued.

    Args:
        ct: CT in Hounsfield units.
        mask: bool, on the CT's grid.
        jobs: threads that the image types are distributed over; None for all cores available to this process.

    Returns:
        Values in the order of `FEATURE_NAMES`; NaN where a feature has no finite value.

    Raises:
        UnavailableError: SimpleITK or PyWavelets is not installed.
        InputRejectedError: `radiomics-mask`: the mask is empty, one voxel, one line or the whole CT; `ct-not-hu`: the
            CT is zero everywhere; `radiomics-failed`: a library failed, or intensities reach the limits of int16.
    """
    extracted = extract_with_note(ct, mask, jobs=jobs)
    if extracted.note is not None:
        warnings.warn(extracted.note, RuntimeWarning, stacklevel=2)
    return extracted.values_F


def extract_with_note(ct: Volume, mask: Volume, *, jobs: int | None = None) -> ExtractedFeatures:
    """Extract the features of a mask; like `extract`, but the warning is returned as a note.

    Args:
        ct: as in `extract`.
        mask: as in `extract`.
        jobs: as in `extract`.

    Raises:
        UnavailableError: as in `extract`.
        InputRejectedError: as in `extract`.
    """
    reason = reference_path_reason()
    note = None if reason is None else f"radiomics were extracted by the slow reference path: {reason}"
    require_extractable(ct, mask)
    mask_DHW = mask.array_DHW.astype(np.bool_)
    threads = jobs or available_cores()
    features = extract_fast(ct.array_DHW, mask_DHW, ct.spacing_DHW_mm, jobs=threads, whole=note is not None)
    return ExtractedFeatures(values_F=to_feature_order(features), note=note)


def extract_reference(ct: Volume, mask: Volume) -> Float[NDArray[np.float64], "1781"]:
    """Extract the same features with one call of pyradiomics; the reference that `extract` is compared with.

    Args:
        ct: as in `extract`.
        mask: as in `extract`.

    Raises:
        UnavailableError: pyradiomics, which only this comparison needs, is not installed.
        InputRejectedError: as in `extract`.
    """
    load()
    require_extractable(ct, mask)
    image, region = to_image(ct.array_DHW, ct.spacing_DHW_mm), to_image(mask.array_DHW, ct.spacing_DHW_mm)
    extractor = reference_extractor()
    with pyradiomics_quiet(), rejecting("pyradiomics"):
        features = extractor.execute(image, region)
    return to_feature_order(features)


def require_extractable(ct: Volume, mask: Volume) -> None:
    """Reject a mask that extends along fewer than two axes or covers the whole CT, and a CT that is zero everywhere.

    Raises:
        InputRejectedError: `radiomics-mask`, `ct-not-hu`.
    """
    mask_DHW = mask.array_DHW
    spans = (np.flatnonzero(mask_DHW.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1)))
    dimensions = sum(int(span[-1] > span[0]) for span in spans if len(span))
    if dimensions < SETTINGS["setting"]["minimumROIDimensions"]:
        raise InputRejectedError(
            "the mask is too small for radiomics: it is empty, one voxel or one line of voxels",
            fix="segment the liver, or name its label with --mask-label",
            code="radiomics-mask",
        )
    if mask_DHW.all():
        raise InputRejectedError(
            "the mask covers the whole CT",
            fix="segment the liver, or name its label with --mask-label",
            code="radiomics-mask",
        )
    if not ct.array_DHW.any():
        raise InputRejectedError(
            "the CT is zero everywhere", fix="export the CT again from its series", code="ct-not-hu"
        )


def to_feature_order(features: Mapping[str, Any]) -> Float[NDArray[np.float64], "1781"]:
    """Arrange named values in the order of `FEATURE_NAMES`.

    Complex values (MCC with complex eigenvalues) are reduced to their real part. Missing and non-finite values become
    NaN.
    """
    values_F = np.array([np.real(np.asarray(features.get(name, np.nan))).item() for name in FEATURE_NAMES])
    return np.where(np.isfinite(values_F), values_F, np.nan).astype(np.float64)
