"""Metrics of a fold and of a run; the positive class is bad prognosis."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tmi.training.evaluation.metrics import METRICS, aggregate_folds, binary_metrics

LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 1])
PROBABILITIES = np.array([0.9, 0.5, 0.2, 0.6, 0.4, 0.1, 0.3, 0.8])


def test_metrics_match_hand_counts():
    """Rows 0, 1, 3 and 7 are predicted bad (0.5 counts): 3 true and 1 false positives, 1 false and 3 true negatives."""
    values = binary_metrics(LABELS, PROBABILITIES)
    assert tuple(values) == METRICS
    assert values["accuracy"] == pytest.approx(6 / 8)
    assert values["precision"] == pytest.approx(3 / 4)
    assert values["recall"] == pytest.approx(3 / 4)
    assert values["f1"] == pytest.approx(3 / 4)
    assert values["balanced_accuracy"] == pytest.approx((3 / 4 + 3 / 4) / 2)
    pairs = [(b, g) for b in PROBABILITIES[LABELS == 1] for g in PROBABILITIES[LABELS == 0]]
    assert values["roc_auc"] == pytest.approx(sum(b > g for b, g in pairs) / len(pairs))


def test_positive_class_is_bad():
    """If all are predicted bad, the recall of bad is 1 and its precision is the share of bad."""
    values = binary_metrics(np.array([1, 0, 0, 0]), np.full(4, 0.9))
    assert (values["recall"], values["precision"], values["balanced_accuracy"]) == (1.0, 0.25, 0.5)


def test_perfect_ranking_with_poor_decisions():
    """The ROC AUC depends on the ranking alone, the balanced accuracy on the decisions."""
    values = binary_metrics(np.array([1, 1, 0, 0]), np.array([0.4, 0.3, 0.2, 0.1]))
    assert values["roc_auc"] == 1.0
    assert values["balanced_accuracy"] == 0.5


def test_threshold_changes_decisions_not_ranking():
    """The threshold changes the recall and not the ROC AUC."""
    values = binary_metrics(LABELS, PROBABILITIES, threshold=0.15)
    assert values["recall"] == 1.0
    assert values["roc_auc"] == binary_metrics(LABELS, PROBABILITIES)["roc_auc"]


@pytest.mark.parametrize(
    ("labels", "undefined"),
    [([0, 0], {"recall", "f1", "roc_auc", "balanced_accuracy"}), ([1, 1], {"roc_auc", "balanced_accuracy"})],
)
def test_undefined_metric_is_none(labels, undefined):
    """A metric that is undefined with one class is None."""
    values = binary_metrics(np.array(labels), np.array([0.2, 0.7]))
    assert {name for name, value in values.items() if value is None} == undefined


def fold(value: float | None) -> dict[str, float | None]:
    return dict.fromkeys(METRICS, value)


def test_aggregate_is_mean_and_sample_deviation():
    """Folds are aggregated by mean and sample standard deviation."""
    summary = aggregate_folds([fold(0.5), fold(0.7), fold(0.9)])
    assert set(summary) == set(METRICS)
    assert summary["f1"]["mean"] == pytest.approx(0.7)
    assert summary["f1"]["std"] == pytest.approx(math.sqrt((0.04 + 0.0 + 0.04) / 2))
    assert summary["f1"]["folds"] == 3


def test_aggregate_skips_undefined_folds():
    """A fold with an undefined metric is left out, and the number of folds is reported."""
    assert aggregate_folds([fold(0.5), fold(None), fold(0.7)])["f1"]["folds"] == 2
    assert aggregate_folds([fold(0.5), fold(None)])["f1"] == {"mean": 0.5, "std": None, "folds": 1}
    assert aggregate_folds([fold(None)])["f1"] == {"mean": None, "std": None, "folds": 0}
