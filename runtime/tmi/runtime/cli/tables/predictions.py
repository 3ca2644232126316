"""Predictions as a table with notes, and as CSV."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.input_warnings import BUNDLE_WARNINGS, FEATURE_ALERTS, FEATURE_WARNINGS
from tmi.runtime.serving.results import ALERTS, RESEARCH_USE, CaseResult, Prediction, alerts
from tmi.runtime.serving.trust import set_lines, trust_lines
from tmi.toolkit.cli.console import make_console
from tmi.toolkit.cli.listing import Column, Listing, print_listing
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.csv_files import csv_text
from tmi.toolkit.storage.terminal_text import printable


class FoldFacts(Protocol):
    """A fold of a bundle."""

    @property
    def fold(self) -> int:
        """Its number in the run."""


class ManifestFacts(Protocol):
    """What a table states of a manifest, which may be that of a service."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""

    @property
    def positive(self) -> int:
        """Index of the positive class."""

    @property
    def folds(self) -> Sequence[FoldFacts]:
        """The folds."""

    @property
    def threshold(self) -> float:
        """Threshold of the decision."""

    @property
    def synthetic(self) -> bool:
        """Whether the bundle was trained on synthetic cases."""


class BundleFacts(Protocol):
    """What a table states of a bundle."""

    @property
    def digest(self) -> str:
        """SHA-256 of its manifest."""

    @property
    def manifest(self) -> ManifestFacts:
        """Its manifest."""


def print_table(results: Sequence[CaseResult], *, bundle: BundleFacts, engine: EngineRecord) -> None:
    """Print the results on standard output."""
    console = make_console(highlight=False, markup=False, emoji=False)
    for line in _alert_lines(results):  # above the table, so that nobody reads a probability before them
        console.print(printable(line), style="bold", soft_wrap=True)
    print_listing(console, _listing(results, bundle.manifest))
    for line in _notes(results):
        console.print(printable(line), soft_wrap=True)
    console.print(
        f"engine {engine.name} ({engine.package}, {engine.precision}, {engine.threads} threads); "
        f"bundle {bundle.digest[:16]}",
        soft_wrap=True,
    )
    for line in trust_lines([(r.case_id, r.trust) for r in results if isinstance(r, Prediction)]):
        console.print(printable(line), soft_wrap=True)
    for line in set_lines([(r.case_id, r.prediction_set) for r in results if isinstance(r, Prediction)]):
        console.print(printable(line), soft_wrap=True)
    console.print(RESEARCH_USE, soft_wrap=True)


def _listing(results: Sequence[CaseResult], manifest: ManifestFacts) -> Listing:
    """Table of the results: case, decision, probability and notes have a column at every width."""
    positive = manifest.classes[manifest.positive]
    models = f"{len(manifest.folds)} fold model{'s' if len(manifest.folds) > 1 else ''}"
    models += " trained on synthetic cases" if manifest.synthetic else ""
    columns = (
        Column("case"),
        Column("decision"),
        *(Column(f"p({name})", right=True, drop=0 if name == positive else 3) for name in manifest.classes),
        Column("spread", right=True, drop=4),
        Column("each fold", right=True, drop=1),
        Column("seconds", right=True, drop=2),
        Column("notes", wrap=True),
    )
    rows = []
    for result in results:
        if isinstance(result, Prediction):
            cells = [
                *(f"{result.probability[name]:.4f}" for name in manifest.classes),
                f"{result.spread:.4f}",
                " ".join(f"{fold.probability[positive]:.3f}" for fold in result.folds),
                f"{result.seconds['total']:.2f}",
                ", ".join(_codes(result)),
            ]
            rows.append((result.case_id, result.decision, *cells))
        else:
            rows.append((result.case_id, "rejected", *["-"] * (len(manifest.classes) + 3), result.code))
    title = f"Prognosis: probability of '{positive}', mean of {models}; decision threshold {manifest.threshold:g}"
    return Listing(columns=columns, rows=rows, title=title)


