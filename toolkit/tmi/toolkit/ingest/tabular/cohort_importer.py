"""Import of a spreadsheet as a cohort: writes one case per row and a report on every row.

    OUT/
      <case_id>/            clinical.json, and the files of `import_case` if the mapping names images
      cohort.csv            case_id, patient_id, label of the cases written; only with a label rule
      import-report.json    outcome of each row (`tmi.toolkit.ingest.tabular.report`)
      import-report.csv
      .import-journal       rows that are finished, for `--resume`

Each case is written atomically. `cohort.csv` and the reports are written after the last row, so an interrupted import
does not look like a cohort. `resume` continues such an import. It skips a row if the journal holds the digest of the
row's mapped cells, of the size and modification time of its files, of the mapping and of the schema; any other row is
imported again. Cases in the journal that the table no longer contains are removed. Source files are opened read-only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tmi.toolkit.cases.case import CLINICAL_FILE, COHORT_COLUMNS, COHORT_FILE, is_portable_name
from tmi.toolkit.cases.provenance import CaseRecord, read_case_record, write_case_record
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.ingest.tabular.cells import cell_text
from tmi.toolkit.ingest.tabular.mapping import ImageSource, Mapping, read_mapping
from tmi.toolkit.ingest.tabular.reader import Row, Table, read_cells
from tmi.toolkit.ingest.tabular.report import REPORT_FILE, REPORT_TABLE, RowResult, TableReport
from tmi.toolkit.ingest.tabular.row_converter import RowExcludedError, RowReader, RowRecord, RowRejectedError
from tmi.toolkit.storage.atomic_files import require_absent, staged_folder, write_json, write_text
from tmi.toolkit.storage.bounded_files import JOURNAL_BYTES, read_bytes
from tmi.toolkit.storage.csv_files import csv_text
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.hashing import sha256_file, sha256_json
from tmi.toolkit.storage.serialization import from_json, to_json

JOURNAL_FILE = ".import-journal"
FORMAT_VERSION = 2
MAX_TORN_LINES = 1000
"""Lines of a journal that may be incomplete; each kill leaves one."""
"""Incremented when the same row yields a different case; rows of an earlier version are then imported again."""


def import_table(
    table: Path,
    mapping: Path,
    out: Path,
    *,
    force: bool = False,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TableReport:
    """Import every row of a table; a rejected row does not affect the others.

    Args:
        table: CSV or Excel file.
        mapping: YAML or JSON of schema `tmi-mapping/1` (`tmi.toolkit.ingest.tabular.mapping`).
        out: folder of the cohort.
        force: replace an earlier import at `out`; any other folder is left alone.
        resume: continue an earlier import at `out`.
        progress: callback(rows finished, total rows), called after each row.

    Raises:
        UsageError: the table, the mapping or `out` is invalid; nothing was written.
        UnavailableError: a package for workbooks, YAML or images is not installed.
        KeyboardInterrupt: Ctrl-C; `resume` continues the import.
    """
    _validate_output_folder(table, mapping, out, force=force, resume=resume)
    rules, schema = read_mapping(mapping)
    cells = read_cells(table, rules.table, wanted=rules.columns())
    if force:
        _clear(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in (COHORT_FILE, REPORT_FILE, REPORT_TABLE):
        (out / name).unlink(missing_ok=True)
    run = _TableImport(out, cells, rules, schema, base_folder=table.parent)
    run.import_rows(progress or (lambda finished, total: None))
    labelled = _write_cohort(out, run.cohort) if rules.label is not None else False
    report = TableReport(
        out=out,
        table={"name": table.name, "sha256": sha256_file(table)},
        mapping={"name": mapping.name, "sha256": sha256_file(mapping)},
        clinical_schema={"name": schema.name, "version": schema.version, "sha256": schema.digest},
        lines=tuple(run.lines),
        columns={column: rules.columns().get(column) for column in cells.columns},
        missing=_count_missing(cells, run.reader),
        kept=run.kept,
        labelled=labelled,
        images=rules.images is not None,
    )
    report.write()
    return report


def _validate_output_folder(table: Path, mapping: Path, out: Path, *, force: bool, resume: bool) -> None:
    if force and resume:
        raise UsageError(
            "--force and --resume exclude each other", fix="continue with --resume, or start again with --force"
        )
    target = out.resolve()
    for source in (table.resolve(), mapping.resolve(), Path.cwd()):
        if target == source or target in source.parents:
            raise UsageError(f"{out} holds {source.name}, which must not be overwritten", fix="name another folder")
    if not resume:
        require_absent(out, force=force, kind="cohort")
    occupied = out.is_dir() and any(out.iterdir())
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", fix="name a folder")
    if occupied and not (out / JOURNAL_FILE).is_file():
        raise UsageError(
            f"{out} is not an import of a table, so it is neither replaced nor resumed", fix="name another folder"
        )


def _clear(out: Path) -> None:
    """Remove the cases and the journal of an earlier import; other files stay."""
    if out.is_dir():
        for case_id in _Journal(out).entries:
            shutil.rmtree(out / case_id, ignore_errors=True)
        (out / JOURNAL_FILE).unlink()


@dataclass(frozen=True, kw_only=True)
class _JournalEntry:
    """Journal entry of one finished row."""

    key: str
    """Digest of the row's inputs."""
    case_id: str
    """Case id."""
    flaw: tuple[str, str] | None = None
    """Code and message of the first error of `tmi check`."""
    refusal: tuple[str, str] | None = None
    """Code and message of the rejection of the row's images."""


