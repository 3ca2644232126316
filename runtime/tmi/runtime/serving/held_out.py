"""What an engine changes in the held-out predictions of a run: AUC, differences and decisions (`tmi verify --run`).

Each case is predicted with the model of the fold that holds it out, and compared with the prediction that the training
recorded in float32. The recorded one is calibrated, as the logits of a bundle are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from tmi.runtime.bundle.manifest import FoldSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.precision import engine_precision, largest_error
from tmi.runtime.engines.registry import Engine, open_engine
from tmi.runtime.serving.pipeline import InferencePipeline
from tmi.runtime.serving.results import Prediction
from tmi.runtime.verification.parity import REFERENCE_MARGIN
from tmi.toolkit.cases.case import Case, open_cohort
from tmi.toolkit.cases.fingerprint import cohort_fingerprint
from tmi.toolkit.errors import DamagedError, InputRejectedError, UsageError
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.bounded_files import TABLE_BYTES, read_text
from tmi.toolkit.storage.csv_files import csv_records
from tmi.toolkit.synthetic.generative_model import empirical_auc

RECORDED = "training"
"""Name of the row of the recorded predictions."""
STEPS = 10
"""Number of lines of progress of an engine."""


@dataclass(frozen=True, kw_only=True)
class HeldOutCase:
    """A case that a fold holds out, with its recorded prediction."""

    case: Case
    """The case."""
    fold: int
    """The fold."""
    positive: bool
    """Whether it is of the positive class."""
    probability: float
    """Recorded probability of the positive class, calibrated."""


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """Held-out predictions of one engine, or the recorded ones."""

    engine: str
    """The engine; `RECORDED` for the recorded ones."""
    precision: str
    """Number format in which it computes."""
    cases: int
    """Number of cases."""
    auc: float | None
    """Mean of the ROC AUC over the folds that hold out both classes; None if there is none."""
    auc_difference: float | None
    """AUC minus the recorded one."""
    largest_difference: float
    """Largest absolute difference of a probability from the recorded one."""
    allowed: float
    """Declared error of the engine's probabilities."""
    beyond: int
    """Number of cases whose difference is larger than declared."""
    flips: int
    """Number of cases whose decision at the bundle's threshold differs from the recorded one."""


def compare_held_out(
    bundle: Bundle,
    run: Path,
    cohort: Path,
    engines: Sequence[str],
    *,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[HeldOutRow]:
    """Predict every held-out case of a run with engines of its bundle, and compare with the recorded predictions.

    Args:
        bundle: an opened bundle.
        run: folder of the run that it was exported from.
        cohort: the cohort that the run was trained on.
        engines: names of engines.
        threads: threads of each engine; None uses all cores.
        progress: called with one line for each step.

    Returns:
        The recorded predictions, then one row for each engine.

    Raises:
        UsageError: the bundle is of another run, or the cohort is another one than the run's.
        DamagedError: a table of predictions is missing or malformed.
        InputRejectedError: a case cannot be predicted.
        UnavailableError: an engine is not available.
    """
    cases = held_out_cases(bundle, RunFolder.open(run), cohort)
    recorded = _row(bundle, RECORDED, "float32", cases, [c.probability for c in cases], 0.0)
    rows = [recorded]
    for name in engines:
        with open_engine(name, bundle, threads=threads) as engine:
            found = []
            pipelines = {fold.fold: _pipeline(bundle, engine, fold) for fold in bundle.manifest.folds}
            for number, case in enumerate(cases):
                if number % -(-len(cases) // STEPS) == 0:
                    progress(f"predicting held-out cases on engine {name}: {number} of {len(cases)}")
                found.append(_probability(bundle, pipelines[case.fold], case))
        precision = engine_precision(name, bundle.manifest)
        allowed = largest_error(name, precision) or REFERENCE_MARGIN
        rows.append(_row(bundle, name, precision, cases, found, allowed))
    return [replace(row, auc_difference=_difference(row.auc, recorded.auc)) for row in rows]


def held_out_cases(bundle: Bundle, run: RunFolder, cohort: Path) -> list[HeldOutCase]:
    """The held-out cases of a run with their recorded predictions, fold by fold.

    Raises:
        UsageError, DamagedError: as in `compare_held_out`.
    """
    run.require_finished()
    manifest, opened = bundle.manifest, open_cohort(cohort)
    stated = (manifest.run.name, manifest.run.started_at, manifest.run.cohort.fingerprint)
    if stated != (run.state["name"], run.state["started_at"], run.state["cohort"]["fingerprint"]):
        raise UsageError(f"bundle {bundle.folder} is not an export of run {run.path}", fix="name its run with --run")
    if cohort_fingerprint(opened) != manifest.run.cohort.fingerprint:
        raise UsageError(
            f"cohort {cohort} is not the cohort that run {run.path} was trained on, or has changed since",
            fix="name that cohort with --cohort",
        )
    known = {case.case_id: case for case in opened.cases}
    positive = manifest.classes[manifest.positive]
    found = []
    for fold in manifest.folds:
        path = run.fold(fold.fold).predictions
        try:
            found += [
                HeldOutCase(
                    case=known[row["case_id"]],
                    fold=fold.fold,
                    positive=row["label"] == positive,
                    probability=float(row[f"calibrated_{positive}"]),
                )
                for row in csv_records(read_text(path, max_bytes=TABLE_BYTES))
            ]
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(
                f"run: {path} is missing or malformed", fix="restore it, or train the run again"
            ) from error
    return found


def _pipeline(bundle: Bundle, engine: Engine, own: FoldSpec) -> InferencePipeline:
    """Pipeline in which only the encoders of one fold run: they stand in every fold of the fusion graph."""
    manifest = bundle.manifest
    folds = tuple(FoldSpec(fold=f.fold, ct=own.ct, text=own.text, scaler=own.scaler) for f in manifest.folds)
    # trust statistics belong to the encoders of their own fold, and no decision is made here
    return InferencePipeline(replace(bundle, manifest=replace(manifest, folds=folds, trust=None)), engine)


def _probability(bundle: Bundle, pipeline: InferencePipeline, case: HeldOutCase) -> float:
    """Probability of the positive class by the model of the case's fold."""
    manifest = bundle.manifest
    (result,) = pipeline.run([case.case])
    if not isinstance(result, Prediction):
        raise InputRejectedError(f"case {result.case_id}: {result.what}", fix=result.fix, code=result.code)
    index = [fold.fold for fold in manifest.folds].index(case.fold)
    return result.folds[index].probability[manifest.classes[manifest.positive]]


def _row(
    bundle: Bundle, engine: str, precision: str, cases: Sequence[HeldOutCase], found: Sequence[float], allowed: float
) -> HeldOutRow:
    pairs = list(zip(cases, found, strict=True))
    threshold = bundle.manifest.threshold
    folds = {case.fold: [(c, p) for c, p in pairs if c.fold == case.fold] for case in cases}
    aucs = [empirical_auc([p for _, p in rows], [c.positive for c, _ in rows]) for rows in folds.values()]
    defined = [auc for auc in aucs if auc is not None]
    differences = [abs(p - c.probability) for c, p in pairs]
    return HeldOutRow(
        engine=engine,
        precision=precision,
        cases=len(cases),
        auc=fmean(defined) if defined else None,
        auc_difference=None,
        largest_difference=max(differences, default=0.0),
        allowed=allowed,
        beyond=sum(d > allowed for d in differences),
        flips=sum((p >= threshold) != (c.probability >= threshold) for c, p in pairs),
    )


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
