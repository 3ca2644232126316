"""The 24 features of the gray level co-occurrence matrix (GLCM; Haralick 1973).

With p(i, j) the probability of a pair of neighbours with levels i and j along one direction, p_x and p_y its marginals,
p_x+y(k) the probability of i + j = k and p_x-y(k) that of |i - j| = k. Each feature is computed for every direction and
averaged. L gray levels that occur, A directions, K sums or differences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

EPSILON = np.spacing(1)
"""Added to a probability before its logarithm, and to a divisor."""


def cooccurrence_features(
    counts_LLA: Float[NDArray[np.float64], "L L A"], bins_L: Int[NDArray[Any], " L"]
) -> dict[str, Any]:
    """Compute the features by name.

    Args:
        counts_LLA: number of pairs, counted both ways.
        bins_L: gray levels that occur, ascending.

    Returns:
        Feature name -> value; NaN where a feature is not defined.
    """
    sums_A = counts_LLA.sum(axis=(0, 1))
    # directions without pairs are left out; if only one direction exists, its features are NaN
    if len(sums_A) > 1:
        counts_LLA, sums_A = counts_LLA[:, :, sums_A != 0], sums_A[sums_A != 0]
    p_LLA = counts_LLA / np.where(sums_A == 0, np.nan, sums_A)
    highest = int(bins_L[-1])
    levels_L = bins_L.astype(np.float64)
    i, j = np.meshgrid(levels_L, levels_L, indexing="ij", sparse=True)
    i_LLA, j_LLA, sum_LLA = i[:, :, None], j[:, :, None], (i + j)[:, :, None]
    sums_K, differences_K = np.arange(2.0, highest * 2 + 1), np.arange(0.0, highest)
    x_LA, y_LA = p_LLA.sum(axis=1), p_LLA.sum(axis=0)
    mean_x_A = np.sum(i_LLA * p_LLA, axis=(0, 1), keepdims=True)
    mean_y_A = np.sum(j_LLA * p_LLA, axis=(0, 1), keepdims=True)
    add_KA = np.array([p_LLA[i + j == k].sum(axis=0) for k in sums_K])
    subtract_KA = np.array([p_LLA[np.abs(i - j) == k].sum(axis=0) for k in differences_K])
    joint_entropy_A = _entropy(p_LLA, (0, 1))
    k_K1, d_K1 = sums_K[:, None], differences_K[:, None]
    difference_average_A = np.sum(d_K1 * subtract_KA, axis=0)
    centred_LLA = sum_LLA - mean_x_A - mean_y_A
    per_direction = {
        "Autocorrelation": np.sum(p_LLA * (i * j)[:, :, None], axis=(0, 1)),
        "ClusterProminence": np.sum(p_LLA * centred_LLA**4, axis=(0, 1)),
        "ClusterShade": np.sum(p_LLA * centred_LLA**3, axis=(0, 1)),
        "ClusterTendency": np.sum(p_LLA * centred_LLA**2, axis=(0, 1)),
        "Contrast": np.sum(p_LLA * np.abs(i - j)[:, :, None] ** 2, axis=(0, 1)),
        "Correlation": _correlation(p_LLA, i_LLA - mean_x_A, j_LLA - mean_y_A),
        "DifferenceAverage": difference_average_A,
        "DifferenceEntropy": _entropy(subtract_KA, 0),
        "DifferenceVariance": np.sum(subtract_KA * (d_K1 - difference_average_A) ** 2, axis=0),
        "Id": np.sum(subtract_KA / (1 + d_K1), axis=0),
        "Idm": np.sum(subtract_KA / (1 + d_K1**2), axis=0),
        "Idmn": np.sum(subtract_KA / (1 + d_K1**2 / highest**2), axis=0),
        "Idn": np.sum(subtract_KA / (1 + d_K1 / highest), axis=0),
        "Imc1": _correlation_measure_1(p_LLA, x_LA, y_LA, joint_entropy_A),
        "Imc2": _correlation_measure_2(x_LA, y_LA, joint_entropy_A),
        "InverseVariance": np.sum(subtract_KA[1:] / d_K1[1:] ** 2, axis=0),
        "JointEnergy": np.sum(p_LLA**2, axis=(0, 1)),
        "JointEntropy": joint_entropy_A,
        "MaximumProbability": p_LLA.max(axis=(0, 1)),
        "SumAverage": np.sum(k_K1 * add_KA, axis=0),
        "SumEntropy": _entropy(add_KA, 0),
        "SumSquares": np.sum(p_LLA * (i_LLA - mean_x_A) ** 2, axis=(0, 1)),
    }
    return {name: np.nanmean(value_A) for name, value_A in per_direction.items()} | {
        "JointAverage": mean_x_A.mean(),
        "MCC": _maximal_correlation(p_LLA, x_LA, y_LA),
    }


def _entropy(p: NDArray[np.float64], axis: int | tuple[int, int]) -> NDArray[np.float64]:
    """Return -sum(p log2(p)) along the axes."""
    entropy: NDArray[np.float64] = -1 * np.sum(p * np.log2(p + EPSILON), axis=axis)
    return entropy


def _correlation(
    p_LLA: NDArray[np.float64], x_LLA: NDArray[np.float64], y_LLA: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the correlation of the centred levels x and y; 1 for a single level."""
    deviations_A = np.sum(p_LLA * x_LLA**2, axis=(0, 1)) ** 0.5 * np.sum(p_LLA * y_LLA**2, axis=(0, 1)) ** 0.5
    correlation_A: NDArray[np.float64] = np.sum(p_LLA * x_LLA * y_LLA, axis=(0, 1)) / (deviations_A + EPSILON)
    correlation_A[deviations_A == 0] = 1
    return correlation_A