class _Journal:
    """Append-only log of finished cases: one JSON line per case, synced to disk after the case is written."""

    def __init__(self, out: Path) -> None:
        self._path = out / JOURNAL_FILE
        self.entries: dict[str, _JournalEntry] = {}
        if self._path.exists():
            torn = 0
            for line in _journal_lines(self._path):
                try:
                    entry = from_json(_JournalEntry, parse_json(line), where=JOURNAL_FILE)
                except (DocumentError, UsageError):
                    torn += bool(line.strip())  # a line truncated by a kill: its row is imported again
                    if torn > MAX_TORN_LINES:
                        raise _damaged_journal(self._path, "most of its lines are no entries") from None
                    continue
                # Entries are deleted as folders, so an edited journal must not name a path outside.
                if is_portable_name(entry.case_id):
                    self.entries[entry.case_id] = entry
        self._path.touch()

    def add(self, entry: _JournalEntry) -> None:
        """Append an entry and sync it to disk."""
        self.entries[entry.case_id] = entry
        with self._path.open("a", encoding="utf-8") as stream:
            # The newline comes first: it terminates a line that a kill truncated.
            stream.write("\n" + json.dumps(to_json(entry)))
            stream.flush()
            os.fsync(stream.fileno())

    def retain_only(self, case_ids: set[str]) -> list[str]:
        """Drop all entries except those of `case_ids`; return the case ids that were dropped."""
        dropped = [c for c in self.entries if c not in case_ids]
        self.entries = {c: entry for c, entry in self.entries.items() if c in case_ids}
        write_text(self._path, "".join(json.dumps(to_json(entry)) + "\n" for entry in self.entries.values()))
        return dropped


class _TableImport:
    """One pass over the rows of a table."""

    def __init__(self, out: Path, table: Table, mapping: Mapping, schema: Schema, *, base_folder: Path) -> None:
        self.reader = RowReader(table, mapping, schema, base_folder=base_folder)
        self.lines: list[RowResult] = []
        self.cohort: list[tuple[str, str, str]] = []
        self.kept = 0
        self._out, self._table, self._mapping = out, table, mapping
        self._columns = [table.columns.index(c) for c in mapping.columns()]
        self._rules_digest = sha256_json({"form": FORMAT_VERSION, "mapping": to_json(mapping), "schema": schema.digest})
        self._journal = _Journal(out)
def _journal_lines(path: Path) -> list[bytes]:
    try:
        return read_bytes(path, max_bytes=JOURNAL_BYTES).splitlines()
    except OSError as error:
        raise _damaged_journal(path, error.strerror or type(error).__name__) from error


