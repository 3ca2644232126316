"""Formatting of a comparison's results: rows of each table as text and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tmi.toolkit.modality import TITLES
from tmi.toolkit.model_registry import REFERENCE_MODEL
from tmi.training.comparison.paper_tables import PAPER_METRICS, Row, Table
from tmi.training.comparison.plan import Plan
from tmi.training.comparison.results import PairedTest, Result
from tmi.training.evaluation.statistics.holm import holm_correction

PERCENT = ("accuracy", "precision", "recall")
"""Metrics that the paper prints in percent."""
HEADERS: Mapping[str, str] = {
    "accuracy": "ACC (%)",
    "precision": "Precision (%)",
    "recall": "Recall (%)",
    "f1": "F1 Score",
    "roc_auc": "AUC",
    "balanced_accuracy": "Bal. ACC",
}


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    """A row of a table with the results of its run."""

    row: Row
    """The row."""
    result: Result | None
    """Results of its run; None if the run failed."""
    failure: str
    """Why the run failed; empty if it succeeded."""
    paired: PairedTest | None
    """Tests against TMI-CLNet; None for TMI-CLNet itself."""
    mcnemar_holm: float | None
    """p-value of McNemar's test after Holm's correction over the rows of this table."""
    delong_holm: float | None
    """p-value of DeLong's test after the same correction."""


def table_entries(
    table: Table,
    plan: Plan,
    results: Mapping[str, Result],
    tests: Mapping[str, PairedTest],
    failed: Mapping[str, str],
) -> tuple[TableEntry, ...]:
    """Entries of a table in row order, with Holm's correction over the table."""
    keys = [plan.run_of_row[table.number, row.key] for row in table.rows]
    paired = [tests.get(key) for key in keys]
    mcnemar = holm_correction([None if p is None else p.mcnemar.p for p in paired])
    delong = holm_correction([None if p is None or p.delong is None else p.delong.p for p in paired])
    return tuple(
        TableEntry(
            row=row,
            result=results.get(key),
            failure=failed.get(key, ""),
            paired=pair,
            mcnemar_holm=m,
            delong_holm=d,
        )
        for row, key, pair, m, d in zip(table.rows, keys, paired, mcnemar, delong, strict=True)
    )


def decimals(n_cases: int) -> int:
    """Number of decimals of a fraction of so many cases: the last digit is worth at most one case, at most four."""
    return min(4, max(2, len(str(max(1, n_cases - 1)))))


def format_metric(metric: str, value: float | None, n_cases: int | None = None) -> str:
    """Format a metric in the paper's units: percent, or a fraction.

    Args:
        metric: name of the metric.
        value: the metric as a fraction.
        n_cases: number of cases, which limits the digits; None for a printed metric of the paper, with its digits.
    """
    if value is None:
        return "n/a"
    digits = 4 if n_cases is None else decimals(n_cases)
    return f"{100 * value:.{digits - 2}f}" if metric in PERCENT else f"{value:.{digits}f}"


def format_mean_std(metric: str, result: Result) -> str:
    """Format mean ± sample standard deviation over the folds."""
    over, n_cases = result.over_folds[metric], result.n_cases
    fold_std = over["std"]
    deviation = "" if fold_std is None else f" ± {format_metric(metric, fold_std, n_cases)}"
    return format_metric(metric, over["mean"], n_cases) + deviation


def format_pooled_interval(metric: str, result: Result) -> str:
    """Format the pooled metric and its interval."""
    bounds, n_cases = result.intervals[metric], result.n_cases
    interval = ""
    if bounds is not None:
        low, high = (format_metric(metric, bound, n_cases) for bound in bounds)
        interval = f" [{low}, {high}]"
    return format_metric(metric, result.pooled[metric], n_cases) + interval


