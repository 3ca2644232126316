"""Radiomic features by feature class and image type, for attributions that can be read. Needs no torch.

A single feature of 1,781, many of which say almost the same, means little; the sum over a class or an image type says
what kind of property of the liver the model leaned on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES


def image_type(feature: str) -> str:
    """`wavelet-LLH` of `wavelet-LLH_glcm_Contrast`."""
    return feature.split("_")[0]


def feature_class(feature: str) -> str:
    """`glcm` of `wavelet-LLH_glcm_Contrast`."""
    return feature.split("_")[1]


def sum_by_group(
    values_R: Float[NDArray[np.float64], "1781"], name_of: Callable[[str], str]
) -> dict[str, dict[str, float]]:
    """Signed sum and sum of magnitudes of each group, the largest magnitude first."""
    groups: dict[str, list[float]] = {}
    for feature, value in zip(FEATURE_NAMES, values_R, strict=True):
        groups.setdefault(name_of(feature), []).append(float(value))
    sums = {name: {"sum": sum(v), "magnitude": sum(map(abs, v))} for name, v in groups.items()}
    return dict(sorted(sums.items(), key=lambda item: (-item[1]["magnitude"], item[0])))


def top_features(values_R: Float[NDArray[np.float64], "1781"], count: int) -> list[tuple[str, float]]:
    """The features of the largest magnitudes, those of 0 left out."""
    order = np.argsort(-np.abs(values_R), kind="stable")[:count]
    return [(FEATURE_NAMES[i], float(values_R[i])) for i in order if values_R[i] != 0]
