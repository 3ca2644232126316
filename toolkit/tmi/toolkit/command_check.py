"""`tmi check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.case import find_cases
from tmi.toolkit.errors import ExitCode

if TYPE_CHECKING:
    from tmi.toolkit.check import Finding

SCHEMA = "tmi-check/1"


def check(
    paths: Annotated[list[Path], typer.Argument(help="Case folders or cohort folders.")],
    mask_label: Annotated[int | None, typer.Option("--mask-label", help="Label of the liver in the masks.")] = None,
    schema: Annotated[
        Path | None,
        typer.Option("--schema", help="Clinical schema. Default: tmi.toml's, else the liver's.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Say for each case what is wrong with it and how to mend it. Changes nothing.

    Errors are what training and prediction refuse (exit code 3); warnings are what a user should look at.

    Examples:

        tmi check cohort/
        tmi check cohort/P001 cohort/P002 --json
    """
    from tmi.toolkit.check import check_cases
    from tmi.toolkit.clinical_schema import load_schema
    from tmi.toolkit.project import load_project

    cases = find_cases(paths, mask_label=mask_label)
    findings = check_cases(cases, schema=load_schema(schema or load_project().schema_file))
    errors = {f.case_id for f in findings if f.severity == "error"}
    if as_json:
        typer.echo(
            json.dumps(
                {"schema": SCHEMA, "cases": [c.case_id for c in cases], "findings": [vars(f) for f in findings]},
                indent=2,
            )
        )
    else:
        _show(findings)
        warned = {f.case_id for f in findings} - errors
        typer.echo(
            f"{len(cases)} case(s): {len(cases) - len(errors) - len(warned)} good, {len(warned)} with warnings, "
            f"{len(errors)} refused"
        )
    if errors:
        raise typer.Exit(int(ExitCode.REFUSED))


def _show(findings: list[Finding]) -> None:
    for finding in findings:
        typer.echo(
            f"{finding.severity}: case {finding.case_id}: {finding.message} [{finding.code}]\n  fix: {finding.fix}"
        )
