"""Percentile bootstrap over patients, stratified by class. N cases, R replicates.

A replicate samples, in each class, as many patients as the class has, with replacement. All cases of a patient are
sampled together. A replicate is represented by the multiplicity of each case, so every metric is a weighted one. A
patient with cases of both classes counts as positive. Source: B. Efron and R. Tibshirani 1993.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from tmi.training.evaluation.metrics import METRICS

N_REPLICATES = 2000
"""Number of replicates of an interval."""
CONFIDENCE_LEVEL = 0.95
"""Confidence level of an interval."""


def bootstrap_weights(
    positive_N: Bool[np.ndarray, " N"], patients: Sequence[str], *, seed: int, count: int = N_REPLICATES
) -> Float[np.ndarray, "R N"]:
    """Multiplicity of each case in each replicate; the same seed and cases give the same weights."""
    names, patient_N = np.unique(np.asarray(patients), return_inverse=True)
    is_positive = np.zeros(len(names), dtype=bool)
    np.logical_or.at(is_positive, patient_N, positive_N)
    random = np.random.default_rng(seed)
    multiplicity_RP = np.zeros((count, len(names)))
    for stratum in (np.flatnonzero(is_positive), np.flatnonzero(~is_positive)):
        if len(stratum):
            # sampling n of n with replacement: the counts are multinomial
            uniform = np.full(len(stratum), 1.0 / len(stratum))
            multiplicity_RP[:, stratum] = random.multinomial(len(stratum), uniform, size=count)
    weights: np.ndarray = multiplicity_RP[:, patient_N]
    return weights


def weighted_metrics(
    positive_N: Bool[np.ndarray, " N"],
    probability_N: Float[np.ndarray, " N"],
    weights_RN: Float[np.ndarray, "R N"],
    *,
    threshold: float = 0.5,
) -> dict[str, Float[np.ndarray, " R"]]:
    """The metrics of `tmi.training.evaluation.metrics` for each row of weights; NaN where undefined."""
    decided = probability_N >= threshold
    total = weights_RN.sum(axis=1)
    true_positive = weights_RN @ (decided & positive_N).astype(float)
    true_negative = weights_RN @ (~decided & ~positive_N).astype(float)
    positive = weights_RN @ positive_N.astype(float)
    negative = total - positive
    predicted_positive = weights_RN @ decided.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = true_positive / positive
        values = {
            "accuracy": (true_positive + true_negative) / total,
            "precision": np.where(predicted_positive > 0, true_positive / predicted_positive, 0.0),
            "recall": recall,
            "f1": np.where(positive > 0, 2 * true_positive / (positive + predicted_positive), np.nan),
            "roc_auc": _auc(positive_N, probability_N, weights_RN),
            "balanced_accuracy": (recall + true_negative / negative) / 2,
        }
    return {name: values[name] for name in METRICS}


def _auc(
    positive_N: Bool[np.ndarray, " N"], probability_N: Float[np.ndarray, " N"], weights_RN: Float[np.ndarray, "R N"]
) -> Float[np.ndarray, " R"]:
    """Weighted Mann-Whitney statistic: the share of (positive, negative) pairs in order, ties counting 1/2."""
    x, y = probability_N[positive_N], probability_N[~positive_N]
    psi = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    weights_x, weights_y = weights_RN[:, positive_N], weights_RN[:, ~positive_N]
    auc: np.ndarray = ((weights_x @ psi) * weights_y).sum(axis=1) / (weights_x.sum(axis=1) * weights_y.sum(axis=1))
    return auc


def interval(values_R: Float[np.ndarray, " R"], *, level: float = CONFIDENCE_LEVEL) -> tuple[float, float] | None:
    """Percentile interval of the finite values; None if there are none."""
    defined = values_R[np.isfinite(values_R)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
