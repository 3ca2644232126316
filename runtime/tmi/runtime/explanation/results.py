"""Records of an explanation, whose JSON form is `tmi-explanation/3`, and sums over features and fields. Needs no torch.

They hold names of features and fields, attributions and metrics; no patient values and no text of a report. A single
one of the 1,781 features, many of which are nearly redundant, has little meaning; the sum over a feature class or image
type shows which kind of property of the liver the model used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from numpy.typing import NDArray

from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.trust.p_values import Trust

SCHEMA = "tmi-explanation/3"
REPORT_FIELD = "report"
"""Name of the attributions of a free-text report, which is not a field of a schema."""


@dataclass(frozen=True, kw_only=True)
class FoldExplanation:
    """Prediction and explanation of one fold's model."""

    fold: int
    """Number of the fold."""
    probability: Mapping[str, float]
    """Class name -> probability."""
    map_DHW: Float[np.ndarray, "D H W"]
    """XGrad-CAM on the network's input grid, in [0, 1]."""
    radiomics_R: Float64[NDArray[np.float64], "1781"]
    """Integrated gradients of the scaled features."""
    fields: Mapping[str, float | None]
    """Field -> integrated gradients of its sentence; None if the text was cut off before it."""
    completeness: Mapping[str, Mapping[str, float]]
    """`radiomics`, `clinical` -> output, baseline, error, steps of the integration."""
    attention: tuple[Any, ...]
    """`tcaf_attention.RingAttention`s; empty for a network without TCAF."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Explanation of one case: of one fold, or mean over folds."""

    case_id: str
    """Id of the case."""
    target: str
    """Class whose logit the map explains."""
    decision: str
    """Class that the explained folds predict; `not-trusted` or `not-decided` as `tmi predict` says it."""
    reasons: tuple[str, ...]
    """Codes of the alerts, for which the decision is withheld."""
    trust: Trust | None
    """p-values of the case against the training cases of the explained folds; None: not assessed."""
    probability: Mapping[str, float]
    """Class name -> probability, mean over the explained folds."""
    folds: tuple[FoldExplanation, ...]
    """Explanation of each fold."""
    map_DHW: Float[np.ndarray, "D H W"]
    """Mean of the folds' maps, rescaled to [0, 1], on the network's input grid."""
    radiomics_R: Float64[NDArray[np.float64], "1781"]
    """Mean over the folds."""
    fields: Mapping[str, float | None]
    """Mean over the folds whose text includes the field."""
    notices: tuple[Issue, ...]
    """Warnings and notes, alerts first, as `tmi predict` reports them."""
    seconds: Mapping[str, float]
    """Seconds of each stage."""


def mean_fields(folds: tuple[FoldExplanation, ...]) -> dict[str, float | None]:
    """Mean over the folds whose text includes a field; None if none does."""
    names = dict.fromkeys(name for fold in folds for name in fold.fields)
    means: dict[str, float | None] = {}
    for name in names:
        values = [v for fold in folds if (v := fold.fields.get(name)) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means


def strongest_fields(fields: Mapping[str, float | None], count: int | None = None) -> list[tuple[str, float]]:
    """Fields sorted by the magnitude of their attribution; fields that were cut off are omitted."""
    attributed = [(name, value) for name, value in fields.items() if value is not None]
    return sorted(attributed, key=lambda item: (-abs(item[1]), item[0]))[:count]


def image_type(feature: str) -> str:
    """Image type of a feature: `wavelet-LLH` of `wavelet-LLH_glcm_Contrast`."""
    return feature.split("_")[0]


def feature_class(feature: str) -> str:
    """Class of a feature: `glcm` of `wavelet-LLH_glcm_Contrast`."""
    return feature.split("_")[1]


def sum_by_group(
    values_R: Float[NDArray[np.float64], "1781"], name_of: Callable[[str], str]
) -> dict[str, dict[str, float]]:
    """Signed sum and sum of magnitudes of each group of features, sorted by magnitude."""
    groups: dict[str, list[float]] = {}
    for feature, value in zip(FEATURE_NAMES, values_R, strict=True):
        groups.setdefault(name_of(feature), []).append(float(value))
    sums = {name: {"sum": sum(v), "magnitude": sum(map(abs, v))} for name, v in groups.items()}
    return dict(sorted(sums.items(), key=lambda item: (-item[1]["magnitude"], item[0])))


def top_features(values_R: Float[NDArray[np.float64], "1781"], count: int) -> list[tuple[str, float]]:
    """The `count` features with the largest magnitudes; zeros are omitted."""
    order = np.argsort(-np.abs(values_R), kind="stable")[:count]
    return [(FEATURE_NAMES[i], float(values_R[i])) for i in order if values_R[i] != 0]
