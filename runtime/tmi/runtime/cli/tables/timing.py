"""Waterfall tables of `tmi predict --timing`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tmi.runtime.serving.results import CaseResult, Prediction
from tmi.runtime.serving.timing import stages_match_total, sum_stages, unaccounted_seconds
from tmi.toolkit.cli.console import make_console
from tmi.toolkit.storage.terminal_text import printable

BAR = 40
"""Width in columns of a bar that spans the total."""
PIPED_WIDTH = 140
"""Width of the table in columns if standard error is not a terminal."""


def print_timing(results: Sequence[CaseResult]) -> None:
    """Print the waterfall of every predicted case, and the mean of several, on standard error."""
    predicted = [r for r in results if isinstance(r, Prediction)]
    console = make_console(
        stderr=True,
        width=None if sys.stderr.isatty() else PIPED_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
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
    console: object, title: str, seconds: dict[str, float], hidden: dict[str, float], reused: Sequence[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    assert isinstance(console, Console)
    table = Table(title=Text(printable(f"Time: {title}")), title_justify="left")
    table.add_column("stage")
    for heading in ("seconds", "part", "overlapped"):
        table.add_column(heading, justify="right")
    table.add_column("waterfall", no_wrap=True, min_width=BAR)
    total, before = seconds["total"], 0.0
    for stage, value in seconds.items():
        if stage == "total":
            continue
        start, end = (round(BAR * min(1.0, x / total)) if total else 0 for x in (before, before + value))
        bar = " " * start + "█" * max(end - start, 1 if value else 0)
        name = f"{stage} (reused)" if stage in reused else stage
        shown = f"{hidden[stage]:.3f}" if hidden.get(stage, 0.0) >= 0.0005 else ""
        table.add_row(name, f"{value:.3f}", f"{value / total:.1%}" if total else "", shown, bar)
        before += value
    table.add_section()
    table.add_row("total", f"{total:.3f}", "", "", "")
    console.print(table)
    if not stages_match_total(seconds):
        console.print(f"  {unaccounted_seconds(seconds):.3f} s of the total belong to no stage")
