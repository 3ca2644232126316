"""Compute the features of one image type from its voxels in the mask.

First-order features are implemented here with a few passes over the N voxels of the mask. Texture features are formulas
(`tmi.toolkit.radiomics.formulas`) on the counted matrices (`tmi.toolkit.radiomics.texture_matrices`).

Suffixes: N voxels, L gray levels that occur.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.radiomics.feature_names import CLASS_FEATURES
from tmi.toolkit.radiomics.formulas.cooccurrence import cooccurrence_features
from tmi.toolkit.radiomics.formulas.sizes import dependence_features, run_length_features, zone_features
from tmi.toolkit.radiomics.formulas.tone_differences import tone_difference_features
from tmi.toolkit.radiomics.libraries import EXTRACTION_FIX
from tmi.toolkit.radiomics.mask_region import Region
from tmi.toolkit.radiomics.settings import SETTINGS
from tmi.toolkit.radiomics.texture_matrices import (
    Levels,
    count_dependences,
    count_pairs_and_runs,
    count_zones,
    sort_into_levels,
    sum_tone_differences,
)

FAST_CUBE_MIN_VOXELS = 4096
"""Above this number of voxels, sums of odd powers do not cancel to rounding noise."""

Values = dict[str, Any]
"""Feature name without its prefix -> value."""


def image_features(
    values_N: NDArray[Any], region: Region, spacing_DHW_mm: tuple[float, float, float]
) -> Mapping[str, Any]:
    """Compute the 93 features of one image type.

    Args:
        values_N: intensities of the image type in the mask, in the order of `region`.
        region: the mask.
        spacing_DHW_mm: voxel size in millimetres along D, H, W.

    Returns:
        `<class>_<feature>` -> value.

    Raises:
        InputRejectedError: radiomics-failed.
    """
    levels = sort_into_levels(values_N, bin_edges(values_N))
    bins_L = levels.bins_L
    if bins_L[0] < 1:  # the edges of the bins overflow the image's integers
        raise InputRejectedError(
            "the radiomics of CT and mask cannot be extracted: intensities under the mask reach the limits of int16",
            fix=EXTRACTION_FIX,
            code="radiomics-failed",
        )
    with np.errstate(all="ignore"):
        matrices = count_pairs_and_runs(region, levels)
        features = {
            "firstorder": first_order(values_N, levels, spacing_DHW_mm),
            "glcm": cooccurrence_features(matrices.glcm_LLA, bins_L),
            "glrlm": run_length_features(matrices.glrlm_LRA, bins_L),
            "glszm": zone_features(*count_zones(region, levels), bins_L),
            "gldm": dependence_features(count_dependences(region, levels), bins_L),
            "ngtdm": tone_difference_features(sum_tone_differences(region, levels)),
        }
    return {f"{kind}_{name}": features[kind][name] for kind in features for name in CLASS_FEATURES[kind]}


def bin_edges(values_N: NDArray[Any]) -> NDArray[Any]:
    """Return the edges of bins of width `binWidth`, aligned to its multiples, as in pyradiomics' `getBinEdges`."""
    width = SETTINGS["setting"]["binWidth"]
    # minimum and maximum keep the dtype of the image, so numpy gives the edges the same dtype as in pyradiomics
    lowest, highest = values_N.min(), values_N.max()
    return np.arange(lowest - (lowest % width), highest + 2 * width, width)


def first_order(values_N: NDArray[Any], levels: Levels, spacing_DHW_mm: tuple[float, float, float]) -> Values:
    """Compute the 18 first-order features with the formulas of pyradiomics' documentation.

    With m_k = mean((x - mean(x))^k) and p_l the share of voxels in bin l: skewness = m_3 / m_2^1.5, kurtosis = m_4 /
    m_2^2 (3 for a normal distribution), entropy = -sum(p_l log2(p_l)), uniformity = sum(p_l^2).

    Args:
        values_N: intensities in the mask.
        levels: the same voxels sorted into bins.
        spacing_DHW_mm: voxel size in millimetres along D, H, W.
    """
    x_N: Float[NDArray[np.float64], " N"] = values_N.astype(np.float64)
    count, total = len(x_N), x_N.sum()
    mean = total / count
    p10, p25, median, p75, p90 = np.percentile(x_N, (10, 25, 50, 75, 90))
    lowest, highest = x_N.min(), x_N.max()
    energy = np.square(x_N).sum()
    d_N = x_N - mean
    square_N = d_N * d_N
    variance = square_N.sum() / count
    # A product is faster than a power but rounds differently. For few voxels the cubes may cancel down to rounding
    # noise, so the skewness matches pyradiomics only with the same power function.
    cube_N = square_N * d_N if count > FAST_CUBE_MIN_VOXELS else np.power(d_N, 3)
    third, fourth = cube_N.sum() / count, (square_N * square_N).sum() / count
    scale = variance if variance != 0 else 1.0
    middle_N = x_N[(x_N >= p10) & (x_N <= p90)]
    share_L = levels.count_L / count
    return {
        "10Percentile": p10,
        "90Percentile": p90,
        "Energy": energy,
        "Entropy": -(share_L * np.log2(share_L + np.spacing(1))).sum(),
        "InterquartileRange": p75 - p25,
        "Kurtosis": fourth / scale**2.0,
        "Maximum": highest,
        "MeanAbsoluteDeviation": np.abs(d_N).sum() / count,
        "Mean": mean,
        "Median": median,
        "Minimum": lowest,
        "Range": highest - lowest,
        "RobustMeanAbsoluteDeviation": np.abs(middle_N - middle_N.sum() / len(middle_N)).sum() / len(middle_N),
        "RootMeanSquared": np.sqrt(energy / count),
        "Skewness": third / scale**1.5,
        "TotalEnergy": energy * np.multiply.reduce(spacing_DHW_mm[::-1]),
        "Uniformity": np.square(share_L).sum(),
        "Variance": variance,
    }
