"""Tables of parity check results."""

from __future__ import annotations

from collections.abc import Sequence

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.serving.held_out import HeldOutRow
from tmi.toolkit.cli.listing import Column, Listing

FAILED = (
    Column("check"),
    Column("graph"),
    Column("artefact", drop=1),
    Column("engine"),
    Column("measured", right=True),
    Column("allowed", right=True),
    Column("detail", wrap=True),
)
WORST = (
    Column("engine"),
    Column("check"),
    Column("comparisons", right=True, drop=1),
    Column("worst", right=True, drop=4),
    Column("allowed", right=True, drop=3),
    Column("x float32", right=True, drop=2),
    Column("result"),
)

ENGINES = (
    Column("engine"),
    Column("passed", right=True),
    Column("closest to its bound", drop=1),
    Column("x float32", right=True, drop=2),
    Column("result"),
)
HELD_OUT = (
    Column("engine"),
    Column("precision", drop=1),
    Column("cases", right=True, drop=2),
    Column("AUC", right=True),
    Column("difference", right=True),
    Column("largest |p - p0|", right=True),
    Column("allowed", right=True, drop=3),
    Column("beyond", right=True),
    Column("decisions flipped", right=True),
)


def summary_table(records: Sequence[CheckResult]) -> Listing:
    """One row for each engine, those with a failed check first: passed checks, and the check closest to its bound."""
    groups: dict[str, list[CheckResult]] = {}
    for r in records:
        groups.setdefault(r.engine or r.artefact, []).append(r)
    rows = []
    for engine, members in sorted(groups.items(), key=lambda item: all(r.passed for r in item[1])):
        passed = sum(r.passed for r in members)
        bounded = [r for r in members if r.measured is not None and r.bound]
        worst = max(bounded, key=lambda r: (not r.passed, (r.measured or 0.0) / (r.bound or 1.0)), default=None)
        closest = "-"
        if worst is not None:
            closest = f"{worst.check}: {_format(worst.measured)} of {_format(worst.bound)}"
        multiples = [r.multiple for r in members if r.multiple is not None]
        multiple = f"{max(multiples):.2g}" if multiples else ""
        status = "ok" if passed == len(members) else "FAILED"
        rows.append((engine, f"{passed} of {len(members)}", closest, multiple, status))
    return Listing(columns=ENGINES, rows=rows, keys=1)


def held_out_table(held_out: Sequence[HeldOutRow]) -> Listing:
    """One row for the recorded held-out predictions, one for each engine."""
    rows = [
        (
            row.engine,
            row.precision,
            str(row.cases),
            "-" if row.auc is None else f"{row.auc:.4f}",
            "-" if row.auc_difference is None else f"{row.auc_difference:+.4f}",
            _format(row.largest_difference),
            _format(row.allowed),
            str(row.beyond),
            str(row.flips),
        )
        for row in held_out
    ]
    return Listing(columns=HELD_OUT, rows=rows, title="held-out cases, each by the fold that holds it out", keys=1)


def failures_table(records: Sequence[CheckResult]) -> Listing:
    """One row for each failed check."""
    failed = [r for r in records if not r.passed]
    rows = [
        (r.check, r.graph, r.artefact, r.engine or "-", _format(r.measured), _format(r.bound), r.detail) for r in failed
    ]
    return Listing(columns=FAILED, rows=rows, title=f"{len(failed)} of {len(records)} parity checks failed", keys=2)


def checks_table(records: Sequence[CheckResult]) -> Listing:
    """One row for each engine and check, with the worst value over its graphs and inputs.

    The column `x float32` is the error as a multiple of eager float32's own error against float64.
    """
    groups: dict[tuple[str, str], list[CheckResult]] = {}
    for r in records:
        groups.setdefault((r.engine or r.artefact, r.check), []).append(r)
    rows = []
    for (engine, gate), members in groups.items():
        # A failed record first, then one that could not be measured, then the largest value.
        worst = max(members, key=lambda r: (not r.passed, r.measured is None, r.measured or 0.0))
        multiples = [r.multiple for r in members if r.multiple is not None]
        multiple = f"{max(multiples):.2g}" if multiples else ""
        status = "ok" if all(r.passed for r in members) else "FAILED"
        rows.append((engine, gate, str(len(members)), _format(worst.measured), _format(worst.bound), multiple, status))
    return Listing(columns=WORST, rows=rows, keys=2)


def _format(value: float | None) -> str:
    """A value with three significant digits; `-` if there is none."""
    return "-" if value is None else f"{value:.3g}"
