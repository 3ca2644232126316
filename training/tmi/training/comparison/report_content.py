"""What a comparison's report says, whatever form it is written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tmi.toolkit.cases.case import Cohort
from tmi.toolkit.synthetic.cohort import is_synthetic
from tmi.training.comparison.formatting import TableEntry, conclusion, format_mean_std, table_entries
from tmi.training.comparison.paper_tables import CLINICAL, REFERENCE_MODEL, Table
from tmi.training.comparison.plan import Plan
from tmi.training.comparison.results import PairedTest, PerformanceCeiling, Result
from tmi.training.evaluation.statistics.bootstrap import CONFIDENCE_LEVEL, N_REPLICATES
from tmi.training.evaluation.summary import SYNTHETIC, optimism_note

PAPER_NOTE = (
    "The paper's figures are of its own 184 patients, at its own sizes and 300 epochs; they stand beside ours for "
    "reading the table, not as a target."
)
CLINICAL_NOTE = (
    "TMI-CLNet stands here for its text encoder, projection and head alone: images and radiomics play no part. The "
    "paper has no such table."
)


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """The report's content."""

    title: str
    """Its heading."""
    notes: tuple[str, ...]
    """What a reader must know first."""
    labels: tuple[str, ...]
    """What every section repeats: that a cohort is synthetic, that figures are optimistic."""
    command: str
    """What makes it."""
    facts: tuple[str, ...]
    """Cohort, protocol, sizes."""
    tables: tuple[tuple[Table, tuple[TableEntry, ...]], ...]
    """The tables and their rows."""
    interval_caption: str
    """Above the pooled figures."""
    test_caption: str
    """Above the tests."""
    ceiling_title: str
    """Of the section on what a synthetic cohort allows."""
    ceiling_caption: str
    """Its first words."""
    ceilings: tuple[list[str], list[list[str]]]
    """Header and rows of its table; no rows for a real cohort."""
    conclusion: tuple[str, ...]
    """Whether fusion beats the single modalities, in words."""


def build_report(
    plan: Plan,
    results: Mapping[str, Result],
    tests: Mapping[str, PairedTest],
    failed: Mapping[str, str],
    cohort: Cohort,
    allowed: tuple[PerformanceCeiling, ...],
    *,
    command: str,
) -> ReportContent:
    """The report's content from the results."""
    base = next(run.config for run in plan.runs if run.key == REFERENCE_MODEL)
    labels = tuple(note for note in (SYNTHETIC if is_synthetic(cohort.folder) else "", optimism_note(base)) if note)
    some = next(iter(results.values()), None)
    several = len(cohort.cases) > len({c.patient_id for c in cohort.cases})
    independent = " Cases of one patient count as independent here, which they are not quite." if several else ""
    depth, height, width = base.ct.shape_DHW
    used = len(some.case_ids) if some else 0
    return ReportContent(
        title=_title(plan),
        notes=(*labels, CLINICAL_NOTE if _is_clinical_table(plan) else PAPER_NOTE),
        labels=labels,
        command=command,
        facts=(
            f"Cohort: {used} cases"
            + (f", {int(some.positive_N.sum())} of them with a bad prognosis (the positive class)" if some else "")
            + f"; {base.train.folds} folds, protocol `{base.train.protocol}`, seed {base.train.seed}; the same folds "
            "for every row.",
            f"Preset `{base.preset}`: "
            + (f"CT {depth}x{height}x{width}, " if "image" in base.network.modalities else "")
            + f"at most {base.train.epochs} epochs, batches of "
            f"{base.train.batch_size}, learning rate {base.train.learning_rate:g}"
            + (f", frozen: {', '.join(base.train.freeze)}" if base.train.freeze else "")
            + ".",
            *plan.not_applied,
            "Our figures: mean ± sample standard deviation over the folds, decisions at a probability of 0.5; AUC is "
            "the ROC AUC of the probabilities. The paper's AUC fits the balanced accuracy (Bal. ACC) better.",
        ),
        tables=tuple((t, table_entries(t, plan, results, tests, failed)) for t in plan.tables),
        interval_caption=f"All held-out cases together, with {CONFIDENCE_LEVEL:.0%} intervals of a stratified bootstrap over "
        f"patients ({N_REPLICATES} replicates). Pooling ranks probabilities of different folds' models against each "
        "other, so this AUC can differ from the mean over the folds.",
        test_caption="Against TMI-CLNet, on the same held-out cases: McNemar's exact test of the decisions, DeLong's "
        "test of the pooled AUC, each with Holm's correction over the rows of this table." + independent,
        ceiling_title="What this cohort allows",
        ceiling_caption="The highest AUC that any method can expect from each set of modalities, as the law behind the "
        "synthetic cohort gives it; what the true posterior reaches on these very cases; and what was reached.",
        ceilings=_ceiling_rows(allowed),
        conclusion=tuple(conclusion(results, tests)),
    )


def _is_clinical_table(plan: Plan) -> bool:
    """Whether the plan is of the clinical table, whole or some rows of it."""
    return any(table.number == CLINICAL.number for table in plan.tables)


def _title(plan: Plan) -> str:
    if _is_clinical_table(plan):
        return CLINICAL.title
    return f"TMI-CLNet compared: table{'s' if len(plan.tables) > 1 else ''} " + ", ".join(
        str(t.number) for t in plan.tables
    )


def _ceiling_rows(allowed: tuple[PerformanceCeiling, ...]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for c in allowed:
        reached = c.reached
        pooled = (
            "not trained"
            if reached is None or reached.pooled["roc_auc"] is None
            else f"{reached.pooled['roc_auc']:.4f}"
        )
        rows.append(
            [
                c.name,
                f"{c.best:.4f}",
                "n/a" if c.sampled is None else f"{c.sampled:.4f}",
                "not trained" if reached is None else format_mean_std("roc_auc", reached),
                pooled,
            ]
        )
    return ["Modalities", "ceiling", "true posterior, these cases", "reached: mean ± SD", "reached: pooled"], rows
