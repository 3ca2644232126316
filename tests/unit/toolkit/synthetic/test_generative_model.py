"""The law of severity: what it promises in truth.json is what its own draws show."""

from __future__ import annotations

import numpy as np
import pytest

from tmi.toolkit.errors import UsageError
from tmi.toolkit.synthetic.clinical_record import sample_blood, sample_information
from tmi.toolkit.synthetic.generative_model import (
    SIGNALS_BY_MODALITY,
    LatentSeverityModel,
    auc_ceilings,
    bayes_optimal_auc,
    empirical_auc,
    modality_subsets,
    posterior,
    sample_severity,
    sample_signals,
)

MODEL = LatentSeverityModel()


@pytest.fixture(scope="module")
def best() -> dict[str, float]:
    return auc_ceilings(MODEL, sample_information(np.random.default_rng(0), 4000))


@pytest.fixture(scope="module")
def drawn() -> tuple[dict[str, list[float]], list[bool]]:
    """Posteriors of 5,000 cases drawn as the generator draws them."""
    rng = np.random.default_rng(11)
    scores: dict[str, list[float]] = {name: [] for name in modality_subsets()}
    outcomes = []
    for _ in range(5000):
        bad = bool(rng.random() < MODEL.prevalence)
        signals = sample_signals(rng, sample_severity(rng, bad=bad, model=MODEL), MODEL)
        seen = {k: (getattr(signals, k), MODEL.precision(k)) for k in ("liver", "portal", "deposit")}
        labs = sample_blood(rng, MODEL.standardized("blood", signals.blood))
        seen["blood"] = MODEL.blood_observation(*labs.observation())
        for name, chosen in modality_subsets().items():
            scores[name].append(
                posterior([seen[s] for s in {s for m in chosen for s in SIGNALS_BY_MODALITY[m]}], MODEL)
            )
        outcomes.append(bad)
    return scores, outcomes


def test_fusing_all_three_beats_every_pair_and_every_pair_beats_its_parts(best):
    singles, pairs, whole = ({n: v for n, v in best.items() if n.count("+") == k} for k in (0, 1, 2))
    assert set(singles) == set(SIGNALS_BY_MODALITY)
    assert all(0.75 < v < 0.87 for v in singles.values())
    assert all(best[pair] > max(best[m] for m in pair.split("+")) + 0.03 for pair in pairs)
    assert whole["ct+radiomics+clinical"] > max(pairs.values()) + 0.02
    assert 0.91 < whole["ct+radiomics+clinical"] < 0.95


@pytest.mark.parametrize("name", modality_subsets())
def test_the_integrated_ceiling_is_what_a_large_draw_reaches(name, best, drawn):
    scores, outcomes = drawn
    assert empirical_auc(scores[name], outcomes) == pytest.approx(best[name], abs=0.015)


def test_the_integral_of_one_precision_agrees_with_a_monte_carlo_of_half_a_million():
    rng = np.random.default_rng(5)
    severity = rng.normal(size=500_000)
    shown = severity + rng.normal(size=severity.size) / np.sqrt(0.8)
    bad = severity > MODEL.threshold
    ranks = np.empty(shown.size)
    ranks[np.argsort(shown)] = np.arange(1, shown.size + 1)
    n = int(bad.sum())
    auc = (ranks[bad].sum() - n * (n + 1) / 2) / (n * (shown.size - n))
    assert bayes_optimal_auc(np.array([0.8]), MODEL) == pytest.approx(auc, abs=0.002)


def test_nothing_shown_gives_chance_and_everything_shown_gives_certainty():
    assert bayes_optimal_auc(np.array([1e-9]), MODEL) == pytest.approx(0.5, abs=1e-4)
    assert bayes_optimal_auc(np.array([1e6]), MODEL) == pytest.approx(1.0, abs=2e-3)


def test_a_posterior_of_70_percent_comes_true_in_70_percent(drawn):
    scores, outcomes = drawn
    value, bad = np.array(scores["ct+radiomics+clinical"]), np.array(outcomes)
    for low in (0.1, 0.4, 0.7):
        chosen = (value > low) & (value < low + 0.2)
        error = 4 * 0.5 / np.sqrt(chosen.sum())
        assert bad[chosen].mean() == pytest.approx(value[chosen].mean(), abs=error)


def test_severity_is_drawn_on_the_side_of_the_threshold_that_the_outcome_names():
    rng = np.random.default_rng(1)
    assert all(sample_severity(rng, bad=True, model=MODEL) > MODEL.threshold for _ in range(300))
    assert all(sample_severity(rng, bad=False, model=MODEL) <= MODEL.threshold for _ in range(300))


def test_standardised_signals_have_unit_variance():
    rng = np.random.default_rng(2)
    shown = [sample_signals(rng, float(z), MODEL) for z in rng.normal(size=4000)]
    for name in ("liver", "portal", "deposit", "blood"):
        values = [MODEL.standardized(name, getattr(s, name)) for s in shown]
        assert np.std(values) == pytest.approx(1.0, abs=0.05)


def test_empirical_auc_counts_ties_half_and_needs_both_classes():
    assert empirical_auc([0.2, 0.5, 0.5, 0.9], [False, False, True, True]) == 0.875
    assert empirical_auc([0.2, 0.5], [True, True]) is None


def test_laboratory_values_without_information_leave_the_prior():
    assert posterior([MODEL.blood_observation(0.0, 0.0)], MODEL) == pytest.approx(MODEL.prevalence)


@pytest.mark.parametrize("wrong", [{"prevalence": 1.0}, {"liver": 0.0}, {"blood": -1.0}])
def test_a_law_out_of_range_is_refused(wrong):
    with pytest.raises(UsageError, match="prevalence or precision out of range"):
        LatentSeverityModel(**wrong)
