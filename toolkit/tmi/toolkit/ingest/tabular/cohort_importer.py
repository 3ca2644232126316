"""A hospital's table as a cohort: one case a row, one line for each row that could not be used.

    OUT/
      <case_id>/            clinical.json, and where the mapping names images what `import_case` makes of them
      cohort.csv            case_id, patient_id, label of the cases written; not there without a label rule
      import-report.json    what became of each row (`tmi.toolkit.ingest.tabular.report`)
      import-report.csv
      .import-journal       which rows are done: what `--resume` goes by

A case appears whole or not at all, and `cohort.csv` and the reports only when every row has been seen, so an
interrupted import is no cohort. `resume` goes on from there: a row is done when the journal has it under the digest of
its mapped cells, its files' sizes and times of change, the mapping and the schema; anything else about it is imported
anew. Cases that the journal knows and the table no longer gives are removed. The originals are only read.
"""

from __future__ import annotations

import csv
import io
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
from tmi.toolkit.ingest.tabular.mapping import ImageSource, Mapping, read_mapping
from tmi.toolkit.ingest.tabular.reader import Row, Table, cell_text, read_cells
from tmi.toolkit.ingest.tabular.report import REPORT_FILE, REPORT_TABLE, RowResult, TableReport
from tmi.toolkit.ingest.tabular.row_converter import RowExcludedError, RowReader, RowRecord, RowRejectedError
from tmi.toolkit.storage.atomic_files import require_absent, staged_folder, write_json, write_text
from tmi.toolkit.storage.hashing import sha256_file, sha256_json
from tmi.toolkit.storage.serialization import from_json, to_json

JOURNAL_FILE = ".import-journal"
FORMAT_VERSION = 1
"""Raised when the same row gives another case; rows done by an earlier form are then imported anew."""


