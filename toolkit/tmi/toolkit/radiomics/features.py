"""Compute the features of one image type from its voxels in the mask.

First-order features are implemented here with a few passes over the N voxels of the mask. Texture features are computed
by pyradiomics' own classes, which receive the counted matrix (`tmi.toolkit.radiomics.texture_matrices`) instead of an
image: their formulas are cheap once the matrix exists, and contain many special cases (a flat region, an empty
direction).

Suffixes: N voxels, L gray levels that occur, R run lengths, A directions, S zone sizes, K dependences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.radiomics.feature_names import CLASS_FEATURES, SHAPE_FEATURES
from tmi.toolkit.radiomics.mask_region import Region
from tmi.toolkit.radiomics.pyradiomics import load, rejecting
from tmi.toolkit.radiomics.settings import SETTINGS
from tmi.toolkit.radiomics.shape_mesh import measure_mesh
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
    """
    levels = sort_into_levels(values_N, bin_edges(values_N))
    with np.errstate(all="ignore"):
        features = {"firstorder": first_order(values_N, levels, spacing_DHW_mm)}
        matrices = count_pairs_and_runs(region, levels)
        features["glcm"] = _glcm(levels, matrices.glcm_LLA)
        features["glrlm"] = _glrlm(levels, matrices.glrlm_LRA)
        features["glszm"] = _glszm(levels, *count_zones(region, levels))
        features["gldm"] = _gldm(levels, count_dependences(region, levels))
        features["ngtdm"] = _ngtdm(levels, sum_tone_differences(region, levels))
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


def shape_features(region: Region, spacing_DHW_mm: tuple[float, float, float]) -> Values:
    """Compute the 14 shape features of a mask.

    Axis lengths are derived from the eigenvalues of the covariance (divided by N) of the voxel positions in mm.

    Args:
        region: the mask.
        spacing_DHW_mm: voxel size in millimetres along D, H, W.
    """
    calculator = _feature_calculator("shape", SHAPE_FEATURES)
    mesh = measure_mesh(region.mask_DHW, spacing_DHW_mm)
    calculator.SurfaceArea, calculator.Volume, calculator.diameters = mesh.area_mm2, mesh.volume_mm3, mesh.diameters_mm
    calculator.pixelSpacing = np.array(spacing_DHW_mm)
    positions_N3 = np.argwhere(region.mask_DHW)
    calculator.labelledVoxelCoordinates = tuple(positions_N3.T)
    # + 1 as in pyradiomics, which pads the mask: the offset cancels in exact arithmetic but not in the last bits
    positions_mm_N3 = (positions_N3 + 1) * calculator.pixelSpacing
    positions_mm_N3 -= positions_mm_N3.mean(axis=0)
    positions_mm_N3 /= np.sqrt(len(positions_N3))
    eigenvalues = np.linalg.eigvals(positions_mm_N3.T.copy() @ positions_mm_N3)
    eigenvalues[(eigenvalues < 0) & (eigenvalues > -1e-10)] = 0  # rounding noise of a flat mask
    calculator.eigenValues = np.sort(eigenvalues)
    return _execute(calculator)


def _feature_calculator(kind: str, names: tuple[str, ...], levels: Levels | None = None) -> Any:
    """Create an object of pyradiomics' feature class without an image: its constructor, which reads one, is skipped."""
    feature_class = load().featureextractor.getFeatureClasses()[kind]
    calculator = feature_class.__new__(feature_class)
    calculator.logger = _NullLogger()
    calculator.settings = dict(SETTINGS["setting"])
    calculator.voxelBased = False
    calculator.symmetricalGLCM = SETTINGS["setting"]["symmetricalGLCM"]
    calculator.enabledFeatures = dict.fromkeys(names, True)
    calculator.featureValues = {}
    calculator.coefficients = {}
    if levels is not None:
        calculator.coefficients = {"grayLevels": levels.bins_L, "Ng": levels.highest}
    return calculator


