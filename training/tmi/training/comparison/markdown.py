"""Markdown report of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from tmi.training.comparison.external_table import caption, external_rows
from tmi.training.comparison.formatting import interval_rows, metric_rows, paired_test_rows
from tmi.training.comparison.report_content import ReportContent


def as_markdown(content: ReportContent) -> str:
    """Render the report as a Markdown page."""
    lines = [
        f"# {content.title}",
        "",
        f"**{content.verdict}**",
        "",
        *(f"> {note}\n" for note in content.notes),
        f"Command: `{content.command}`",
        "",
    ]
    lines += [f"- {fact}" for fact in content.facts]
    for table, rows in content.tables:
        lines += ["", f"## {table.heading}", "", *(f"> {note}\n" for note in content.labels)]
        lines += _table(*metric_rows(table, rows))
        lines += ["", content.interval_caption, "", *_table(*interval_rows(rows))]
        tests = paired_test_rows(rows)
        if tests[1]:
            lines += ["", content.test_caption, "", *_table(*tests)]
        if content.external is not None:
            lines += ["", caption(content.external), "", *_table(*external_rows(rows, content.external))]
    if content.ceilings[1]:
        lines += ["", f"## {content.ceiling_title}", "", *(f"> {note}\n" for note in content.labels)]
        lines += [
            content.ceiling_caption,
            "",
            *_table(*content.ceilings),
            "",
            *(f"- {line}" for line in content.conclusion),
        ]
    return "\n".join([*lines, ""])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)]
