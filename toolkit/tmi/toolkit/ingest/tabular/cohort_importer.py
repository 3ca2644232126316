"""Import of a spreadsheet as a cohort: writes one case per row and a report on every row.

    OUT/
      <case_id>/            clinical.json, and the files of `import_case` if the mapping names images
      cohort.csv            case_id, patient_id, label of the cases written; only with a label rule
      clinical_schema.json  clinical schema of the records, which `tmi check` and `tmi train` use
      import-report.json    outcome of each row (`tmi.toolkit.ingest.tabular.report`)
      import-report.csv
      .import-journal       rows that are finished, for `--resume`

Each case is written atomically. `cohort.csv` and the reports are written after the last row, so an interrupted import
does not look like a cohort. `resume` continues such an import. It skips a row if the journal holds the digest of the
row's mapped cells, of the size and modification time of its files, of the mapping and of the schema; any other row is
imported again. Cases in the journal that the table no longer contains are removed. Source files are opened read-only.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tmi.toolkit.cases.case import CLINICAL_FILE, COHORT_COLUMNS, COHORT_FILE, Case, folder_key
from tmi.toolkit.cases.provenance import CaseRecord, read_case_record, write_case_record
from tmi.toolkit.clinical.schema import Schema, store_schema
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.ingest.tabular.cells import cell_text
from tmi.toolkit.ingest.tabular.import_journal import JOURNAL_FILE, Journal, JournalEntry
from tmi.toolkit.ingest.tabular.mapping import Mapping, read_mapping
from tmi.toolkit.ingest.tabular.reader import Row, Table, read_cells
from tmi.toolkit.ingest.tabular.report import (
    REPORT_FILE,
    REPORT_TABLE,
    RowOutcome,
    RowResult,
    TableReport,
)
from tmi.toolkit.ingest.tabular.row_converter import RowReader, RowRecord
from tmi.toolkit.ingest.tabular.row_faults import RowExcludedError, RowRejectedError, fault, rejected
from tmi.toolkit.ingest.tabular.sources import ImageSource
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.atomic_files import require_absent, staged_folder, write_json, write_text
from tmi.toolkit.storage.csv_files import csv_text
from tmi.toolkit.storage.hashing import sha256_file, sha256_json
from tmi.toolkit.storage.outputs import LOCK_FILE, output_lock
from tmi.toolkit.storage.serialization import to_json

RECORD_CODES = frozenset(
    {
        "clinical-type", "clinical-unit", "clinical-range", "clinical-unit-suspect", "clinical-unit-doubt",
        "clinical-incomplete", "clinical-truncated", "clinical-unknown-field", "dates-apart", "duplicate-record",
    }
)  # fmt: skip
"""Findings on the records, which are checked when all rows are written, and not kept in the journal."""
FORMAT_VERSION = 3
"""Incremented when the same row yields a different case; rows of an earlier version are then imported again."""


def import_table(
    table: Path,
    mapping: Path,
    out: Path,
    *,
    force: bool = False,
    resume: bool = False,
    accept_losses: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TableReport:
    """Import every row of a table; a rejected row does not affect the others.

    Args:
        table: CSV or Excel file.
        mapping: YAML or JSON of schema `tmi-mapping/1` (`tmi.toolkit.ingest.tabular.mapping`).
        out: folder of the cohort.
        force: replace an earlier import at `out`; any other folder is left alone.
        resume: continue an earlier import at `out`.
        accept_losses: write `cohort.csv` even if more than a tenth of the rows are lost.
        progress: callback(rows finished, total rows), called after each row.

    Raises:
        UsageError: the table, the mapping or `out` is invalid, or another process writes `out`; nothing was written.
        UnavailableError: a package for workbooks, YAML or images is not installed.
        KeyboardInterrupt: Ctrl-C; `resume` continues the import.
    """
    _validate_paths(table, mapping, out, force=force, resume=resume)
    with output_lock(out, kind="cohort"):
        _validate_output_folder(out, force=force, resume=resume)
        return _import_locked(table, mapping, out, force=force, accept_losses=accept_losses, progress=progress)


def _import_locked(
    table: Path,
    mapping: Path,
    out: Path,
    *,
    force: bool,
    accept_losses: bool,
    progress: Callable[[int, int], None] | None,
) -> TableReport:
    rules, schema = read_mapping(mapping)
    cells = read_cells(table, rules.table, wanted=rules.columns())
    if force:
        _clear(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in (COHORT_FILE, REPORT_FILE, REPORT_TABLE):
        (out / name).unlink(missing_ok=True)
    store_schema(out, schema)
    run = _TableImport(out, cells, rules, schema, base_folder=table.parent)
    run.import_rows(progress or (lambda finished, total: None))
    report = TableReport(
        out=out,
        table={"name": table.name, "sha256": sha256_file(table)},
        mapping={"name": mapping.name, "sha256": sha256_file(mapping)},
        clinical_schema={"name": schema.name, "version": schema.version, "sha256": schema.digest},
        lines=tuple(run.lines),
        columns={column: rules.columns().get(column) for column in cells.columns},
        missing=_count_missing(cells, run.reader),
        kept=run.kept,
        labelled=False,
        images=rules.images is not None,
        has_label=rules.label is not None,
        losses_accepted=accept_losses,
    )
    if rules.label is not None and not report.withheld:
        report = replace(report, labelled=_write_cohort(out, run.cohort))
    report.write()
    return report


def _validate_paths(table: Path, mapping: Path, out: Path, *, force: bool, resume: bool) -> None:
    if force and resume:
        raise UsageError(
            "--force and --resume exclude each other", fix="continue with --resume, or start again with --force"
        )
    target = out.resolve()
    for source in (table.resolve(), mapping.resolve(), Path.cwd()):
        if target == source or target in source.parents:
            raise UsageError(f"{out} holds {source.name}, which must not be overwritten", fix="name another folder")


def _validate_output_folder(out: Path, *, force: bool, resume: bool) -> None:
    if not resume:
        require_absent(out, force=force, kind="cohort")
    occupied = out.is_dir() and any(p.name != LOCK_FILE for p in out.iterdir())
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", fix="name a folder")
    if occupied and not (out / JOURNAL_FILE).is_file():
        raise UsageError(
            f"{out} is not an import of a table, so it is neither replaced nor resumed", fix="name another folder"
        )


def _clear(out: Path) -> None:
    """Remove the cases and the journal of an earlier import; other files stay."""
    if out.is_dir():
        for case_id in Journal(out).entries:
            shutil.rmtree(out / case_id, ignore_errors=True)
        (out / JOURNAL_FILE).unlink()


class _TableImport:
    """One pass over the rows of a table."""

    def __init__(self, out: Path, table: Table, mapping: Mapping, schema: Schema, *, base_folder: Path) -> None:
        self.reader = RowReader(table, mapping, schema, base_folder=base_folder)
        self.lines: list[RowResult] = []
        self.cohort: list[tuple[str, str, str]] = []
        self.kept = 0
        self._out, self._table, self._mapping, self._schema = out, table, mapping, schema
        self._written: dict[str, str] = {}
        self._columns = [table.columns.index(c) for c in mapping.columns()]
        self._rules_digest = sha256_json({"form": FORMAT_VERSION, "mapping": to_json(mapping), "schema": schema.digest})
        self._journal = Journal(out)

    def import_rows(self, progress: Callable[[int, int], None]) -> None:
        """Import every row, then remove cases of an earlier run that this table does not contain."""
        duplicates = self._duplicate_case_ids()
        written: set[str] = set()
        for number, row in enumerate(self._table.rows, start=1):
            line = self._import_row(row, duplicates)
            self.lines.append(line)
            if line.case_id is not None and line.outcome in ("imported", "flawed"):
                written.add(line.case_id)
            progress(number, len(self._table.rows))
        self._add_record_findings()
        entries = self._journal.entries
        # Rejections stay in the journal, so that `resume` need not read the images again.
        rejected = {n.case_id for n in self.lines if n.case_id in entries and entries[n.case_id].rejection}
        for case_id in self._journal.retain_only(written | {c for c in rejected if c is not None}):
            shutil.rmtree(self._out / case_id, ignore_errors=True)

    def _duplicate_case_ids(self) -> dict[str, int]:
        """Return key of a case id -> number of its rows, for ids of several rows."""
        counts: Counter[str] = Counter()
        for row in self._table.rows:
            try:
                counts[folder_key(self.reader.case_id(row))] += 1
            except RowRejectedError:
                continue  # reported when the row is imported
        return {case_id: n for case_id, n in counts.items() if n > 1}

    def _import_row(self, row: Row, duplicates: dict[str, int]) -> RowResult:
        try:
            record = self._read_row(row, duplicates)
            findings = self._import_case(row, record)
        except RowExcludedError as error:
            return _unused_row(row, error, "excluded", lost=not error.stated)
        except RowRejectedError as error:
            return _unused_row(row, error, "refused", lost=True)
        if record.label is not None:
            self.cohort.append((record.case_id, record.patient_id, record.label))
        self._written[record.case_id] = record.patient_id
        result = RowResult(row=row.number, case_id=record.case_id, outcome="imported", set_missing=record.set_missing)
        return _with_findings(result, findings)

    def _read_row(self, row: Row, duplicates: dict[str, int]) -> RowRecord:
        """Convert a row; a case id of several rows is one of its faults."""
        faults: tuple[Issue, ...] = ()
        try:
            record = self.reader.read(row)
            case_id: str | None = record.case_id
        except RowExcludedError:
            raise
        except RowRejectedError as error:
            case_id, faults = error.case_id, error.issues
        if n_rows := duplicates.get(folder_key(case_id or "")):
            faults = (*faults, fault("case-twice", f"{n_rows} rows have this case id"))
        if faults:
            raise rejected(faults, case_id=case_id)
        return record

    def _add_record_findings(self) -> None:
        """Check the records of all written cases, also against each other, and add the findings to their rows."""
        from tmi.toolkit.qc.case_checks import check_cases  # imports the image packages

        cases = [Case(folder=self._out / c, case_id=c, patient_id=p) for c, p in self._written.items()]
        by_case: dict[str | None, list[Issue]] = {}
        for f in check_cases(cases, schema=self._schema, records_only=True):
            by_case.setdefault(f.case_id, []).append(f)
        self.lines = [
            _with_findings(line, by_case[line.case_id])
            if line.outcome in ("imported", "flawed") and line.case_id in by_case
            else line
            for line in self.lines
        ]

    def _import_case(self, row: Row, record: RowRecord) -> list[Issue]:
        """Write the row's case unless the journal lists it with the same inputs.

        Returns:
            Findings of the import and the check of its images.
        """
        try:
            files = {use: _file_states(path) for use, path in record.files.items()}
        except OSError as error:
            why = f"its files cannot be read ({error.strerror})"
            raise RowRejectedError("case-unreadable", why, case_id=record.case_id) from error
        cells = [cell_text(row.cells[i]) for i in self._columns]
        key = sha256_json({"rules": self._rules_digest, "cells": cells, "files": files})
        folder = self._out / record.case_id
        entry = self._journal.entries.get(record.case_id)
        if entry is not None and entry.key == key:
            if entry.rejection:
                raise rejected(entry.rejection, case_id=record.case_id)
            if (folder / CLINICAL_FILE).is_file():
                self.kept += 1
                return list(entry.issues)
        try:
            findings = _write_case(folder, record, self._mapping.images, self._schema)
        except InputRejectedError as error:
            rejection = error.issues
        except UsageError as error:
            rejection = (Issue.of("import", error.what, error.fix),)
        else:
            self._journal.add(JournalEntry(key=key, case_id=record.case_id, issues=tuple(findings)))
            return findings
        shutil.rmtree(folder, ignore_errors=True)  # a case of an earlier version of the row
        self._journal.add(JournalEntry(key=key, case_id=record.case_id, rejection=rejection))
        raise rejected(rejection, case_id=record.case_id)


def _unused_row(row: Row, error: RowRejectedError, outcome: RowOutcome, *, lost: bool) -> RowResult:
    return RowResult(
        row=row.number,
        case_id=error.case_id,
        outcome=outcome,
        code=error.code,
        why=error.what,
        faults=error.issues,
        lost=lost,
    )


def _with_findings(line: RowResult, findings: Iterable[Issue]) -> RowResult:
    """Add findings to the result of a row; the first error of all makes it flawed."""
    every = (*line.findings, *(f for f in findings if f not in line.findings))
    first = next((f for f in every if f.severity == "error"), None)
    if first is None:
        return replace(line, findings=every)
    return replace(line, findings=every, outcome="flawed", code=first.code, why=first.message)


def _write_case(folder: Path, record: RowRecord, images: ImageSource | None, schema: Schema) -> list[Issue]:
    """Write a case, with images or without; return the findings on its images."""
    if images is not None:
        return _import_images(folder, record, images, schema)
    with staged_folder(folder) as stage:
        write_json(stage / CLINICAL_FILE, record.clinical)
        if record.days_from_blood_to_ct is not None:
            write_case_record(stage, CaseRecord(days_from_blood_to_ct=record.days_from_blood_to_ct))
    return []


def _import_images(folder: Path, record: RowRecord, images: ImageSource, schema: Schema) -> list[Issue]:
    """Import a case with images; return the findings, without those that a check of the record gives again."""
    from tmi.toolkit.ingest.case_importer import import_case  # imports the image packages: only if needed

    imported = import_case(
        folder,
        ct=record.files["ct"],
        mask=record.files.get("mask"),
        series=record.series,
        mask_label=images.mask_label if "mask" in record.files else None,
        roi=images.roi if "mask" in record.files else None,
        clinical=record.clinical,
        radiomics=record.files.get("radiomics"),
        patient_id=record.patient_id,
        fixes=images.fixes,
        schema=schema,
        force=True,
    )
    if record.days_from_blood_to_ct is not None:
        case_record = read_case_record(folder, case_id=record.case_id) or CaseRecord()
        if case_record.days_from_blood_to_ct is None:
            write_case_record(folder, replace(case_record, days_from_blood_to_ct=record.days_from_blood_to_ct))
    return [issue for issue in imported.findings if issue.code not in RECORD_CODES]


def _file_states(path: Path) -> Any:
    """Return name, size and modification time of a file, or of every file in a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [(p.relative_to(path.parent).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def _write_cohort(out: Path, cohort: list[tuple[str, str, str]]) -> bool:
    """Write `cohort.csv` unless the cohort is empty; return whether it was written."""
    if cohort:
        write_text(out / COHORT_FILE, csv_text(COHORT_COLUMNS, cohort))
    return bool(cohort)


def _count_missing(table: Table, reader: RowReader) -> dict[str, int]:
    """Return column -> number of missing cells, for columns with any."""
    counts = {
        column: sum(reader.is_missing(column, row.cells[i]) for row in table.rows)
        for i, column in enumerate(table.columns)
    }
    return {column: n for column, n in counts.items() if n}
