"""Command `tmi check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.cases.case import Case, find_cases, is_folder, parse_mask_label
from tmi.toolkit.cli.console import echo, echo_json
from tmi.toolkit.cli.inputs import require_case_paths, require_paths
from tmi.toolkit.cli.progress import show_progress
from tmi.toolkit.errors import ExitCode, InputRejectedError, UsageError

if TYPE_CHECKING:
    from tmi.toolkit.issues.issue import Issue
    from tmi.toolkit.qc.radiomics_comparison import RadiomicsComparison
    from tmi.toolkit.qc.repairs import AppliedRepair

MAX_UNCOUNTED_FINDINGS = 20
"""Number of findings above which the cases of each code are counted as well."""


def check(
    paths: Annotated[list[Path], typer.Argument(help="Case folders or cohort folders.", readable=False)],
    mask_label: Annotated[
        list[str] | None,
        typer.Option("--mask-label", metavar="N[,N]", help="Label of the liver in the masks; several are joined."),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema",
            help="Clinical schema. Default: the cohort's, else tmi.toml's, else the liver's.",
            show_default=False,
        ),
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option("--fix", metavar="CODE[,CODE]", help="Repair these findings, record it in case.json, then check."),
    ] = None,
    recompute: Annotated[
        bool,
        typer.Option("--recompute", help="Compare radiomics.csv with features extracted from the mask."),
    ] = False,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Relative tolerance of --recompute.", show_default="1e-6")
    ] = 1e-6,
    records_only: Annotated[
        bool, typer.Option("--records-only", help="Check the clinical records alone: no images, no radiomics.")
    ] = False,
    vocab: Annotated[
        Path | None,
        typer.Option("--vocab", help="BERT vocabulary that counts a text's tokens.", show_default="estimated"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Print every problem of each case with its fix. Changes nothing unless --fix is given.

    A case with an error must not be used as it is (exit code 3). A case with a warning should be inspected.

    Examples:

        tmi check cohort/
        tmi check cohort/P001 cohort/P002 --json
        tmi check cohort/P003 --fix mask-grid,ct-padding
        tmi check cohort/ --recompute
        tmi check cohort/ --records-only
    """
    from tmi.toolkit.clinical.schema import find_schema
    from tmi.toolkit.clinical.tokenizer import Tokenizer
    from tmi.toolkit.config.presets import preset
    from tmi.toolkit.config.project import load_project
    from tmi.toolkit.qc.case_checks import check_cases
    from tmi.toolkit.qc.repairs import parse_codes
    from tmi.toolkit.qc.report import document
    from tmi.toolkit.qc.text_length import TextEncoderInput

    codes = parse_codes(fix) if fix is not None else ()
    if records_only and (codes or recompute):
        raise UsageError("--records-only excludes --fix and --recompute, which need the images", fix="omit them")
    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance {tolerance:g}", fix="give a number from 0 to below 1")
    require_case_paths(paths)
    require_paths(("--schema", schema), ("--vocab", vocab))
    project = load_project()
    fields, note = find_schema(schema, project.schema_file, paths)
    if note is not None:
        echo(note, err=True)
    clinical = preset(project.preset).clinical
    encoder_input = TextEncoderInput(
        rendering=clinical.rendering,
        max_length=clinical.max_length,
        tokenizer=None if vocab is None else Tokenizer.read(vocab),
    )
    cases = find_cases(paths, mask_label=parse_mask_label(mask_label))
    comparisons: list[RadiomicsComparison] = []
    repairs, unrepaired = _repair(cases, codes)
    with show_progress() as progress:
        task = progress.add("checking", len(cases), unit="cases")
        findings = unrepaired + check_cases(
            cases,
            schema=fields,
            progress=lambda case: task.advance(),
            radiomics_tolerance=tolerance if recompute else None,
            on_comparison=comparisons.append,
            encoder_input=encoder_input,
            records_only=records_only,
        )
    result = document(cases, findings, repairs=repairs, comparisons=comparisons)
    counts = result["counts"]
    if as_json:
        echo_json(json.dumps(result, indent=2, allow_nan=False))
    else:
        _print_repairs(repairs)
        _print_findings(findings)
        if len(findings) > MAX_UNCOUNTED_FINDINGS:
            _print_code_counts(findings)
        _print_comparisons(comparisons)
        echo(
            f"{counts['cases']} case(s): {counts['good']} good, {counts['warned']} with warnings, "
            f"{counts['refused']} rejected" + (f", {len(repairs)} repair(s) applied" if codes else "")
        )
    if counts["refused"]:
        raise typer.Exit(int(ExitCode.REJECTED))


def _repair(cases: list[Case], codes: Sequence[str]) -> tuple[list[AppliedRepair], list[Issue]]:
    """Repair every case; returns what was applied, and a finding for each case that cannot be written."""
    from tmi.toolkit.qc.repairs import repair

    applied: list[AppliedRepair] = []
    findings: list[Issue] = []
    for case in cases:
        try:
            applied += repair(case, codes) if codes and is_folder(case.folder) else []
        except InputRejectedError as error:
            findings += error.for_case(case.case_id).issues
    return applied, findings


def _print_repairs(repairs: list[AppliedRepair]) -> None:
    for repair in repairs:
        echo(f"repaired: case {repair.case_id}: {repair.file}: {repair.what} [{repair.code}]")


def _print_comparisons(comparisons: list[RadiomicsComparison]) -> None:
    for c in comparisons:
        echo(
            f"recomputed: case {c.case_id}: {c.compared - c.differ} of {c.compared} features agree within "
            f"{c.tolerance:g} relative"
            + (f"; in the axes {c.axes}: {c.compared - (c.axes_differ or 0)}" if c.axes is not None else "")
        )


def _print_findings(findings: list[Issue]) -> None:
    for finding in findings:
        echo(f"{finding.severity}: case {finding.case_id}: {finding.message} [{finding.code}]", f"  fix: {finding.fix}")


def _print_code_counts(findings: list[Issue]) -> None:
    """Print the number of cases of each code, the most frequent first."""
    cases: dict[tuple[str, str], set[str | None]] = {}
    for finding in findings:
        cases.setdefault((finding.severity, finding.code), set()).add(finding.case_id)
    echo("by code:")
    for (severity, code), ids in sorted(cases.items(), key=lambda item: (-len(item[1]), item[0])):
        echo(f"  {len(ids):5d} case(s)  {severity:7}  {code}")
