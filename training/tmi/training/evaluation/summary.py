"""Summary of a run: metrics over the folds, as JSON and as a Markdown page."""

from __future__ import annotations

from typing import Any

from tmi.toolkit.config.schema import Config, TrainConfig
from tmi.toolkit.run_folder import SUMMARY_FILE, SUMMARY_TEXT_FILE, RunFolder
from tmi.toolkit.storage.atomic_files import read_json, write_json, write_text
from tmi.toolkit.storage.serialization import to_json
from tmi.training.evaluation.calibration import fit_threshold
from tmi.training.evaluation.metrics import METRICS, aggregate_folds
from tmi.training.evaluation.prediction_tables import pool_folds, read_predictions

TITLES = {
    "accuracy": "ACC",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "Bal. ACC",
}
PICKED = {"grouped": "the inner validation split", "released": "the very fold that is reported"}
"""Protocol -> data on which the epoch is picked."""
BEST = {"loss": "lowest cross entropy", "accuracy": "highest accuracy"}
"""Criterion -> value by which the epoch is picked."""
ERRORS = ("ece", "brier", "log_loss")
"""Errors of the probabilities, by their keys in metrics.json."""
SYNTHETIC = "The cohort is synthetic: the metrics do not apply to patients."


def _selection(train: TrainConfig) -> str:
    if train.select_by == "last":
        return "The picked epoch is the last one"
    over = f", averaged over {train.select_over} epochs," if train.select_over > 1 else ""
    return f"The picked epoch has the {BEST[train.select_by]}{over} on {PICKED[train.protocol]}"


def write_summary(run: RunFolder, *, rejected: int) -> dict[str, Any]:
    """Write summary.json and summary.md from the metrics of the folds; returns the content of summary.json."""
    folds = [read_json(run.fold(s.fold).metrics, kind="run") for s in run.folds]
    notes = [note] if (note := optimism_note(run.config)) else []
    truncated = max(f["truncated_texts"] for f in folds)
    if truncated:
        notes.append(
            f"{truncated} clinical text(s) are longer than {run.config.clinical.max_length} tokens and were truncated."
        )
    if run.state["cohort"]["synthetic"]:
        notes.append(SYNTHETIC)
    summary = {
        "preset": run.config.preset,
        "positive_class": "bad",
        "cases": sum(len(s.test) for s in run.folds),
        "refused_cases": rejected,
        "folds": folds,
        "calibration": _calibration(run, folds),
        "over_folds": aggregate_folds([f["test"] for f in folds]),
        "notes": notes,
        "train": to_json(run.config.train),
    }
    write_json(run.path / SUMMARY_FILE, summary)
    write_text(run.path / SUMMARY_TEXT_FILE, as_markdown(run, summary))
    return summary


def _calibration(run: RunFolder, folds: list[dict[str, Any]]) -> dict[str, Any]:
    """Threshold of the ensemble, fitted on the inner validation predictions of all folds, and mean errors."""
    errors = {
        which: {k: sum(f["calibration"]["test"][which][k] for f in folds) / len(folds) for k in ERRORS}
        for which in ("raw", "calibrated")
    }
    threshold = 0.5
    if all(f["calibration"]["fitted_on"] for f in folds):
        tables = [read_predictions(run.fold(s.fold).validation) for s in run.folds]
        probability, labels = pool_folds(tables, [f["calibration"]["temperature"] for f in folds])
        threshold = fit_threshold(probability, labels)
    return {"threshold": threshold, "test": errors}


def optimism_note(config: Config) -> str:
    """Why the metrics are optimistic; empty if no held-out case was used in training."""
    reasons = []
    if config.train.protocol == "released":
        reasons += [
            "the best epoch is picked on the very fold that is reported",
            "cases of one patient may lie on both sides of a split",
            "the folds are not stratified",
        ]
    if config.radiomics.fit_on == "cohort":
        reasons.append("the radiomics are scaled over the whole cohort, held-out cases included")
    return f"These metrics are optimistic: {'; '.join(reasons)}." if reasons else ""


def as_markdown(run: RunFolder, summary: dict[str, Any]) -> str:
    """The summary as a Markdown page."""
    header = ["Fold", *TITLES.values(), "Picked epoch", "Cases"]
    rows = [
        [
            str(f["fold"]),
            *(format_metric(f["test"][m]) for m in METRICS),
            str(f["picked_epoch"]),
            str(f["cases"]["test"]),
        ]
        for f in summary["folds"]
    ]
    rows.append(["**mean ± SD**", *(format_mean_std(summary["over_folds"][m]) for m in METRICS), "", ""])
    lines = [
        f"# {run.state['name']}",
        "",
        f"Preset `{summary['preset']}`, {summary['cases']} cases in {len(run.folds)} folds; the positive class is bad "
        f"prognosis. {_selection(run.config.train)}.",
        "",
        *(f"> {note}\n" for note in summary["notes"]),
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *_calibration_section(summary),
        "SD: sample standard deviation over the folds. n/a: undefined, the held-out part has one class only.",
    ]
    return "\n".join(lines) + "\n"


def _calibration_section(summary: dict[str, Any]) -> list[str]:
    """Errors of the probabilities before and after calibration."""
    errors, folds = summary["calibration"]["test"], summary["folds"]
    if not all(f["calibration"]["fitted_on"] for f in folds):
        return [
            "The probabilities are not calibrated: the protocol has no separate data to fit a temperature on.",
            "",
        ]
    rows = [
        f"| {which} | " + " | ".join(f"{errors[which][k]:.3f}" for k in ERRORS) + " |"
        for which in ("raw", "calibrated")
    ]
    temperatures = ", ".join(f"{f['calibration']['temperature']:.3g}" for f in folds)
    return [
        "Probabilities of the held-out cases, mean over the folds; temperature and threshold are fitted on the inner "
        "validation split:",
        "",
        "| | ECE | Brier | log loss |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        f"Temperature of each fold: {temperatures}. Threshold of the ensemble: "
        f"{summary['calibration']['threshold']:.3g}. The metrics above use the threshold 0.5; those at each fold's own "
        "threshold are in its metrics.json.",
        "",
    ]


def format_metric(value: float | None) -> str:
    """A metric with three decimals, or n/a."""
    return "n/a" if value is None else f"{value:.3f}"


def format_mean_std(entry: dict[str, Any]) -> str:
    """Mean and, if defined, standard deviation with three decimals."""
    return format_metric(entry["mean"]) + ("" if entry["std"] is None else f" ± {entry['std']:.3f}")
