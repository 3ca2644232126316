"""Command `tmi import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.cases.case import given_name
from tmi.toolkit.cli.console import echo, echo_json
from tmi.toolkit.cli.inputs import require_folder_name, require_paths
from tmi.toolkit.cli.interrupts import interruptible
from tmi.toolkit.cli.progress import show_progress
from tmi.toolkit.errors import ExitCode, InputRejectedError, UsageError

if TYPE_CHECKING:
    from tmi.toolkit.ingest.case_importer import ImportedCase
    from tmi.toolkit.ingest.tabular.report import TableReport

SCHEMA = "tmi-import/2"


def import_(
    out: Annotated[Path, typer.Argument(help="Folder of the new case, or of the new cohort with --table.")],
    ct: Annotated[
        Path | None, typer.Option("--ct", help="Folder of a DICOM series, or NIfTI, NRRD or MHA file.")
    ] = None,
    series: Annotated[
        str | None, typer.Option("--series", help="CT series, by its number in the listing or by its UID.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Liver mask: NIfTI, NRRD, MHA, DICOM SEG or RTSTRUCT.")
    ] = None,
    mask_label: Annotated[
        list[str] | None,
        typer.Option(
            "--mask-label",
            metavar="LABEL[,LABEL]",
            help="Label or segment, by number or name; several are joined. Default: the one named liver, or the only.",
        ),
    ] = None,
    roi: Annotated[
        list[str] | None,
        typer.Option("--roi", metavar="NAME[,NAME]", help="ROI of an RTSTRUCT, by name; several are joined."),
    ] = None,
    clinical: Annotated[Path | None, typer.Option("--clinical", help="Clinical record (clinical.json).")] = None,
    radiomics: Annotated[Path | None, typer.Option("--radiomics", help="Table of the features (CSV).")] = None,
    patient_id: Annotated[
        str | None, typer.Option("--patient-id", help="Pseudonym of the patient; must agree with the record.")
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option("--fix", metavar="CODE[,CODE]", help="Repairs that may be applied; repeatable."),
    ] = None,
    table: Annotated[Path | None, typer.Option("--table", help="Spreadsheet (CSV, XLSX) of a cohort.")] = None,
    mapping: Annotated[Path | None, typer.Option("--map", help="Mapping of the table's columns (YAML).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="With --table: continue an interrupted import.")] = False,
    accept_losses: Annotated[
        bool,
        typer.Option("--accept-losses", help="With --table: write the cohort even if over 10% of its rows are lost."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing case or cohort.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Import a case from hospital files, or a cohort from a table. Originals are only read and identifiers are dropped.

    Unreliable input is rejected and nothing is written. Problems of a case that was written are listed as by
    `tmi check`. Both give exit code 3.

    Examples:

        tmi import cases/P001 --ct dicom/ --mask liver.dcm --clinical P001.json
        tmi import cases/P002 --ct ct.nii.gz --mask total.nii.gz --mask-label liver
        tmi import cases/P003 --ct volume-3.nii --mask segmentation-3.nii --mask-label 1,2
        tmi import cohort --table cohort.xlsx --map mapping.yaml
    """
    require_folder_name(out, kind="case or cohort")
    if table is not None or mapping is not None:
        if table is None or mapping is None:
            raise UsageError("--table and --map belong together", fix="give both")
        require_paths(("table", table), ("mapping", mapping))
        if any(v is not None for v in (ct, series, mask, mask_label, roi, clinical, radiomics, patient_id, fix)):
            raise UsageError(
                "--table excludes the other inputs: the table names the files", fix="omit the other options"
            )
        report = _import_table(table, mapping, out, force=force, resume=resume, accept_losses=accept_losses)
        if as_json:
            echo_json(json.dumps(report.document(), indent=2))
        else:
            echo(*report.summary())
        if report.counts["refused"] or report.counts["flawed"] or report.withheld:
            raise typer.Exit(int(ExitCode.REJECTED))
        return
    for option, given in (("--resume", resume), ("--accept-losses", accept_losses)):
        if given:
            raise UsageError(f"{option} needs --table", fix=f"omit {option}")
    require_paths(("--ct", ct), ("--mask", mask), ("--clinical", clinical), ("--radiomics", radiomics))
    from tmi.toolkit.clinical.schema import find_schema
    from tmi.toolkit.config.project import load_project
    from tmi.toolkit.ingest.case_importer import import_case

    schema, note = find_schema(None, load_project().schema_file, [out])
    if note is not None:
        echo(note, err=True)
    try:
        with show_progress() as progress:
            progress.add("importing the case", None, unit="files")
            imported = import_case(
                out,
                ct=ct,
                mask=mask,
                series=series,
                mask_label=mask_label[0] if mask_label is not None and len(mask_label) == 1 else mask_label,
                roi=roi[0] if roi is not None and len(roi) == 1 else roi,
                clinical=clinical,
                radiomics=radiomics,
                patient_id=patient_id,
                fixes=[code.strip() for codes in fix or () for code in codes.split(",")],
                schema=schema,
                force=force,
            )
    except InputRejectedError as error:
        if as_json:
            echo_json(json.dumps(_rejection_document(out, error), indent=2))
        raise
    if as_json:
        echo_json(json.dumps(_document(imported), indent=2))
    else:
        _print_result(out, imported)
    if imported.rejected:
        raise typer.Exit(int(ExitCode.REJECTED))


