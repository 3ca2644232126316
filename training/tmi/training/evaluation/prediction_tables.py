"""Predictions of a fold: the CSV tables of a run folder and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tmi.toolkit.config.schema import CLASSES
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.storage.atomic_files import write_text
from tmi.toolkit.storage.bounded_files import TABLE_BYTES, read_text
from tmi.toolkit.storage.csv_files import csv_records, csv_text
from tmi.training.evaluation.calibration import Calibration, calibration_metrics, positive_class_probability
from tmi.training.evaluation.metrics import binary_metrics

COLUMNS = ("case_id", "label", "probability_bad", "calibrated_bad", *(f"logit_{name}" for name in CLASSES))
"""Columns of predictions.csv and validation.csv; floats are written without loss."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of a fold's model for N cases."""

    case_ids: tuple[str, ...]
    """Ids of the cases."""
    labels_N: Int[np.ndarray, " N"]
    """Class indices."""
    logits_NK: Float[np.ndarray, "N K"]
    """Logits; float64."""

    @property
    def probability_N(self) -> Float[np.ndarray, " N"]:
        """Uncalibrated probability of the positive class."""
        return positive_class_probability(self.logits_NK)

    def calibration_metrics(self, calibration: Calibration) -> dict[str, Any]:
        """Errors of the uncalibrated (`raw`) and the calibrated probabilities."""
        raw, calibrated = (
            positive_class_probability(self.logits_NK),
            positive_class_probability(self.logits_NK, calibration.temperature),
        )
        return {
            "raw": calibration_metrics(self.labels_N, raw),
            "calibrated": calibration_metrics(self.labels_N, calibrated),
        }

    def metrics(self, calibration: Calibration | None = None) -> dict[str, float | None]:
        """Metrics of the decisions: uncalibrated at 0.5, or calibrated at the fitted threshold."""
        if calibration is None:
            return binary_metrics(self.labels_N, positive_class_probability(self.logits_NK))
        calibrated = positive_class_probability(self.logits_NK, calibration.temperature)
        return binary_metrics(self.labels_N, calibrated, threshold=calibration.threshold)


def write_predictions(path: Path, predictions: Predictions, calibration: Calibration) -> None:
    """Write a table of predictions."""
    raw = positive_class_probability(predictions.logits_NK)
    calibrated = positive_class_probability(predictions.logits_NK, calibration.temperature)
    columns = zip(predictions.case_ids, predictions.labels_N, raw, calibrated, predictions.logits_NK, strict=True)
    rows = ((case_id, CLASSES[label], *map(float, (p, q, *logits))) for case_id, label, p, q, logits in columns)
    write_text(path, csv_text(COLUMNS, rows))


def read_predictions(path: Path) -> Predictions:
    """Read a table of predictions.

    Raises:
        DamagedError: the file is missing or malformed.
    """
    try:
        rows = csv_records(read_text(path, max_bytes=TABLE_BYTES))
        return Predictions(
            case_ids=tuple(row["case_id"] for row in rows),
            labels_N=np.array([CLASSES.index(row["label"]) for row in rows], dtype=np.int64),
            logits_NK=np.array([[float(row[c]) for c in COLUMNS[4:]] for row in rows]).reshape(-1, len(CLASSES)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"run: {path} is missing or malformed", fix="restore it, or train the run again") from error


def pool_folds(tables: Sequence[Predictions], temperatures: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities and labels of several folds, concatenated."""
    probability = [
        positive_class_probability(t.logits_NK, value) for t, value in zip(tables, temperatures, strict=True)
    ]
    return np.concatenate(probability), np.concatenate([t.labels_N for t in tables])
