"""Training of one fold: fit the network, select the best epoch, write the fold's files; resumes from a checkpoint."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import lightning
import torch
from lightning.pytorch.utilities.warnings import PossibleUserWarning

from tmi.toolkit.compute.silence import Ignored, quiet
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError
from tmi.toolkit.models.registry import configured_model
from tmi.toolkit.run_folder import FoldFolder, FoldSplit
from tmi.toolkit.storage.bounded_files import WEIGHTS_BYTES
from tmi.training.data.augmentation import write_augmentation_log
from tmi.training.data.dataset import CohortArrays
from tmi.training.data.fold_dataset import EpochBatches, FoldDataset
from tmi.training.evaluation.fold_inference import load_fold_network, predict_cases
from tmi.training.evaluation.fold_report import fitted_calibration, write_fold_report
from tmi.training.evaluation.trust_fitting import write_trust
from tmi.training.loop.checkpointing import BestEpochCheckpoint
from tmi.training.loop.distributed import MappedArray, restore_mapped_ct, spawn_ranks, strip_mapped_ct
from tmi.training.loop.freezing import FrozenFeatures, bypass_encoder, cacheable_encoders, encoder_cache_key
from tmi.training.loop.hardware import HardwareConfig
from tmi.training.loop.lightning_module import FoldModule
from tmi.training.loop.lightning_trainer import loggers, make_trainer
from tmi.training.loop.machine import record_machine
from tmi.training.loop.memory_estimate import GIB, estimate_memory, is_out_of_memory
from tmi.training.loop.memory_fit import effective_config
from tmi.training.loop.run_spec import FoldContext
from tmi.training.pretrained.weight_file import require_bounded_archive
from tmi.training.systems.factory import encoders

CHECKPOINT_BYTES = 4 * WEIGHTS_BYTES
"""Limit on a checkpoint: the optimiser keeps two values for each weight."""
EpochCallback = Callable[[int, float, float], None]
"""Called after each epoch with its number, training loss and validation loss."""
StepCallback = Callable[[int, int, int], None]
"""Called after each batch with the number of the epoch, of its batches that are done, and of all its batches."""


def train_fold(
    context: FoldContext,
    split: FoldSplit,
    files: FoldFolder,
    *,
    epoch_callback: EpochCallback,
    step_callback: StepCallback = lambda epoch, done, total: None,
    features: FrozenFeatures | None = None,
) -> None:
    """Train a fold and write its files; continue from its checkpoint if one exists.

    Args:
        context: the cohort, settings, weights and hardware. Nodes other than the first write nothing.
        split: the fold.
        files: files of the fold.
        epoch_callback: called after each epoch.
        step_callback: called after each batch of a network.
        features: outputs of frozen encoders, shared between folds.

    Raises:
        KeyboardInterrupt: Ctrl-C; the checkpoint of the last complete epoch exists.
        DamagedError: the checkpoint cannot be read.
        UsageError: the training diverged, or there are too few training cases for the number of processes.
        UnavailableError: a device's memory is too small.
    """
    arrays, config, hardware = context.arrays, context.config, context.hardware
    if hardware.world_size > 1 and len(split.train) < hardware.world_size * hardware.min_cases_per_process(config):
        raise UsageError(
            f"fold {split.fold} trains on {len(split.train)} cases, too few for {hardware.world_size} processes",
            fix="use fewer devices",
        )
    data = FoldDataset(arrays, split, config, tokenizer=context.tokenizer)
    if hardware.node_rank == 0:
        data.save(files.scaler, files.tokenizer)
        record_machine(files.machine, hardware)
    if configured_model(config).trainer == "sklearn":
        from tmi.training.loop.sklearn_fold import fit_sklearn_fold

        fit_sklearn_fold(arrays, data, files, config, epoch_callback)
        return
    checkpointing = BestEpochCheckpoint(data, files, epoch_callback, step_callback)
    if hardware.world_size == 1:
        _fit(context, data, checkpointing, files, features)
    else:
        small, mapped = strip_mapped_ct(arrays)
        sent = replace(context, arrays=small, tokenizer=data.tokenizer)
        with spawn_ranks(hardware, split.fold, _rank, sent, mapped, split, files):
            _fit(context, data, checkpointing, files, features)
    if hardware.node_rank > 0:
        return
    # copied and renamed, so that the model file is either complete or absent
    shutil.copyfile(checkpointing.best_weights, part := files.model.with_name("part.safetensors"))
    os.replace(part, files.model)
    if config.augmentation.active:
        records = (
            (epoch, case_id, data.augmentation_params(case_id, epoch))
            for epoch in range(config.train.epochs)
            for case_id in split.train
        )
        write_augmentation_log(files.augmentation, records)
    # a new dataset without `features`: the saved model is evaluated on the original inputs
    _report_fold(arrays, FoldDataset(arrays, split, config, tokenizer=data.tokenizer), files, checkpointing)
    shutil.rmtree(files.checkpoint.parent)


def _rank(context: FoldContext, mapped: MappedArray | None, split: FoldSplit, files: FoldFolder) -> None:
    """Entry point of ranks other than 0: train without validating or writing files."""
    arrays = restore_mapped_ct(context.arrays, mapped)
    data = FoldDataset(arrays, split, context.config, tokenizer=context.tokenizer)
    _fit(context, data, BestEpochCheckpoint(data, files, lambda *_: None), files, None)


def _fit(
    context: FoldContext,
    data: FoldDataset,
    checkpointing: BestEpochCheckpoint,
    files: FoldFolder,
    features: FrozenFeatures | None,
) -> None:
    """Train to the last epoch in this process, which may be one of several ranks."""
    config, hardware, initial = context.config, context.hardware, context.initial
    module = FoldModule(config, fold=data.split.fold, checkpointing=hardware.checkpointing)
    if initial is not None:
        initial.load_into(module.network)
    with _quiet(), _out_of_memory_as_error(config, hardware, data.split.fold):
        _precompute_frozen_features(module, data, features or FrozenFeatures(), hardware)
        trackers = loggers(hardware.track, files, config) if int(os.environ.get("LOCAL_RANK", "0")) == 0 else []
        trainer = make_trainer(config, hardware, files, [checkpointing], trackers)
        rank, world_size = trainer.global_rank, hardware.world_size
        # a batch of one cannot train BatchNorm, and every rank needs a share of every batch
        min_cases = max(2, world_size * hardware.min_cases_per_process(config))
        batches = EpochBatches(
            data, lambda: trainer.current_epoch, rank=rank, world_size=world_size, min_cases=min_cases
        )
        _run(trainer, module, batches, files)


def _precompute_frozen_features(
    module: FoldModule, data: FoldDataset, features: FrozenFeatures, hardware: HardwareConfig
) -> None:
    """Compute the outputs of fully frozen encoders once and use them in place of the encoders' inputs."""
    encoder_of = encoders(module.network)
    averaged = encoders(module.evaluated)
    device = torch.device("cuda" if hardware.accelerator == "gpu" else "cpu")
    rows = [int(row) for row in data.rows((*data.split.train, *data.split.validation))]
    for name in cacheable_encoders(module.network, data.config):
        encoder = encoder_of[name].to(device)
        if name == "ct":
            key = encoder_cache_key(encoder, name)
            outputs = features.get_or_compute(key, encoder, rows, lambda row: (data.volumes([row]),), device)
        else:
            key = encoder_cache_key(encoder, name, *data.tokenizer.tokens)
            outputs = features.get_or_compute(key, encoder, rows, lambda row: data.tokens([row]), device)
        data.features[name] = outputs
        bypass_encoder(encoder)
        if averaged[name] is not encoder:
            bypass_encoder(averaged[name])


