"""Statistics of a comparison against known values, brute force and theory."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from tmi.training.evaluation.metrics import METRICS, binary_metrics
from tmi.training.evaluation.statistics.bootstrap import bootstrap_weights, interval, weighted_metrics
from tmi.training.evaluation.statistics.curves import precision_recall, reliability, roc
from tmi.training.evaluation.statistics.delong import delong_test
from tmi.training.evaluation.statistics.holm import holm_correction
from tmi.training.evaluation.statistics.mcnemar import mcnemar_test


def disagreeing(b: int, c: int, both: int = 7, none: int = 3) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([True] * b + [False] * c + [True] * both + [False] * none)
    second = np.array([False] * b + [True] * c + [True] * both + [False] * none)
    return first, second


# McNemar


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (3, 3, 1.0),
        (1, 7, 2 * (1 + 8) / 256),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
        (86, 150, 3.715e-05),  # the approval survey of Agresti, Categorical Data Analysis, table 10.1
    ],
)
def test_mcnemar_matches_known_p_values(b, c, p):
    """The p-value is twice the binomial tail of the discordant cases, at most 1."""
    outcome = mcnemar_test(*disagreeing(b, c))
    assert (outcome.first_only, outcome.second_only) == (b, c)
    assert outcome.p == pytest.approx(p, rel=2e-3 if b > 20 else 1e-12)


def test_mcnemar_is_symmetric_and_ignores_concordant_cases():
    """The p-value depends neither on the order of the classifiers nor on concordant cases."""
    first, second = disagreeing(2, 9)
    assert mcnemar_test(first, second).p == mcnemar_test(second, first).p
    assert mcnemar_test(*disagreeing(2, 9, both=100, none=0)).p == mcnemar_test(first, second).p


# DeLong


def brute_force(positive: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Both AUCs and the variance of their difference, by the definition over all pairs."""
    parts = []
    for s in (first, second):
        psi = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in s[~positive]] for x in s[positive]])
        parts.append((psi.mean(), psi.mean(axis=1), psi.mean(axis=0)))
    (a, a10, a01), (b, b10, b01) = parts
    s10, s01 = np.cov(a10, b10), np.cov(a01, b01)
    contrast = np.array([1.0, -1.0])
    return a, b, float(contrast @ (s10 / positive.sum() + s01 / (~positive).sum()) @ contrast)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "tied"])
def test_delong_matches_brute_force(seed, ties):
    """AUCs, standard error and p-value equal the definition over all pairs, with and without ties."""
    random = np.random.default_rng(seed)
    positive = np.arange(30) < 11
    first, second = random.normal(size=30) + positive, random.normal(size=30) + 0.5 * positive
    if ties:
        first, second = np.round(first), np.round(second)
    outcome = delong_test(positive, first, second)
    a, b, variance = brute_force(positive, first, second)
    assert (outcome.first, outcome.second) == pytest.approx((a, b), abs=1e-12)
    assert outcome.standard_error == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert outcome.p == pytest.approx(math.erfc(abs(a - b) / math.sqrt(2 * variance)), rel=1e-9)


def test_delong_of_equal_rankings_has_p_of_one():
    """A score against itself or a monotonic transform of it has p = 1."""
    random = np.random.default_rng(0)
    positive, score = np.arange(20) < 8, random.normal(size=20)
    assert delong_test(positive, score, score).p == 1.0
    assert delong_test(positive, score, np.exp(score)).p == 1.0


def test_delong_degenerate_inputs():
    """Without variance p is None; fewer than two cases of a class are an error."""
    positive = np.array([True, True, False, False])
    assert delong_test(positive, np.array([3.0, 4, 1, 2]), np.array([1.0, 2, 3, 4])).p is None
    with pytest.raises(ValueError, match="two cases of each class"):
        delong_test(np.array([True, False, False]), np.arange(3.0), np.arange(3.0))


def test_delong_has_nominal_type_1_error():
    """Under the null hypothesis the test rejects about as often as its level."""
    random = np.random.default_rng(1)
    positive = np.arange(80) < 35
    outcomes = [
        delong_test(positive, random.normal(size=80) + positive, random.normal(size=80) + positive) for _ in range(400)
    ]
    assert 0.02 <= np.mean([outcome.p < 0.05 for outcome in outcomes]) <= 0.09


# Bootstrap


def test_replicate_samples_whole_patients_by_class():
    """All cases of a patient have one multiplicity, and each class keeps its number of patients."""
    positive = np.array([1, 1, 0, 0, 0, 1, 0, 0], dtype=bool)
    patients = ["a", "a", "b", "b", "c", "d", "e", "e"]
    weights = bootstrap_weights(positive, patients, seed=3, count=200)
    for i, j in ((0, 1), (2, 3), (6, 7)):
        np.testing.assert_array_equal(weights[:, i], weights[:, j])
    assert set(weights[:, [0, 5]].sum(axis=1)) == {2.0}
    assert set(weights[:, [2, 4, 6]].sum(axis=1)) == {3.0}
    np.testing.assert_array_equal(weights, bootstrap_weights(positive, patients, seed=3, count=200))
    assert (weights != bootstrap_weights(positive, patients, seed=4, count=200)).any()


