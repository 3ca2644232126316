"""Training of one fold of a scikit-learn model: one call of `fit`, the same files as a network's fold.

The model is fitted on the inner training part of the fold alone, like the weights of the networks; the validation part
is not used for fitting.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from sklearn.metrics import log_loss

from tmi.toolkit.config.schema import Config
from tmi.toolkit.run_folder import FoldFolder
from tmi.toolkit.storage.atomic_files import write_text
from tmi.toolkit.storage.csv_files import csv_text
from tmi.training.data.dataset import CohortArrays
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.evaluation.calibration import positive_class_probability
from tmi.training.evaluation.fold_inference import estimator_features, predict_estimator
from tmi.training.evaluation.fold_report import write_fold_report
from tmi.training.loop.checkpointing import HISTORY_COLUMNS
from tmi.training.systems import sklearn_arrays as estimator_arrays
from tmi.training.systems.factory import build_model
from tmi.training.systems.radiomics_pipeline import fit


def fit_sklearn_fold(
    arrays: CohortArrays,
    data: FoldDataset,
    files: FoldFolder,
    config: Config,
    epoch_callback: Callable[[int, float, float], None],
) -> None:
    """Fit the model, save it as arrays, and predict with the model read back from the file.

    Args:
        arrays: the cohort.
        data: data of the fold.
        files: files of the fold.
        config: settings of the run.
        epoch_callback: called once, with the number of the last epoch.
    """
    split = data.split
    model = fit(build_model(config), estimator_features(config, arrays, split.train), data.labels(split.train))
    part = files.model.with_name("part.safetensors")
    estimator_arrays.save(estimator_arrays.as_arrays(model), part)
    os.replace(part, files.model)
    stored = estimator_arrays.load(files.model)
    train, validation, test = (
        predict_estimator(config, stored, arrays, ids) for ids in (split.train, split.validation, split.test)
    )
    losses = [
        float(log_loss(p.labels_N, positive_class_probability(p.logits_NK), labels=[0, 1])) for p in (train, validation)
    ]
    metrics = validation.metrics()
    row = (0, *losses, metrics["roc_auc"], metrics["balanced_accuracy"], metrics["accuracy"], 1)
    write_text(files.history, csv_text(HISTORY_COLUMNS, [row]))
    epoch_callback(config.train.epochs - 1, *losses)
    write_fold_report(
        data,
        files,
        config,
        validation=validation,
        test=test,
        facts={
            "picked_epoch": 0,
            "validation_loss": losses[1],
            "epochs": 1,
            "selected_features": estimator_arrays.selected_features(stored),
        },
    )
