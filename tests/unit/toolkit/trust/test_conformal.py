"""Prediction sets: coverage within its binomial interval, and the limit of few calibration cases."""

from __future__ import annotations

import numpy as np
import pytest

from tmi.toolkit.trust import can_be_given, class_scores, largest_coverage, prediction_set, set_sentence, set_text

CLASSES = ("good", "bad")


def drawn(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits [N, 2] of cases that a model tells apart with an AUC of about 0.8."""
    labels = np.arange(count) % 2
    margin = rng.normal(size=count) + 1.2 * (2 * labels - 1)
    return labels, np.stack([-margin / 2, margin / 2], axis=1)


def calibration(labels: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.sort(class_scores(logits)[labels == k, k]) for k, name in enumerate(CLASSES)}


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_coverage_on_twenty_cohorts(coverage):
    """The share of cases whose set holds their class is the coverage, in either class, over 20 drawn cohorts."""
    covered = {name: [] for name in CLASSES}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        fold = calibration(*drawn(rng, 1000))
        labels, logits = drawn(rng, 100)
        for label, row in zip(labels, logits, strict=True):
            found = prediction_set([fold], row[None], classes=CLASSES, coverage=coverage)
            covered[CLASSES[label]].append(CLASSES[label] in found.classes)
    for hits in covered.values():
        n = len(hits)
        margin = 3.3 * np.sqrt(coverage * (1 - coverage) * (1 / n + 1 / (20 * 500)))  # 99.9% of the binomial
        assert abs(np.mean(hits) - coverage) <= margin


@pytest.mark.parametrize(("coverage", "cases"), [(0.8, 4), (0.9, 9), (0.95, 19)])
def test_few_cases_limit_the_coverage(coverage, cases):
    """With n calibration cases of a class n / (n + 1) can just be given, and with one less nothing is made up."""
    assert largest_coverage(cases) == pytest.approx(coverage)
    assert can_be_given(coverage, cases)
    assert not can_be_given(coverage, cases - 1)
    few = {"good": np.arange(cases - 1.0), "bad": np.arange(50.0)}
    found = prediction_set([few], np.zeros((1, 2)), classes=CLASSES, coverage=coverage)
    assert found.classes is None
    assert set_text(found) == "cannot be given"
    assert f"{cases - 1} of good, 50 of bad" in set_sentence(found)


def test_class_is_left_out_at_the_limit():
    """With n cases at coverage n / (n + 1) the set is empty for a case that is stranger than all of them."""
    fold = {name: np.zeros(9) for name in CLASSES}
    sets = [
        prediction_set([fold], np.array([logits]), classes=CLASSES, coverage=0.9).classes
        for logits in ([0.0, 0.0], [5.0, 0.0], [0.0, 5.0])
    ]
    assert sets == [CLASSES, ("good",), ("bad",)]


def test_folds_are_pooled():
    """Each fold scores the case itself; p = (1 + scores at least the case's in all folds) / (n + 1)."""
    folds = [{"good": np.array([0.0, 2.0]), "bad": np.array([0.0])}, {"good": np.array([-3.0]), "bad": np.array([9.0])}]
    found = prediction_set(folds, np.array([[0.0, 1.0], [2.0, 0.0]]), classes=CLASSES, coverage=0.5)
    assert found.cases == {"good": 3, "bad": 2}
    assert found.p_values == pytest.approx({"good": (1 + 1 + 0) / 4, "bad": (1 + 1 + 1) / 3})
