"""Experiment trackers beside history.csv: losses and figures of every epoch, and the config; no case and no patient.

Local by default: both write into the run's `tracking/`, which is no part of the finished run. MLflow goes to the server
that MLFLOW_TRACKING_URI names where the user sets it.
"""

from __future__ import annotations

import os
from typing import Any

from tmi.toolkit.config.schema import Config
from tmi.toolkit.run_folder import TRACKING, FoldFolder
from tmi.toolkit.storage.serialization import to_json


def loggers(names: tuple[str, ...], files: FoldFolder, config: Config) -> list[Any]:
    """Lightning's loggers of the named trackers."""
    folder = (files.folder.parent / TRACKING).resolve()
    made: list[Any] = []
    for name in names:
        if name == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            made.append(TensorBoardLogger(folder / name, name="", version=files.folder.name))
        else:
            from lightning.pytorch.loggers import MLFlowLogger

            uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / name).as_uri()
            if uri.startswith("file:"):
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            experiment = files.folder.resolve().parent.name
            made.append(MLFlowLogger(experiment_name=experiment, run_name=files.folder.name, tracking_uri=uri))
    for logger in made:
        logger.log_hyperparams(flatten_config(to_json(config)))
    return made


def flatten_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`section.key` -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flatten_config(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value) if isinstance(value, (list, type(None))) else value
    return found


def log_epoch(trackers: list[Any], row: dict[str, Any]) -> None:
    """One epoch's figures; what is not defined is left out."""
    figures = {k: float(v) for k, v in row.items() if k != "epoch" and v is not None}
    for tracker in trackers:
        tracker.log_metrics(figures, step=row["epoch"])
