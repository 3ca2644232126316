"""Report of a spreadsheet import: `import-report.json` and `import-report.csv` in the cohort folder.

The JSON document (`tmi-import-report/2`) holds the digests of table, mapping and schema, the number of rows by outcome
and reason, the number of missing cells in mapped and other columns and by column, and one entry per row. Neither file
contains a value of a patient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tmi.toolkit.cases.case import COHORT_FILE, TABLE_REPORT_FILE
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.atomic_files import write_json, write_text
from tmi.toolkit.storage.csv_files import csv_text
from tmi.toolkit.storage.serialization import to_json

SCHEMA = "tmi-import-report/2"
REPORT_FILE = TABLE_REPORT_FILE
REPORT_TABLE = "import-report.csv"

RowOutcome = Literal["imported", "flawed", "refused", "excluded"]
OUTCOMES: Mapping[RowOutcome, str] = {
    "imported": "a case was written",
    "flawed": "a case was written, and `tmi check` finds an error in it",
    "refused": "nothing was written: the row was rejected",
    "excluded": "nothing was written: the row has no label under the mapping's rule",
}
"""Outcome of a row -> its meaning."""


MAX_LOST_SHARE = 0.1
"""Share of the rows that may be lost without a confirmation."""


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
    """Code of the first reason; None for an imported row."""
    why: str | None = None
    """Reasons, without a value of the table; None for an imported row."""
    faults: tuple[Issue, ...] = ()
    """Every reason why the row was not used."""
    findings: tuple[Issue, ...] = ()
    """Findings of `tmi check` on the case that was written."""
    set_missing: tuple[str, ...] = ()
    """Fields whose number lies outside the plausible range and is missing by the mapping's rule."""
    lost: bool = False
    """Whether the row was not used for another reason than one that the mapping states."""

    def summary(self) -> tuple[str, ...]:
        """Return the lines that the command prints: one for the outcome, unless imported, and one for warnings."""
        case = f" (case {self.case_id})" if self.case_id else ""
        lines = [
            (self.outcome, self.faults),
            ("flawed", self._findings("error")),
            ("warning", self._findings("warning")),
        ]
        return tuple(
            f"{outcome}: row {self.row}{case}: " + "; ".join(f"{fault.message} [{fault.code}]" for fault in faults)
            for outcome, faults in lines
            if faults
        )

    def reasons(self) -> tuple[tuple[str, str], ...]:
        """Return `outcome: reason [code]`, and the fix, of every fault and finding."""
        pairs: list[tuple[str, Issue]] = [(self.outcome, fault) for fault in self.faults]
        pairs += [("flawed", issue) for issue in self._findings("error")]
        pairs += [("warning", issue) for issue in self._findings("warning")]
        return tuple((f"{outcome}: {issue.message} [{issue.code}]", issue.fix) for outcome, issue in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `why` of a fault is its message."""
        faults = [{**fault.to_dict(), "why": fault.message} for fault in self.faults]
        return {**to_json(self), "faults": faults, "findings": [issue.to_dict() for issue in self.findings]}

    def _findings(self, severity: str) -> tuple[Issue, ...]:
        return tuple(issue for issue in self.findings if issue.severity == severity)


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
    has_label: bool
    """Whether the mapping has a label rule."""
    losses_accepted: bool
    """Whether the user accepted that more than `MAX_LOST_SHARE` of the rows are lost."""

    @property
    def counts(self) -> dict[str, int]:
        """Outcome -> number of rows."""
        counts = Counter(line.outcome for line in self.lines)
        return {outcome: counts[outcome] for outcome in OUTCOMES}

    @property
    def reasons(self) -> dict[str, int]:
        """`outcome: reason [code]` -> number of rows, most frequent first."""
        counts = Counter(reason for line in self.lines for reason, _ in line.reasons())
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def lost(self) -> int:
        """Number of rows that were not used for another reason than one that the mapping states."""
        return sum(line.lost for line in self.lines)

    @property
    def loss_is_large(self) -> bool:
        """Whether more than `MAX_LOST_SHARE` of the rows are lost."""
        return self.lost > MAX_LOST_SHARE * len(self.lines)

    @property
    def withheld(self) -> bool:
        """Whether `cohort.csv` waits for the user to accept the lost rows."""
        return self.has_label and self.loss_is_large and not self.losses_accepted

    @property
    def warned(self) -> int:
        """Number of cases with a warning of `tmi check`, and no error."""
        return sum(line.outcome == "imported" and bool(line.findings) for line in self.lines)

    @property
    def set_missing(self) -> dict[str, int]:
        """Field -> number of its values that are missing because they lie outside the plausible range."""
        return dict(Counter(name for line in self.lines for name in line.set_missing))

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
        fixes = {reason: fix for line in self.lines for reason, fix in line.reasons()}
        totals = [
            f"{len(self.lines)} rows: {written} cases in {self.out}"
            + (f" ({self.kept} of them unchanged from an earlier import)" if self.kept else "")
            + f", {counts['flawed']} of them flawed, {counts['refused']} rows refused, {counts['excluded']} excluded"
            + (f", {self.warned} cases with warnings" if self.warned else ""),
            f"{cells['total']} missing cells: {cells['mapped']} in mapped columns, {cells['unmapped']} in others",
            *(
                f"{n} values of {name} outside the plausible range were set to missing, as the mapping says"
                for name, n in self.set_missing.items()
            ),
            *(text for reason, n in self.reasons.items() for text in (f"  {n} {reason}", f"    fix: {fixes[reason]}")),
        ]
        if not self.labelled and not self.withheld:
            totals.append("no labels, so no cohort.csv: the folder holds cases for prediction, not a training cohort")
        if written and not self.images:
            totals.append("still to be added to every case: ct.nii.gz, and liver.nii.gz or radiomics.csv")
        return (
            *(text for line in self.lines for text in line.summary()),
            *totals,
            f"report: {self.out / REPORT_FILE}",
            *self._loss(),
        )

    def _loss(self) -> tuple[str, ...]:
        """Return the last lines that the command prints if more than a tenth of the rows are lost."""
        if not self.loss_is_large:
            return ()
        share = f"{self.lost} of {len(self.lines)} rows ({100 * self.lost / len(self.lines):.0f}%)"
        if self.losses_accepted:
            return (f"WARNING: {share} were lost, which --accept-losses accepts",)
        if not self.withheld:
            return (f"WARNING: {share} were lost; the reasons are listed above",)
        return (
            f"WARNING: {share} were lost, so {COHORT_FILE} was NOT written: a cohort of what is left may be biased",
            "  fix: correct the mapping or the table, then --resume; or accept the loss with --resume --accept-losses",
        )

    def write(self) -> None:
        """Write both files, each atomically."""
        write_json(self.out / REPORT_FILE, self.document())
        rows = ((n.row, n.case_id, n.outcome, n.code, n.why, "; ".join(f.code for f in n.findings)) for n in self.lines)
        write_text(self.out / REPORT_TABLE, csv_text(("row", "case_id", "outcome", "code", "why", "findings"), rows))

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
            "warned": self.warned,
            "lost": {"rows": self.lost, "accepted": self.losses_accepted, "cohort_withheld": self.withheld},
            "set_missing": self.set_missing,
            "reasons": self.reasons,
            "missing_cells": {**self.missing_cells, "by_column": dict(self.missing)},
            "columns": dict(self.columns),
            "labelled": self.labelled,
            "images": self.images,
            "lines": [line.to_dict() for line in self.lines],
        }
