"""Features of one image type from its voxels, with pyradiomics' own formulas wherever a matrix has been counted.

First-order features need a few passes over the N voxels of the mask and are written out here. The texture formulas cost
little once their matrix is there, and hold many special cases (a flat region, an empty direction): they are
pyradiomics' own methods, run on its own classes, which are handed the counted matrix instead of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.radiomics.feature_names import CLASS_FEATURES, SHAPE_FEATURES
from tmi.toolkit.radiomics.mask_region import Region
from tmi.toolkit.radiomics.pyradiomics import load
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
"""Above this, sums of odd powers do not cancel to rounding noise."""

Values = dict[str, Any]
"""Feature name without its prefix -> value."""


def image_features(
    values_N: NDArray[Any], region: Region, spacing_DHW_mm: tuple[float, float, float]
) -> Mapping[str, Any]:
    """The 93 features of one image type, named `<class>_<feature>`.

    Args:
        values_N: its voxels in the mask, in the order of `region`.
        region: the mask.
        spacing_DHW_mm: voxel size.
    """
    levels = sort_into_levels(values_N, bin_edges(values_N))
    with np.errstate(all="ignore"):
        found = {"firstorder": first_order(values_N, levels, spacing_DHW_mm)}
        both = count_pairs_and_runs(region, levels)
        found["glcm"] = _glcm(levels, both.glcm_LLA)
        found["glrlm"] = _glrlm(levels, both.glrlm_LRA)
        found["glszm"] = _zones(levels, *count_zones(region, levels))
        found["gldm"] = _gldm(levels, count_dependences(region, levels))
        found["ngtdm"] = _ngtdm(levels, sum_tone_differences(region, levels))
    return {f"{kind}_{name}": found[kind][name] for kind in found for name in CLASS_FEATURES[kind]}


def bin_edges(values_N: NDArray[Any]) -> NDArray[Any]:
    """Edges of bins of `binWidth`, on multiples of it, in the very type that pyradiomics lets numpy choose."""
    width = SETTINGS["setting"]["binWidth"]
    lowest, highest = values_N.min(), values_N.max()
    return np.arange(lowest - (lowest % width), highest + 2 * width, width)


def first_order(values_N: NDArray[Any], levels: Levels, spacing_DHW_mm: tuple[float, float, float]) -> Values:
    """The 18 first-order features; formulas as in pyradiomics' documentation."""
    x_N: Float[NDArray[np.float64], " N"] = values_N.astype(np.float64)
    count, total = len(x_N), x_N.sum()
    mean = total / count
    p10, p25, median, p75, p90 = np.percentile(x_N, (10, 25, 50, 75, 90))
    lowest, highest = x_N.min(), x_N.max()
    energy = np.square(x_N).sum()
    d_N = x_N - mean
    square_N = d_N * d_N
    variance = square_N.sum() / count
    # a product is quicker than a power; of few voxels, whose cubes may cancel to the last bit, every bit counts
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
    """The 14 shape features."""
    bare = _bare("shape", SHAPE_FEATURES)
    mesh = measure_mesh(region.mask_DHW, spacing_DHW_mm)
    bare.SurfaceArea, bare.Volume, bare.diameters = mesh.area_mm2, mesh.volume_mm3, mesh.diameters_mm
    bare.pixelSpacing = np.array(spacing_DHW_mm)
    places_N3 = np.argwhere(region.mask_DHW)
    bare.labelledVoxelCoordinates = tuple(places_N3.T)
    places_mm_N3 = (places_N3 + 1) * bare.pixelSpacing
    places_mm_N3 -= places_mm_N3.mean(axis=0)
    places_mm_N3 /= np.sqrt(len(places_N3))
    axes = np.linalg.eigvals(places_mm_N3.T.copy() @ places_mm_N3)
    axes[(axes < 0) & (axes > -1e-10)] = 0
    bare.eigenValues = np.sort(axes)
    return _run(bare)


