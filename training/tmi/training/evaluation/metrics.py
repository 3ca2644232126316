"""Figures of a fold and of a run. The positive class is bad prognosis.

Reported are both the ROC AUC of the probabilities and the balanced accuracy of the decisions: the paper's published AUC
values match the latter better than the former.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from tmi.toolkit.config.schema import POSITIVE

METRICS: tuple[str, ...] = ("accuracy", "precision", "recall", "f1", "roc_auc", "balanced_accuracy")
"""Figures in the order they are printed."""


def binary_metrics(
    labels_N: Int[np.ndarray, " N"], probability_N: Float[np.ndarray, " N"], *, threshold: float = 0.5
) -> dict[str, float | None]:
    """The figures; None where one is not defined (a fold that holds one class only).

    Args:
        labels_N: class indices.
        probability_N: probability of the positive class.
        threshold: from which the decision is positive.
    """
    from sklearn import metrics

    truth = np.asarray(labels_N) == POSITIVE
    decided = np.asarray(probability_N) >= threshold
    both = bool(truth.any() and not truth.all())
    return {
        "accuracy": float(metrics.accuracy_score(truth, decided)),
        "precision": float(metrics.precision_score(truth, decided, zero_division=0)),
        "recall": float(metrics.recall_score(truth, decided, zero_division=0)) if truth.any() else None,
        "f1": float(metrics.f1_score(truth, decided, zero_division=0)) if truth.any() else None,
        "roc_auc": float(metrics.roc_auc_score(truth, probability_N)) if both else None,
        "balanced_accuracy": float(metrics.balanced_accuracy_score(truth, decided)) if both else None,
    }


def aggregate_folds(folds: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | int | None]]:
    """Mean, sample standard deviation and number of folds of each figure, over the folds that define it."""
    summary: dict[str, dict[str, float | int | None]] = {}
    for name in METRICS:
        values = [v for fold in folds if (v := fold[name]) is not None and math.isfinite(v)]
        summary[name] = {
            "mean": float(np.mean(values)) if values else None,
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "folds": len(values),
        }
    return summary