def _import_table(
    table: Path, mapping: Path, out: Path, *, force: bool, resume: bool, accept_losses: bool
) -> TableReport:
    """Import the rows of a table with a progress bar and return the report."""
    with interruptible("continue with the same command and --resume"), show_progress() as progress:
        task = progress.add("importing", None, unit="rows")
        from tmi.toolkit.ingest.tabular.cohort_importer import import_table

        return import_table(
            table,
            mapping,
            out,
            force=force,
            resume=resume,
            accept_losses=accept_losses,
            progress=task.update,
        )


def _document(imported: ImportedCase) -> dict[str, object]:
    """Return the JSON document of an imported case."""
    return {
        "schema": SCHEMA,
        "case_id": imported.case.case_id,
        "written": True,
        "source": dict(imported.source),
        "mask_label": imported.label,
        "repairs": [vars(r) for r in imported.repairs],
        "findings": [f.to_dict() for f in imported.findings],
        "missing": [f.to_dict() for f in imported.missing],
    }


def _rejection_document(out: Path, error: InputRejectedError) -> dict[str, object]:
    """Return the JSON document of a rejected case, with the same keys."""
    case_id = error.case_id or given_name(out)
    return {
        "schema": SCHEMA,
        "case_id": case_id,
        "written": False,
        "source": {},
        "mask_label": None,
        "repairs": [],
        "findings": [issue.to_dict() for issue in error.for_case(case_id).issues],
        "missing": [],
    }


def _print_result(out: Path, imported: ImportedCase) -> None:
    echo(f"case {imported.case.case_id}: written to {out}")
    for name, source in imported.source.items():
        properties = ", ".join(
            f"{k.replace('_', ' ')} {_format(v)}"
            for k, v in source.items()
            if k not in ("sha256", "named_otherwise") and v not in (0, [])  # the check `mask-name` states the second
        )
        echo(f"  {name}: {properties}" if properties else f"  {name}: copied")
    if imported.label is not None:
        echo(f"  mask label used: {imported.label}")
    for repair in imported.repairs:
        echo(f"  repaired: {repair.what} [{repair.code}]")
    for finding in imported.findings:
        echo(f"{finding.severity}: {finding.message} [{finding.code}]", f"  fix: {finding.fix}")
    for finding in imported.missing:
        echo(f"still to be added: {finding.message} [{finding.code}]")


def _format(value: object) -> str:
    """Format a source property: lists of integers as shapes, other lists with commas."""
    if not isinstance(value, list):
        return str(value)
    return ("x" if all(isinstance(v, int) for v in value) else ", ").join(map(str, value))
