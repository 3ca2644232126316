"""Figures of a fold and of a run; the positive class is bad prognosis."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tmi.training.evaluation.metrics import METRICS, aggregate_folds, binary_metrics

LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 1])
PROBABILITIES = np.array([0.9, 0.5, 0.2, 0.6, 0.4, 0.1, 0.3, 0.8])


def test_the_figures_are_what_a_hand_counts():
    """Decided bad: rows 0, 1, 3, 7 (0.5 counts): 3 true, 1 false positive, 1 missed, 3 true negatives."""
    figures = binary_metrics(LABELS, PROBABILITIES)
    assert tuple(figures) == METRICS
    assert figures["accuracy"] == pytest.approx(6 / 8)
    assert figures["precision"] == pytest.approx(3 / 4)
    assert figures["recall"] == pytest.approx(3 / 4)
    assert figures["f1"] == pytest.approx(3 / 4)
    assert figures["balanced_accuracy"] == pytest.approx((3 / 4 + 3 / 4) / 2)
    pairs = [(b, g) for b in PROBABILITIES[LABELS == 1] for g in PROBABILITIES[LABELS == 0]]
    assert figures["roc_auc"] == pytest.approx(sum(b > g for b, g in pairs) / len(pairs))


def test_the_positive_class_is_bad():
    """All decided bad: recall of bad is 1 and its precision the share of bad."""
    figures = binary_metrics(np.array([1, 0, 0, 0]), np.full(4, 0.9))
    assert (figures["recall"], figures["precision"], figures["balanced_accuracy"]) == (1.0, 0.25, 0.5)


def test_a_ranking_can_be_perfect_while_the_decisions_are_not():
    figures = binary_metrics(np.array([1, 1, 0, 0]), np.array([0.4, 0.3, 0.2, 0.1]))
    assert figures["roc_auc"] == 1.0
    assert figures["balanced_accuracy"] == 0.5


def test_the_threshold_moves_the_decisions_and_not_the_ranking():
    figures = binary_metrics(LABELS, PROBABILITIES, threshold=0.15)
    assert figures["recall"] == 1.0
    assert figures["roc_auc"] == binary_metrics(LABELS, PROBABILITIES)["roc_auc"]


@pytest.mark.parametrize(
    ("labels", "undefined"),
    [([0, 0], {"recall", "f1", "roc_auc", "balanced_accuracy"}), ([1, 1], {"roc_auc", "balanced_accuracy"})],
)
def test_a_figure_that_one_class_alone_does_not_define_is_none(labels, undefined):
    figures = binary_metrics(np.array(labels), np.array([0.2, 0.7]))
    assert {name for name, value in figures.items() if value is None} == undefined


def fold(value: float | None) -> dict[str, float | None]:
    return dict.fromkeys(METRICS, value)


def test_mean_and_sample_standard_deviation_run_over_the_folds():
    summary = aggregate_folds([fold(0.5), fold(0.7), fold(0.9)])
    assert set(summary) == set(METRICS)
    assert summary["f1"]["mean"] == pytest.approx(0.7)
    assert summary["f1"]["std"] == pytest.approx(math.sqrt((0.04 + 0.0 + 0.04) / 2))
    assert summary["f1"]["folds"] == 3


def test_a_fold_that_does_not_define_a_figure_is_left_out_and_counted():
    assert aggregate_folds([fold(0.5), fold(None), fold(0.7)])["f1"]["folds"] == 2
    assert aggregate_folds([fold(0.5), fold(None)])["f1"] == {"mean": 0.5, "std": None, "folds": 1}
    assert aggregate_folds([fold(None)])["f1"] == {"mean": None, "std": None, "folds": 0}