def _codes(prediction: Prediction) -> list[str]:
    """Codes of the notices about the case, each once; an alert stands for the notice that counts the same features."""
    codes = dict.fromkeys(n.code for n in prediction.warnings if n.code not in BUNDLE_WARNINGS)
    return [code for code in codes if code not in FEATURE_ALERTS or FEATURE_ALERTS[code][0] not in codes]


def _alert_lines(results: Sequence[CaseResult]) -> list[str]:
    """One line for each kind of alert, with its cases."""
    cases: dict[tuple[str, str], list[tuple[str, Issue]]] = defaultdict(list)
    for case_id, notice in alerts(results):
        cases[notice.code, _without_count(notice)].append((case_id, notice))
    lines = []
    for (code, message), affected in cases.items():
        case_id, notice = affected[0]
        if len(affected) == 1:
            text = f"{case_id}: {notice.message}"
        else:
            ids = ", ".join(i if n.count is None else f"{i} {n.count}" for i, n in affected)
            text = f"{ids}: {message}" if notice.count is None else f"{ids} {message}"
        lines += [f"attention: {text} [{code}]", f"  fix: {notice.fix}"]
    return lines


def _without_count(notice: Issue) -> str:
    """Message without the number that it starts with, which differs between cases."""
    return notice.message if notice.count is None else notice.message.removeprefix(f"{notice.count} ")


def _notes(results: Sequence[CaseResult]) -> list[str]:
    """One line for each kind of notice; for several cases features are counted but not named."""
    predicted = [r for r in results if isinstance(r, Prediction)]
    cases: dict[str, dict[str, Issue]] = defaultdict(dict)
    for prediction in predicted:
        for notice in (n for n in prediction.warnings if n.code not in ALERTS):
            # Counts and names differ between cases, so feature notices are grouped by code, others by their text.
            cases[notice.code if notice.code in FEATURE_WARNINGS else notice.message][prediction.case_id] = notice
    lines, shown = [], {issue.fix for _, issue in alerts(results)}
    for by_case in cases.values():
        first = next(iter(by_case.values()))
        if first.code in FEATURE_WARNINGS and len(by_case) > 1:
            counts = ", ".join(f"{case_id} {notice.count}" for case_id, notice in by_case.items())
            lines.append(f"  {first.code}: {counts} features {FEATURE_WARNINGS[first.code]} (first names: --json)")
        else:
            scope = "all cases" if len(by_case) == len(predicted) > 1 else ", ".join(by_case)
            lines.append(f"  {first.code}: {scope}: {first.message}")
        if first.severity == "warning" and first.code not in BUNDLE_WARNINGS and first.fix not in shown:
            shown.add(first.fix)
            lines.append(f"    fix: {first.fix}")
    return lines


def to_csv(results: Sequence[CaseResult], *, bundle: BundleFacts, engine: EngineRecord) -> str:
    """One row for each case, in the order of the input; probabilities in full precision."""
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
        "trust",
        "trust_p_value",
    ]
    rows: list[dict[str, object]] = []
    for result in results:
        row: dict[str, object] = {"case_id": result.case_id, "engine": engine.name, "bundle": bundle.digest}
        if isinstance(result, Prediction):
            row |= {
                "status": "predicted",
                "decision": result.decision,
                "spread": repr(result.spread),
                "warnings": ";".join(notice.code for notice in result.warnings),
                "seconds": f"{result.seconds['total']:.3f}",
                "trust": "not-assessed" if result.trust is None else result.trust.verdict,
                "trust_p_value": "" if result.trust is None else repr(result.trust.p_value),
            }
            row |= {f"probability_{name}": repr(p) for name, p in result.probability.items()}
            row |= {f"fold{fold.fold}_{positive}": repr(fold.probability[positive]) for fold in result.folds}
        else:
            row |= {"status": "refused", "refusal": f"{result.code}: {result.what}", "fix": result.fix}
        rows.append(row)
    return csv_text(columns, ([row.get(c) for c in columns] for row in rows))
