"""First sentence of a comparison: what the cohort shows about TMI-CLNet and the other methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tmi.toolkit.model_registry import REFERENCE_MODEL
from tmi.training.comparison.formatting import TableEntry, format_metric
from tmi.training.comparison.results import Result

SIGNIFICANT = 0.05
"""Largest p-value after Holm's correction that counts as a difference."""


def verdict(entries: Sequence[TableEntry], *, synthetic: bool) -> str:
    """One sentence: rank of TMI-CLNet by pooled AUC, and the methods that differ significantly from it.

    Args:
        entries: rows of all tables; a run that several rows share counts once.
        synthetic: whether the cohort is synthetic.
    """
    results = {e.result.key: e for e in entries if e.result is not None}
    if REFERENCE_MODEL not in results:
        return "TMI-CLNet has no results, so this comparison shows nothing about it."
    reference = results[REFERENCE_MODEL].result
    assert reference is not None
    cases = f"these {len(reference.case_ids)} {'synthetic ' if synthetic else ''}cases"
    own = reference.pooled["roc_auc"]
    others = [e for key, e in results.items() if key != REFERENCE_MODEL]
    if own is None:
        return f"The AUC is not defined on {cases}, which are all of one class."
    auc = f"{format_metric('roc_auc', own, reference.n_cases)}{_interval(reference)}"
    if not others:
        return f"Only TMI-CLNet has results on {cases} (pooled AUC {auc}), so there is nothing to compare it with."
    better = sum(value > own for e in others if (value := _auc(e)) is not None)
    rank = f"On {cases} TMI-CLNet has rank {better + 1} of {len(others) + 1} by pooled AUC ({auc})"
    different = [e for e in entries if e.delong_holm is not None and e.delong_holm <= SIGNIFICANT]
    above = _labels(e for e in different if (_auc(e) or 0.0) < own)
    below = _labels(e for e in different if (_auc(e) or 0.0) > own)
    if not above and not below:
        return f"{rank}, but no difference from another method is significant: the cohort cannot rank them."
    parts = []
    if above:
        parts.append(f"it is significantly better than {above}")
    if below:
        parts.append(f"it is significantly worse than {below}")
    rest = len(others) - len({e.result.key for e in different if e.result is not None})
    if rest:
        parts.append("no other difference is significant")
    return f"{rank}; {', and '.join(parts)}."


def _auc(entry: TableEntry) -> float | None:
    return None if entry.result is None else entry.result.pooled["roc_auc"]


def _interval(result: Result) -> str:
    bounds = result.intervals["roc_auc"]
    if bounds is None:
        return ""
    low, high = (format_metric("roc_auc", bound, result.n_cases) for bound in bounds)
    return f", 95% interval {low} to {high}"


def _labels(entries: Iterable[TableEntry]) -> str:
    """Labels of the rows, each run once."""
    labels = {e.result.key: e.row.label for e in entries if e.result is not None}
    return ", ".join(labels.values())
