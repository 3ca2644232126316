"""Trains what a plan needs: finished runs are reused, interrupted ones continued, and a failing one stops no other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tmi.toolkit.cases.case import Cohort
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.errors import DamagedError, InputRejectedError, TmiError, UsageError
from tmi.toolkit.preprocessing.cache import PreparedCache
from tmi.toolkit.run_folder import RUN_FILE, RunFolder
from tmi.training.comparison.plan import Plan, PlannedRun
from tmi.training.data.dataset import fingerprint
from tmi.training.loop.cross_validation import TrainingCallbacks, cross_validate, require_same_initial_weights
from tmi.training.loop.hardware import HardwareConfig

if TYPE_CHECKING:
    from tmi.training.pretrained.initial_weights import InitialWeights  # torch

RUNS = "runs"
"""Folder of the runs inside a comparison's."""
RECORDED_ERRORS = (TmiError, RuntimeError, ValueError, ArithmeticError, MemoryError)
"""What a training can end in without being of concern to the others: a refusal, or an error of torch's or numpy's."""

RunStatusCallback = Callable[[PlannedRun, Literal["reused", "continued", "started", "done", "failed"]], None]
"""Called when something happens to a run."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRuns:
    """What came of a plan."""

    runs: dict[str, RunFolder] = field(default_factory=dict)
    """Key -> finished run."""
    failed: dict[str, str] = field(default_factory=dict)
    """Key -> why there is none."""
    reused: tuple[str, ...] = ()
    """Keys of the runs that were finished before."""
    rejected: tuple[InputRejectedError, ...] = ()
    """Cases left out of every run that was trained now."""


def train_all(
    plan: Plan,
    cohort: Cohort,
    out: Path,
    *,
    schema: Schema,
    tokenizer: Tokenizer | None,
    hardware: HardwareConfig,
    callbacks: TrainingCallbacks,
    cache: PreparedCache | None,
    on_run_status: RunStatusCallback,
    initial: InitialWeights | None = None,
) -> ComparisonRuns:
    """Every run of the plan, in `out/runs`, on the devices of `running`.

    `initial` are weights that a run's encoders start from, those that its plan names.

    Raises:
        UsageError: a run that is there was started with other options or on another cohort; nothing was trained.
        DamagedError: a run that is there was changed after its training; nothing was trained.
        KeyboardInterrupt: Ctrl-C; the same call continues.
    """
    cohort_fingerprint = fingerprint(cohort)
    starts = {p.key: None if initial is None else initial.subset(p.weights) for p in plan.runs}
    there = {p.key: _existing_run(p, out / RUNS / p.key, cohort_fingerprint, starts[p.key]) for p in plan.runs}
    runs: dict[str, RunFolder] = {}
    failed: dict[str, str] = {}
    rejected: tuple[InputRejectedError, ...] = ()
    reused = tuple(key for key, run in there.items() if run is not None and run.finished)
    for planned in plan.runs:
        existing = there[planned.key]
        if existing is not None and existing.finished:
            runs[planned.key] = existing
            on_run_status(planned, "reused")
            continue
        on_run_status(planned, "started" if existing is None else "continued")
        try:
            outcome = cross_validate(
                cohort,
                planned.config,
                out / RUNS / planned.key,
                schema=schema,
                tokenizer=tokenizer,
                accelerator=hardware.accelerator,
                callbacks=callbacks,
                resume=existing is not None,
                name=planned.key,
                cache=cache,
                initial=starts[planned.key],
                hardware=hardware,
            )
        except RECORDED_ERRORS as error:
            failed[planned.key] = _failure_reason(error)
            on_run_status(planned, "failed")
        else:
            runs[planned.key], rejected = outcome.run, outcome.rejected
            on_run_status(planned, "done")
    return ComparisonRuns(runs=runs, failed=failed, reused=reused, rejected=rejected)


def _existing_run(
    planned: PlannedRun, folder: Path, cohort_fingerprint: str, initial: InitialWeights | None
) -> RunFolder | None:
    """The run that an earlier call left; None where there is none, or one that was killed before it began."""
    if not (folder / RUN_FILE).is_file():
        if folder.exists():
            shutil.rmtree(folder)
        return None
    try:
        run = RunFolder.open(folder)
        if run.finished:
            run.require_finished()
    except DamagedError as error:
        raise DamagedError(error.what, fix=f"delete {folder}; the same command trains it again") from error
    if run.config != planned.config or run.state["cohort"]["fingerprint"] != cohort_fingerprint:
        what = "config" if run.config != planned.config else "cohort"
        raise UsageError(
            f"run {folder} is of a comparison with another {what}", fix="name another folder with --out, or delete it"
        )
    require_same_initial_weights(run, initial)
    return run


def _failure_reason(error: BaseException) -> str:
    """One line; of an unexpected error its kind alone, whose text may hold anything."""
    return str(error) if isinstance(error, TmiError) else f"unexpected {type(error).__name__}"
