"""A fold of a system that scikit-learn fits: one call instead of epochs, the same files in the fold's folder.

It is fitted on the fold's inner training part alone, as the networks' weights are, and so leaves the validation part
as untouched as the held-out one.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from sklearn.metrics import log_loss

from tmi.toolkit.config.schema import Config
from tmi.toolkit.run_folder import FoldFolder
from tmi.toolkit.storage.atomic_files import write_text
from tmi.training.data.dataset import CohortArrays
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.evaluation.calibration import positive_class_probability
from tmi.training.evaluation.fold_inference import estimator_features, predict_estimator
from tmi.training.evaluation.fold_report import write_fold_report
from tmi.training.systems import sklearn_arrays as estimator_arrays
from tmi.training.systems.factory import build_model
from tmi.training.systems.radiomics_pipeline import fit

HISTORY_HEADER = "epoch,train_loss,validation_loss,validation_roc_auc,validation_balanced_accuracy,picked\n"


def fit_sklearn_fold(
    arrays: CohortArrays,
    data: FoldDataset,
    files: FoldFolder,
    config: Config,
    epoch_callback: Callable[[int, float, float], None],
) -> None:
    """Fit, write the model as arrays, and predict the held-out cases from what was written."""
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
    judged = validation.metrics()
    row = (0, *losses, judged["roc_auc"], judged["balanced_accuracy"], 1)
    write_text(files.history, HISTORY_HEADER + ",".join("" if v is None else str(v) for v in row) + "\n")
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
            "selected_features": len(stored["selected"]),
        },
    )
