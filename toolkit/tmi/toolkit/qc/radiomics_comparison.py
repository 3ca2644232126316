"""Comparing a table of radiomics with what the case's own CT and mask give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.cases.case import MASK_FILE, RADIOMICS_FILE, Case
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES

TOLERANCE = 1e-6
"""Relative difference up to which two values are taken for one."""
ABSOLUTE_TOLERANCE = 1e-12
"""Absolute difference that is always allowed: features that are zero but for rounding."""
MAX_LISTED_FEATURES = 10
"""Features that a comparison names."""


@dataclass(frozen=True, kw_only=True)
class RadiomicsComparison:
    """How the table of one case differs from the extraction."""

    case_id: str
    """The case."""
    tolerance: float
    """Relative tolerance."""
    compared: int
    """Features that were compared: all of them."""
    differ: int
    """Features beyond the tolerance, or with a value on one side only."""
    largest: tuple[tuple[str, float | None], ...]
    """The features that differ most, at most ten, with |a - b| / max(|a|, |b|); None where one side has no value."""

    def to_message(self) -> tuple[str, str]:
        """What is wrong and how to mend it."""
        name, relative = self.largest[0]
        most = "has a value on one side only" if relative is None else f"differs most, by {relative:.2g} relative"
        return (
            f"{self.differ} of {self.compared} features of {RADIOMICS_FILE} are not what {MASK_FILE} gives; "
            f"{name} {most}",
            "extract them anew with `tmi radiomics --force`, or look whether the table is of another case or setting",
        )


def compare_radiomics(
    case: Case, given_F: Float[NDArray[np.float64], "1781"], ct: Volume, mask: Volume, *, tolerance: float = TOLERANCE
) -> RadiomicsComparison:
    """Extract the features and compare them with the given ones, one by one.

    Raises:
        UnavailableError: pyradiomics is not installed.
        InputRejectedError: radiomics-mask: the mask is too small for texture features.
    """
    from tmi.toolkit.radiomics.extractor import extract  # pyradiomics is an extra, and slow to import

    try:
        computed_F = extract(ct, mask)
    except InputRejectedError as error:
        raise error.for_case(case.case_id) from error
    return compare_features(case.case_id, given_F, computed_F, tolerance=tolerance)


def compare_features(
    case_id: str,
    given_F: Float[NDArray[np.float64], "1781"],
    computed_F: Float[NDArray[np.float64], "1781"],
    *,
    tolerance: float,
) -> RadiomicsComparison:
    """Compare two rows of features; a value missing on both sides is no difference."""
    one_sided_F = np.isnan(given_F) != np.isnan(computed_F)
    a_F, b_F = np.nan_to_num(given_F), np.nan_to_num(computed_F)
    with np.errstate(over="ignore"):
        apart_F = np.abs(a_F - b_F)
    scale_F = np.maximum(np.maximum(np.abs(a_F), np.abs(b_F)), np.finfo(np.float64).tiny)
    relative_F = np.where(one_sided_F, np.inf, np.where(apart_F <= ABSOLUTE_TOLERANCE, 0.0, apart_F / scale_F))
    worst = np.argsort(-relative_F, kind="stable")[:MAX_LISTED_FEATURES]
    return RadiomicsComparison(
        case_id=case_id,
        tolerance=tolerance,
        compared=len(FEATURE_NAMES),
        differ=int(np.count_nonzero(relative_F > tolerance)),
        largest=tuple(
            (FEATURE_NAMES[i], float(relative_F[i]) if np.isfinite(relative_F[i]) else None)
            for i in worst
            if relative_F[i] > tolerance
        ),
    )
