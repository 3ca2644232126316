"""A command's run over its cases: the bar, a line a case, the journal, and what it came to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import typer

from tmi.runtime.serving.predictor import Predictor
from tmi.runtime.serving.result_log import ResultLog, result_log_path
from tmi.runtime.serving.results import CaseResult, RejectedCase
from tmi.toolkit.cases.case import Case
from tmi.toolkit.cli.main import print_error
from tmi.toolkit.errors import InputRejectedError


class Step(Protocol):
    """Told that one more case is done."""

    def __call__(self) -> None:
        """Advance by one."""


def run_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    *,
    batch: int,
    mask_label: int | None,
    out: Path | None,
    resume: bool,
) -> list[CaseResult]:
    """All answers in the order of the cases; each stands in the journal of `out` as soon as it is ready.

    Raises:
        UsageError: `resume`, and the journal is not of this bundle, engine, options and cases.
        DamagedError: `resume`, and the journal is damaged.
    """
    start = perf_counter()
    with ExitStack() as stack:
        journal = None
        if out is not None:
            make = ResultLog.resume if resume else ResultLog.begin
            opened = make(result_log_path(out), _identity(predictor, batch=batch, mask_label=mask_label), cases)
            journal = stack.enter_context(opened)
        done: dict[str, CaseResult] = {} if journal is None else dict(journal.results)
        left = [case for case in cases if case.case_id not in done]
        if resume:
            typer.echo(f"{len(done)} of {len(cases)} cases are answered already", err=True)
        number, step = len(done), stack.enter_context(_bar(len(cases), done=len(done)))
        for answer in predictor.stream(left, batch=batch) if left else ():
            if journal is not None:
                journal.append(answer)
            done[answer.case_id] = answer
            number += 1
            _print_result(answer, number, len(cases))
            step()
    if len(cases) > 1:
        typer.echo(_summary([done[case.case_id] for case in left], perf_counter() - start), err=True)
    return [done[case.case_id] for case in cases]


def _identity(predictor: Predictor, *, batch: int, mask_label: int | None) -> Mapping[str, Any]:
    """What must be the same in every run that goes on with a journal: all that an answer depends on."""
    record = predictor.engine_record
    return {
        "bundle": predictor.bundle.digest,
        "engine": record.name,
        "package": record.package,
        "precision": record.precision,
        "version": version("tmi-clnet"),
        "batch": batch,
        "mask_label": mask_label,
    }


def _print_result(answer: CaseResult, number: int, count: int) -> None:
    """A refusal, and of several cases each one, on standard error."""
    if isinstance(answer, RejectedCase):
        state = f"refused ({answer.code})"
        print_error(InputRejectedError(answer.what, fix=answer.fix, code=answer.code, case_id=answer.case_id))
    else:
        state = f"{answer.seconds['total']:.2f} s"
    if count > 1:
        typer.echo(f"[{number}/{count}] {answer.case_id}: {state}", err=True)


def _summary(answers: Sequence[CaseResult], seconds: float) -> str:
    """One line on what this run did; cases of an earlier run are not its own."""
    refused = sum(isinstance(a, RejectedCase) for a in answers)
    return (
        f"{len(answers) - refused} predicted, {refused} refused in {seconds:.1f} s "
        f"({len(answers) / max(seconds, 1e-9):.2f} cases/s)"
    )


@contextmanager
def _bar(count: int, *, done: int) -> Iterator[Step]:
    """A progress bar on a terminal, for more than one case; elsewhere the lines are enough."""
    if count < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("predicting", total=count, completed=done)
        yield lambda: progress.advance(task)