class _NullLogger:
    """Discards pyradiomics' log records; the missing values carry the same information."""

    def debug(self, *_: object) -> None:
        """Discard the record."""

    warning = error = info = debug


def _execute(calculator: Any, *, coefficients: bool = False) -> Values:
    """Run pyradiomics' loop over the enabled features; a feature that raises ValueError or the like becomes NaN.

    Args:
        calculator: object of a feature class that holds the matrix.
        coefficients: whether the class derives coefficients from its matrix first.

    Raises:
        InputRejectedError: radiomics-failed.
    """
    calculator._initCalculation = lambda _=None: None  # would count the matrix from an image
    with rejecting("pyradiomics"):
        if coefficients:
            calculator._calculateCoefficients()
        return dict(calculator.execute())


def _glcm(levels: Levels, counts_LLA: NDArray[np.float64]) -> Values:
    calculator = _feature_calculator("glcm", CLASS_FEATURES["glcm"], levels)
    sums_A = counts_LLA.sum(axis=(0, 1))
    # directions without pairs are left out, as in pyradiomics; if only one direction exists, it gives NaN
    if len(sums_A) > 1:
        counts_LLA, sums_A = counts_LLA[:, :, sums_A != 0], sums_A[sums_A != 0]
    # counts -> probabilities per direction; axis 0 is pyradiomics' axis of voxel-based maps, here of length 1
    calculator.P_glcm = (counts_LLA / np.where(sums_A == 0, np.nan, sums_A))[None]
    return _execute(calculator, coefficients=True)


def _glrlm(levels: Levels, counts_LRA: NDArray[np.float64]) -> Values:
    calculator = _feature_calculator("glrlm", CLASS_FEATURES["glrlm"], levels)
    sums_A = counts_LRA.sum(axis=(0, 1))
    if len(sums_A) > 1:
        counts_LRA, sums_A = counts_LRA[:, :, sums_A != 0], sums_A[sums_A != 0]
    calculator.P_glrlm = counts_LRA[None]
    calculator.coefficients["Nr"] = np.where(sums_A == 0, np.nan, sums_A)[None]
    return _execute(calculator, coefficients=True)


def _glszm(levels: Levels, counts_LS: NDArray[np.float64], sizes_S: NDArray[np.int64]) -> Values:
    calculator = _feature_calculator("glszm", CLASS_FEATURES["glszm"], levels)
    size_S = sizes_S.astype(np.float64)
    per_size_S = counts_LS.sum(axis=0)
    calculator.P_glszm = counts_LS[None]
    # pyradiomics' names: Np voxels, Nz zones, ps and pg zones per size and per gray level
    calculator.coefficients |= {
        "Np": np.array([(per_size_S * size_S).sum()]),
        "Nz": np.array([per_size_S.sum()]),
        "ps": per_size_S[None],
        "pg": counts_LS.sum(axis=1)[None],
        "ivector": levels.bins_L.astype(np.float64),
        "jvector": size_S,
    }
    return _execute(calculator)


def _gldm(levels: Levels, counts_LK: NDArray[np.float64]) -> Values:
    calculator = _feature_calculator("gldm", CLASS_FEATURES["gldm"], levels)
    occurs_K = counts_LK.sum(axis=0) != 0
    counts_LK = counts_LK[:, occurs_K]
    per_size_K = counts_LK.sum(axis=0)
    calculator.P_gldm = counts_LK[None]
    calculator.coefficients |= {
        "Nz": np.array([per_size_K.sum()]),
        "pd": per_size_K[None],
        "pg": counts_LK.sum(axis=1)[None],
        "ivector": levels.bins_L.astype(np.float64),
        "jvector": np.flatnonzero(occurs_K) + 1.0,  # dependence size as in pyradiomics: neighbours + 1
    }
    return _execute(calculator)


def _ngtdm(levels: Levels, rows_L3: NDArray[np.float64]) -> Values:
    calculator = _feature_calculator("ngtdm", CLASS_FEATURES["ngtdm"], levels)
    calculator.P_ngtdm = rows_L3[None]
    return _execute(calculator, coefficients=True)