def _damaged_journal(path: Path, reason: str) -> UsageError:
    return UsageError(f"the journal {path} of an earlier import cannot be read: {reason}", fix="remove this file")



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
        entries = self._journal.entries
        # Rejections stay in the journal, so that `resume` need not read the images again.
        rejected = {n.case_id for n in self.lines if n.case_id in entries and entries[n.case_id].refusal is not None}
        for case_id in self._journal.retain_only(written | {c for c in rejected if c is not None}):
            shutil.rmtree(self._out / case_id, ignore_errors=True)

    def _duplicate_case_ids(self) -> dict[str, int]:
        """Return case id -> number of its rows, for ids of several rows; case-folded like some file systems."""
        counts: Counter[str] = Counter()
        for row in self._table.rows:
            try:
                counts[self.reader.case_id(row).casefold()] += 1
            except RowRejectedError:
                continue  # reported when the row is imported
        return {case_id: n for case_id, n in counts.items() if n > 1}

    def _import_row(self, row: Row, duplicates: dict[str, int]) -> RowResult:
        try:
            record = self.reader.read(row)
            n_rows = duplicates.get(record.case_id.casefold())
            if n_rows:
                raise RowRejectedError("case-twice", f"{n_rows} rows have this case id", case_id=record.case_id)
            flaw = self._import_case(row, record)
        except RowExcludedError as error:
            return RowResult(row=row.number, case_id=error.case_id, outcome="excluded", code=error.code, why=error.why)
        except RowRejectedError as error:
            return RowResult(row=row.number, case_id=error.case_id, outcome="refused", code=error.code, why=error.why)
        if record.label is not None:
            self.cohort.append((record.case_id, record.patient_id, record.label))
        if flaw is not None:
            return RowResult(row=row.number, case_id=record.case_id, outcome="flawed", code=flaw[0], why=flaw[1])
        return RowResult(row=row.number, case_id=record.case_id, outcome="imported")

    def _import_case(self, row: Row, record: RowRecord) -> tuple[str, str] | None:
        """Write the row's case unless the journal lists it with the same inputs.

        Returns:
            Code and message of the first error of `tmi check`; None without an error.
        """
        key = sha256_json(
            {
                "rules": self._rules_digest,
                "cells": [cell_text(row.cells[i]) for i in self._columns],
                "files": {use: _file_states(path) for use, path in record.files.items()},
            }
        )
        folder = self._out / record.case_id
        entry = self._journal.entries.get(record.case_id)
        if entry is not None and entry.key == key:
            if entry.refusal is not None:
                raise RowRejectedError(*entry.refusal, case_id=record.case_id)
            if (folder / CLINICAL_FILE).is_file():
                self.kept += 1
                return entry.flaw
        try:
            flaw = _write_case(folder, record, self._mapping.images)
        except InputRejectedError as error:
            rejection = error.code, error.what
        except UsageError as error:
            rejection = "import", f"{error.what} ({error.fix})"
        else:
            self._journal.add(_JournalEntry(key=key, case_id=record.case_id, flaw=flaw))
            return flaw
        shutil.rmtree(folder, ignore_errors=True)  # a case of an earlier version of the row
        self._journal.add(_JournalEntry(key=key, case_id=record.case_id, refusal=rejection))
        raise RowRejectedError(*rejection, case_id=record.case_id)


def _write_case(folder: Path, record: RowRecord, images: ImageSource | None) -> tuple[str, str] | None:
    """Write a case, with images or without; return code and message of the first error of `tmi check`."""
    if images is not None:
        return _import_images(folder, record, images)
    with staged_folder(folder) as stage:
        write_json(stage / CLINICAL_FILE, record.clinical)
        if record.days_from_blood_to_ct is not None:
            write_case_record(stage, CaseRecord(days_from_blood_to_ct=record.days_from_blood_to_ct))
    return None


def _import_images(folder: Path, record: RowRecord, images: ImageSource) -> tuple[str, str] | None:
    """Import a case with images; return code and message of the first error of `tmi check`."""
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
        force=True,
    )
    if record.days_from_blood_to_ct is not None:
        case_record = read_case_record(folder, case_id=record.case_id) or CaseRecord()
        if case_record.days_from_blood_to_ct is None:
            write_case_record(folder, replace(case_record, days_from_blood_to_ct=record.days_from_blood_to_ct))
    errors = [f for f in imported.findings if f.severity == "error"]
    return (errors[0].code, errors[0].message) if errors else None


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