def import_table(
    table: Path,
    mapping: Path,
    out: Path,
    *,
    force: bool = False,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TableReport:
    """Import every row of a table; a row that cannot be used stops no other.

    Args:
        table: CSV or Excel file.
        mapping: YAML or JSON of the form `tmi-mapping/1` (`tmi.toolkit.ingest.tabular.mapping`).
        out: folder of the cohort.
        force: replace an earlier import at `out`; nothing else is replaced.
        resume: go on with an earlier import at `out`.
        progress: told rows done and rows in all.

    Raises:
        UsageError: the table, the mapping or `out` is not as asked for; nothing was written.
        UnavailableError: a package for workbooks, YAML or images is not installed.
        KeyboardInterrupt: Ctrl-C; `resume` goes on from there.
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
    run.rows(progress or (lambda done, total: None))
    labelled = _write_cohort(out, run.cohort) if rules.label is not None else False
    report = TableReport(
        out=out,
        table={"name": table.name, "sha256": sha256_file(table)},
        mapping={"name": mapping.name, "sha256": sha256_file(mapping)},
        clinical_schema={"name": schema.name, "version": schema.version, "sha256": schema.digest},
        lines=tuple(run.lines),
        columns={column: rules.columns().get(column) for column in cells.columns},
        missing=_missing(cells, run.reader),
        kept=run.kept,
        labelled=labelled,
        images=rules.images is not None,
    )
    report.write()
    return report


def _validate_output_folder(table: Path, mapping: Path, out: Path, *, force: bool, resume: bool) -> None:
    if force and resume:
        raise UsageError("--force and --resume contradict each other", fix="go on with --resume, or start with --force")
    place = out.resolve()
    for original in (table.resolve(), mapping.resolve(), Path.cwd()):
        if place == original or place in original.parents:
            raise UsageError(f"{out} holds {original.name}, which is only to be read", fix="name another folder")
    if not resume:
        require_absent(out, force=force, kind="cohort")
    occupied = out.is_dir() and any(out.iterdir())
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", fix="name a folder")
    if occupied and not (out / JOURNAL_FILE).is_file():
        raise UsageError(
            f"{out} is no import of a table, so it is neither replaced nor gone on with", fix="name another folder"
        )


def _clear(out: Path) -> None:
    """Remove what an earlier import made; whatever else lies there stays."""
    if out.is_dir():
        for case_id in _Journal(out).done:
            shutil.rmtree(out / case_id, ignore_errors=True)
        (out / JOURNAL_FILE).unlink()


@dataclass(frozen=True, kw_only=True)
class _JournalEntry:
    """A row of the journal: what was made of it."""

    key: str
    """Digest of all that it was made from."""
    case_id: str
    """Its case."""
    flaw: tuple[str, str] | None = None
    """Code and text of what `tmi check` holds against the case."""
    refusal: tuple[str, str] | None = None
    """Code and text of why its images were refused."""


class _Journal:
    """What has been made in a cohort folder: a line a case, written as soon as it is there."""

    def __init__(self, out: Path) -> None:
        self._path = out / JOURNAL_FILE
        self.done: dict[str, _JournalEntry] = {}
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    one = from_json(_JournalEntry, json.loads(line), where=JOURNAL_FILE)
                except (ValueError, UsageError):
                    continue  # a line that a kill cut short: its row is imported anew
                if is_portable_name(one.case_id):  # what stands here may be removed
                    self.done[one.case_id] = one
        self._path.touch()

    def add(self, one: _JournalEntry) -> None:
        """Note it so that it survives a kill."""
        self.done[one.case_id] = one
        with self._path.open("a", encoding="utf-8") as stream:
            # the newline first: it ends a line that a kill cut short
            stream.write("\n" + json.dumps(to_json(one)))
            stream.flush()
            os.fsync(stream.fileno())

    def retain_only(self, case_ids: set[str]) -> list[str]:
        """Forget all but these cases; returns what was forgotten."""
        gone = [c for c in self.done if c not in case_ids]
        self.done = {c: one for c, one in self.done.items() if c in case_ids}
        write_text(self._path, "".join(json.dumps(to_json(one)) + "\n" for one in self.done.values()))
        return gone


class _TableImport:
    """One pass over the rows."""

    def __init__(self, out: Path, table: Table, mapping: Mapping, schema: Schema, *, base_folder: Path) -> None:
        self.reader = RowReader(table, mapping, schema, base_folder=base_folder)
        self.lines: list[RowResult] = []
        self.cohort: list[tuple[str, str, str]] = []
        self.kept = 0
        self._out, self._table, self._mapping = out, table, mapping
        self._columns = [table.columns.index(c) for c in mapping.columns()]
        self._rules = sha256_json({"form": FORMAT_VERSION, "mapping": to_json(mapping), "schema": schema.digest})
        self._journal = _Journal(out)

    def rows(self, progress: Callable[[int, int], None]) -> None:
        """Import every row, then remove what an earlier run made and this table does not give."""
        twice = self._duplicate_case_ids()
        made: set[str] = set()
        for number, row in enumerate(self._table.rows, start=1):
            line = self._row(row, twice)
            self.lines.append(line)
            if line.case_id is not None and line.outcome in ("imported", "flawed"):
                made.add(line.case_id)
            progress(number, len(self._table.rows))
        noted = {line.case_id for line in self.lines if line.case_id in self._journal.done}
        refused = {c for c in noted if c is not None and self._journal.done[c].refusal is not None}
        for case_id in self._journal.retain_only(made | refused):
            shutil.rmtree(self._out / case_id, ignore_errors=True)

    def _duplicate_case_ids(self) -> dict[str, int]:
        """Case ids (in small letters, as some file systems compare them) -> rows that give them, where several do."""
        found: Counter[str] = Counter()
        for row in self._table.rows:
            try:
                found[self.reader.case_id(row).casefold()] += 1
            except RowRejectedError:
                continue  # told when the row is read
        return {case_id: n for case_id, n in found.items() if n > 1}

    def _row(self, row: Row, twice: dict[str, int]) -> RowResult:
        try:
            record = self.reader.read(row)
            several = twice.get(record.case_id.casefold())
            if several:
                raise RowRejectedError("case-twice", f"{several} rows give this case id", case_id=record.case_id)
            flaw = self._make(row, record)
        except RowExcludedError as error:
            return RowResult(row=row.number, case_id=error.case_id, outcome="excluded", code=error.code, why=error.why)
        except RowRejectedError as error:
            return RowResult(row=row.number, case_id=error.case_id, outcome="refused", code=error.code, why=error.why)
        if record.label is not None:
            self.cohort.append((record.case_id, record.patient_id, record.label))
        if flaw is not None:
            return RowResult(row=row.number, case_id=record.case_id, outcome="flawed", code=flaw[0], why=flaw[1])
        return RowResult(row=row.number, case_id=record.case_id, outcome="imported")

    def _make(self, row: Row, record: RowRecord) -> tuple[str, str] | None:
        """Write the row's case, unless it is there from the same row; returns what `tmi check` holds against it."""
        key = sha256_json(
            {
                "rules": self._rules,
                "cells": [cell_text(row.cells[i]) for i in self._columns],
                "files": {use: _state(path) for use, path in record.files.items()},
            }
        )
        folder = self._out / record.case_id
        known = self._journal.done.get(record.case_id)
        if known is not None and known.key == key:
            if known.refusal is not None:
                raise RowRejectedError(*known.refusal, case_id=record.case_id)
            if (folder / CLINICAL_FILE).is_file():
                self.kept += 1
                return known.flaw
        try:
            flaw = _write_case(folder, record, self._mapping.images)
        except InputRejectedError as error:
            refusal = error.code, error.what
        except UsageError as error:
            refusal = "import", f"{error.what} ({error.fix})"
        else:
            self._journal.add(_JournalEntry(key=key, case_id=record.case_id, flaw=flaw))
            return flaw
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier state of the row
        self._journal.add(_JournalEntry(key=key, case_id=record.case_id, refusal=refusal))
        raise RowRejectedError(*refusal, case_id=record.case_id)


def _write_case(folder: Path, record: RowRecord, images: ImageSource | None) -> tuple[str, str] | None:
    """The case, of the clinical record alone or with images; what `tmi check` holds against the images."""
    if images is not None:
        return _import_images(folder, record, images)
    with staged_folder(folder) as stage:
        write_json(stage / CLINICAL_FILE, record.clinical)
        if record.days_from_blood_to_ct is not None:
            write_case_record(stage, CaseRecord(days_from_blood_to_ct=record.days_from_blood_to_ct))
    return None


def _import_images(folder: Path, record: RowRecord, images: ImageSource) -> tuple[str, str] | None:
    """A case with images; what `tmi check` holds against it."""
    from tmi.toolkit.ingest.case_importer import import_case  # loads the packages for images

    done = import_case(
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
        known = read_case_record(folder, case_id=record.case_id) or CaseRecord()
        if known.days_from_blood_to_ct is None:
            write_case_record(folder, replace(known, days_from_blood_to_ct=record.days_from_blood_to_ct))
    errors = [f for f in done.findings if f.severity == "error"]
    return (errors[0].code, errors[0].message) if errors else None


def _state(path: Path) -> Any:
    """Sizes and times of change of a file, or of every file in a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [(p.relative_to(path.parent).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def _write_cohort(out: Path, cohort: list[tuple[str, str, str]]) -> bool:
    """`cohort.csv`; not written for no case at all."""
    if cohort:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COHORT_COLUMNS, *cohort])
        write_text(out / COHORT_FILE, text.getvalue())
    return bool(cohort)


def _missing(table: Table, reader: RowReader) -> dict[str, int]:
    """Column -> missing cells, those that have any."""
    counts = {
        column: sum(reader.is_missing(column, row.cells[i]) for row in table.rows)
        for i, column in enumerate(table.columns)
    }
    return {column: n for column, n in counts.items() if n}
