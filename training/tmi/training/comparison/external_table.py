"""Section of a comparison's report on the external cohort: caption, rows as text, and columns of the CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tmi.training.comparison.external import ExternalEvaluation, ExternalResult
from tmi.training.comparison.formatting import TableEntry, decimals, format_difference, format_metric, format_p_value
from tmi.training.evaluation.statistics.bootstrap import CONFIDENCE_LEVEL
from tmi.training.evaluation.statistics.holm import holm_correction

HEADER = ["Method", "AUC of the ensemble", "AUC of its folds", "Bal. ACC", "AUC − TMI-CLNet's", "DeLong p", "Holm"]


def caption(evaluation: ExternalEvaluation) -> str:
    """What the section shows, with the cohort's size and, of a synthetic cohort, the AUC of the true posterior."""
    first = next(iter(evaluation.results.values()), None)
    if first is None:
        return "External cohort: no run has results on it."
    left_out = f", {len(evaluation.rejected)} more left out" if evaluation.rejected else ""
    text = (
        f"External cohort: {len(first.case_ids)} cases that no model was trained on, {int(first.positive_N.sum())} of "
        f"them with a bad prognosis{left_out}. The ensemble is the one of a bundle: the mean of the folds' calibrated "
        f"probabilities, with {CONFIDENCE_LEVEL:.0%} bootstrap intervals of its AUC; then mean and standard deviation "
        "of the AUCs of the folds' models alone. Balanced accuracy is at the run's own threshold. DeLong's test "
        "compares ensembles on the same cases, with Holm's correction over the rows of this table."
    )
    if evaluation.ceiling is not None:
        text += (
            f" The true posterior has an AUC of {format_metric('roc_auc', evaluation.ceiling, len(first.case_ids))}."
        )
    return text


def external_rows(entries: Sequence[TableEntry], evaluation: ExternalEvaluation) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table; a run without results is a row with the reason."""
    rows = []
    for entry, holm in zip(entries, _holm(entries, evaluation), strict=True):
        if entry.result is None:
            continue
        result = evaluation.results.get(entry.result.key)
        if result is None:
            reason = evaluation.failed.get(entry.result.key, "no results")
            rows.append([entry.row.label, f"failed: {reason}", *[""] * (len(HEADER) - 2)])
            continue
        test, n_cases = evaluation.tests.get(result.key), len(result.case_ids)
        rows.append(
            [
                entry.row.label,
                _ensemble(result),
                _folds(result),
                format_metric("balanced_accuracy", result.metrics["balanced_accuracy"], n_cases),
                "" if test is None else format_difference(test.first - test.second, n_cases),
                "" if test is None else format_p_value(test.p),
                "" if test is None else format_p_value(holm),
            ]
        )
    return HEADER, rows


def external_columns(entries: Sequence[TableEntry], evaluation: ExternalEvaluation) -> list[dict[str, Any]]:
    """The same as plain numbers, one dictionary for each entry."""
    lines = []
    for entry, holm in zip(entries, _holm(entries, evaluation), strict=True):
        result = None if entry.result is None else evaluation.results.get(entry.result.key)
        test = None if result is None else evaluation.tests.get(result.key)
        low, high = (result.auc_interval if result else None) or (None, None)
        lines.append(
            {
                "external_cases": len(result.case_ids) if result else None,
                "external_auc": result.metrics["roc_auc"] if result else None,
                "external_auc_low": low,
                "external_auc_high": high,
                "external_auc_folds_mean": float(np.mean(result.fold_aucs)) if result else None,
                "external_balanced_accuracy": result.metrics["balanced_accuracy"] if result else None,
                "external_auc_difference": test.first - test.second if test else None,
                "external_delong_p": test.p if test else None,
                "external_delong_p_holm": holm,
            }
        )
    return lines


def _holm(entries: Sequence[TableEntry], evaluation: ExternalEvaluation) -> list[float | None]:
    tests = [None if e.result is None else evaluation.tests.get(e.result.key) for e in entries]
    return list(holm_correction([None if test is None else test.p for test in tests]))


def _ensemble(result: ExternalResult) -> str:
    n_cases = len(result.case_ids)
    text = format_metric("roc_auc", result.metrics["roc_auc"], n_cases)
    if result.auc_interval is None:
        return text
    low, high = (format_metric("roc_auc", bound, n_cases) for bound in result.auc_interval)
    return f"{text} [{low}, {high}]"


def _folds(result: ExternalResult) -> str:
    aucs, digits = result.fold_aucs, decimals(len(result.case_ids))
    spread = f" ± {np.std(aucs, ddof=1):.{digits}f}" if len(aucs) > 1 else ""
    return f"{np.mean(aucs):.{digits}f}{spread}"
