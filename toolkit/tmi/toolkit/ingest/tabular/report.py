"""What became of each row of a table: `import-report.json` and `import-report.csv` in the cohort.

The JSON, `tmi-import-report/1`, names table, mapping and schema with their digests, and holds how many rows came to
what and why, how many cells were missing, in mapped columns and in others, by column, and a line a row. No value of a
patient is in either file.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tmi.toolkit.storage.atomic_files import write_json, write_text
from tmi.toolkit.storage.serialization import to_json

SCHEMA = "tmi-import-report/1"
REPORT_FILE = "import-report.json"
REPORT_TABLE = "import-report.csv"

RowOutcome = Literal["imported", "flawed", "refused", "excluded"]
OUTCOMES: Mapping[RowOutcome, str] = {
    "imported": "a case was written",
    "flawed": "a case was written, and `tmi check` refuses it as it is",
    "refused": "nothing was written: the row cannot be used",
    "excluded": "nothing was written: the row has no label under the mapping's rule",
}
"""Outcome of a row -> what it means."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """What became of a row."""

    row: int
    """Number as a spreadsheet shows it."""
    case_id: str | None
    """Its case; None where it has none."""
    outcome: RowOutcome
    """One of `OUTCOMES`."""
    code: str | None = None
    """Short name of the reason, where there is one."""
    why: str | None = None
    """The reason, without a value of the table."""

    def summary(self) -> str:
        """The line for people."""
        case = f" (case {self.case_id})" if self.case_id else ""
        return f"{self.outcome}: row {self.row}{case}: {self.why} [{self.code}]"


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """What became of a table."""

    out: Path
    """The cohort's folder."""
    table: Mapping[str, str]
    """`name` and `sha256` of the table."""
    mapping: Mapping[str, str]
    """`name` and `sha256` of the mapping."""
    clinical_schema: Mapping[str, str]
    """`name`, `version` and `sha256` of the clinical schema."""
    lines: tuple[RowResult, ...]
    """A line a row, in the table's order."""
    columns: Mapping[str, str | None]
    """Every column of the table -> what the mapping uses it for; None: nothing."""
    missing: Mapping[str, int]
    """Column -> missing cells, those that have any."""
    kept: int
    """Cases that an earlier run had written from the same rows and that were left as they are."""
    labelled: bool
    """Whether `cohort.csv` was written: the mapping has a label rule, and a case has a label."""
    images: bool
    """Whether the mapping names images; without, the cases hold clinical records alone."""

    @property
    def counts(self) -> dict[str, int]:
        """Outcome -> rows."""
        found = Counter(line.outcome for line in self.lines)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def reasons(self) -> dict[str, int]:
        """`outcome: reason` -> rows, the most frequent first."""
        found = Counter(f"{line.outcome}: {line.why} [{line.code}]" for line in self.lines if line.why is not None)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @property
    def missing_cells(self) -> dict[str, int]:
        """Missing cells of the whole table, of the columns that the mapping uses, and of the others."""
        used = sum(n for column, n in self.missing.items() if self.columns[column] is not None)
        total = sum(self.missing.values())
        return {"total": total, "mapped": used, "unmapped": total - used}

    def summary(self) -> tuple[str, ...]:
        """For people: a line a row that is not simply imported, then the sums."""
        counts, cells = self.counts, self.missing_cells
        written = counts["imported"] + counts["flawed"]
        sums = [
            f"{len(self.lines)} rows: {written} cases in {self.out}"
            + (f" ({self.kept} of them were there already)" if self.kept else "")
            + f", {counts['flawed']} of them flawed, {counts['refused']} rows refused, {counts['excluded']} excluded",
            f"{cells['total']} missing cells: {cells['mapped']} in mapped columns, {cells['unmapped']} in others",
            *(f"  {n} {reason}" for reason, n in self.reasons.items()),
        ]
        if not self.labelled:
            sums.append("no labels, so no cohort.csv: the folder holds cases to predict, not a cohort to train on")
        if written and not self.images:
            sums.append("still to be added to every case: ct.nii.gz, and liver.nii.gz or radiomics.csv")
        return (
            *(line.summary() for line in self.lines if line.why is not None),
            *sums,
            f"report: {self.out / REPORT_FILE}",
        )

    def write(self) -> None:
        """Both files, each atomically."""
        write_json(self.out / REPORT_FILE, self.document())
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("row", "case_id", "outcome", "code", "why"))
        writer.writerows((n.row, n.case_id or "", n.outcome, n.code or "", n.why or "") for n in self.lines)
        write_text(self.out / REPORT_TABLE, text.getvalue())

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
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
