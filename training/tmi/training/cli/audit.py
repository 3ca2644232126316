"""`tmi audit`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.cases.case import is_cohort, open_cohort
from tmi.toolkit.config.project import load_project
from tmi.toolkit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from tmi.toolkit.run_folder import RunFolder
    from tmi.training.leakage_audit.run_checks import AuditResult


def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    cohort: Annotated[
        Path | None, typer.Argument(help="Cohort it was trained on; default: ./cohort or tmi.toml's, where it is that.")
    ] = None,
    mask_label: Annotated[int | None, typer.Option("--mask-label", help="Label of the liver in the masks.")] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not ask the saved models again.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Prepare every case anew, and keep nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Prove from a run and its cohort that nothing of a held-out case reached its figures.

    Everything is recomputed: splits, scalers, vocabularies, the picked epoch, temperature and threshold, predictions,
    and duplicate images. Exit code 6 where something leaked, also where the protocol declares it (`released`).

    Examples:

        tmi audit runs/first
        tmi audit runs/first cohort/ --json
        tmi audit runs/first cohort/ --no-model
    """
    from dataclasses import asdict

    from tmi.toolkit.run_folder import RunFolder
    from tmi.training.leakage_audit.run_checks import audit_folder

    folder = RunFolder.open(run)
    answers = [*audit_folder(folder), *_of_cohort(folder, cohort, mask_label, ask=not no_model, cached=not no_cache)]
    leaks = [a for a in answers if a.status == "leak"]
    declared = [a for a in answers if a.status == "declared"]
    verdict = "leak" if leaks else "optimistic" if declared else "clean"
    if as_json:
        typer.echo(json.dumps({"run": run.name, "verdict": verdict, "answers": [asdict(a) for a in answers]}, indent=2))
    else:
        _show(answers, verdict)
    if verdict != "clean":
        raise typer.Exit(int(ExitCode.DAMAGED))


def _of_cohort(
    run: RunFolder, given: Path | None, mask_label: int | None, *, ask: bool, cached: bool
) -> list[AuditResult]:
    """What the cohort proves; `not checked` where none is named and the project's is none or another."""
    from tmi.toolkit.preprocessing.cache import PreparedCache
    from tmi.training.data.dataset import prepare_cohort
    from tmi.training.leakage_audit.cohort_checks import audit_cohort, not_checked, require_same_cohort, scratch_store

    folder = given or load_project().path("cohort")
    if given is None and not is_cohort(folder):
        return not_checked("no cohort is named: tmi audit RUN COHORT")
    data = open_cohort(folder, mask_label=mask_label)
    try:
        require_same_cohort(run, data)
    except UsageError as error:
        if given is not None:
            raise
        return not_checked(f"{error.what}; name its own: tmi audit RUN COHORT")
    with tempfile.TemporaryDirectory(prefix="tmi-audit-") as scratch:
        cache = PreparedCache() if cached else None
        arrays = prepare_cohort(data, run.config, run.schema, store=scratch_store(Path(scratch)), cache=cache)
        return audit_cohort(run, arrays, run_models=ask)


def _show(answers: list[AuditResult], verdict: str) -> None:
    for answer in answers:
        where = "" if answer.fold is None else f" fold {answer.fold}"
        typer.echo(f"{answer.status:<11} {answer.check}{where}: {answer.detail}")
    counts = {s: sum(a.status == s for a in answers) for s in ("holds", "leak", "declared", "not checked")}
    told = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    words = {
        "clean": "nothing leaked" + (", as far as was checked" if counts["not checked"] else ""),
        "optimistic": "the figures are optimistic by the run's own protocol",
        "leak": "something leaked: the figures cannot be trusted",
    }
    typer.echo(f"{words[verdict]} ({told})")
