"""Did anything of a held-out case reach what is reported of it? What it takes the cohort to prove.

Patients are looked up, the scaler and the vocabulary are fitted again on the recorded training cases, the saved weights
are asked again, and images are compared across every border of a split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tmi.toolkit.cases.case import Case, Cohort
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.errors import UsageError
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import FoldSplit, RunFolder
from tmi.training.data.dataset import CohortArrays, fingerprint
from tmi.training.data.duplicate_images import find_duplicates
from tmi.training.evaluation.prediction_tables import Predictions, read_predictions
from tmi.training.leakage_audit.run_checks import AuditResult

PROBABILITY_TOLERANCE = 2e-3
"""Of a recorded probability against the saved model asked again: the engine's error on a GPU in TF32."""
COHORT_CHECKS = ("patients", "labels", "scaler", "vocabulary", "predictions", "duplicates")
"""What is not checked without a cohort."""


def not_checked(why: str, checks: tuple[str, ...] = COHORT_CHECKS) -> list[AuditResult]:
    """The answers where there is no cohort to ask."""
    return [AuditResult(check=name, status="not checked", detail=why) for name in checks]


def require_same_cohort(run: RunFolder, cohort: Cohort) -> None:
    """Refuse a cohort that the run was not trained on.

    Raises:
        UsageError: the fingerprints differ.
    """
    if run.state["cohort"]["fingerprint"] != fingerprint(cohort):
        raise UsageError(
            f"cohort {cohort.folder} is not the one that run {run.path} was trained on, or was changed since",
            fix="give the cohort as it was when the run was trained",
        )


def audit_cohort(run: RunFolder, arrays: CohortArrays, *, run_models: bool) -> list[AuditResult]:
    """Every question that takes the cohort.

    Args:
        run: the finished run.
        arrays: its cohort, prepared by the run's settings.
        run_models: whether the saved weights are run on the validation and held-out cases.
    """
    known = {case.case_id: case for case in arrays.cases}
    listed = {i for s in run.folds for part in (s.train, s.validation, s.test) for i in part}
    if listed - set(known):
        raise UsageError(
            f"{len(listed - set(known))} of the run's cases cannot be prepared from this cohort",
            fix="give the --mask-label that the run was trained with; `tmi check` tells more",
        )
    answers = []
    for split in run.folds:
        answers.append(_patients(run, split, known))
        answers.append(_labels(run, split, known))
        answers.append(_scaler(run, split, arrays))
        answers.append(_vocabulary(run, split, arrays))
        if run_models:
            answers += _predictions(run, split, arrays)
    if not run_models:
        answers += not_checked("--no-model", ("predictions",))
    answers.append(_duplicates(run, arrays))
    return answers


def _patients(run: RunFolder, split: FoldSplit, known: dict[str, Case]) -> AuditResult:
    patients = {
        name: {known[i].patient_id for i in ids}
        for name, ids in (("train", split.train), ("validation", split.validation), ("test", split.test))
    }
    shared = []
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if run.config.train.protocol == "released" and (a, b) == ("validation", "test"):
            continue
        both = patients[a] & patients[b]
        if both:
            cases = sorted(i for i in {*split.train, *split.validation, *split.test} if known[i].patient_id in both)
            shared.append(f"{len(both)} patient(s) in {a} and {b}: cases {', '.join(cases[:6])}")
    if not shared:
        return AuditResult(check="patients", status="holds", detail="no patient is in two parts", fold=split.fold)
    declared = run.config.train.protocol == "released"
    return AuditResult(
        check="patients", status="declared" if declared else "leak", detail="; ".join(shared), fold=split.fold
    )


def _labels(run: RunFolder, split: FoldSplit, known: dict[str, Case]) -> AuditResult:
    files = run.fold(split.fold)
    wrong = [
        case_id
        for table in (read_predictions(files.predictions), read_predictions(files.validation))
        for case_id, label in zip(table.case_ids, table.labels_N, strict=True)
        if case_id not in known or known[case_id].label != label
    ]
    status, detail = (
        ("leak", f"other than the cohort's: {', '.join(wrong[:5])}") if wrong else ("holds", "the cohort's")
    )
    return AuditResult(check="labels", status=status, detail=detail, fold=split.fold)  # type: ignore[arg-type]