def _bare(kind: str, names: tuple[str, ...], levels: Levels | None = None) -> Any:
    """An object of pyradiomics' class for a kind of feature, without an image."""
    one = load().featureextractor.getFeatureClasses()[kind]
    bare = one.__new__(one)
    bare.logger = _NullLogger()
    bare.settings = dict(SETTINGS["setting"])
    bare.voxelBased = False
    bare.symmetricalGLCM = SETTINGS["setting"]["symmetricalGLCM"]
    bare.enabledFeatures = dict.fromkeys(names, True)
    bare.featureValues = {}
    bare.coefficients = {}
    if levels is not None:
        bare.coefficients = {"grayLevels": levels.bins_L, "Ng": levels.highest}
    return bare


class _NullLogger:
    """Takes pyradiomics' log records: what they say is in the missing values."""

    def debug(self, *_: object) -> None:
        """Nothing."""

    warning = error = info = debug


def _run(bare: Any) -> Values:
    """The loop of pyradiomics over the features: what fails becomes NaN."""
    bare._initCalculation = lambda _=None: None
    return dict(bare.execute())


def _glcm(levels: Levels, counts_LLA: NDArray[np.float64]) -> Values:
    bare = _bare("glcm", CLASS_FEATURES["glcm"], levels)
    sums_A = counts_LLA.sum(axis=(0, 1))
    if len(sums_A) > 1:
        counts_LLA, sums_A = counts_LLA[:, :, sums_A != 0], sums_A[sums_A != 0]
    bare.P_glcm = (counts_LLA / np.where(sums_A == 0, np.nan, sums_A))[None]
    bare._calculateCoefficients()
    return _run(bare)


def _glrlm(levels: Levels, counts_LRA: NDArray[np.float64]) -> Values:
    bare = _bare("glrlm", CLASS_FEATURES["glrlm"], levels)
    sums_A = counts_LRA.sum(axis=(0, 1))
    if len(sums_A) > 1:
        counts_LRA, sums_A = counts_LRA[:, :, sums_A != 0], sums_A[sums_A != 0]
    bare.P_glrlm = counts_LRA[None]
    bare.coefficients["Nr"] = np.where(sums_A == 0, np.nan, sums_A)[None]
    bare._calculateCoefficients()
    return _run(bare)


def _zones(levels: Levels, counts_LS: NDArray[np.float64], sizes_S: NDArray[np.int64]) -> Values:
    bare = _bare("glszm", CLASS_FEATURES["glszm"], levels)
    size_S = sizes_S.astype(np.float64)
    per_size_S = counts_LS.sum(axis=0)
    bare.P_glszm = counts_LS[None]
    bare.coefficients |= {
        "Np": np.array([(per_size_S * size_S).sum()]),
        "Nz": np.array([per_size_S.sum()]),
        "ps": per_size_S[None],
        "pg": counts_LS.sum(axis=1)[None],
        "ivector": levels.bins_L.astype(np.float64),
        "jvector": size_S,
    }
    return _run(bare)


def _gldm(levels: Levels, counts_LK: NDArray[np.float64]) -> Values:
    bare = _bare("gldm", CLASS_FEATURES["gldm"], levels)
    there_K = counts_LK.sum(axis=0) != 0
    counts_LK = counts_LK[:, there_K]
    per_size_K = counts_LK.sum(axis=0)
    bare.P_gldm = counts_LK[None]
    bare.coefficients |= {
        "Nz": np.array([per_size_K.sum()]),
        "pd": per_size_K[None],
        "pg": counts_LK.sum(axis=1)[None],
        "ivector": levels.bins_L.astype(np.float64),
        "jvector": np.flatnonzero(there_K) + 1.0,
    }
    return _run(bare)


def _ngtdm(levels: Levels, rows_L3: NDArray[np.float64]) -> Values:
    bare = _bare("ngtdm", CLASS_FEATURES["ngtdm"], levels)
    bare.P_ngtdm = rows_L3[None]
    bare._calculateCoefficients()
    return _run(bare)
