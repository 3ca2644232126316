"""Report of a spreadsheet import: `import-report.json` and `import-report.csv` in the cohort folder.

The JSON document (`tmi-import-report/1`) holds the digests of table, mapping and schema, the number of rows by outcome
and reason, the number of missing cells in mapped and other columns and by column, and one entry per row. Neither file
contains a value of a patient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tmi.toolkit.storage.atomic_files import write_json, write_text
from tmi.toolkit.storage.csv_files import csv_text
from tmi.toolkit.storage.serialization import to_json

SCHEMA = "tmi-import-report/1"
REPORT_FILE = "import-report.json"
REPORT_TABLE = "import-report.csv"

RowOutcome = Literal["imported", "flawed", "refused", "excluded"]
OUTCOMES: Mapping[RowOutcome, str] = {
    "imported": "a case was written",
    "flawed": "a case was written, and `tmi check` finds an error in it",
    "refused": "nothing was written: the row was rejected",
    "excluded": "nothing was written: the row has no label under the mapping's rule",
}
"""Outcome of a row -> its meaning."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """Outcome of one row."""

    row: int
    """Row number as in the spreadsheet; the header is row 1."""
    case_id: str | None
    """Case id; None if the row has no valid one."""
    outcome: RowOutcome
    """Key of `OUTCOMES`."""
    code: str | None = None
    """Code of the reason; None for an imported row."""
    why: str | None = None
    """Reason, without a value of the table; None for an imported row."""

    def summary(self) -> str:
        """Return the line that the command prints."""
        case = f" (case {self.case_id})" if self.case_id else ""
        return f"{self.outcome}: row {self.row}{case}: {self.why} [{self.code}]"


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """Outcome of the import of a table."""

    out: Path
    """Cohort folder."""
    table: Mapping[str, str]
    """`name` and `sha256` of the table."""
    mapping: Mapping[str, str]
    """`name` and `sha256` of the mapping."""
    clinical_schema: Mapping[str, str]
    """`name`, `version` and `sha256` of the clinical schema."""
    lines: tuple[RowResult, ...]
    """Results of the rows, in table order."""
    columns: Mapping[str, str | None]
    """Column of the table -> its first use in the mapping; None if unused."""
    missing: Mapping[str, int]
    """Column -> number of missing cells, for columns with any."""
    kept: int
    """Number of cases that an earlier run wrote from the same rows and that were not changed."""
    labelled: bool
    """Whether `cohort.csv` was written: the mapping has a label rule, and at least one case has a label."""
    images: bool
    """Whether the mapping names images; otherwise the cases hold clinical records only."""

    @property
    def counts(self) -> dict[str, int]:
        """Outcome -> number of rows."""
        counts = Counter(line.outcome for line in self.lines)
        return {outcome: counts[outcome] for outcome in OUTCOMES}

    @property
    def reasons(self) -> dict[str, int]:
        """`outcome: reason [code]` -> number of rows, most frequent first."""
        counts = Counter(f"{line.outcome}: {line.why} [{line.code}]" for line in self.lines if line.why is not None)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def missing_cells(self) -> dict[str, int]:
        """Number of missing cells in the table (`total`), in mapped columns (`mapped`) and in others (`unmapped`)."""
        used = sum(n for column, n in self.missing.items() if self.columns[column] is not None)
        total = sum(self.missing.values())
        return {"total": total, "mapped": used, "unmapped": total - used}

    def summary(self) -> tuple[str, ...]:
        """Return the lines that the command prints: one per row with a reason, then the totals."""
        counts, cells = self.counts, self.missing_cells
        written = counts["imported"] + counts["flawed"]
        totals = [
            f"{len(self.lines)} rows: {written} cases in {self.out}"
            + (f" ({self.kept} of them unchanged from an earlier import)" if self.kept else "")
            + f", {counts['flawed']} of them flawed, {counts['refused']} rows refused, {counts['excluded']} excluded",
            f"{cells['total']} missing cells: {cells['mapped']} in mapped columns, {cells['unmapped']} in others",
            *(f"  {n} {reason}" for reason, n in self.reasons.items()),
        ]
        if not self.labelled:
            totals.append("no labels, so no cohort.csv: the folder holds cases for prediction, not a training cohort")
        if written and not self.images:
            totals.append("still to be added to every case: ct.nii.gz, and liver.nii.gz or radiomics.csv")
        return (
            *(line.summary() for line in self.lines if line.why is not None),
            *totals,
            f"report: {self.out / REPORT_FILE}",
        )

    def write(self) -> None:
        """Write both files, each atomically."""
        write_json(self.out / REPORT_FILE, self.document())
        rows = ((n.row, n.case_id, n.outcome, n.code, n.why) for n in self.lines)
        write_text(self.out / REPORT_TABLE, csv_text(("row", "case_id", "outcome", "code", "why"), rows))

    def document(self) -> dict[str, Any]:
        """Return the JSON document."""
        return {
            "schema": SCHEMA,
            "table": dict(self.table),
            "mapping": dict(self.mapping),
            "clinical_schema": dict(self.clinical_schema),
            "rows": len(self.lines),
            "counts": self.counts,
            "kept": self.kept,
            "reasons": self.reasons,
            "missing_cells": {**self.missing_cells, "by_column": dict(self.missing)},
            "columns": dict(self.columns),
            "labelled": self.labelled,
            "images": self.images,
            "lines": [to_json(line) for line in self.lines],
        }
