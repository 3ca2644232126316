"""`tmi import`."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmi.toolkit.errors import ExitCode, InputRejectedError, UsageError

if TYPE_CHECKING:
    from tmi.toolkit.ingest.case_importer import ImportedCase

SCHEMA = "tmi-import/1"


def import_(
    out: Annotated[Path, typer.Argument(help="Folder of the new case, or of the new cohort with --table.")],
    ct: Annotated[
        Path | None, typer.Option("--ct", help="Folder of a DICOM series, or NIfTI, NRRD or MHA file.")
    ] = None,
    series: Annotated[
        str | None, typer.Option("--series", help="Which CT series: its number in the listing, or its UID.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Liver mask: NIfTI, NRRD, MHA, DICOM SEG or RTSTRUCT.")
    ] = None,
    mask_label: Annotated[
        str | None,
        typer.Option(
            "--mask-label", help="Label or segment by number or name. Default: the one named liver, or the only one."
        ),
    ] = None,
    roi: Annotated[str | None, typer.Option("--roi", help="ROI of an RTSTRUCT by name.")] = None,
    clinical: Annotated[Path | None, typer.Option("--clinical", help="Clinical record (clinical.json).")] = None,
    radiomics: Annotated[Path | None, typer.Option("--radiomics", help="Table of the features (CSV).")] = None,
    patient_id: Annotated[
        str | None, typer.Option("--patient-id", help="Pseudonym of the patient; must agree with the record.")
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option("--fix", metavar="CODE[,CODE]", help="Repairs that may be made; may be given again."),
    ] = None,
    table: Annotated[Path | None, typer.Option("--table", help="Spreadsheet (CSV, XLSX) of a cohort.")] = None,
    mapping: Annotated[Path | None, typer.Option("--map", help="Mapping of the table's columns (YAML).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="With --table: go on where it stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Make a case from real files, or a cohort from a table. Originals are only read; nothing identifying is kept.

    What cannot be trusted is refused and nothing is written. What was written but should not be used yet is listed as
    `tmi check` does; exit code 3 in both.

    Examples:

        tmi import cases/P001 --ct dicom/ --mask liver.dcm --clinical P001.json
        tmi import cases/P002 --ct ct.nii.gz --mask total.nii.gz --mask-label liver
        tmi import cohort --table cohort.xlsx --map mapping.yaml
    """
    if table is not None or mapping is not None:
        if table is None or mapping is None:
            raise UsageError("--table and --map belong together", fix="give both")
        if any(v is not None for v in (ct, series, mask, mask_label, roi, clinical, radiomics, patient_id, fix)):
            raise UsageError("--table stands alone: the table names the files", fix="leave the other options out")
        report = _import_table(table, mapping, out, force=force, resume=resume)
        typer.echo(json.dumps(report.document(), indent=2) if as_json else "\n".join(report.summary()))
        if report.counts["refused"] or report.counts["flawed"]:
            raise typer.Exit(int(ExitCode.REJECTED))
        return
    if resume:
        raise UsageError("--resume is for --table", fix="leave it out")
    from tmi.toolkit.ingest.case_importer import import_case

    try:
        done = import_case(
            out,
            ct=ct,
            mask=mask,
            series=series,
            mask_label=mask_label,
            roi=roi,
            clinical=clinical,
            radiomics=radiomics,
            patient_id=patient_id,
            fixes=[code.strip() for codes in fix or () for code in codes.split(",")],
            force=force,
        )
    except InputRejectedError as error:
        if as_json:
            typer.echo(json.dumps(_rejection_document(out, error), indent=2))
        raise
    if as_json:
        typer.echo(json.dumps(_document(done), indent=2))
    else:
        _print_result(out, done)
    if done.rejected:
        raise typer.Exit(int(ExitCode.REJECTED))


def _import_table(table: Path, mapping: Path, out: Path, *, force: bool, resume: bool) -> Any:
    """The table's report; rows are counted on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows", total=None)
        return importlib.import_module("tmi.toolkit.ingest.tabular.cohort_importer").import_table(
            table,
            mapping,
            out,
            force=force,
            resume=resume,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _document(done: ImportedCase) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "case_id": done.case.case_id,
        "written": True,
        "source": dict(done.source),
        "mask_label": done.label,
        "repairs": [vars(r) for r in done.repairs],
        "findings": [vars(f) for f in done.findings],
        "missing": [vars(f) for f in done.missing],
    }


def _rejection_document(out: Path, error: InputRejectedError) -> dict[str, object]:
    """The same keys for a case that was not written."""
    case_id = error.case_id or out.resolve().name
    found = {"case_id": case_id, "code": error.code, "severity": "error", "message": error.what, "fix": error.fix}
    return {
        "schema": SCHEMA,
        "case_id": case_id,
        "written": False,
        "source": {},
        "mask_label": None,
        "repairs": [],
        "findings": [found],
        "missing": [],
    }


def _print_result(out: Path, done: ImportedCase) -> None:
    typer.echo(f"case {done.case.case_id}: written to {out}")
    for name, source in done.source.items():
        facts = ", ".join(
            f"{k.replace('_', ' ')} {_plain(v)}" for k, v in source.items() if k != "sha256" and v not in (0, [])
        )
        typer.echo(f"  {name}: {facts}" if facts else f"  {name}: copied")
    if done.label is not None:
        typer.echo(f"  mask label taken: {done.label}")
    for repair in done.repairs:
        typer.echo(f"  repaired: {repair.what} [{repair.code}]")
    for finding in done.findings:
        typer.echo(f"{finding.severity}: {finding.message} [{finding.code}]\n  fix: {finding.fix}")
    for finding in done.missing:
        typer.echo(f"still to be added: {finding.message} [{finding.code}]")


def _plain(value: object) -> str:
    if not isinstance(value, list):
        return str(value)
    return ("x" if all(isinstance(v, int) for v in value) else ", ").join(map(str, value))
