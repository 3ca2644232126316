"""Percentile bootstrap over patients, stratified by class. N cases, R replicates.

A replicate draws, in each class, as many patients as the class has, with replacement; a patient's cases come together.
What comes out is how often each case counts, so that every figure is a weighted one. A patient whose cases differ in
class belongs to the positive. Source: B. Efron and R. Tibshirani 1993.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from tmi.training.evaluation.metrics import METRICS

N_REPLICATES = 2000
"""Replicates of an interval."""
CONFIDENCE_LEVEL = 0.95
"""Level of an interval."""


def bootstrap_weights(
    positive_N: Bool[np.ndarray, " N"], patients: Sequence[str], *, seed: int, count: int = N_REPLICATES
) -> Float[np.ndarray, "R N"]:
    """How often each case counts in each replicate; the same seed and cases give the same."""
    names, owner_N = np.unique(np.asarray(patients), return_inverse=True)
    bad = np.zeros(len(names), dtype=bool)
    np.logical_or.at(bad, owner_N, positive_N)
    random = np.random.default_rng(seed)
    times = np.zeros((count, len(names)))
    for stratum in (np.flatnonzero(bad), np.flatnonzero(~bad)):
        if len(stratum):
            share = np.full(len(stratum), 1.0 / len(stratum))
            times[:, stratum] = random.multinomial(len(stratum), share, size=count)
    weights: np.ndarray = times[:, owner_N]
    return weights


def weighted_metrics(
    positive_N: Bool[np.ndarray, " N"],
    probability_N: Float[np.ndarray, " N"],
    weights_RN: Float[np.ndarray, "R N"],
    *,
    threshold: float = 0.5,
) -> dict[str, Float[np.ndarray, " R"]]:
    """The figures of `tmi.training.evaluation.metrics` for each row of weights; NaN where one is not defined."""
    decided = probability_N >= threshold
    total = weights_RN.sum(axis=1)
    true_positive = weights_RN @ (decided & positive_N).astype(float)
    true_negative = weights_RN @ (~decided & ~positive_N).astype(float)
    positive = weights_RN @ positive_N.astype(float)
    negative = total - positive
    called = weights_RN @ decided.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = true_positive / positive
        values = {
            "accuracy": (true_positive + true_negative) / total,
            "precision": np.where(called > 0, true_positive / called, 0.0),
            "recall": recall,
            "f1": np.where(positive > 0, 2 * true_positive / (positive + called), np.nan),
            "roc_auc": _auc(positive_N, probability_N, weights_RN),
            "balanced_accuracy": (recall + true_negative / negative) / 2,
        }
    return {name: values[name] for name in METRICS}


def _auc(
    positive_N: Bool[np.ndarray, " N"], probability_N: Float[np.ndarray, " N"], weights_RN: Float[np.ndarray, "R N"]
) -> Float[np.ndarray, " R"]:
    high, low = probability_N[positive_N], probability_N[~positive_N]
    wins = (high[:, None] > low[None, :]) + 0.5 * (high[:, None] == low[None, :])
    of_high, of_low = weights_RN[:, positive_N], weights_RN[:, ~positive_N]
    auc: np.ndarray = ((of_high @ wins) * of_low).sum(axis=1) / (of_high.sum(axis=1) * of_low.sum(axis=1))
    return auc


def interval(values_R: Float[np.ndarray, " R"], *, level: float = CONFIDENCE_LEVEL) -> tuple[float, float] | None:
    """The middle `level` of the values that are defined; None where none is."""
    defined = values_R[np.isfinite(values_R)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
