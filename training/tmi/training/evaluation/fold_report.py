"""What a finished fold says of its validation and held-out cases; the same files for every system."""

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
    """Fit temperature and threshold on the validation cases, write both tables and, last, metrics.json.

    Args:
        data: the fold's data.
        files: where.
        config: settings of the run.
        validation: what the saved model says of the validation cases.
        test: and of the held-out ones.
        facts: what metrics.json says of the training: picked epoch, validation loss, epochs.
    """
    split = data.split
    calibration = calibrate(validation.logits_NK, validation.labels_N) if is_calibrated(config) else Calibration()
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
