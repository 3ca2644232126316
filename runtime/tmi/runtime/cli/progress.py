"""Prediction of all cases of a command: progress, one line for each case, result log, summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from tmi.runtime.serving.predictor import Predictor
from tmi.runtime.serving.result_log import MACHINE, ResultLog, result_log_path
from tmi.runtime.serving.results import CaseResult, RejectedCase
from tmi.toolkit.cases.case import Case, MaskLabel
from tmi.toolkit.cases.shard import Shard
from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.main import print_error
from tmi.toolkit.cli.progress import show_progress
from tmi.toolkit.storage.serialization import to_json
from tmi.toolkit.trust.conformal import COVERAGE


def run_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    *,
    batch: int,
    mask_label: MaskLabel | None,
    out: Path | None,
    resume: bool,
    shard: Shard | None = None,
) -> list[CaseResult]:
    """Predict all cases; each result is appended to the log of `out` as soon as it is ready.

    Args:
        predictor: an open predictor.
        cases: all cases of the command.
        batch: number of cases computed together.
        mask_label: as given to `resolve_cases`; recorded in the log.
        out: output file; None writes no log.
        resume: whether to continue an existing log.
        shard: part of the cohort that the cases are; recorded in the log.

    Returns:
        All results, in the order of the cases, those of an earlier run included.

    Raises:
        UsageError: `resume`, and the log was written with another bundle, engine, option or set of cases.
        DamagedError: `resume`, and the log is damaged.
    """
    start = perf_counter()
    with ExitStack() as stack:
        log = None
        if out is not None:
            open_log = ResultLog.resume if resume else ResultLog.begin
            identity = _identity(predictor, batch=batch, mask_label=mask_label, shard=shard)
            opened = open_log(result_log_path(out), identity, cases)
            log = stack.enter_context(opened)
        results: dict[str, CaseResult] = {} if log is None else dict(log.results)
        remaining = [case for case in cases if case.case_id not in results]
        if resume:
            echo(f"{len(results)} of {len(cases)} cases are already predicted", err=True)
        number, progress = len(results), stack.enter_context(show_progress())
        task = progress.add("predicting", len(cases), unit="cases", done=number)
        for result in predictor.stream(remaining, batch=batch) if remaining else ():
            # Logged before it is printed: a case that the user has been shown is never computed again.
            if log is not None:
                log.append(result)
            results[result.case_id] = result
            number += 1
            print_result(result, number, len(cases))
            task.advance()
    if len(cases) > 1:
        echo(_summary([results[case.case_id] for case in remaining], perf_counter() - start), err=True)
    return [results[case.case_id] for case in cases]


def _identity(
    predictor: Predictor, *, batch: int, mask_label: MaskLabel | None, shard: Shard | None
) -> Mapping[str, Any]:
    """Everything that a prediction depends on; it must be equal in every run that resumes a log."""
    record = predictor.engine_record
    return {
        "bundle": predictor.bundle.digest,
        "engine": record.name,
        "package": record.package,
        "precision": record.precision,
        "version": version("tmi-clnet"),
        "batch": batch,
        "mask_label": list(mask_label) if isinstance(mask_label, tuple) else mask_label,
        # absent if none was given, as in logs of earlier versions
        **({} if predictor.trust_level is None else {"trust_level": predictor.trust_level}),
        **({} if predictor.coverage == COVERAGE else {"coverage": predictor.coverage}),
        **({} if shard is None else {"shard": str(shard), MACHINE: to_json(record)}),
    }


def print_result(result: CaseResult, number: int, count: int) -> None:
    """Print the error of a rejected case, and one line for each case of several, on standard error."""
    if isinstance(result, RejectedCase):
        state = f"rejected ({result.code})"
        print_error(result.to_error())
    else:
        state = f"{result.seconds['total']:.2f} s"
    if count > 1:
        echo(f"[{number}/{count}] {result.case_id}: {state}", err=True)


def _summary(results: Sequence[CaseResult], seconds: float) -> str:
    """One line about this run; cases of an earlier run do not count."""
    rejected = sum(isinstance(r, RejectedCase) for r in results)
    return (
        f"{len(results) - rejected} predicted, {rejected} rejected in {seconds:.1f} s "
        f"({len(results) / max(seconds, 1e-9):.2f} cases/s)"
    )
