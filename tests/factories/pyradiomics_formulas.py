"""The texture formulas of pyradiomics' own classes, on matrices that this package counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from tmi.toolkit.radiomics.feature_names import CLASS_FEATURES
from tmi.toolkit.radiomics.mask_region import Region
from tmi.toolkit.radiomics.pyradiomics import load, pyradiomics_quiet
from tmi.toolkit.radiomics.settings import SETTINGS
from tmi.toolkit.radiomics.texture_matrices import (
    Levels,
    count_dependences,
    count_pairs_and_runs,
    count_zones,
    sum_tone_differences,
)


class _NullLogger:
    def debug(self, *_: object) -> None:
        pass

    warning = error = info = debug


def _calculator(kind: str, levels: Levels) -> Any:
    """An object of pyradiomics' feature class without an image: its constructor, which reads one, is skipped."""
    feature_class = load().featureextractor.getFeatureClasses()[kind]
    calculator = feature_class.__new__(feature_class)
    calculator.logger = _NullLogger()
    calculator.settings = dict(SETTINGS["setting"])
    calculator.voxelBased = False
    calculator.symmetricalGLCM = SETTINGS["setting"]["symmetricalGLCM"]
    calculator.enabledFeatures = dict.fromkeys(CLASS_FEATURES[kind], True)
    calculator.featureValues = {}
    calculator.coefficients = {"grayLevels": levels.bins_L, "Ng": levels.highest}
    calculator._initCalculation = lambda _=None: None  # would count the matrix from an image
    return calculator


def zones_of_c_code(region: Region, levels: Levels) -> tuple[Any, Any]:
    """GLSZM [L, S] and its sizes [S], counted by pyradiomics' C code."""
    image_DHW = np.zeros(region.mask_DHW.shape, dtype=np.int64)
    image_DHW[region.mask_DHW] = levels.rank_N.astype(np.int64) + 1
    count = load().cMatrices.calculate_glszm
    # arguments: image, mask, number of levels, number of voxels, force2D, force2Ddimension
    zones_LS = count(image_DHW, region.mask_DHW, len(levels.bins_L), region.count, False, 0)[0]
    sizes = np.flatnonzero(zones_LS.any(axis=0))
    return zones_LS[:, sizes], sizes + 1


def pyradiomics_formulas(region: Region, levels: Levels) -> dict[str, dict[str, Any]]:
    """Class -> feature -> value of the five texture classes."""
    with pyradiomics_quiet():
        matrices = count_pairs_and_runs(region, levels)
        return {
            "glcm": _glcm(levels, matrices.glcm_LLA),
            "glrlm": _glrlm(levels, matrices.glrlm_LRA),
            "glszm": _glszm(levels, *count_zones(region, levels)),
            "gldm": _gldm(levels, count_dependences(region, levels)),
            "ngtdm": _ngtdm(levels, sum_tone_differences(region, levels)),
        }


def _glcm(levels: Levels, counts_LLA: Any) -> dict[str, Any]:
    calculator = _calculator("glcm", levels)
    sums_A = counts_LLA.sum(axis=(0, 1))
    if len(sums_A) > 1:
        counts_LLA, sums_A = counts_LLA[:, :, sums_A != 0], sums_A[sums_A != 0]
    # axis 0 is pyradiomics' axis of voxel-based maps, here of length 1
    calculator.P_glcm = (counts_LLA / np.where(sums_A == 0, np.nan, sums_A))[None]
    calculator._calculateCoefficients()
    return dict(calculator.execute())


def _glrlm(levels: Levels, counts_LRA: Any) -> dict[str, Any]:
    calculator = _calculator("glrlm", levels)
    sums_A = counts_LRA.sum(axis=(0, 1))
    if len(sums_A) > 1:
        counts_LRA, sums_A = counts_LRA[:, :, sums_A != 0], sums_A[sums_A != 0]
    calculator.P_glrlm = counts_LRA[None]
    calculator.coefficients["Nr"] = np.where(sums_A == 0, np.nan, sums_A)[None]
    calculator._calculateCoefficients()
    return dict(calculator.execute())


def _sizes(calculator: Any, counts_LJ: Any, sizes_J: Any, levels: Levels, name: str) -> dict[str, Any]:
    per_size_J = counts_LJ.sum(axis=0)
    calculator.coefficients |= {
        "Np": np.array([(per_size_J * sizes_J).sum()]),
        "Nz": np.array([per_size_J.sum()]),
        name: per_size_J[None],
        "pg": counts_LJ.sum(axis=1)[None],
        "ivector": levels.bins_L.astype(np.float64),
        "jvector": sizes_J,
    }
    return dict(calculator.execute())


def _glszm(levels: Levels, counts_LS: Any, sizes_S: Any) -> dict[str, Any]:
    calculator = _calculator("glszm", levels)
    calculator.P_glszm = counts_LS[None]
    return _sizes(calculator, counts_LS, sizes_S.astype(np.float64), levels, "ps")


def _gldm(levels: Levels, counts_LK: Any) -> dict[str, Any]:
    calculator = _calculator("gldm", levels)
    occurs_K = counts_LK.sum(axis=0) != 0
    counts_LK = counts_LK[:, occurs_K]
    calculator.P_gldm = counts_LK[None]
    return _sizes(calculator, counts_LK, np.flatnonzero(occurs_K) + 1.0, levels, "pd")


def _ngtdm(levels: Levels, rows_L3: Any) -> dict[str, Any]:
    calculator = _calculator("ngtdm", levels)
    calculator.P_ngtdm = rows_L3[None]
    calculator._calculateCoefficients()
    return dict(calculator.execute())
