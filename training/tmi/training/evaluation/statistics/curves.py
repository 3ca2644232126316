"""ROC, precision-recall and reliability curves with bootstrap bands. N cases, R replicates, G grid points.

Curves are evaluated on a fixed grid, so replicates can be compared pointwise. The ROC is interpolated linearly. The
precision at a recall is that of the highest threshold that reaches the recall.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from tmi.training.evaluation.statistics.bootstrap import CONFIDENCE_LEVEL


class Curve(NamedTuple):
    """A curve and its bootstrap band; NaN where undefined."""

    x_G: Float[np.ndarray, " G"]
    y_G: Float[np.ndarray, " G"]
    low_G: Float[np.ndarray, " G"]
    high_G: Float[np.ndarray, " G"]


GRID = np.linspace(0.0, 1.0, 51)


def roc(
    positive_N: Bool[np.ndarray, " N"], probability_N: Float[np.ndarray, " N"], weights_RN: Float[np.ndarray, "R N"]
) -> Curve:
    """True-positive rate over the false-positive rate."""
    return _curve(positive_N, probability_N, weights_RN, _roc_on_grid)


def precision_recall(
    positive_N: Bool[np.ndarray, " N"], probability_N: Float[np.ndarray, " N"], weights_RN: Float[np.ndarray, "R N"]
) -> Curve:
    """Precision over recall."""
    return _curve(positive_N, probability_N, weights_RN, _precision_on_grid)


def _curve(
    positive_N: Bool[np.ndarray, " N"],
    probability_N: Float[np.ndarray, " N"],
    weights_RN: Float[np.ndarray, "R N"],
    on_grid: object,
) -> Curve:
    order = np.argsort(-probability_N, kind="stable")
    # tied scores share one threshold: only the last index of each run of equal scores is a point of the curve
    ends = np.append(np.flatnonzero(np.diff(probability_N[order])), len(order) - 1)
    # row 0 has unit weights and gives the curve itself, the others give the replicates
    rows = np.vstack([np.ones((1, len(order))), weights_RN])
    positive = np.cumsum(rows[:, order] * positive_N[order], axis=1)[:, ends]
    negative = np.cumsum(rows[:, order] * ~positive_N[order], axis=1)[:, ends]
    values = np.array([on_grid(p, n) for p, n in zip(positive, negative, strict=True)])  # type: ignore[operator]
    low, high = np.nanquantile(values[1:], [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], axis=0)
    return Curve(GRID, values[0], low, high)


def _roc_on_grid(positive: Float[np.ndarray, " E"], negative: Float[np.ndarray, " E"]) -> Float[np.ndarray, " G"]:
    rate: np.ndarray = np.interp(GRID, np.append(0.0, negative / negative[-1]), np.append(0.0, positive / positive[-1]))
    rate[0] = 0.0
    return rate


def _precision_on_grid(positive: Float[np.ndarray, " E"], negative: Float[np.ndarray, " E"]) -> Float[np.ndarray, " G"]:
    recall = positive / positive[-1]
    first = np.minimum(np.searchsorted(recall, np.maximum(GRID, 1e-9) - 1e-12), len(recall) - 1)
    precision: np.ndarray = positive[first] / np.maximum(positive[first] + negative[first], 1e-12)
    return precision


class Reliability(NamedTuple):
    """Equal-count bins: mean probability, fraction of positives, number of cases."""

    probability_B: Float[np.ndarray, " B"]
    positive_fraction_B: Float[np.ndarray, " B"]
    counts_B: Float[np.ndarray, " B"]


def reliability(
    positive_N: Bool[np.ndarray, " N"], probability_N: Float[np.ndarray, " N"], *, bins: int = 5
) -> Reliability:
    """Observed fraction of positives against the mean predicted probability, in equal-count bins."""
    parts = [p for p in np.array_split(np.argsort(probability_N, kind="stable"), bins) if len(p)]
    return Reliability(
        np.array([probability_N[p].mean() for p in parts]),
        np.array([positive_N[p].mean() for p in parts]),
        np.array([float(len(p)) for p in parts]),
    )
