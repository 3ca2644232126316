"""Command `tmi audit`: check a finished run for data leakage."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.cases.case import MaskLabel, is_cohort, open_cohort, parse_mask_label
from tmi.toolkit.cli.console import echo, echo_json
from tmi.toolkit.config.project import load_project
from tmi.toolkit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from tmi.toolkit.run_folder import RunFolder
    from tmi.training.leakage_audit.run_checks import AuditResult


def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    cohort: Annotated[
        Path | None,
        typer.Argument(help="Cohort of the run; default: ./cohort or tmi.toml's, if it is that cohort."),
    ] = None,
    mask_label: Annotated[
        list[str] | None,
        typer.Option("--mask-label", metavar="N[,N]", help="Label of the liver in the masks; several are joined."),
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not run the saved models.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Prepare every case again and cache nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Search a run for leaks of held-out cases into its metrics.

    Splits, scalers, vocabularies, the selected epoch, temperature and threshold, predictions and duplicate images are
    recomputed. Exit code 6 means leakage, also if the protocol declares it (`released`); exit code 0 means that these
    checks found none, and the output lists what they cannot see.

    Examples:

        tmi audit runs/first
        tmi audit runs/first cohort/ --json
        tmi audit runs/first cohort/ --no-model
    """
    from dataclasses import asdict

    from tmi.toolkit.run_folder import RunFolder
    from tmi.training.leakage_audit.run_checks import LIMITS, audit_folder

    folder = RunFolder.open(run)
    results = [
        *audit_folder(folder),
        *_audit_with_cohort(folder, cohort, parse_mask_label(mask_label), run_models=not no_model, cached=not no_cache),
    ]
    leaks = [r for r in results if r.status == "leak"]
    declared = [r for r in results if r.status == "declared"]
    verdict = "leak" if leaks else "optimistic" if declared else "clean"
    if as_json:
        answers = [asdict(r) for r in results]
        document = {"run": run.name, "verdict": verdict, "answers": answers, "cannot_see": list(LIMITS)}
        echo_json(json.dumps(document, indent=2))
    else:
        _print_results(results, verdict)
    if verdict != "clean":
        raise typer.Exit(int(ExitCode.DAMAGED))


def _audit_with_cohort(
    run: RunFolder, given: Path | None, mask_label: MaskLabel | None, *, run_models: bool, cached: bool
) -> list[AuditResult]:
    """Run the checks that need the cohort.

    If no cohort is given and the project has none or a different one, the checks are `not checked`.
    """
    from tmi.toolkit.preprocessing.cache import PreparedCache
    from tmi.training.data.dataset import prepare_cohort
    from tmi.training.leakage_audit.cohort_checks import audit_cohort, not_checked, require_same_cohort, scratch_store

    folder = given or load_project().path("cohort")
    if given is None and not is_cohort(folder):
        return not_checked("no cohort given: tmi audit RUN COHORT")
    data = open_cohort(folder, mask_label=mask_label)
    try:
        require_same_cohort(run, data)
    except UsageError as error:
        if given is not None:
            raise
        return not_checked(f"{error.what}; give its own: tmi audit RUN COHORT")
    with tempfile.TemporaryDirectory(prefix="tmi-audit-") as scratch:
        cache = PreparedCache() if cached else None
        arrays = prepare_cohort(data, run.config, run.schema, store=scratch_store(Path(scratch)), cache=cache)
        return audit_cohort(run, arrays, run_models=run_models)


def _print_results(results: list[AuditResult], verdict: str) -> None:
    from tmi.training.leakage_audit.run_checks import LIMITS

    for result in results:
        fold = "" if result.fold is None else f" fold {result.fold}"
        echo(f"{result.status:<11} {result.check}{fold}: {result.detail}")
    counts = {s: sum(r.status == s for r in results) for s in ("holds", "leak", "declared", "warning", "not checked")}
    totals = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    echo("these checks cannot see:")
    for limit in LIMITS:
        echo(f"  - {limit}")
    conclusions = {
        "clean": "no leak found by these checks",
        "optimistic": "the metrics are optimistic by the run's own protocol",
        "leak": "leakage found: the metrics cannot be trusted",
    }
    echo(f"{conclusions[verdict]} ({totals})")
