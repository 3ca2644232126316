"""Lightning callback that runs after each epoch of a fold: validation, best weights, checkpoint for resuming.

Model selection: the epoch with the lowest mean cross entropy on the inner validation split; the earliest one on a tie.
A ranking metric takes few distinct values on a handful of validation cases and would tie most epochs. Other criteria:
`tmi.training.evaluation.epoch_selection`. With `train.ema` the average of the weights is validated and kept.

Write order: best weights first, checkpoint last. A process killed in between repeats the epoch from the previous
checkpoint and reaches the same weights.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from tmi.toolkit.errors import UsageError
from tmi.toolkit.run_folder import FoldFolder
from tmi.toolkit.storage.atomic_files import follow_umask, write_text
from tmi.toolkit.storage.csv_files import csv_text
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.evaluation.epoch_selection import criterion
from tmi.training.evaluation.fold_inference import positive_probability, predict_logits
from tmi.training.evaluation.metrics import binary_metrics
from tmi.training.loop.lightning_module import FoldModule
from tmi.training.loop.lightning_trainer import log_epoch

HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "validation_loss",
    "validation_roc_auc",
    "validation_balanced_accuracy",
    "validation_accuracy",
    "picked",
)


class BestEpochCheckpoint(Checkpoint):
    """Validates, keeps the weights of the best epoch and saves a checkpoint after every epoch.

    Args:
        data: data of the fold.
        files: files of the fold.
        epoch_callback: called with the epoch, its training loss and its validation loss.
        step_callback: called after each batch with the epoch, the number of batches done and that of the epoch.
    """

    def __init__(
        self,
        data: FoldDataset,
        files: FoldFolder,
        epoch_callback: Callable[[int, float, float], None],
        step_callback: Callable[[int, int, int], None] = lambda epoch, done, total: None,
    ) -> None:
        self.data = data
        self.files = files
        self.epoch_callback = epoch_callback
        self.step_callback = step_callback
        self.best_loss = float("inf")
        self.best_criterion = float("inf")
        self.best_epoch = -1
        self.history: list[dict[str, Any]] = []

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint; not the class name, so that checkpoints of earlier versions resume."""
        return "EpochEnd"

    @property
    def best_weights(self) -> Any:
        """File with the weights of the best epoch so far; copied to the fold's model after training."""
        return self.files.checkpoint.with_name("best.safetensors")

    def state_dict(self) -> dict[str, Any]:
        """State that the checkpoint stores; plain values only, so that `weights_only=True` can load it."""
        return {
            "best_loss": self.best_loss,
            "best_criterion": self.best_criterion,
            "best_epoch": self.best_epoch,
            "history": self.history,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.best_loss = state_dict["best_loss"]
        self.best_epoch = state_dict["best_epoch"]
        self.history = list(state_dict["history"])
        # a checkpoint of an earlier version has the accuracy, or the loss alone
        by_accuracy = self.data.config.train.select_by == "accuracy"
        earlier = -state_dict.get("best_accuracy", -1.0) if by_accuracy else self.best_loss
        self.best_criterion = state_dict.get("best_criterion", earlier)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the batch."""
        self.step_callback(trainer.current_epoch, batch_idx + 1, int(trainer.num_training_batches))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate the epoch and save the checkpoint."""
        assert isinstance(pl_module, FoldModule)
        epoch = trainer.current_epoch
        part = self.files.checkpoint.with_name("part.ckpt")
        if not trainer.is_global_zero:  # rank 0 alone validates and writes, but saving is a collective call
            trainer.save_checkpoint(part)
            return
        row = self._validate_epoch(pl_module, epoch)
        self.history.append(row)
        self.files.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if row["picked"]:
            _save_weights(pl_module.evaluated, self.best_weights)
        trainer.save_checkpoint(part)
        os.replace(part, self.files.checkpoint)
        self.write_history()
        log_epoch(trainer.loggers, row)
        self.epoch_callback(epoch, row["train_loss"], row["validation_loss"])

    def _validate_epoch(self, module: FoldModule, epoch: int) -> dict[str, Any]:
        logits = predict_logits(module.evaluated, self.data, self.data.split.validation, module.device)
        labels = torch.from_numpy(self.data.labels(self.data.split.validation))
        loss = float(cross_entropy(logits.double(), labels))
        if not math.isfinite(loss):
            raise UsageError(
                f"fold {self.data.split.fold} diverged: after epoch {epoch} the validation loss is not finite",
                fix="lower --set train.learning_rate, or check the cohort's values",
            )
        metrics = binary_metrics(labels.numpy(), positive_probability(logits))
        accuracy = metrics["accuracy"]
        assert accuracy is not None  # the validation split has at least one case
        losses, accuracies = (
            [*(float(row[key]) for row in self.history), value]
            for key, value in (("validation_loss", loss), ("validation_accuracy", accuracy))
        )
        value = criterion(losses, accuracies, self.data.config.train)
        picked = value is not None and value < self.best_criterion  # strict, so a tie keeps the earlier epoch
        if picked:
            assert value is not None
            self.best_criterion, self.best_loss, self.best_epoch = value, loss, epoch
        return {
            "epoch": epoch,
            "train_loss": module.epoch_loss / max(module.epoch_cases, 1),
            "validation_loss": loss,
            "validation_roc_auc": metrics["roc_auc"],
            "validation_balanced_accuracy": metrics["balanced_accuracy"],
            "validation_accuracy": accuracy,
            "picked": picked,
        }

    def write_history(self) -> None:
        """Write history.csv: one row for each epoch."""
        rows = ([int(row[c]) if c == "picked" else row.get(c) for c in HISTORY_COLUMNS] for row in self.history)
        write_text(self.files.history, csv_text(HISTORY_COLUMNS, rows))


def _save_weights(network: nn.Module, path: Any) -> None:
    part = path.with_name("part.safetensors")
    save_file({name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}, part)
    follow_umask(part)
    os.replace(part, path)
