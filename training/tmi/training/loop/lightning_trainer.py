"""Construction of the Lightning trainer of one fold, and of its experiment trackers.

Trackers get losses and metrics of every epoch and the config, no data of cases or patients. TensorBoard and MLflow
write into the run's `tracking/`, which is not part of the finished run. If the environment variable MLFLOW_TRACKING_URI
is set, MLflow writes to that server instead.
"""

from __future__ import annotations

import os
from typing import Any

import lightning
from lightning.pytorch.strategies import DDPStrategy

from tmi.toolkit.config.schema import Config
from tmi.toolkit.run_folder import TRACKING, FoldFolder
from tmi.toolkit.storage.serialization import to_json
from tmi.training.loop.hardware import HardwareConfig


def make_trainer(
    config: Config, hardware: HardwareConfig, files: FoldFolder, callbacks: list[Any], trackers: list[Any]
) -> lightning.Trainer:
    """Make the trainer of this process; checkpoints are saved by `BestEpochCheckpoint`, one of the callbacks."""
    distributed: dict[str, Any] = {}
    if hardware.world_size > 1:
        backend = "nccl" if hardware.accelerator == "gpu" else "gloo"
        # while the encoders are trained alone, the parameters behind them have no gradient
        strategy = DDPStrategy(process_group_backend=backend, find_unused_parameters=config.train.encoder_epochs > 0)
        distributed = {"strategy": strategy, "num_nodes": hardware.nodes,
                  "sync_batchnorm": hardware.accelerator == "gpu"}  # fmt: skip
    return lightning.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        max_epochs=config.train.epochs,
        precision="32-true" if config.train.precision == "32" else config.train.precision,
        accumulate_grad_batches=config.train.accumulate,
        callbacks=callbacks,
        logger=trackers or False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # EpochBatches already returns this rank's share
        deterministic=hardware.accelerator == "cpu",
        default_root_dir=files.folder,
        **distributed,
    )


def loggers(names: tuple[str, ...], files: FoldFolder, config: Config) -> list[Any]:
    """Make the Lightning loggers of the named trackers and log the config."""
    folder = (files.folder.parent / TRACKING).resolve()
    trackers: list[Any] = []
    for name in names:
        if name == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            trackers.append(TensorBoardLogger(folder / name, name="", version=files.folder.name))
        else:
            from lightning.pytorch.loggers import MLFlowLogger

            uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / name).as_uri()
            if uri.startswith("file:"):
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            experiment = files.folder.resolve().parent.name
            trackers.append(MLFlowLogger(experiment_name=experiment, run_name=files.folder.name, tracking_uri=uri))
    for logger in trackers:
        logger.log_hyperparams(flatten_config(to_json(config)))
    return trackers


def flatten_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to `section.key` -> value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, (list, type(None))) else value
    return flat


def log_epoch(trackers: list[Any], row: dict[str, Any]) -> None:
    """Log the metrics of one epoch; undefined ones are omitted."""
    metrics = {k: float(v) for k, v in row.items() if k != "epoch" and v is not None}
    for tracker in trackers:
        tracker.log_metrics(metrics, step=row["epoch"])
