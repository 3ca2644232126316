"""Writes the prediction tables and metrics.json of a finished fold; the files are the same for every model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tmi.toolkit.config.schema import Config
from tmi.toolkit.run_folder import FoldFolder
from tmi.toolkit.storage.atomic_files import write_json
from tmi.toolkit.storage.serialization import to_json
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.evaluation.calibration import Calibration, calibrate, is_calibrated
from tmi.training.evaluation.prediction_tables import Predictions, write_predictions


def write_fold_report(
    data: FoldDataset,
    files: FoldFolder,
    config: Config,
    *,
    validation: Predictions,
    test: Predictions,
    facts: Mapping[str, Any],
) -> None:
    """Fit temperature and threshold on the validation cases, then write both tables and, last, metrics.json.

    Args:
        data: data of the fold.
        files: paths of the fold's files.
        config: settings of the run.
        validation: predictions of the saved model for the validation cases.
        test: predictions of the saved model for the held-out cases.
        facts: further entries of metrics.json on the training: picked epoch, validation loss, epochs.
    """
    split = data.split
    calibration = fitted_calibration(config, validation)
    write_predictions(files.validation, validation, calibration)
    write_predictions(files.predictions, test, calibration)
    write_json(
        files.metrics,
        {
            "fold": split.fold,
            **facts,
            "cases": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
            "truncated_texts": data.truncated_texts,
            "test": test.metrics(),
            "test_at_threshold": test.metrics(calibration),
            "calibration": {
                **to_json(calibration),
                "validation": validation.calibration_metrics(calibration),
                "test": test.calibration_metrics(calibration),
            },
        },
    )


def fitted_calibration(config: Config, validation: Predictions) -> Calibration:
    """Temperature and threshold of a fold from its inner validation predictions; none if the run is not calibrated."""
    return calibrate(validation.logits_NK, validation.labels_N) if is_calibrated(config) else Calibration()
