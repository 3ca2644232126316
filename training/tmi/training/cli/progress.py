"""Shows on the command line how a training goes on."""

from __future__ import annotations

from collections.abc import Callable

from rich.progress import Progress, TaskID

from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.run_folder import FoldSplit


class ProgressCallbacks:
    """A bar for the preparation and one for each fold."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: list[TaskID] = []
        self._reported_case_ids: set[str] = set()

    def on_preparation_start(self, total: int) -> Callable[[Case], None]:
        """Preparation begins."""
        task = self._task("preparing cases", total)
        return lambda case: self._progress.advance(task)

    def on_fold_start(self, split: FoldSplit, epochs: int) -> Callable[[int, float, float], None]:
        """A fold begins."""
        task = self._task(f"fold {split.fold}", epochs)

        def report(epoch: int, train_loss: float, validation_loss: float) -> None:
            note = f"loss {train_loss:.3f}, validation {validation_loss:.3f}"
            self._progress.update(task, completed=epoch + 1, note=note)

        return report

    def on_case_rejected(self, error: InputRejectedError) -> None:
        """A case is left out; told once, however many runs leave it out."""
        if str(error) not in self._reported_case_ids:
            self._reported_case_ids.add(str(error))
            self._progress.console.print(f"left out: {error}\n  fix: {error.fix}", markup=False, highlight=False)

    def on_fold_failed(self, split: FoldSplit, why: str) -> None:
        """A fold failed and others go on."""
        self._progress.console.print(f"fold {split.fold} failed: {why}", markup=False, highlight=False)

    def clear(self) -> None:
        """Take the bars of a run away."""
        for task in self._tasks:
            self._progress.remove_task(task)
        self._tasks.clear()

    def _task(self, title: str, total: int) -> TaskID:
        task = self._progress.add_task(title, total=total, note="")
        self._tasks.append(task)
        return task