def _correlation_measure_1(
    p_LLA: NDArray[np.float64], x_LA: NDArray[np.float64], y_LA: NDArray[np.float64], entropy_A: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the first informational measure of correlation; 0 if both marginals have no entropy."""
    cross_A = -1 * np.sum(p_LLA * np.log2(x_LA[:, None] * y_LA[None] + EPSILON), axis=(0, 1))
    divisor_A = np.fmax(_entropy(x_LA, 0), _entropy(y_LA, 0))
    measure_A: NDArray[np.float64] = entropy_A - cross_A
    measure_A[divisor_A != 0] /= divisor_A[divisor_A != 0]
    measure_A[divisor_A == 0] = 0
    return measure_A


def _correlation_measure_2(
    x_LA: NDArray[np.float64], y_LA: NDArray[np.float64], entropy_A: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the second informational measure of correlation; 0 if the levels are independent."""
    independent_A = _entropy(x_LA[:, None] * y_LA[None], (0, 1))
    measure_A: NDArray[np.float64] = (1 - np.e ** (-2 * (independent_A - entropy_A))) ** 0.5
    measure_A[independent_A == entropy_A] = 0
    return measure_A


def _maximal_correlation(p_LLA: NDArray[np.float64], x_LA: NDArray[np.float64], y_LA: NDArray[np.float64]) -> Any:
    """Return the maximal correlation coefficient; 1 for a single level, NaN if p is not defined.

    It is the root of the second largest eigenvalue of Q(i, j) = sum_g p(i, g) p(j, g) / (p_x(i) p_y(g)).
    """
    if len(p_LLA) < 2 and np.isfinite(p_LLA).all():
        return 1
    q_LLA = p_LLA[:, None, 0] * p_LLA[None, :, 0] / (x_LA[:, None] * y_LA[0] + EPSILON)
    for g in range(1, len(p_LLA)):
        q_LLA += p_LLA[:, None, g] * p_LLA[None, :, g] / (x_LA[:, None] * y_LA[g] + EPSILON)
    try:
        eigenvalues_AL = np.linalg.eigvals(q_LLA.transpose(2, 0, 1))
    except np.linalg.LinAlgError:
        return np.nan
    eigenvalues_AL.sort()
    return np.nanmean(np.sqrt(eigenvalues_AL[:, -2])).real
