"""Predictions for people: a table with its notes, and CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections import defaultdict
from collections.abc import Sequence

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.input_warnings import BUNDLE_WARNINGS, FEATURE_WARNINGS
from tmi.runtime.serving.results import RESEARCH_USE, CaseResult, Notice, Prediction

PIPED_WIDTH = 140
"""Columns of the table where there is no terminal to ask."""


def print_table(answers: Sequence[CaseResult], *, bundle: Bundle, engine: EngineRecord) -> None:
    """Print the answers on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    manifest = bundle.manifest
    positive = manifest.classes[manifest.positive]
    models = f"{len(manifest.folds)} fold model{'s' if len(manifest.folds) > 1 else ''}"
    models += " trained on synthetic cases" if manifest.synthetic else ""
    table = Table(
        title=f"Prognosis: probability of '{positive}', mean of {models}; decided '{positive}' from "
        f"{manifest.threshold:g} on",
        title_justify="left",
    )
    table.add_column("case", overflow="fold")
    table.add_column("decision")
    for heading in (*(f"p({name})" for name in manifest.classes), "spread", "each fold", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("notes", overflow="fold")
    for answer in answers:
        if isinstance(answer, Prediction):
            cells = [
                *(f"{answer.probability[name]:.4f}" for name in manifest.classes),
                f"{answer.spread:.4f}",
                " ".join(f"{fold.probability[positive]:.3f}" for fold in answer.folds),
                f"{answer.seconds['total']:.2f}",
                ", ".join(dict.fromkeys(n.code for n in answer.warnings if n.code not in BUNDLE_WARNINGS)),
            ]
            table.add_row(Text(answer.case_id), answer.decision, *cells)
        else:
            table.add_row(Text(answer.case_id), "refused", *["-"] * (len(manifest.classes) + 3), answer.code)
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    console.print(table)
    for line in _notes(answers):
        console.print(line, soft_wrap=True)
    console.print(
        f"engine {engine.name} ({engine.package}, {engine.precision}, {engine.threads} threads); "
        f"bundle {bundle.digest[:16]}",
        soft_wrap=True,
    )
    console.print(RESEARCH_USE, soft_wrap=True)


def _notes(answers: Sequence[CaseResult]) -> list[str]:
    """One line for each kind of notice; the features of several cases are only counted."""
    predicted = [a for a in answers if isinstance(a, Prediction)]
    cases: dict[str, dict[str, Notice]] = defaultdict(dict)
    for answer in predicted:
        for notice in answer.warnings:
            cases[notice.code if notice.code in FEATURE_WARNINGS else notice.message][answer.case_id] = notice
    lines = []
    for by_case in cases.values():
        first = next(iter(by_case.values()))
        if first.code in FEATURE_WARNINGS and len(by_case) > 1:
            counts = ", ".join(f"{case_id} {notice.count}" for case_id, notice in by_case.items())
            lines.append(f"  {first.code}: {counts} features {FEATURE_WARNINGS[first.code]} (--json names the first)")
        else:
            whose = "all cases" if len(by_case) == len(predicted) > 1 else ", ".join(by_case)
            lines.append(f"  {first.code}: {whose}: {first.message}")
    return lines


def to_csv(answers: Sequence[CaseResult], *, bundle: Bundle, engine: EngineRecord) -> str:
    """One row a case, in the order of the input; probabilities in full precision."""
    manifest = bundle.manifest
    positive = manifest.classes[manifest.positive]
    columns = [
        "case_id",
        "status",
        "decision",
        *(f"probability_{name}" for name in manifest.classes),
        "spread",
        *(f"fold{fold.fold}_{positive}" for fold in manifest.folds),
        "warnings",
        "refusal",
        "fix",
        "seconds",
        "engine",
        "bundle",
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for answer in answers:
        row: dict[str, object] = {"case_id": answer.case_id, "engine": engine.name, "bundle": bundle.digest}
        if isinstance(answer, Prediction):
            row |= {
                "status": "predicted",
                "decision": answer.decision,
                "spread": repr(answer.spread),
                "warnings": ";".join(notice.code for notice in answer.warnings),
                "seconds": f"{answer.seconds['total']:.3f}",
            }
            row |= {f"probability_{name}": repr(p) for name, p in answer.probability.items()}
            row |= {f"fold{fold.fold}_{positive}": repr(fold.probability[positive]) for fold in answer.folds}
        else:
            row |= {"status": "refused", "refusal": f"{answer.code}: {answer.what}", "fix": answer.fix}
        writer.writerow(row)
    return stream.getvalue()
