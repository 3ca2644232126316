"""Temperature, threshold and calibration errors against known values, and the round trip of a prediction table."""

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


def simulate(count: int, *, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits with labels sampled from softmax(logits / temperature)."""
    random = np.random.default_rng(seed)
    logits = np.zeros((count, 2))
    logits[:, 1] = random.normal(0, 2, count)
    labels = (random.uniform(size=count) < 1 / (1 + np.exp(-logits[:, 1]))).astype(np.int64)
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_fit_recovers_simulated_temperature(temperature):
    """The fit recovers the temperature by which calibrated logits were multiplied."""
    assert fit_temperature(*simulate(20_000, temperature=temperature)) == pytest.approx(temperature, rel=0.05)


def test_fitted_temperature_is_stationary_point():
    """For two cases of margin m, one correct and one not, T is the root of the derivative of the cost."""
    logits, labels = np.array([[0.0, 4.0], [0.0, 4.0]]), np.array([1, 0])

    def slope(log_t: float) -> float:  # of 2 log(1 + e^(m/T)) - m/T + (log T)^2 / 2 over log T
        margin = 4.0 * np.exp(-log_t)
        return margin - 2 * margin / (1 + np.exp(-margin)) + log_t

    assert fit_temperature(logits, labels) == pytest.approx(np.exp(brentq(slope, 0.01, 3)), rel=1e-6)


def test_separated_cases_do_not_drive_temperature_to_zero():
    """The regularisation keeps T away from 0 on a few separated cases."""
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
def test_threshold_maximises_balanced_accuracy(probability, labels, threshold):
    """The threshold has the highest balanced accuracy and, among ties, is nearest to 0.5."""
    fitted = fit_threshold(np.array(probability), np.array(labels))
    if labels == [0, 1, 0, 1]:
        assert fitted == pytest.approx(0.2)  # 0.2 and 0.925 have 0.75 both; 0.2 is nearer to 0.5
    else:
        assert fitted == pytest.approx(threshold)


def test_calibration_metrics_match_hand_computed_values():
    """Brier score, log loss and expected calibration error against hand-computed values."""
    errors = calibration_metrics(np.array([1, 0, 1, 1]), np.array([0.85, 0.25, 0.65, 0.82]))
    assert errors["brier"] == pytest.approx((0.15**2 + 0.25**2 + 0.35**2 + 0.18**2) / 4)
    assert errors["log_loss"] == pytest.approx(-np.log([0.85, 0.75, 0.65, 0.82]).mean())
    # bins: 0.85 and 0.82 share one, 0.25 and 0.65 have one each
    assert errors["ece"] == pytest.approx((abs(2 - 1.67) + 0.25 + 0.35) / 4)
    assert calibration_metrics(np.array([1, 0]), np.array([1.0, 0.0])) == pytest.approx(
        {"ece": 0, "brier": 0, "log_loss": 0}, abs=1e-12
    )


def test_calibration_corrects_overconfidence_on_new_cases():
    """Calibration halves the error of an overconfident model on cases that it was not fitted on."""
    fitted = calibrate(*simulate(400, temperature=4.0, seed=1))
    logits, labels = simulate(400, temperature=4.0, seed=2)
    before = calibration_metrics(labels, positive_class_probability(logits))
    after = calibration_metrics(labels, positive_class_probability(logits, fitted.temperature))
    assert after["ece"] < 0.5 * before["ece"]
    assert after["log_loss"] < before["log_loss"]
    assert fitted.fitted_on == 400


def test_released_preset_is_not_calibrated():
    """The preset `released`, without inner validation split and with a sigmoid head, is not calibrated."""
    assert is_calibrated(tiny())
    assert not is_calibrated(released())


def test_prediction_table_round_trip_is_exact(tmp_path):
    """A table of predictions is read back bit-identically."""
    logits, labels = simulate(9, temperature=1.7)
    table = Predictions(case_ids=tuple(f"C{i}" for i in range(9)), labels_N=labels, logits_NK=logits)
    write_predictions(tmp_path / "p.csv", table, Calibration(temperature=2.0))
    restored = read_predictions(tmp_path / "p.csv")
    assert restored.case_ids == table.case_ids
    np.testing.assert_array_equal(restored.logits_NK, logits)
    np.testing.assert_array_equal(restored.labels_N, labels)
