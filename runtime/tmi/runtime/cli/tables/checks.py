"""Tables of parity check results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tmi.runtime.bundle.check_result import CheckResult
from tmi.toolkit.cli.console import make_console


def failures_table(records: Sequence[CheckResult]) -> Table:
    """One row for each failed check."""
    failed = [r for r in records if not r.passed]
    table = Table(title=f"{len(failed)} of {len(records)} parity checks failed", title_justify="left")
    for column in ("check", "graph", "artefact", "engine", "measured", "allowed", "detail"):
        table.add_column(column, justify="right" if column in ("measured", "allowed") else "left", overflow="fold")
    for r in failed:
        table.add_row(r.gate, r.graph, r.artefact, r.engine or "-", _format(r.measured), _format(r.bound), r.detail)
    return table


def checks_table(records: Sequence[CheckResult]) -> Table:
    """One row for each engine and check, with the worst value over its graphs and inputs.

    The column `x float32` is the error as a multiple of eager float32's own error against float64.
    """
    groups: dict[tuple[str, str], list[CheckResult]] = {}
    for r in records:
        groups.setdefault((r.engine or r.artefact, r.gate), []).append(r)
    table = Table()
    for column in ("engine", "check", "comparisons", "worst", "allowed", "x float32", ""):
        table.add_column(column, justify="left" if column in ("engine", "check", "") else "right", overflow="fold")
    for (engine, gate), members in groups.items():
        # A failed record first, then one that could not be measured, then the largest value.
        worst = max(members, key=lambda r: (not r.passed, r.measured is None, r.measured or 0.0))
        multiples = [r.multiple for r in members if r.multiple is not None]
        multiple = f"{max(multiples):.2g}" if multiples else ""
        status = "ok" if all(r.passed for r in members) else "FAILED"
        table.add_row(engine, gate, str(len(members)), _format(worst.measured), _format(worst.bound), multiple, status)
    return table


def wide_console(*, stderr: bool = False) -> Console:
    """A console at least as wide as the tables; 140 columns without a terminal."""
    console = make_console(stderr=stderr)
    return make_console(stderr=stderr, width=max(console.width, 110) if console.is_terminal else 140)


def _format(value: float | None) -> str:
    """A value with three significant digits; `-` if there is none."""
    return "-" if value is None else f"{value:.3g}"
