"""Command `tmi radiomics`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.cases.case import find_cases, parse_mask_label
from tmi.toolkit.cases.shard import Shard
from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import limit_to_cores, require_case_paths, require_paths
from tmi.toolkit.cli.interrupts import interruptible
from tmi.toolkit.cli.main import print_error
from tmi.toolkit.cli.progress import show_progress
from tmi.toolkit.errors import ExitCode, InputRejectedError, UsageError

if TYPE_CHECKING:
    from tmi.toolkit.preprocessing.radiomics_batch import ExtractionResult


def radiomics(
    paths: Annotated[list[Path], typer.Argument(help="Case folders or cohort folders.")],
    jobs: Annotated[int | None, typer.Option(help="Cores to use. Default: all.", min=1)] = None,
    mask_label: Annotated[
        list[str] | None,
        typer.Option("--mask-label", metavar="N[,N]", help="Label of the liver in the masks; several are joined."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing tables.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")] = False,
    table: Annotated[
        Path | None,
        typer.Option("--from", help="Take the values from this table; they depend on its program's axes (docs)."),
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option("--map", help="JSON or YAML: name in that table -> feature name of tmi.")
    ] = None,
    id_column: Annotated[str | None, typer.Option("--id-column", help="Column of the case ids in that table.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only part I of N of the cases, by a hash of their ids.", show_default=False),
    ] = None,
) -> None:
    """Extract the 1,781 radiomic features of each case's liver mask into its radiomics.csv.

    An existing table that matches its CT, mask and settings is skipped, so an interrupted run can be continued.
    radiomics.json, next to each table, records its sources. Extracted features are cached in ~/.cache/tmi/radiomics,
    or below TMI_CACHE; TMI_CACHE=off disables the cache. Rejected cases are listed (exit code 3).

    Examples:

        tmi radiomics cohort/
        tmi radiomics cohort/P001 --mask-label 5 --jobs 4
        tmi radiomics cohort/ --shard 3/10
        tmi radiomics cohort/ --from features.csv --map names.yaml
    """
    from tmi.toolkit.compute.cpu import available_cores
    from tmi.toolkit.preprocessing.radiomics_batch import ExtractionOptions, make_tables
    from tmi.toolkit.radiomics.external_table import read_external_table, read_mapping
    from tmi.toolkit.radiomics.settings import AXES

    if table is None and (mapping is not None or id_column is not None):
        raise UsageError("--map and --id-column need a table", fix="give the table with --from")
    require_case_paths(paths)
    require_paths(("--from", table), ("--map", mapping))
    part = None if shard is None else Shard.parse(shard)
    jobs = limit_to_cores(jobs, option="--jobs")
    cases = find_cases(paths, mask_label=parse_mask_label(mask_label))
    if part is not None:
        in_cohort, cases = len(cases), part.select(cases)
        echo(f"shard {part}: {len(cases)} of {in_cohort} cases", err=True)
    external = None
    if table is not None:
        external = read_external_table(
            table, read_mapping(mapping) if mapping is not None else None, id_column=id_column
        )
    options = ExtractionOptions(force=force, use_cache=not no_cache, external=external)
    results: list[ExtractionResult] = []
    with interruptible("continue with the same command"), show_progress() as progress:
        task = progress.add("radiomics", len(cases), unit="cases")
        for result in make_tables(cases, options, jobs=jobs or available_cores()):
            results.append(result)
            _print_result(result)
            task.advance()
    if external is not None:
        echo(
            f"note: the axes of the table are unknown; this package extracts in {AXES}, SimpleITK reads a DICOM series "
            "in LPS, and many features differ: use tables of one program for training and prediction, and compare "
            "with `tmi check --recompute`",
            err=True,
        )
    counts = {state: sum(r.state == state for r in results) for state in ("written", "current", "rejected")}
    echo(
        f"{len(results)} case(s): {counts['written']} written, {counts['current']} up to date, "
        f"{counts['rejected']} rejected"
    )
    if counts["rejected"]:
        raise typer.Exit(int(ExitCode.REJECTED))


def _print_result(result: ExtractionResult) -> None:
    """Print a rejection or the warnings on standard error."""
    if result.state == "rejected":
        print_error(InputRejectedError.of(result.issues))
        return
    for issue in result.issues:
        lines = (f"warning: case {result.case_id}: {issue.message} [{issue.code}]", f"  fix: {issue.fix}")
        echo(*lines, err=True, level=logging.WARNING, **issue.to_dict())
