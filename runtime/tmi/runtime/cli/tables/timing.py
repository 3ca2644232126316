"""Waterfall tables of `tmi predict --timing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tmi.runtime.serving.results import CaseResult, Prediction
from tmi.runtime.serving.trace import stages_match_total, sum_stages, unaccounted_seconds
from tmi.toolkit.cli.console import make_console
from tmi.toolkit.cli.listing import Column, Listing, print_listing

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = (
    Column("stage"),
    Column("seconds", right=True),
    Column("part", right=True, drop=3),
    Column("overlapped", right=True, drop=1),
    Column("waterfall", drop=2),
)
SHORTEST_BAR, LONGEST_BAR = 16, 40
"""Widths in columns of a bar that spans the total."""
OTHER_COLUMNS = 64
"""Width of the other columns."""


def print_timing(results: Sequence[CaseResult]) -> None:
    """Print the waterfall of every predicted case, and the mean of several, on standard error."""
    predicted = [r for r in results if isinstance(r, Prediction)]
    console = make_console(stderr=True, highlight=False, markup=False, emoji=False)
    for prediction in predicted:
        _print(console, prediction.case_id, dict(prediction.seconds), dict(prediction.overlapped), prediction.reused)
    if len(predicted) > 1:
        n = len(predicted)
        seconds, hidden = (
            {name: value / n for name, value in sum_stages(*parts).items()}
            for parts in ([p.seconds for p in predicted], [p.overlapped for p in predicted])
        )
        _print(console, f"mean of {n} cases", seconds, hidden, ())


def _print(
    console: Console, title: str, seconds: dict[str, float], hidden: dict[str, float], reused: Sequence[str]
) -> None:
    total, before = seconds["total"], 0.0
    length = min(LONGEST_BAR, max(SHORTEST_BAR, console.width - OTHER_COLUMNS))
    block = "#" if console.options.ascii_only else "█"
    rows = []
    for stage, value in seconds.items():
        if stage == "total":
            continue
        start, end = (round(length * min(1.0, x / total)) if total else 0 for x in (before, before + value))
        bar = " " * start + block * max(end - start, 1 if value else 0)
        name = f"{stage} (reused)" if stage in reused else stage
        shown = f"{hidden[stage]:.3f}" if hidden.get(stage, 0.0) >= 0.0005 else ""
        rows.append((name, f"{value:.3f}", f"{value / total:.1%}" if total else "", shown, bar))
        before += value
    totals = [("total", f"{total:.3f}", "", "", "")]
    print_listing(console, Listing(columns=COLUMNS, rows=rows, title=f"Time: {title}", totals=totals))
    if not stages_match_total(seconds):
        console.print(f"  {unaccounted_seconds(seconds):.3f} s of the total belong to no stage")
