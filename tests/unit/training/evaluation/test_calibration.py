"""Temperature and threshold against hand-made cases, and that nothing but the inner validation split reaches them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from tmi.toolkit.config.presets import released, tiny
from tmi.training.evaluation.calibration import (
    Calibration,
    calibrate,
    calibration_metrics,
    fit_temperature,
    fit_threshold,
    is_calibrated,
    positive_class_probability,
)
from tmi.training.evaluation.prediction_tables import Predictions, read_predictions, write_predictions


def made(count: int, *, stretched: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels are drawn from softmax(logits / stretched)."""
    random = np.random.default_rng(seed)
    logits = np.zeros((count, 2))
    logits[:, 1] = random.normal(0, 2, count)
    labels = (random.uniform(size=count) < 1 / (1 + np.exp(-logits[:, 1]))).astype(np.int64)
    return logits * stretched, labels


@pytest.mark.parametrize("stretched", [0.4, 1.0, 3.0])
def test_the_temperature_that_stretched_the_logits_is_found(stretched):
    assert fit_temperature(*made(20_000, stretched=stretched)) == pytest.approx(stretched, rel=0.05)


def test_the_temperature_is_where_the_slope_of_its_cost_is_zero():
    """Two cases of one margin m, one right and one wrong: the slope by hand is zero at T = root of its equation."""
    logits, labels = np.array([[0.0, 4.0], [0.0, 4.0]]), np.array([1, 0])

    def slope(log_t: float) -> float:  # of 2 log(1 + e^(m/T)) - m/T + (log T)^2 / 2 over log T
        margin = 4.0 * np.exp(-log_t)
        return margin - 2 * margin / (1 + np.exp(-margin)) + log_t

    assert fit_temperature(logits, labels) == pytest.approx(np.exp(brentq(slope, 0.01, 3)), rel=1e-6)


def test_a_few_cases_that_happen_to_be_separated_do_not_make_the_model_sure():
    logits, labels = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), np.array([1, 0, 1, 0])
    assert 0.3 < fit_temperature(logits, labels) < 1.0


@pytest.mark.parametrize(
    ("probability", "labels", "threshold"),
    [
        ([0.1, 0.2, 0.3, 0.35], [0, 0, 1, 1], 0.25),
        ([0.6, 0.7, 0.8, 0.9], [0, 0, 1, 1], 0.75),
        ([0.2, 0.4, 0.6, 0.8], [0, 0, 1, 1], 0.5),
        ([0.2, 0.2, 0.2, 0.2], [0, 0, 1, 1], 0.5),
        ([0.1, 0.3, 0.9, 0.95], [0, 1, 0, 1], 0.925),
        ([0.3, 0.9], [1, 1], 0.5),
    ],
)
def test_the_threshold_has_the_highest_balanced_accuracy_and_is_the_nearest_to_a_half(probability, labels, threshold):
    found = fit_threshold(np.array(probability), np.array(labels))
    if labels == [0, 1, 0, 1]:
        assert found == pytest.approx(0.2)  # 0.2 and 0.925 have 0.75 both; 0.2 is nearer to 0.5
    else:
        assert found == pytest.approx(threshold)


def test_the_errors_of_the_probabilities_are_those_computed_by_hand():
    figures = calibration_metrics(np.array([1, 0, 1, 1]), np.array([0.85, 0.25, 0.65, 0.82]))
    assert figures["brier"] == pytest.approx((0.15**2 + 0.25**2 + 0.35**2 + 0.18**2) / 4)
    assert figures["log_loss"] == pytest.approx(-np.log([0.85, 0.75, 0.65, 0.82]).mean())
    # bins: 0.85 and 0.82 together, 0.25 and 0.65 alone
    assert figures["ece"] == pytest.approx((abs(2 - 1.67) + 0.25 + 0.35) / 4)
    assert calibration_metrics(np.array([1, 0]), np.array([1.0, 0.0])) == pytest.approx(
        {"ece": 0, "brier": 0, "log_loss": 0}, abs=1e-12
    )


def test_calibrating_mends_an_overconfident_model_on_cases_it_was_not_fitted_on():
    fitted = calibrate(*made(400, stretched=4.0, seed=1))
    logits, labels = made(400, stretched=4.0, seed=2)
    before = calibration_metrics(labels, positive_class_probability(logits))
    after = calibration_metrics(labels, positive_class_probability(logits, fitted.temperature))
    assert after["ece"] < 0.5 * before["ece"]
    assert after["log_loss"] < before["log_loss"]
    assert fitted.fitted_on == 400


def test_a_protocol_without_an_inner_split_and_a_sigmoid_head_are_not_calibrated():
    assert is_calibrated(tiny())
    assert not is_calibrated(released())


def test_a_table_of_predictions_comes_back_bit_for_bit(tmp_path):
    logits, labels = made(9, stretched=1.7)
    table = Predictions(case_ids=tuple(f"C{i}" for i in range(9)), labels_N=labels, logits_NK=logits)
    write_predictions(tmp_path / "p.csv", table, Calibration(temperature=2.0))
    back = read_predictions(tmp_path / "p.csv")
    assert back.case_ids == table.case_ids
    np.testing.assert_array_equal(back.logits_NK, logits)
    np.testing.assert_array_equal(back.labels_N, labels)