def format_difference(value: float, n_cases: int) -> str:
    """Format a difference of two fractions with its sign; one that rounds to zero has none."""
    text = f"{value:+.{decimals(n_cases)}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def format_p_value(p: float | None) -> str:
    """Format a p-value with three digits below 0.1 and two above."""
    if p is None:
        return "n/a"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def metric_rows(table: Table, rows: tuple[TableEntry, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table in the paper's layout, our metrics above the paper's."""
    has_modality_column = table.number == 1
    header = [
        "Method",
        *(["Modality"] if has_modality_column else []),
        "",
        *(HEADERS[m] for m in (*PAPER_METRICS, "balanced_accuracy")),
    ]
    lines: list[list[str]] = []
    for entry in rows:
        modalities = [entry.result.modalities if entry.result else ""] if has_modality_column else []
        ours = (
            [format_mean_std(m, entry.result) for m in (*PAPER_METRICS, "balanced_accuracy")]
            if entry.result
            else [f"failed: {entry.failure}", *[""] * len(PAPER_METRICS)]
        )
        lines.append([entry.row.label, *modalities, "ours", *ours])
        if entry.row.paper is not None:
            paper = [format_metric(m, v) for m, v in zip(PAPER_METRICS, entry.row.paper, strict=True)]
            lines.append(["", *([""] if has_modality_column else []), "paper", *paper, ""])
    return header, lines


def interval_rows(rows: tuple[TableEntry, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the pooled metrics with their intervals."""
    metrics = (*PAPER_METRICS, "balanced_accuracy")
    return ["Method", *(HEADERS[m] for m in metrics)], [
        [entry.row.label, *(format_pooled_interval(m, entry.result) for m in metrics)] for entry in rows if entry.result
    ]


def paired_test_rows(rows: tuple[TableEntry, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the paired tests against TMI-CLNet."""
    header = [
        "Method",
        "only this correct",
        "only TMI-CLNet correct",
        "McNemar p",
        "Holm",
        "AUC − TMI-CLNet's",
        "DeLong p",
        "Holm",
    ]
    lines = []
    for entry in rows:
        if entry.paired is None:
            continue
        mcnemar, delong = entry.paired.mcnemar, entry.paired.delong
        difference = "n/a"
        if delong is not None and entry.result is not None:
            difference = format_difference(delong.first - delong.second, entry.result.n_cases)
        lines.append(
            [
                entry.row.label,
                str(mcnemar.first_only),
                str(mcnemar.second_only),
                format_p_value(mcnemar.p),
                format_p_value(entry.mcnemar_holm),
                difference,
                format_p_value(None if delong is None else delong.p),
                format_p_value(entry.delong_holm),
            ]
        )
    return header, lines


def csv_rows(table: Table, rows: tuple[TableEntry, ...]) -> list[dict[str, Any]]:
    """Every number of a table as plain values, one dictionary for each row."""
    lines = []
    for entry in rows:
        line: dict[str, Any] = {"table": table.number, "row": entry.row.key, "method": entry.row.label}
        line["modalities"] = entry.result.modalities if entry.result else ""
        line["failed"] = entry.failure
        for metric in (*PAPER_METRICS, "balanced_accuracy"):
            result = entry.result
            over = result.over_folds[metric] if result else {"mean": None, "std": None}
            bounds = result.intervals[metric] if result else None
            line[f"{metric}_mean"], line[f"{metric}_std"] = over["mean"], over["std"]
            line[f"{metric}_pooled"] = result.pooled[metric] if result else None
            line[f"{metric}_low"], line[f"{metric}_high"] = bounds or (None, None)
            if metric in PAPER_METRICS and entry.row.paper is not None:
                line[f"{metric}_paper"] = entry.row.paper[PAPER_METRICS.index(metric)]
        mcnemar = entry.paired.mcnemar if entry.paired else None
        delong = entry.paired.delong if entry.paired else None
        line |= {
            "mcnemar_right_alone": mcnemar.first_only if mcnemar else None,
            "mcnemar_ours_right_alone": mcnemar.second_only if mcnemar else None,
            "mcnemar_p": mcnemar.p if mcnemar else None,
            "mcnemar_p_holm": entry.mcnemar_holm,
            "auc_difference": delong.first - delong.second if delong else None,
            "delong_p": delong.p if delong else None,
            "delong_p_holm": entry.delong_holm,
        }
        lines.append(line)
    return lines


def conclusion(results: Mapping[str, Result], tests: Mapping[str, PairedTest]) -> list[str]:
    """One sentence for each modality alone: whether fusion has the higher pooled AUC, and by how much."""
    available = [key for key in TITLES if key in results and key in tests]
    if REFERENCE_MODEL not in results or not available:
        return []
    lines = []
    fusion = results[REFERENCE_MODEL].pooled["roc_auc"]
    for key in available:
        single, test = results[key].pooled["roc_auc"], tests[key].delong
        if fusion is None or single is None or test is None:
            continue
        relation, n_cases = "above" if fusion > single else "not above", results[key].n_cases
        first, second = (format_metric("roc_auc", value, n_cases) for value in (fusion, single))
        lines.append(
            f"Fusion (pooled AUC {first}) is {relation} {TITLES[key]} alone ({second}; difference "
            f"{format_difference(fusion - single, n_cases)}, DeLong p {format_p_value(test.p)})."
        )
    return lines
