"""HTML report of a comparison: one self-contained page with embedded plots, without scripts or network access."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float

from tmi.training.comparison import plots
from tmi.training.comparison.external_table import caption, external_rows
from tmi.training.comparison.formatting import TableEntry, interval_rows, metric_rows, paired_test_rows
from tmi.training.comparison.paper_tables import Table
from tmi.training.comparison.report_content import ReportContent

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b;
       background: #fff; box-sizing: border-box; overflow-wrap: anywhere; }
h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.failure { text-align: left; white-space: normal; }
tr.paper td { color: #5a5a5a; border-bottom-color: #bbb; }
.scroll { overflow-x: auto; }
.verdict { font-size: 1.2rem; font-weight: 600; }
.note { background: #fff4d6; border-left: 4px solid #b98900; padding: .5rem .8rem; margin: 1rem 0; }
figure { margin: 1.5rem 0; }
figure img { width: 100%; max-width: 78rem; height: auto; }
figcaption { color: #444; font-size: 14px; }
code { background: #f2f2f2; padding: .1rem .3rem; }
@media (max-width: 40rem) {
  body { margin-top: 1rem; } h1 { font-size: 1.4rem; }
  figure { overflow-x: auto; } figure img { width: 60rem; max-width: none; }
}
"""


def as_html(content: ReportContent, weights_RN: Float[np.ndarray, "R N"]) -> str:
    """Render the report as an HTML page.

    Args:
        content: content of the report.
        weights_RN: bootstrap weights of R replicates and N cases, for the bands of the curves.
    """
    parts = [
        f"<h1>{escape(content.title)}</h1>",
        f'<p class="verdict">{escape(content.verdict)}</p>',
        *(_note(n) for n in content.notes),
    ]
    parts.append(f"<p>Command: <code>{escape(content.command)}</code></p>")
    parts.append("<ul>" + "".join(f"<li>{escape(fact.replace('`', ''))}</li>" for fact in content.facts) + "</ul>")
    for table, rows in content.tables:
        parts += _section(content, table, rows, weights_RN)
    if content.ceilings[1]:
        parts += [f"<h2>{escape(content.ceiling_title)}</h2>", *(_note(n) for n in content.labels)]
        parts += [f"<p>{escape(content.ceiling_caption)}</p>", _table(*content.ceilings)]
        parts += [f"<p>{escape(line)}</p>" for line in content.conclusion]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _section(
    content: ReportContent, table: Table, rows: tuple[TableEntry, ...], weights_RN: Float[np.ndarray, "R N"]
) -> list[str]:
    parts = [f"<h2>{escape(table.heading)}</h2>", *(_note(n) for n in content.labels)]
    parts.append(_table(*metric_rows(table, rows)))
    parts += [f"<p>{escape(content.interval_caption)}</p>", _table(*interval_rows(rows))]
    tests = paired_test_rows(rows)
    if tests[1]:
        parts += [f"<p>{escape(content.test_caption)}</p>", _table(*tests)]
    if content.external is not None:
        parts += [f"<p>{escape(caption(content.external))}</p>", _table(*external_rows(rows, content.external))]
    named = [(entry.row.label, entry.result) for entry in rows if entry.result is not None]
    if not named:
        return parts
    models = f"of {', '.join(label for label, _ in named)}"
    networks = [(label, result) for label, result in named if result.has_epochs]
    figures = [
        ("Metrics of each fold; dot: a fold, orange bar: mean", plots.fold_plot(named)),
        ("ROC curves of all held-out cases, with 95% bands", plots.roc_plot(named, weights_RN)),
        (
            "Precision-recall curves of all held-out cases, with 95% bands; dotted: prevalence",
            plots.precision_recall_plot(named, weights_RN),
        ),
        (
            "Calibration in quintiles of the cases, raw and after each fold's temperature scaling",
            plots.calibration_plot(named),
        ),
        ("Confusion matrix at a probability threshold of 0.5", plots.confusion_plot(named)),
    ]
    parts += [_svg_section(f"{table.heading}. {title}", models, svg) for title, svg in figures]
    if networks:
        title = "Training curves of each fold: validation cross entropy and total training loss; dot: selected epoch"
        shown = f"of {', '.join(label for label, _ in networks)}"
        parts.append(_svg_section(f"{table.heading}. {title}", shown, plots.training_plot(networks)))
    return parts


def _svg_section(title: str, models: str, svg: str) -> str:
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return (
        f'<figure><img alt="{escape(f"{title}, {models}")}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(('<tr class="paper">' if "paper" in row[1:3] else "<tr>") + _cells(row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(row: Sequence[str]) -> str:
    """Cells of a row; the reason of a failed one may span several lines and takes the rest of the row."""
    failed = next((n for n, cell in enumerate(row) if cell.startswith("failed: ")), None)
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[:failed])
    if failed is None:
        return cells
    return f'{cells}<td class="failure" colspan="{len(row) - failed}">{escape(row[failed])}</td>'