@pytest.mark.parametrize("seed", range(4))
def test_weighted_metrics_match_repeated_cases(seed):
    """Metrics with integer weights equal the metrics of the repeated cases."""
    random = np.random.default_rng(seed)
    positive = random.uniform(size=14) < 0.4
    positive[:2] = [True, False]
    probability = np.round(random.uniform(size=14), 1)
    weights = random.integers(0, 3, size=(6, 14)).astype(float)
    weights[:, :2] = 1.0
    values = weighted_metrics(positive, probability, weights)
    assert tuple(values) == METRICS
    for r, row in enumerate(weights.astype(int)):
        repeated = binary_metrics(np.repeat(positive, row).astype(int), np.repeat(probability, row))
        for name in METRICS:
            assert values[name][r] == pytest.approx(repeated[name], abs=1e-12), name


def test_interval_has_nominal_coverage():
    """Intervals of 200 cohorts of 60 cases cover the accuracy of 0.75 about as often as their level."""
    random = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        positive = np.arange(60) < 24
        correct = random.uniform(size=60) < 0.75
        probability = np.where(positive == correct, 0.9, 0.1)
        weights = bootstrap_weights(positive, [str(i) for i in range(60)], seed=seed, count=400)
        low, high = interval(weighted_metrics(positive, probability, weights)["accuracy"])
        covered += low <= 0.75 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_ignores_undefined_values():
    """The interval uses the finite values; without any it is None."""
    assert interval(np.full(9, np.nan)) is None
    low, high = interval(np.append(np.arange(101.0), np.nan))
    assert (low, high) == pytest.approx((2.5, 97.5))


# Holm


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5], [0.5]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([None, 0.02, None, 0.01], [None, 0.02, None, 0.02]),
        ([], []),
    ],
)
def test_holm_matches_known_values(p, adjusted):
    """Adjusted p-values equal known ones, and None stays None."""
    values = holm_correction(p)
    assert [v is None for v in values] == [v is None for v in adjusted]
    assert [v for v in values if v is not None] == pytest.approx([v for v in adjusted if v is not None])


# Curves


def test_roc_has_highest_sensitivity_at_each_rate():
    """With five negatives the rates 0.2, 0.4, ... lie on the grid; the tie at 0.8 is a slope, not a step."""
    positive = np.array([1, 1, 0, 1, 0, 0, 0, 1, 0, 1], dtype=bool)
    score = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    curve = roc(positive, score, np.ones((3, 10)))
    reached: dict[float, float] = {}
    for threshold in np.unique(score):
        decided = score >= threshold
        rate = round(float(decided[~positive].mean()), 9)
        reached[rate] = max(reached.get(rate, 0.0), float(decided[positive].mean()))
    assert len(reached) == 6
    for rate in (0.2, 0.4, 0.6, 0.8, 1.0):
        assert curve.y_G[np.isclose(curve.x_G, rate)][0] == pytest.approx(reached[rate])
    assert curve.y_G[np.isclose(curve.x_G, 0.1)][0] == pytest.approx((reached[0.0] + 0.4) / 2)
    np.testing.assert_array_equal(curve.low_G, curve.y_G)
    np.testing.assert_array_equal(curve.high_G, curve.y_G)


def test_curves_of_perfect_and_worst_scores():
    """A perfect score has sensitivity and precision 1 everywhere; the reversed score has sensitivity 0."""
    positive = np.arange(12) < 5
    perfect = positive + np.linspace(0, 0.1, 12)
    weights = bootstrap_weights(positive, [str(i) for i in range(12)], seed=0, count=50)
    assert (roc(positive, perfect, weights).y_G[1:] == 1.0).all()
    assert (precision_recall(positive, perfect, weights).y_G == 1.0).all()
    assert (roc(positive, -perfect, weights).y_G[:-1] == 0.0).all()


def test_precision_at_recall_uses_highest_threshold():
    """The precision at a recall is that of the highest threshold that reaches the recall."""
    positive = np.array([1, 0, 1, 0], dtype=bool)
    curve = precision_recall(positive, np.array([0.9, 0.8, 0.7, 0.6]), np.ones((2, 4)))
    assert curve.y_G[0] == curve.y_G[np.isclose(curve.x_G, 0.5)][0] == 1.0
    assert curve.y_G[-1] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("cases", "bins"), list(product((5, 23), (1, 5))))
def test_reliability_bins_partition_cases(cases, bins):
    """Every case is in one bin, and the bins average probability and label."""
    random = np.random.default_rng(cases)
    probability = random.uniform(size=cases)
    positive = random.uniform(size=cases) < probability
    curve = reliability(positive, probability, bins=bins)
    assert curve.counts_B.sum() == cases
    assert curve.probability_B @ curve.counts_B == pytest.approx(probability.sum())
    assert curve.positive_fraction_B @ curve.counts_B == pytest.approx(positive.sum())
    assert (np.diff(curve.probability_B) >= 0).all()
