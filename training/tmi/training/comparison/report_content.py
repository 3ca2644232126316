"""Content of a comparison's report, independent of the output format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tmi.toolkit.cases.case import Cohort
from tmi.toolkit.model_registry import REFERENCE_MODEL
from tmi.toolkit.synthetic.cohort import is_synthetic
from tmi.training.comparison.external import ExternalEvaluation
from tmi.training.comparison.formatting import (
    TableEntry,
    conclusion,
    format_mean_std,
    format_metric,
    table_entries,
)
from tmi.training.comparison.paper_tables import BASELINES, CLINICAL, Table
from tmi.training.comparison.plan import Plan
from tmi.training.comparison.results import PairedTest, PerformanceCeiling, Result
from tmi.training.comparison.verdict import verdict
from tmi.training.evaluation.statistics.bootstrap import CONFIDENCE_LEVEL, N_REPLICATES
from tmi.training.evaluation.summary import SYNTHETIC, optimism_note

PAPER_NOTE = (
    "The paper's metrics were measured on its own 184 patients, with its own image sizes and 300 epochs. They are "
    "shown for comparison and are not a target."
)
CLINICAL_NOTE = (
    "TMI-CLNet is used here with its text encoder, projection and head alone, without images and radiomics. The paper "
    "has no such table."
)
BASELINES_NOTE = (
    "The paper has no such table. Its simple models see the clinical values as numbers and the radiomics, not the CT."
)
OWN_NOTES: Mapping[int | str, str] = MappingProxyType(
    {CLINICAL.number: CLINICAL_NOTE, BASELINES.number: BASELINES_NOTE}
)
"""Table that the paper does not have -> the note of its report."""


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Texts and tables of a report."""

    title: str
    """Heading of the report."""
    verdict: str
    """First sentence: what the cohort shows about TMI-CLNet."""
    notes: tuple[str, ...]
    """Notes at the top of the report."""
    labels: tuple[str, ...]
    """Notes repeated in every section: synthetic cohort, optimistic metrics."""
    command: str
    """Command line that reproduces the report."""
    facts: tuple[str, ...]
    """Statements on cohort, protocol and sizes."""
    tables: tuple[tuple[Table, tuple[TableEntry, ...]], ...]
    """Tables and their entries."""
    interval_caption: str
    """Caption of the pooled metrics."""
    test_caption: str
    """Caption of the paired tests."""
    ceiling_title: str
    """Title of the section on a synthetic cohort's performance ceilings."""
    ceiling_caption: str
    """Caption of that section."""
    ceilings: tuple[list[str], list[list[str]]]
    """Header and rows of that section's table; no rows for a real cohort."""
    conclusion: tuple[str, ...]
    """Sentences on whether fusion is above the single modalities."""
    external: ExternalEvaluation | None = None
    """Results on the external cohort, if one was named."""


def build_report(
    plan: Plan,
    results: Mapping[str, Result],
    tests: Mapping[str, PairedTest],
    failed: Mapping[str, str],
    cohort: Cohort,
    allowed: tuple[PerformanceCeiling, ...],
    *,
    command: str,
    external: ExternalEvaluation | None = None,
) -> ReportContent:
    """Build the content from the results.

    Args:
        plan: tables and runs.
        results: key of a run -> its results.
        tests: key of a run -> its tests against TMI-CLNet.
        failed: key of a run -> why it failed.
        cohort: the cohort.
        allowed: performance ceilings of a synthetic cohort; empty for a real one.
        command: command line that reproduces the report.
        external: results on an external cohort, if one was named.
    """
    base = next(run.config for run in plan.runs if run.key == REFERENCE_MODEL)
    labels = tuple(note for note in (SYNTHETIC if is_synthetic(cohort.folder) else "", optimism_note(base)) if note)
    first = next(iter(results.values()), None)  # all runs have the same held-out cases
    has_repeated_patients = len(cohort.cases) > len({c.patient_id for c in cohort.cases})
    independence_note = (
        " The tests treat cases of one patient as independent, which is not exact." if has_repeated_patients else ""
    )
    depth, height, width = base.ct.shape_DHW
    n_cases = len(first.case_ids) if first else 0
    tables = tuple((t, table_entries(t, plan, results, tests, failed)) for t in plan.tables)
    return ReportContent(
        title=_title(plan),
        verdict=verdict([e for _, entries in tables for e in entries], synthetic=is_synthetic(cohort.folder)),
        notes=(*labels, OWN_NOTES.get(plan.tables[0].number, PAPER_NOTE)),
        labels=labels,
        command=command,
        facts=(
            f"Cohort: {n_cases} cases"
            + (f", {int(first.positive_N.sum())} of them with a bad prognosis (the positive class)" if first else "")
            + f"; {base.train.folds} folds, protocol `{base.train.protocol}`, seed {base.train.seed}; the same folds "
            "for every row.",
            f"Preset `{base.preset}`: "
            + (f"CT {depth}x{height}x{width}, " if "image" in base.network.modalities else "")
            + f"at most {base.train.epochs} epochs, batches of "
            f"{base.train.batch_size}, learning rate {base.train.learning_rate:g}"
            + (f", frozen: {', '.join(base.train.freeze)}" if base.train.freeze else "")
            + ".",
            *plan.not_applied,
            "Our metrics: mean ± sample standard deviation over the folds, decisions at a probability of 0.5; AUC is "
            "the ROC AUC of the probabilities. The paper's AUC agrees better with balanced accuracy (Bal. ACC).",
        ),
        tables=tables,
        interval_caption=f"All held-out cases pooled, with {CONFIDENCE_LEVEL:.0%} intervals of a stratified bootstrap "
        f"over patients ({N_REPLICATES} replicates). Pooling ranks probabilities of different folds' models against "
        "each other, so this AUC can differ from the mean over the folds.",
        test_caption="Tests against TMI-CLNet on the same held-out cases: McNemar's exact test of the decisions and "
        "DeLong's test of the pooled AUC, each with Holm's correction over the rows of this table." + independence_note,
        ceiling_title="Performance ceilings of this cohort",
        ceiling_caption="The highest expected AUC of any method for each set of modalities, from the generative model "
        "of the synthetic cohort; the AUC of the true posterior on these cases; and the AUC that was reached.",
        ceilings=_ceiling_rows(allowed, n_cases),
        conclusion=tuple(conclusion(results, tests)),
        external=external,
    )


def _title(plan: Plan) -> str:
    if plan.tables[0].number in OWN_NOTES:
        return plan.tables[0].title
    return f"Comparison with TMI-CLNet: table{'s' if len(plan.tables) > 1 else ''} " + ", ".join(
        str(t.number) for t in plan.tables
    )


def _ceiling_rows(allowed: tuple[PerformanceCeiling, ...], n_cases: int) -> tuple[list[str], list[list[str]]]:
    rows = []
    for c in allowed:
        reached = c.reached
        pooled = (
            "not trained"
            if reached is None or reached.pooled["roc_auc"] is None
            else format_metric("roc_auc", reached.pooled["roc_auc"], reached.n_cases)
        )
        rows.append(
            [
                c.name,
                format_metric("roc_auc", c.best, n_cases),
                format_metric("roc_auc", c.sampled, n_cases),
                "not trained" if reached is None else format_mean_std("roc_auc", reached),
                pooled,
            ]
        )
    return ["Modalities", "ceiling", "true posterior, these cases", "reached: mean ± SD", "reached: pooled"], rows
