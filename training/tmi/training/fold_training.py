"""Training one fold to its model, from the start or from where it was interrupted."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning
from lightning.pytorch.utilities.warnings import PossibleUserWarning

from tmi.toolkit.config import Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.run_folder import FoldFolder, FoldSplit
from tmi.toolkit.tokenizer import Tokenizer
from tmi.training.cohort_arrays import CohortArrays
from tmi.training.epoch_end import EpochEnd
from tmi.training.fold_answers import answers_of, saved_network
from tmi.training.fold_data import EpochBatches, FoldData
from tmi.training.fold_report import write_fold_report
from tmi.training.module import FoldModule
from tmi.training.pretrained.initial_weights import InitialWeights
from tmi.training.systems.registry import system

Report = Callable[[int, float, float], None]
"""Called after each epoch with its number, training loss and validation loss."""


def train_fold(
    arrays: CohortArrays,
    split: FoldSplit,
    config: Config,
    files: FoldFolder,
    *,
    tokenizer: Tokenizer | None,
    accelerator: str,
    report: Report,
    initial: InitialWeights | None = None,
) -> None:
    """Train a fold, continuing from its checkpoint where there is one, and write its files.

    Raises:
        KeyboardInterrupt: Ctrl-C; the checkpoint of the last whole epoch is there.
        DamagedError: the checkpoint cannot be read.
        UsageError: the training diverged.
    """
    data = FoldData(arrays, split, config, tokenizer=tokenizer)
    data.save(files.scaler, files.tokenizer)
    if system(config.system.name).needs == "sklearn":
        from tmi.training.systems.estimator_fold import train_estimator

        train_estimator(arrays, data, files, config, report)
        return
    ending = EpochEnd(data, files, report)
    module = FoldModule(config, fold=split.fold)
    if initial is not None:
        initial.load_into(module.network)
    with _quiet():
        _fit(module, data, ending, config, files, accelerator)
    shutil.copyfile(ending.best_weights, part := files.model.with_name("part.safetensors"))
    os.replace(part, files.model)
    _report_fold(data, files, config, ending)
    shutil.rmtree(files.checkpoint.parent)


def _fit(
    module: FoldModule, data: FoldData, ending: EpochEnd, config: Config, files: FoldFolder, accelerator: str
) -> None:
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=config.train.epochs,
        callbacks=[ending],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        deterministic=accelerator == "cpu",
        default_root_dir=files.folder,
    )
    batches = EpochBatches(data, lambda: trainer.current_epoch)
    resume = files.checkpoint if files.checkpoint.is_file() else None
    try:
        trainer.fit(module, batches, ckpt_path=resume, weights_only=True)
    except SystemExit as stop:
        if trainer.interrupted:  # Lightning turns Ctrl-C into exit(1)
            raise KeyboardInterrupt from stop
        raise
    except (RuntimeError, KeyError, EOFError, ValueError) as error:
        if resume is not None and trainer.current_epoch == 0 and trainer.global_step == 0:
            raise DamagedError(
                f"checkpoint {files.checkpoint} cannot be read",
                fix="delete the fold's folder and resume again: the fold then starts anew",
            ) from error
        raise
    if trainer.interrupted:
        raise KeyboardInterrupt


def _report_fold(data: FoldData, files: FoldFolder, config: Config, ending: EpochEnd) -> None:
    """Predictions by the saved model, read back from its file, what is fitted on them, and their figures."""
    network = saved_network(config, files)
    split = data.split
    write_fold_report(
        data,
        files,
        config,
        validation=answers_of(network, data, split.validation),
        test=answers_of(network, data, split.test),
        facts={
            "picked_epoch": ending.best_epoch,
            "validation_loss": ending.best_loss,
            "epochs": config.train.epochs,
        },
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's log lines and its advice on loaders and hardware, silenced only while it trains."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", message=".*`training_step` returned `None`.*")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
