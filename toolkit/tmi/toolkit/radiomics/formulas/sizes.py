"""Features of the matrices that count gray level against size: run lengths, zones, dependences.

GLRLM (Galloway 1975), GLSZM (Thibault 2009) and GLDM (Sun 1983) share most formulas. With P(i, j) the number of runs,
zones or voxels of level i and size j, and n their sum: the emphasis of small or large sizes and of low or high levels,
sum(P(i, j) w(i) w(j)) / n with w(x) = 1 / x^2 or x^2; the non-uniformity of sizes or levels, sum over one axis of the
squared sum over the other, / n; variances and the entropy of P / n. L gray levels that occur, J sizes that occur,
A directions (1 for zones and dependences).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

EPSILON = np.spacing(1)
"""Added to a probability before its logarithm."""


@dataclass(frozen=True, kw_only=True)
class SizeMatrix:
    """A matrix of counts by gray level and size; every property is a feature."""

    counts_LJA: Float[NDArray[np.float64], "L J A"]
    """P of every direction."""
    level_LA: Float[NDArray[np.float64], "L A"]
    """Sum over sizes."""
    size_JA: Float[NDArray[np.float64], "J A"]
    """Sum over levels."""
    total_A: Float[NDArray[np.float64], " A"]
    """n of every direction; NaN for a direction without counts."""
    levels_L: Float[NDArray[np.float64], " L"]
    """The gray levels i."""
    sizes_J: Float[NDArray[np.float64], " J"]
    """The sizes j."""

    @cached_property
    def i2_L11(self) -> NDArray[np.float64]:
        """Squared levels."""
        squared: NDArray[np.float64] = self.levels_L[:, None, None] ** 2
        return squared

    @cached_property
    def j2_J1(self) -> NDArray[np.float64]:
        """Squared sizes."""
        squared: NDArray[np.float64] = self.sizes_J[:, None] ** 2
        return squared

    def features(self, names: dict[str, str], *, large_high: NDArray[np.float64] | None = None) -> dict[str, Any]:
        """Compute the features that `names` lists, averaged over the directions.

        Args:
            names: name of a feature of this class -> key of its formula.
            large_high: weighted counts of `large high`, where the class rounds them in an order of its own.
        """
        n_A, i2, j2 = self.total_A, self.i2_L11, self.j2_J1
        i_L1, j_J1 = self.levels_L[:, None], self.sizes_J[:, None]
        level_share_LA, size_share_JA = self.level_LA / n_A, self.size_JA / n_A
        p_LJA = self.counts_LJA / n_A
        # the order of multiplications and divisions is that of pyradiomics: another one rounds differently
        weighted = self.counts_LJA * (j2 * i2) if large_high is None else large_high
        formulas = {
            "small": np.sum(self.size_JA / j2, axis=0) / n_A,
            "large": np.sum(self.size_JA * j2, axis=0) / n_A,
            "low": np.sum(self.level_LA / i2[:, 0], axis=0) / n_A,
            "high": np.sum(self.level_LA * i2[:, 0], axis=0) / n_A,
            "small low": np.sum(self.counts_LJA / (i2 * j2), axis=(0, 1)) / n_A,
            "small high": np.sum(self.counts_LJA * i2 / j2, axis=(0, 1)) / n_A,
            "large low": np.sum(self.counts_LJA * j2 / i2, axis=(0, 1)) / n_A,
            "large high": np.sum(weighted, axis=(0, 1)) / n_A,
            "levels": np.sum(self.level_LA**2, axis=0) / n_A,
            "levels normalized": np.sum(self.level_LA**2, axis=0) / n_A**2,
            "sizes": np.sum(self.size_JA**2, axis=0) / n_A,
            "sizes normalized": np.sum(self.size_JA**2, axis=0) / n_A**2,
            "percentage": n_A / np.sum(self.size_JA * j_J1, axis=0),
            "level variance": np.sum(level_share_LA * (i_L1 - np.sum(level_share_LA * i_L1, axis=0)) ** 2, axis=0),
            "size variance": np.sum(size_share_JA * (j_J1 - np.sum(size_share_JA * j_J1, axis=0)) ** 2, axis=0),
            "entropy": -np.sum(p_LJA * np.log2(p_LJA + EPSILON), axis=(0, 1)),
        }
        return {name: np.nanmean(formulas[key]) for name, key in names.items()}


def _names(size: str, level: str, small: str, large: str, uniformity: str) -> dict[str, str]:
    """Return the names of the features that GLRLM and GLSZM share, with their words."""
    return {
        f"{small}Emphasis": "small",
        f"{large}Emphasis": "large",
        f"Low{level}Emphasis": "low",
        f"High{level}Emphasis": "high",
        f"{small}LowGrayLevelEmphasis": "small low",
        f"{small}HighGrayLevelEmphasis": "small high",
        f"{large}LowGrayLevelEmphasis": "large low",
        f"{large}HighGrayLevelEmphasis": "large high",
        "GrayLevelNonUniformity": "levels",
        "GrayLevelVariance": "level variance",
        f"{uniformity}NonUniformity": "sizes",
        f"{uniformity}NonUniformityNormalized": "sizes normalized",
        f"{size}Variance": "size variance",
        f"{size}Entropy": "entropy",
    }


_SHARE = {"GrayLevelNonUniformityNormalized": "levels normalized"}
RUN_NAMES = _names("Run", "GrayLevelRun", "ShortRun", "LongRun", "RunLength") | _SHARE | {"RunPercentage": "percentage"}
"""Name of a feature of GLRLM -> key of its formula."""
ZONE_NAMES = (
    _names("Zone", "GrayLevelZone", "SmallArea", "LargeArea", "SizeZone") | _SHARE | {"ZonePercentage": "percentage"}
)
"""Name of a feature of GLSZM -> key of its formula."""
DEPENDENCE_NAMES = _names("Dependence", "GrayLevel", "SmallDependence", "LargeDependence", "Dependence")
"""Name of a feature of GLDM -> key of its formula."""


def run_length_features(
    counts_LRA: Float[NDArray[np.float64], "L R A"], bins_L: Int[NDArray[Any], " L"]
) -> dict[str, Any]:
    """Compute the 16 features of GLRLM by name.

    Args:
        counts_LRA: number of runs of length r + 1; all zero for a direction without a pair of voxels on one line.
        bins_L: gray levels that occur, ascending.
    """
    total_A = counts_LRA.sum(axis=(0, 1))
    # directions without pairs are left out; if only one direction exists, its features are NaN
    if len(total_A) > 1:
        counts_LRA, total_A = counts_LRA[:, :, total_A != 0], total_A[total_A != 0]
    size_RA = counts_LRA.sum(axis=0)
    occurs_R = size_RA.sum(axis=1) != 0
    empty = np.flatnonzero(~occurs_R)
    matrix = SizeMatrix(
        # deleted as in pyradiomics, which determines the memory layout: numpy's sums round by layout
        counts_LJA=np.delete(counts_LRA, empty, axis=1),
        level_LA=counts_LRA.sum(axis=1),
        size_JA=np.delete(size_RA, empty, axis=0),
        total_A=np.where(total_A == 0, np.nan, total_A),
        levels_L=bins_L.astype(np.float64),
        sizes_J=(np.flatnonzero(occurs_R) + 1).astype(np.float64),
    )
    return matrix.features(RUN_NAMES)


def zone_features(
    counts_LS: Float[NDArray[np.float64], "L S"], sizes_S: Int[NDArray[Any], " S"], bins_L: Int[NDArray[Any], " L"]
) -> dict[str, Any]:
    """Compute the 16 features of GLSZM by name.

    Args:
        counts_LS: number of zones by level and size.
        sizes_S: the sizes that occur, in voxels.
        bins_L: gray levels that occur, ascending.
    """
    matrix = _of_one_direction(counts_LS, sizes_S.astype(np.float64), bins_L)
    return matrix.features(ZONE_NAMES, large_high=matrix.counts_LJA * matrix.i2_L11 * matrix.j2_J1)


def dependence_features(
    counts_LK: Float[NDArray[np.float64], "L K"], bins_L: Int[NDArray[Any], " L"]
) -> dict[str, Any]:
    """Compute the 14 features of GLDM by name.

    Args:
        counts_LK: number of voxels with k neighbours of their own level; the size of a dependence is k + 1.
        bins_L: gray levels that occur, ascending.
    """
    occurs_K = counts_LK.sum(axis=0) != 0
    sizes_K = (np.flatnonzero(occurs_K) + 1).astype(np.float64)
    return _of_one_direction(counts_LK[:, occurs_K], sizes_K, bins_L).features(DEPENDENCE_NAMES)


def _of_one_direction(counts_LJ: NDArray[np.float64], sizes_J: NDArray[np.float64], bins_L: NDArray[Any]) -> SizeMatrix:
    return SizeMatrix(
        counts_LJA=counts_LJ[:, :, None],
        level_LA=counts_LJ.sum(axis=1)[:, None],
        size_JA=counts_LJ.sum(axis=0)[:, None],
        total_A=np.array([counts_LJ.sum()]),
        levels_L=bins_L.astype(np.float64),
        sizes_J=sizes_J,
    )