def _scaler(run: RunFolder, split: FoldSplit, arrays: CohortArrays) -> AuditResult:
    recorded = RadiomicsScaler.load(run.fold(split.fold).scaler)
    values = arrays.radiomics_NF
    if run.config.radiomics.fit_on == "cohort":
        listed = sorted({*split.train, *split.validation, *split.test})
        again = RadiomicsScaler.fit(values[np.sort(arrays.rows(listed))], run.config.radiomics)
        if _scalers_equal(recorded, again):
            return AuditResult(check="scaler", status="declared", detail="fitted on the whole cohort", fold=split.fold)
    else:
        again = RadiomicsScaler.fit(values[arrays.rows(split.train)], run.config.radiomics)
        if _scalers_equal(recorded, again):
            detail = "refitted on the training cases to the same bits"
            return AuditResult(check="scaler", status="holds", detail=detail, fold=split.fold)
    differ = int(((recorded.centre_F != again.centre_F) | (recorded.half_width_F != again.half_width_F)).sum())
    detail = f"{differ} of {len(again.centre_F)} features are scaled otherwise than the training cases give"
    everyone = RadiomicsScaler.fit(values[:], run.config.radiomics)
    if _scalers_equal(recorded, everyone):
        detail += "; it was fitted on the whole cohort, held-out cases included"
    return AuditResult(check="scaler", status="leak", detail=detail, fold=split.fold)


def _scalers_equal(a: RadiomicsScaler, b: RadiomicsScaler) -> bool:
    """Equal to the bit, the number of cases aside, which is a question of its own."""
    return a.scaling == b.scaling and all(
        np.array_equal(x, y) for x, y in ((a.centre_F, b.centre_F), (a.half_width_F, b.half_width_F))
    )


def _vocabulary(run: RunFolder, split: FoldSplit, arrays: CohortArrays) -> AuditResult:
    size = run.config.clinical.vocab_size
    if size is None:
        return AuditResult(
            check="vocabulary", status="holds", detail="given, not fitted on the cohort", fold=split.fold
        )
    recorded = Tokenizer.load(run.fold(split.fold).tokenizer)
    again = Tokenizer.train([arrays.texts[i] for i in arrays.rows(split.train)], size)
    if recorded.tokens == again.tokens:
        return AuditResult(
            check="vocabulary",
            status="holds",
            detail="refitted on the training texts to the same tokens",
            fold=split.fold,
        )
    more = len(set(recorded.tokens) - set(again.tokens))
    detail = f"{more} of its {len(recorded.tokens)} tokens do not come from the training texts"
    if recorded.tokens == Tokenizer.train(list(arrays.texts), size).tokens:
        detail += "; it was trained on the texts of the whole cohort"
    return AuditResult(check="vocabulary", status="leak", detail=detail, fold=split.fold)


def _predictions(run: RunFolder, split: FoldSplit, arrays: CohortArrays) -> Iterator[AuditResult]:
    """The saved weights, asked again, give the recorded predictions."""
    from tmi.training.evaluation.fold_inference import predict_fold  # torch

    files = run.fold(split.fold)
    worst = 0.0
    for table, case_ids in (
        (read_predictions(files.validation), split.validation),
        (read_predictions(files.predictions), split.test),
    ):
        recomputed = predict_fold(run.config, files, split, arrays, case_ids)
        worst = max(worst, _max_difference(table, recomputed))
    holds = worst <= PROBABILITY_TOLERANCE
    detail = f"the saved weights give the recorded probabilities within {worst:.1e}"
    if not holds:
        detail = f"the saved weights give probabilities that are off the recorded ones by up to {worst:.2g}"
    yield AuditResult(check="predictions", status="holds" if holds else "leak", detail=detail, fold=split.fold)


def _max_difference(recorded: Predictions, recomputed: Predictions) -> float:
    if recorded.case_ids != recomputed.case_ids:
        return 1.0
    return float(np.abs(recorded.probability_N - recomputed.probability_N).max())


def _duplicates(run: RunFolder, arrays: CohortArrays) -> AuditResult:
    if max(arrays.ct_N1DHW.shape[2:]) == 1:  # clinical records alone: one empty voxel stands for every CT
        return AuditResult(check="duplicates", status="holds", detail=f"none of the {len(arrays.cases)} cases has a CT")
    pairs = find_duplicates(arrays.ct_N1DHW, span=run.config.ct.scale_to[1] - run.config.ct.scale_to[0])
    found = []
    for a, b, exact in pairs:
        first, second = arrays.cases[a].case_id, arrays.cases[b].case_id
        for split in run.folds:
            sides = {_split_part(split, first), _split_part(split, second)}
            if len(sides) > 1:
                kind = "the same CT" if exact else "nearly the same CT"
                found.append(
                    f"{first} and {second} have {kind} and are in {' and '.join(sorted(sides))} of fold {split.fold}"
                )
                break
    if found:
        more = f"; and {len(found) - 5} more pairs" if len(found) > 5 else ""
        return AuditResult(check="duplicates", status="leak", detail="; ".join(found[:5]) + more)
    return AuditResult(
        check="duplicates", status="holds", detail=f"no CT of {len(arrays.cases)} is on two sides of a split"
    )


def _split_part(split: FoldSplit, case_id: str) -> str:
    return "train" if case_id in split.train else "validation" if case_id in split.validation else "test"


def scratch_store(folder: Path) -> Path:
    """Where a large cohort's CTs are mapped from while it is audited."""
    return folder / "ct.npy"
