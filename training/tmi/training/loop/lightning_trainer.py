"""Construction of the Lightning trainer of one fold."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.strategies import DDPStrategy

from tmi.toolkit.config.schema import Config
from tmi.toolkit.run_folder import FoldFolder
from tmi.training.loop.hardware import HardwareConfig


def make_trainer(
    config: Config, hardware: HardwareConfig, files: FoldFolder, callbacks: list[Any], trackers: list[Any]
) -> lightning.Trainer:
    """Make the trainer of this process; checkpoints are saved by `BestEpochCheckpoint`, one of the callbacks."""
    distributed: dict[str, Any] = {}
    if hardware.world_size > 1:
        backend = "nccl" if hardware.accelerator == "gpu" else "gloo"
        distributed = {"strategy": DDPStrategy(process_group_backend=backend), "num_nodes": hardware.nodes,
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
