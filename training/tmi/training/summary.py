"""The run's summary: figures over the folds, as JSON and as a page to read."""

from __future__ import annotations

from typing import Any

from tmi.toolkit.config_io import to_json
from tmi.toolkit.files import read_json, write_json, write_text
from tmi.toolkit.run_folder import SUMMARY_FILE, SUMMARY_TEXT_FILE, RunFolder
from tmi.training.metrics import METRICS, over_folds

TITLES = {
    "accuracy": "ACC",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "Bal. ACC",
}
OPTIMISTIC = (
    "These figures are optimistic. The `released` protocol picks the best epoch on the very fold it reports, scales "
    "the radiomics over the whole cohort, and neither groups patients nor stratifies."
)
SYNTHETIC = "The cohort is synthetic: the figures say nothing about patients."


def write_summary(run: RunFolder, *, refused: int) -> dict[str, Any]:
    """Write summary.json and summary.md from the folds' metrics; returns the former."""
    folds = [read_json(run.fold(s.fold).metrics, kind="run") for s in run.folds]
    notes = [OPTIMISTIC] if run.config.train.protocol == "released" else []
    if run.state["cohort"]["synthetic"]:
        notes.append(SYNTHETIC)
    summary = {
        "preset": run.config.preset,
        "positive_class": "bad",
        "cases": sum(len(s.test) for s in run.folds),
        "refused_cases": refused,
        "folds": folds,
        "over_folds": over_folds([f["test"] for f in folds]),
        "notes": notes,
        "train": to_json(run.config.train),
    }
    write_json(run.path / SUMMARY_FILE, summary)
    write_text(run.path / SUMMARY_TEXT_FILE, as_markdown(run, summary))
    return summary


def as_markdown(run: RunFolder, summary: dict[str, Any]) -> str:
    """The summary as a page."""
    header = ["Fold", *TITLES.values(), "Picked epoch", "Cases"]
    rows = [
        [str(f["fold"]), *(figure(f["test"][m]) for m in METRICS), str(f["picked_epoch"]), str(f["cases"]["test"])]
        for f in summary["folds"]
    ]
    rows.append(["**mean ± SD**", *(mean_and_deviation(summary["over_folds"][m]) for m in METRICS), "", ""])
    lines = [
        f"# {run.state['name']}",
        "",
        f"Preset `{summary['preset']}`, {summary['cases']} cases in {len(run.folds)} folds; the positive class is bad "
        "prognosis. The picked epoch has the lowest cross entropy on the inner validation split.",
        "",
        *(f"> {note}\n" for note in summary["notes"]),
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "SD: sample standard deviation over the folds. n/a: not defined, the fold's held-out part has one class only.",
    ]
    return "\n".join(lines) + "\n"


def figure(value: float | None) -> str:
    """A figure as it is printed."""
    return "n/a" if value is None else f"{value:.3f}"


def mean_and_deviation(entry: dict[str, Any]) -> str:
    """Mean and standard deviation as they are printed."""
    return figure(entry["mean"]) + ("" if entry["std"] is None else f" ± {entry['std']:.3f}")
