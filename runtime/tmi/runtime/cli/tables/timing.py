"""`tmi predict --timing`: where the time went, as bars."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tmi.runtime.serving.results import CaseResult, Prediction
from tmi.runtime.serving.timing import stages_match_total, sum_stages, unaccounted_seconds

BAR = 40
"""Columns of a bar that is the whole."""
PIPED_WIDTH = 140
"""Columns of the table where there is no terminal to ask."""


def print_timing(answers: Sequence[CaseResult]) -> None:
    """Print every predicted case's waterfall, and for several their mean, on standard error."""
    from rich.console import Console

    predicted = [a for a in answers if isinstance(a, Prediction)]
    console = Console(
        stderr=True,
        width=None if sys.stderr.isatty() else PIPED_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for answer in predicted:
        _print(console, answer.case_id, dict(answer.seconds), dict(answer.overlapped), answer.reused)
    if len(predicted) > 1:
        n = len(predicted)
        seconds, hidden = (
            {name: value / n for name, value in sum_stages(*parts).items()}
            for parts in ([a.seconds for a in predicted], [a.overlapped for a in predicted])
        )
        _print(console, f"mean of {n} cases", seconds, hidden, ())


def _print(
    console: object, title: str, seconds: dict[str, float], hidden: dict[str, float], reused: Sequence[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    assert isinstance(console, Console)
    table = Table(title=Text(f"Time: {title}"), title_justify="left")
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
        console.print(f"  the stages leave {unaccounted_seconds(seconds):.3f} s of the total unexplained")
