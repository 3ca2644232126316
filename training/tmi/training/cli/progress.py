"""Progress bars of a training run on the command line."""

from __future__ import annotations

from collections.abc import Callable

from rich.progress import Progress, TaskID

from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.run_folder import FoldSplit
from tmi.toolkit.storage.terminal_text import printable


class ProgressCallbacks:
    """Implements `TrainingCallbacks` with one bar for the preparation and one for each fold."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: list[TaskID] = []
        self._reported_errors: set[str] = set()

    def on_preparation_start(self, total: int) -> Callable[[Case], None]:
        """Add the bar of the preparation."""
        task = self._add_task("preparing cases", total)
        return lambda case: self._progress.advance(task)

    def on_fold_start(self, split: FoldSplit, epochs: int) -> Callable[[int, float, float], None]:
        """Add the bar of a fold."""
        task = self._add_task(f"fold {split.fold}", epochs)

        def update(epoch: int, train_loss: float, validation_loss: float) -> None:
            note = f"loss {train_loss:.3f}, validation {validation_loss:.3f}"
            self._progress.update(task, completed=epoch + 1, note=note)

        return update

    def on_case_rejected(self, error: InputRejectedError) -> None:
        """Print a rejected case once, even if several runs reject it."""
        if str(error) not in self._reported_errors:
            self._reported_errors.add(str(error))
            for line in (f"left out: {error}", f"  fix: {error.fix}"):
                self._progress.console.print(printable(line), markup=False, highlight=False)

    def on_warning(self, message: str) -> None:
        """Print a warning once, even if several runs give it."""
        if message not in self._reported_errors:
            self._reported_errors.add(message)
            self._progress.console.print(printable(f"warning: {message}"), markup=False, highlight=False)

    def on_fold_failed(self, split: FoldSplit, why: str) -> None:
        """Print the reason why a fold failed."""
        self._progress.console.print(printable(f"fold {split.fold} failed: {why}"), markup=False, highlight=False)

    def clear(self) -> None:
        """Remove the bars of a finished run."""
        for task in self._tasks:
            self._progress.remove_task(task)
        self._tasks.clear()

    def _add_task(self, title: str, total: int) -> TaskID:
        task = self._progress.add_task(title, total=total, note="")
        self._tasks.append(task)
        return task
