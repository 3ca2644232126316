"""Gate records as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tmi.runtime.bundle.check_result import CheckResult


def failures_table(records: Sequence[CheckResult]) -> Table:
    """Every record that does not hold."""
    failed = [r for r in records if not r.passed]
    table = Table(title=f"{len(failed)} of {len(records)} parity gates failed", title_justify="left")
    for column in ("gate", "graph", "artefact", "engine", "measured", "allowed", "what"):
        table.add_column(column, justify="right" if column in ("measured", "allowed") else "left", overflow="fold")
    for r in failed:
        table.add_row(r.gate, r.graph, r.artefact, r.engine or "-", figure(r.measured), figure(r.bound), r.detail)
    return table


def checks_table(records: Sequence[CheckResult]) -> Table:
    """One row a gate and engine with the worst figure of its graphs and trials.

    `x float32`: as a multiple of eager float32's own error against float64.
    """
    groups: dict[tuple[str, str], list[CheckResult]] = {}
    for r in records:
        groups.setdefault((r.engine or r.artefact, r.gate), []).append(r)
    table = Table()
    for column in ("engine", "gate", "trials", "worst", "allowed", "x float32", ""):
        table.add_column(column, justify="left" if column in ("engine", "gate", "") else "right", overflow="fold")
    for (engine, gate), members in groups.items():
        worst = max(members, key=lambda r: (not r.passed, r.measured is None, r.measured or 0.0))
        multiples = [r.multiple for r in members if r.multiple is not None]
        times = f"{max(multiples):.2g}" if multiples else ""
        held = "ok" if all(r.passed for r in members) else "FAILED"
        table.add_row(engine, gate, str(len(members)), figure(worst.measured), figure(worst.bound), times, held)
    return table


def wide_console(*, stderr: bool = False) -> Console:
    """A console at least as wide as the tables; 140 columns where no terminal says how wide it is."""
    console = Console(stderr=stderr)
    return Console(stderr=stderr, width=max(console.width, 110) if console.is_terminal else 140)


def figure(value: float | None) -> str:
    """A figure as it is printed."""
    return "-" if value is None else f"{value:.3g}"
