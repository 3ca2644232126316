"""Figures of a comparison as they are printed: the rows of each table, as text and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tmi.training.comparison.paper_tables import PAPER_METRICS, REFERENCE_MODEL, Row, Table
from tmi.training.comparison.plan import Plan
from tmi.training.comparison.results import PairedTest, Result
from tmi.training.evaluation.statistics.holm import holm

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
    """A row of a table with what its run came to."""

    row: Row
    """The row."""
    result: Result | None
    """Its run; None where it failed."""
    why: str
    """Why there is none."""
    paired: PairedTest | None
    """Against TMI-CLNet; None for TMI-CLNet itself."""
    mcnemar_holm: float | None
    """McNemar's p, corrected for the rows of this table."""
    delong_holm: float | None
    """DeLong's likewise."""


def table_entries(
    table: Table,
    plan: Plan,
    results: Mapping[str, Result],
    tests: Mapping[str, PairedTest],
    failed: Mapping[str, str],
) -> tuple[TableEntry, ...]:
    """The rows of a table, in order."""
    keys = [plan.run_of_row[table.number, row.key] for row in table.rows]
    paired = [tests.get(key) for key in keys]
    mcnemar = holm([None if p is None else p.mcnemar.p for p in paired])
    delong = holm([None if p is None or p.delong is None else p.delong.p for p in paired])
    return tuple(
        TableEntry(
            row=row,
            result=results.get(key),
            why=failed.get(key, ""),
            paired=pair,
            mcnemar_holm=m,
            delong_holm=d,
        )
        for row, key, pair, m, d in zip(table.rows, keys, paired, mcnemar, delong, strict=True)
    )


def format_metric(metric: str, value: float | None) -> str:
    """A figure as the paper prints it."""
    if value is None:
        return "n/a"
    return f"{100 * value:.2f}" if metric in PERCENT else f"{value:.4f}"


def format_mean_std(metric: str, result: Result) -> str:
    """Mean and standard deviation over the folds."""
    over = result.over_folds[metric]
    spread = over["std"]
    return format_metric(metric, over["mean"]) + ("" if spread is None else f" ± {format_metric(metric, spread)}")


def format_pooled_interval(metric: str, result: Result) -> str:
    """The pooled figure and its interval."""
    found = result.intervals[metric]
    between = "" if found is None else f" [{format_metric(metric, found[0])}, {format_metric(metric, found[1])}]"
    return format_metric(metric, result.pooled[metric]) + between


def p_value(p: float | None) -> str:
    """A p-value as it is printed."""
    if p is None:
        return "n/a"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def metric_rows(table: Table, rows: tuple[TableEntry, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table as the paper prints it, our figures above the paper's."""
    modality = table.number == 1
    header = [
        "Method",
        *(["Modality"] if modality else []),
        "",
        *(HEADERS[m] for m in (*PAPER_METRICS, "balanced_accuracy")),
    ]
    lines: list[list[str]] = []
    for entry in rows:
        seen = [entry.result.modalities if entry.result else ""] if modality else []
        ours = (
            [format_mean_std(m, entry.result) for m in (*PAPER_METRICS, "balanced_accuracy")]
            if entry.result
            else [f"failed: {entry.why}", *[""] * len(PAPER_METRICS)]
        )
        lines.append([entry.row.label, *seen, "ours", *ours])
        if entry.row.paper is not None:
            paper = [format_metric(m, v) for m, v in zip(PAPER_METRICS, entry.row.paper, strict=True)]
            lines.append(["", *([""] if modality else []), "paper", *paper, ""])
    return header, lines


def interval_rows(rows: tuple[TableEntry, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the pooled figures with their intervals."""
    metrics = (*PAPER_METRICS, "balanced_accuracy")
    return ["Method", *(HEADERS[m] for m in metrics)], [
        [entry.row.label, *(format_pooled_interval(m, entry.result) for m in metrics)] for entry in rows if entry.result
    ]


def test_rows(rows: tuple[TableEntry, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the tests against TMI-CLNet."""
    header = [
        "Method",
        "right alone",
        "TMI-CLNet right alone",
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
        exact, ranking = entry.paired.mcnemar, entry.paired.delong
        difference = "n/a" if ranking is None else f"{ranking.first - ranking.second:+.4f}"
        lines.append(
            [
                entry.row.label,
                str(exact.first_only),
                str(exact.second_only),
                p_value(exact.p),
                p_value(entry.mcnemar_holm),
                difference,
                p_value(None if ranking is None else ranking.p),
                p_value(entry.delong_holm),
            ]
        )
    return header, lines


def csv_rows(table: Table, rows: tuple[TableEntry, ...]) -> list[dict[str, Any]]:
    """Every figure of a table as plain values, a dictionary a row."""
    lines = []
    for entry in rows:
        line: dict[str, Any] = {"table": table.number, "row": entry.row.key, "method": entry.row.label}
        line["modalities"] = entry.result.modalities if entry.result else ""
        line["failed"] = entry.why
        for metric in (*PAPER_METRICS, "balanced_accuracy"):
            result = entry.result
            over = result.over_folds[metric] if result else {"mean": None, "std": None}
            between = result.intervals[metric] if result else None
            line[f"{metric}_mean"], line[f"{metric}_std"] = over["mean"], over["std"]
            line[f"{metric}_pooled"] = result.pooled[metric] if result else None
            line[f"{metric}_low"], line[f"{metric}_high"] = between or (None, None)
            if metric in PAPER_METRICS and entry.row.paper is not None:
                line[f"{metric}_paper"] = entry.row.paper[PAPER_METRICS.index(metric)]
        exact = entry.paired.mcnemar if entry.paired else None
        ranking = entry.paired.delong if entry.paired else None
        line |= {
            "mcnemar_right_alone": exact.first_only if exact else None,
            "mcnemar_ours_right_alone": exact.second_only if exact else None,
            "mcnemar_p": exact.p if exact else None,
            "mcnemar_p_holm": entry.mcnemar_holm,
            "auc_difference": ranking.first - ranking.second if ranking else None,
            "delong_p": ranking.p if ranking else None,
            "delong_p_holm": entry.delong_holm,
        }
        lines.append(line)
    return lines


def conclusion(results: Mapping[str, Result], tests: Mapping[str, PairedTest]) -> list[str]:
    """In words, whether the fusion beats each of its modalities alone, and by how much."""
    singles = {"image": "vision", "clinical": "text", "radiomics": "radiomics"}
    there = [key for key in singles if key in results and key in tests]
    if REFERENCE_MODEL not in results or not there:
        return []
    lines = []
    ours = results[REFERENCE_MODEL].pooled["roc_auc"]
    for key in there:
        alone, test = results[key].pooled["roc_auc"], tests[key].delong
        if ours is None or alone is None or test is None:
            continue
        better = "above" if ours > alone else "not above"
        lines.append(
            f"Fusion (pooled AUC {ours:.3f}) is {better} {singles[key]} alone ({alone:.3f}; difference "
            f"{ours - alone:+.3f}, DeLong p {p_value(test.p)})."
        )
    return lines
