"""Progress of a training run on the command line: preparation, epochs of each fold, metrics, time left of all folds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from tmi.toolkit.cases.case import Case
from tmi.toolkit.cli.progress import Progress, Task
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.run_folder import FoldSplit

REPORTED = {"roc_auc": "ROC AUC", "balanced_accuracy": "balanced accuracy"}
"""Metrics in the line of a finished fold -> their names."""


class ProgressCallbacks:
    """Implements `TrainingCallbacks` with one task for the preparation and one for each fold.

    Args:
        progress: where the tasks are shown.
        folds: folds of the run.
    """

    def __init__(self, progress: Progress, *, folds: int) -> None:
        self._progress, self._folds = progress, folds
        self._tasks: list[Task] = []
        self._fold_tasks: dict[int, Task] = {}
        self._epoch_parts: dict[int, float] = {}
        self._reported_errors: set[str] = set()
        self._start, self._epochs_done = perf_counter(), 0
        self._unstarted = folds
        self._epochs = 0
        self._epochs_left: dict[int, int] = {}

    def on_preparation_start(self, total: int) -> Callable[[Case], None]:
        """Add the task of the preparation."""
        task = self._add("preparing cases", total, unit="cases")
        return lambda case: task.advance()

    def on_training_start(self, folds: int) -> None:
        """Start the clock of the folds that are still to be trained."""
        self._start, self._epochs_done, self._unstarted = perf_counter(), 0, folds
        self._epochs_left.clear()
        self._epoch_parts.clear()

    def on_fold_start(self, split: FoldSplit, epochs: int) -> Callable[[int, float, float], None]:
        """Add the task of a fold."""
        task = self._add(self._title(split), epochs, unit="epochs", announce=True)
        self._unstarted = max(0, self._unstarted - 1)
        self._epochs_left[split.fold] = epochs
        self._fold_tasks[split.fold] = task
        self._epochs = epochs

        def update(epoch: int, train_loss: float, validation_loss: float) -> None:
            self._epochs_done += 1
            self._epochs_left[split.fold] = epochs - epoch - 1
            self._epoch_parts[split.fold] = 0.0
            task.update(
                epoch + 1, seconds_left=self._seconds_left(epochs), loss=train_loss, validation_loss=validation_loss
            )

        return update

    def on_step(self, split: FoldSplit, epoch: int, done: int, total: int) -> None:
        """State the batch of an epoch that takes long."""
        self._epochs_left[split.fold] = self._epochs - epoch  # a resumed fold does not begin at epoch 0
        self._epoch_parts[split.fold] = done / total
        text = f"epoch {epoch + 1} of {self._epochs}, step {done} of {total}"
        self._fold_tasks[split.fold].step(text, seconds_left=self._seconds_left(self._epochs))

    def _seconds_left(self, epochs: int) -> float:
        parts = sum(self._epoch_parts.values())
        done = self._epochs_done + parts
        left = sum(self._epochs_left.values()) + self._unstarted * epochs - parts
        return (perf_counter() - self._start) / done * left

    def on_fold_end(self, split: FoldSplit, metrics: Mapping[str, float | None]) -> None:
        """Print the metrics of a finished fold on its held-out cases."""
        self._epochs_left[split.fold] = 0
        known: dict[str, Any] = {name: metrics[name] for name in REPORTED if metrics.get(name) is not None}
        text = ", ".join(f"{REPORTED[name]} {value:.3f}" for name, value in known.items())
        line = f"{self._title(split)}: done" + (f"; held-out cases: {text}" if text else "")
        self._progress.line(line, event="fold", fold=split.fold, **known)

    def on_case_rejected(self, error: InputRejectedError) -> None:
        """Print a rejected case once, even if several runs reject it."""
        if str(error) not in self._reported_errors:
            self._reported_errors.add(str(error))
            lines = (f"left out: {error} [{error.code}]", f"  fix: {error.fix}")
            facts = {"message": str(error), "fix": error.fix, "code": error.code, "case_id": error.case_id}
            self._progress.line(*lines, level=logging.WARNING, event="left-out", **facts)

    def on_warning(self, message: str) -> None:
        """Print a warning once, even if several runs give it."""
        if message not in self._reported_errors:
            self._reported_errors.add(message)
            self._progress.line(f"warning: {message}", level=logging.WARNING, message=message)

    def on_fold_failed(self, split: FoldSplit, why: str) -> None:
        """Print the reason why a fold failed."""
        self._epochs_left[split.fold] = 0
        self._epoch_parts.pop(split.fold, None)
        lines = f"fold {split.fold} failed: {why}".splitlines()
        self._progress.line(*lines, level=logging.ERROR, event="fold-failed", fold=split.fold)

    def clear(self) -> None:
        """Remove the tasks of a finished run."""
        for task in self._tasks:
            self._progress.remove(task)
        self._tasks.clear()

    def _title(self, split: FoldSplit) -> str:
        return f"fold {split.fold} ({split.fold + 1} of {self._folds})"

    def _add(self, title: str, total: int, *, unit: str, announce: bool = False) -> Task:
        task = self._progress.add(title, total, unit=unit, announce=announce)
        self._tasks.append(task)
        return task
