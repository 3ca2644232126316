"""Classification metrics of a fold and of a run. The positive class is bad prognosis.

Both the ROC AUC of the probabilities and the balanced accuracy of the decisions are reported, because the paper's
published AUC values match the latter better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from tmi.toolkit.config.schema import POSITIVE

METRICS: tuple[str, ...] = ("accuracy", "precision", "recall", "f1", "roc_auc", "balanced_accuracy")
"""Names of the metrics in the order of the tables."""


def binary_metrics(
    labels_N: Int[np.ndarray, " N"], probability_N: Float[np.ndarray, " N"], *, threshold: float = 0.5
) -> dict[str, float | None]:
    """All metrics; None for a metric that is undefined because the fold has one class only.

    Args:
        labels_N: class indices.
        probability_N: probability of the positive class.
        threshold: probability at and above which the decision is positive.
    """
    from sklearn import metrics

    truth = np.asarray(labels_N) == POSITIVE
    decided = np.asarray(probability_N) >= threshold
    has_both_classes = bool(truth.any() and not truth.all())
    return {
        "accuracy": float(metrics.accuracy_score(truth, decided)),
        "precision": float(metrics.precision_score(truth, decided, zero_division=0)),
        "recall": float(metrics.recall_score(truth, decided, zero_division=0)) if truth.any() else None,
        "f1": float(metrics.f1_score(truth, decided, zero_division=0)) if truth.any() else None,
        "roc_auc": float(metrics.roc_auc_score(truth, probability_N)) if has_both_classes else None,
        "balanced_accuracy": float(metrics.balanced_accuracy_score(truth, decided)) if has_both_classes else None,
    }


def aggregate_folds(folds: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | int | None]]:
    """Mean, sample standard deviation and number of folds of each metric, over the folds in which it is defined."""
    summary: dict[str, dict[str, float | int | None]] = {}
    for name in METRICS:
        values = [v for fold in folds if (v := fold[name]) is not None and math.isfinite(v)]
        summary[name] = {
            "mean": float(np.mean(values)) if values else None,
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "folds": len(values),
        }
    return summary
