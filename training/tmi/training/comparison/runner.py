"""Trains the runs of a plan: reuses finished runs, continues interrupted ones, and records failures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tmi.toolkit.cases.fingerprint import cohort_fingerprint
from tmi.toolkit.errors import DamagedError, InputRejectedError, TmiError, UsageError
from tmi.toolkit.run_folder import RUN_FILE, RunFolder
from tmi.training.comparison.plan import RUNS, Plan, PlannedRun
from tmi.training.loop.cross_validation import TrainingCallbacks, cross_validate, require_same_initial_weights
from tmi.training.loop.memory_fit import fit_memory
from tmi.training.loop.run_spec import RunSpec

if TYPE_CHECKING:
    from tmi.training.pretrained.initial_weights import InitialWeights  # torch

RECORDED_ERRORS = (TmiError, RuntimeError, ValueError, ArithmeticError, MemoryError)
"""Errors of one run that do not stop the others: errors of this package, of torch and of numpy."""

RunStatusCallback = Callable[[PlannedRun, Literal["reused", "continued", "started", "done", "failed"]], None]
"""Called when the status of a run changes."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRuns:
    """Finished and failed runs of a plan."""

    runs: dict[str, RunFolder] = field(default_factory=dict)
    """Key -> finished run."""
    failed: dict[str, str] = field(default_factory=dict)
    """Key -> why the run failed."""
    reused: tuple[str, ...] = ()
    """Keys of the runs that were already finished."""
    rejected: tuple[InputRejectedError, ...] = ()
    """One error for each case left out of the last run that this call trained."""


def train_all(
    plan: Plan, spec: RunSpec, callbacks: TrainingCallbacks, *, on_run_status: RunStatusCallback
) -> ComparisonRuns:
    """Train every run of the plan in `spec.out/runs`.

    Args:
        plan: runs to train.
        spec: what the runs share. Config and name are replaced by those of each run, and `initial` by the weights of
            the encoders that the plan names; `out` is the folder of the comparison.
        callbacks: progress hooks of each run.
        on_run_status: called when the status of a run changes.

    Raises:
        UsageError: an existing run was started with other options or on another cohort; nothing was trained.
        DamagedError: an existing run was changed after training; nothing was trained.
        UnavailableError: the machine has too little memory for a run of the plan; nothing was trained.
        KeyboardInterrupt: Ctrl-C; the same call continues.
    """
    cohort, out, initial, hardware = spec.cohort, spec.out, spec.initial, spec.hardware
    cohort_digest = cohort_fingerprint(cohort)
    starts = {p.key: None if initial is None else initial.subset(p.weights) for p in plan.runs}
    # every existing run is checked before the first one is trained
    existing_runs = {p.key: _existing_run(p, out / RUNS / p.key, cohort_digest, starts[p.key]) for p in plan.runs}
    for planned in plan.runs:  # before hours of other runs
        existing = existing_runs[planned.key]
        if existing is None or not existing.finished:
            with suppress(UsageError):  # impossible settings of one row fail that row, below
                fit_memory(planned.config, hardware, cases=len(cohort.cases))
    runs: dict[str, RunFolder] = {}
    failed: dict[str, str] = {}
    rejected: tuple[InputRejectedError, ...] = ()
    reused = tuple(key for key, run in existing_runs.items() if run is not None and run.finished)
    for planned in plan.runs:
        existing = existing_runs[planned.key]
        if existing is not None and existing.finished:
            runs[planned.key] = existing
            on_run_status(planned, "reused")
            continue
        on_run_status(planned, "started" if existing is None else "continued")
        try:
            run_spec = replace(
                spec,
                config=planned.config,
                out=out / RUNS / planned.key,
                name=planned.key,
                initial=starts[planned.key],
            )
            result = cross_validate(run_spec, callbacks, resume=existing is not None)
        except RECORDED_ERRORS as error:
            failed[planned.key] = run_failure_reason(error)
            on_run_status(planned, "failed")
        else:
            runs[planned.key], rejected = result.run, result.rejected
            on_run_status(planned, "done")
    return ComparisonRuns(runs=runs, failed=failed, reused=reused, rejected=rejected)


def _existing_run(
    planned: PlannedRun, folder: Path, cohort_digest: str, initial: InitialWeights | None
) -> RunFolder | None:
    """Open the run of an earlier call; None if there is none, or if it was killed before its run.json was written."""
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
    if run.config != planned.config or run.state["cohort"]["fingerprint"] != cohort_digest:
        what = "config" if run.config != planned.config else "cohort"
        raise UsageError(
            f"run {folder} belongs to a comparison with a different {what}",
            fix="name another folder with --out, or delete it",
        )
    require_same_initial_weights(run, initial)
    return run


def run_failure_reason(error: BaseException) -> str:
    """Message in one line; of an unexpected error only its type, since its text may hold patient data."""
    return str(error) if isinstance(error, TmiError) else f"unexpected {type(error).__name__}"
