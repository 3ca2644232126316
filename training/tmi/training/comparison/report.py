"""Writes the report of a comparison: tables.md, table<n>.csv, report.html and comparison.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmi.toolkit.cases.case import Cohort
from tmi.toolkit.model_registry import REFERENCE_MODEL
from tmi.toolkit.storage.atomic_files import write_json, write_text
from tmi.toolkit.storage.csv_files import csv_text
from tmi.toolkit.storage.serialization import to_json
from tmi.training.comparison.external import ExternalEvaluation
from tmi.training.comparison.external_table import external_columns, external_rows
from tmi.training.comparison.formatting import csv_rows, format_mean_std
from tmi.training.comparison.html_page import as_html
from tmi.training.comparison.markdown import as_markdown
from tmi.training.comparison.plan import RUNS, Plan
from tmi.training.comparison.report_content import ReportContent, build_report
from tmi.training.comparison.results import ceilings, compare_with_reference, read_results
from tmi.training.comparison.runner import ComparisonRuns


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """Files of the report and the summary for the command line."""

    html: Path
    """HTML page with plots."""
    markdown: Path
    """Tables as Markdown."""
    closing_lines: tuple[str, ...]
    """Lines that summarise the result."""


def write_report(
    plan: Plan,
    trained: ComparisonRuns,
    cohort: Cohort,
    out: Path,
    *,
    command: str,
    external: ExternalEvaluation | None = None,
) -> WrittenReport:
    """Write the report; failed runs are listed with their errors.

    Args:
        plan: tables and runs.
        trained: finished and failed runs.
        cohort: the cohort; its patients and, if it is synthetic, its performance ceilings.
        out: folder of the comparison.
        command: command line that reproduces the report.
        external: results on an external cohort, if one was named.
    """
    patients = {case.case_id: case.patient_id or case.case_id for case in cohort.cases}
    results, weights_RN = read_results(trained.runs, patients)
    tests = compare_with_reference(results)
    content = build_report(
        plan,
        results,
        tests,
        trained.failed,
        cohort,
        ceilings(cohort, results),
        command=command,
        external=external,
    )
    html, markdown = out / "report.html", out / "tables.md"
    write_text(markdown, as_markdown(content))
    write_text(html, as_html(content, weights_RN))
    for table, rows in content.tables:
        lines = csv_rows(table, rows)
        if external is not None:
            lines = [a | b for a, b in zip(lines, external_columns(rows, external), strict=True)]
        columns = list(lines[0])
        write_text(
            out / (f"table{table.number}.csv" if isinstance(table.number, int) else f"{table.number}.csv"),
            csv_text(columns, ([line.get(c) for c in columns] for line in lines)),
        )
    write_json(
        out / "comparison.json",
        {
            "command": command,
            "summary": content.verdict,
            "notes": list(content.notes),
            "verdict": list(content.conclusion),
            "not_applied": list(plan.not_applied),
            "runs": {
                run.key: {
                    "folder": f"{RUNS}/{run.key}",
                    "failed": trained.failed.get(run.key),
                    "config": to_json(run.config),
                    "weights": list(run.weights),
                }
                for run in plan.runs
            },
            "external": None if external is None else _external_document(external),
            "behind": {f"{number}/{key}": run for (number, key), run in plan.run_of_row.items()},
        },
    )
    return WrittenReport(html=html, markdown=markdown, closing_lines=_closing_lines(content))


def _external_document(external: ExternalEvaluation) -> dict[str, Any]:
    return {
        "fingerprint": external.fingerprint,
        "cases": len(next(iter(external.results.values())).case_ids) if external.results else 0,
        "rejected": sorted(error.case_id or "" for error in external.rejected),
        "failed": dict(external.failed),
    }


def _closing_lines(content: ReportContent) -> tuple[str, ...]:
    lines = []
    for table, rows in content.tables:
        finished = [e for e in rows if e.result is not None]
        ours = next((e for e in finished if e.result is not None and e.result.key == REFERENCE_MODEL), None)
        if ours is None or ours.result is None:
            lines.append(f"table {table.number}  {len(finished)} of {len(rows)} rows; TMI-CLNet is missing")
            continue
        ranked = sorted(
            finished, key=lambda e: -((e.result.over_folds["roc_auc"]["mean"] if e.result else None) or 0.0)
        )
        rank = ranked.index(ours) + 1
        lines.append(
            f"table {table.number}  {len(finished)} of {len(rows)} rows; TMI-CLNet ACC "
            f"{format_mean_std('accuracy', ours.result)} %, AUC {format_mean_std('roc_auc', ours.result)} "
            f"(rank {rank} by AUC)"
        )
        if content.external is not None:
            lines += [f"external {row[0]}: AUC {row[1]}" for row in external_rows(rows, content.external)[1] if row[2]]
    return (content.verdict, *lines, *content.conclusion, *content.labels)
