"""A comparison as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence

from tmi.training.comparison.formatting import figures_rows, interval_rows, test_rows
from tmi.training.comparison.report_content import Story


def as_markdown(story: Story) -> str:
    """The page."""
    lines = [f"# {story.title}", "", *(f"> {note}\n" for note in story.notes), f"Made by `{story.command}`", ""]
    lines += [f"- {fact}" for fact in story.facts]
    for table, rows in story.tables:
        lines += ["", f"## {table.heading}", "", *(f"> {note}\n" for note in story.labels)]
        lines += _table(*figures_rows(table, rows))
        lines += ["", story.interval_caption, "", *_table(*interval_rows(rows))]
        tests = test_rows(rows)
        if tests[1]:
            lines += ["", story.test_caption, "", *_table(*tests)]
    if story.ceilings[1]:
        lines += ["", f"## {story.ceiling_title}", "", *(f"> {note}\n" for note in story.labels)]
        lines += [story.ceiling_caption, "", *_table(*story.ceilings), "", *(f"- {line}" for line in story.verdict)]
    return "\n".join([*lines, ""])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)]