def _run(trainer: lightning.Trainer, module: FoldModule, batches: EpochBatches, files: FoldFolder) -> None:
    resume = _resume_point(files)
    try:
        trainer.fit(module, batches, ckpt_path=resume, weights_only=True)
    except SystemExit as stop:
        if trainer.interrupted:  # Lightning turns Ctrl-C into exit(1)
            raise KeyboardInterrupt from stop
        raise
    except (RuntimeError, KeyError, EOFError, ValueError, UnpicklingError) as error:
        # no step was taken, so the error comes from loading the checkpoint
        if (
            resume is not None
            and trainer.current_epoch == 0
            and trainer.global_step == 0
            and not is_out_of_memory(error)
        ):
            raise _damaged_checkpoint(files) from error
        raise
    if trainer.interrupted:
        raise KeyboardInterrupt


def _resume_point(files: FoldFolder) -> Path | None:
    """Checkpoint to continue from; None if there is none.

    Raises:
        DamagedError: it is no regular file, cannot be read, or is larger than a checkpoint can be.
    """
    if not os.path.lexists(files.checkpoint):
        return None
    try:
        require_bounded_archive(files.checkpoint, max_bytes=CHECKPOINT_BYTES)
    except (OSError, ValueError) as error:
        raise _damaged_checkpoint(files) from error
    return files.checkpoint


def _damaged_checkpoint(files: FoldFolder) -> DamagedError:
    return DamagedError(
        f"checkpoint {files.checkpoint} cannot be read",
        fix="delete the fold's folder and resume again: the fold then starts from the beginning",
    )


@contextmanager
def _out_of_memory_as_error(config: Config, hardware: HardwareConfig, fold: int) -> Iterator[None]:
    """Turn an out-of-memory error into an `UnavailableError` with the estimated memory and ways to reduce it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        config = effective_config(config, hardware)
        estimate = estimate_memory(config, devices=hardware.world_size, accelerator=hardware.accelerator)
        raise UnavailableError(
            f"fold {fold}: the {hardware.accelerator}'s memory is too small for a training step, which needs about "
            f"{estimate.total / GIB:.1f} GiB",
            fix="--precision bf16-mixed, --set train.activation_checkpointing=true, --freeze ct, or a smaller "
            "train.batch_size with train.accumulate; `tmi train --plan` prints the memory that each one needs",
        ) from error


def _report_fold(
    arrays: CohortArrays, data: FoldDataset, files: FoldFolder, checkpointing: BestEpochCheckpoint
) -> None:
    """Write trust statistics, predictions, calibration and metrics of the saved model, which is read back."""
    config, split = data.config, data.split
    network = load_fold_network(config, files)
    validation, test = predict_cases(network, data, split.validation), predict_cases(network, data, split.test)
    calibration = fitted_calibration(config, validation)
    write_trust(network, arrays, data, files, validation=validation, test=test, temperature=calibration.temperature)
    write_fold_report(
        data,
        files,
        config,
        validation=validation,
        test=test,
        facts={
            "picked_epoch": checkpointing.best_epoch,
            "validation_loss": checkpointing.best_loss,
            "epochs": config.train.epochs,
        },
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's log lines and its hints on data loaders and hardware during training."""
    ignored = [
        Ignored(category=PossibleUserWarning),
        Ignored(".*`training_step` returned `None`.*"),
        Ignored(".*isinstance.treespec, LeafSpec.*"),
        Ignored(".*exists and is not empty.*"),
        Ignored(".*Grad strides do not match bucket view strides.*"),
        Ignored(".*filesystem tracking backend.*", FutureWarning),
    ]
    with quiet(ignored, loggers=["lightning.pytorch", "lightning.fabric", "lightning"], level=logging.ERROR):
        yield
