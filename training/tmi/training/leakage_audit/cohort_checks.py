"""Leakage checks that need the cohort.

Patients are compared between the parts of a split, scaler, vocabulary and trust statistics are refitted on the recorded
training cases, the saved models are run again, and images are compared across the parts of every split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tmi.toolkit.cases.case import Case, Cohort
from tmi.toolkit.cases.fingerprint import cohort_fingerprint
from tmi.toolkit.clinical.tokenizer import MIN_PATIENTS, Tokenizer
from tmi.toolkit.errors import UsageError
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import FoldSplit, RunFolder
from tmi.training.data.dataset import CohortArrays
from tmi.training.data.duplicate_images import can_find_copies, find_copies, find_duplicates
from tmi.training.data.fold_dataset import NO_ANONYMITY, train_vocabulary
from tmi.training.data.splits import patient_key
from tmi.training.evaluation.prediction_tables import Predictions, read_predictions
from tmi.training.leakage_audit.run_checks import AuditResult, check_origin
from tmi.training.leakage_audit.trust_checks import check_trust

PROBABILITY_TOLERANCE = 2e-3
"""Tolerance between a recorded probability and the saved model's; covers the error of TF32 on a GPU."""
ANONYMITY_NOTE = (
    "; an earlier version trained it, and words of single patients' reports may be tokens: train the run again before "
    "it or its bundle is passed on"
)
COHORT_CHECKS = ("patients", "labels", "scaler", "vocabulary", "predictions", "duplicates")
"""Checks that need the cohort."""


def not_checked(reason: str, checks: tuple[str, ...] = COHORT_CHECKS) -> list[AuditResult]:
    """Results of checks that were not run, with the reason."""
    return [AuditResult(check=name, status="not checked", detail=reason) for name in checks]


def require_same_cohort(run: RunFolder, cohort: Cohort) -> None:
    """Check that the cohort is the one that the run was trained on.

    Raises:
        UsageError: the fingerprints differ.
    """
    if run.state["cohort"]["fingerprint"] != cohort_fingerprint(cohort):
        raise UsageError(
            f"cohort {cohort.folder} is not the cohort that run {run.path} was trained on, or has changed since",
            fix="give the cohort as it was when the run was trained",
        )


def audit_cohort(run: RunFolder, arrays: CohortArrays, *, run_models: bool) -> list[AuditResult]:
    """Run every check that needs the cohort.

    Args:
        run: the finished run.
        arrays: its cohort, prepared with the run's settings.
        run_models: whether to run the saved models on the validation and held-out cases.

    Raises:
        UsageError: cases of the run cannot be prepared from this cohort.
    """
    known = {case.case_id: case for case in arrays.cases}
    listed = {i for s in run.folds for part in (s.train, s.validation, s.test) for i in part}
    if listed - set(known):
        raise UsageError(
            f"{len(listed - set(known))} of the run's cases cannot be prepared from this cohort",
            fix="give the --mask-label that the run was trained with; `tmi check` reports details",
        )
    results = []
    for split in run.folds:
        results.append(_patients(run, split, known))
        results.append(_labels(run, split, known))
        results.append(_scaler(run, split, arrays))
        results.append(_vocabulary(run, split, arrays))
        results += check_trust(run, split, arrays, run_models=run_models)
        if run_models:
            results += _predictions(run, split, arrays)
    if not run_models:
        results += not_checked("--no-model", ("predictions",))
    results.append(_duplicates(run, arrays))
    return results


def _patients(run: RunFolder, split: FoldSplit, known: dict[str, Case]) -> AuditResult:
    key = {i: patient_key(case.patient_id or i) for i, case in known.items()}
    patients = {
        name: {key[i] for i in ids}
        for name, ids in (("train", split.train), ("validation", split.validation), ("test", split.test))
    }
    shared = []
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if run.config.train.protocol == "released" and (a, b) == ("validation", "test"):
            continue
        common = patients[a] & patients[b]
        if common:
            cases = sorted(i for i in {*split.train, *split.validation, *split.test} if key[i] in common)
            shared.append(f"{len(common)} patient(s) in {a} and {b}: cases {', '.join(cases[:6])}")
    if not shared:
        return AuditResult(check="patients", status="holds", detail="no patient is in two parts", fold=split.fold)
    declared = run.config.train.protocol == "released"
    return AuditResult(
        check="patients", status="declared" if declared else "leak", detail="; ".join(shared), fold=split.fold
    )


def _labels(run: RunFolder, split: FoldSplit, known: dict[str, Case]) -> AuditResult:
    files = run.fold(split.fold)
    mismatches = [
        case_id
        for table in (read_predictions(files.predictions), read_predictions(files.validation))
        for case_id, label in zip(table.case_ids, table.labels_N, strict=True)
        if case_id not in known or known[case_id].label != label
    ]
    if mismatches:
        detail = f"labels differ from the cohort's: {', '.join(mismatches[:5])}"
        return AuditResult(check="labels", status="leak", detail=detail, fold=split.fold)
    return AuditResult(check="labels", status="holds", detail="labels equal the cohort's", fold=split.fold)


def _scaler(run: RunFolder, split: FoldSplit, arrays: CohortArrays) -> AuditResult:
    recorded = RadiomicsScaler.load(run.fold(split.fold).scaler)
    values = arrays.radiomics_NF
    if run.config.radiomics.fit_on == "cohort":
        listed = sorted({*split.train, *split.validation, *split.test})
        refitted = RadiomicsScaler.fit(values[np.sort(arrays.rows(listed))], run.config.radiomics)
        if _scalers_equal(recorded, refitted):
            return AuditResult(check="scaler", status="declared", detail="fitted on the whole cohort", fold=split.fold)
    else:
        refitted = RadiomicsScaler.fit(values[arrays.rows(split.train)], run.config.radiomics)
        if _scalers_equal(recorded, refitted):
            detail = "refitting on the training cases gives the same bits"
            return AuditResult(check="scaler", status="holds", detail=detail, fold=split.fold)
    differ = int(((recorded.centre_F != refitted.centre_F) | (recorded.half_width_F != refitted.half_width_F)).sum())
    detail = f"{differ} of {len(refitted.centre_F)} features are scaled differently from a refit on the training cases"
    cohort_wide = RadiomicsScaler.fit(values[:], run.config.radiomics)
    if _scalers_equal(recorded, cohort_wide):
        detail += "; it was fitted on the whole cohort, held-out cases included"
    return AuditResult(check="scaler", status="leak", detail=detail, fold=split.fold)


def _scalers_equal(a: RadiomicsScaler, b: RadiomicsScaler) -> bool:
    """Bit-identical except for the number of cases, which `scaler-count` checks."""
    return a.scaling == b.scaling and all(
        np.array_equal(x, y) for x, y in ((a.centre_F, b.centre_F), (a.half_width_F, b.half_width_F))
    )


def _vocabulary(run: RunFolder, split: FoldSplit, arrays: CohortArrays) -> AuditResult:
    size = run.config.clinical.vocab_size
    if size is None:
        return _given_vocabulary(run, split, arrays)
    recorded = Tokenizer.load(run.fold(split.fold).tokenizer)
    recorded_k = run.vocabulary.get("min_patients")
    min_patients = recorded_k if isinstance(recorded_k, int) else NO_ANONYMITY
    retrained = train_vocabulary(arrays, split.train, size, min_patients=min_patients)
    if recorded.tokens == retrained.tokens:
        return AuditResult(
            check="vocabulary",
            status="holds",
            detail="retraining on the training texts gives the same tokens"
            + (ANONYMITY_NOTE if min_patients < MIN_PATIENTS and any(arrays.reports) else ""),
            fold=split.fold,
        )
    unknown = len(set(recorded.tokens) - set(retrained.tokens))
    detail = f"{unknown} of its {len(recorded.tokens)} tokens do not come from the training texts"
    everybody = [case.case_id for case in arrays.cases]
    if recorded.tokens == train_vocabulary(arrays, everybody, size, min_patients=min_patients).tokens:
        detail += "; it was trained on the texts of the whole cohort"
    return AuditResult(check="vocabulary", status="leak", detail=detail, fold=split.fold)


def _given_vocabulary(run: RunFolder, split: FoldSplit, arrays: CohortArrays) -> AuditResult:
    """The origin of a given vocabulary, and whether it equals one that was trained on all cases of the cohort."""
    recorded = Tokenizer.load(run.fold(split.fold).tokenizer)
    status, detail = check_origin(run.vocabulary.get("origin"), split, cohort=run.state["cohort"]["fingerprint"])
    everybody = [case.case_id for case in arrays.cases]
    for min_patients in (MIN_PATIENTS, NO_ANONYMITY):
        own = train_vocabulary(arrays, everybody, recorded.vocab_size, min_patients=min_patients)
        if own.tokens == recorded.tokens:
            status, detail = "leak", "given by the user; it was trained on the texts of this whole cohort"
    return AuditResult(check="vocabulary", status=status, detail=detail, fold=split.fold)


def _predictions(run: RunFolder, split: FoldSplit, arrays: CohortArrays) -> Iterator[AuditResult]:
    """The saved model reproduces the recorded predictions."""
    from tmi.training.evaluation.fold_inference import predict_fold  # torch

    files = run.fold(split.fold)
    largest = 0.0
    for table, case_ids in (
        (read_predictions(files.validation), split.validation),
        (read_predictions(files.predictions), split.test),
    ):
        recomputed = predict_fold(run.config, files, split, arrays, case_ids)
        largest = max(largest, _max_difference(table, recomputed))
    holds = largest <= PROBABILITY_TOLERANCE
    detail = f"the saved model gives the recorded probabilities within {largest:.1e}"
    if not holds:
        detail = f"the probabilities of the saved model differ from the recorded ones by up to {largest:.2g}"
    yield AuditResult(check="predictions", status="holds" if holds else "leak", detail=detail, fold=split.fold)


def _max_difference(recorded: Predictions, recomputed: Predictions) -> float:
    if recorded.case_ids != recomputed.case_ids:
        return 1.0  # other cases: the largest difference that probabilities can have
    return float(np.abs(recorded.probability_N - recomputed.probability_N).max())


def _duplicates(run: RunFolder, arrays: CohortArrays) -> AuditResult:
    if max(arrays.ct_N1DHW.shape[2:]) == 1:  # clinical records only: every CT is a single empty voxel
        return AuditResult(check="duplicates", status="holds", detail=f"none of the {len(arrays.cases)} cases has a CT")
    span = run.config.ct.scale_to[1] - run.config.ct.scale_to[0]
    pairs = {(a, b): "the same CT" if exact else "nearly the same CT"
             for a, b, exact in find_duplicates(arrays.ct_N1DHW, span=span)}  # fmt: skip
    for a, b, similarity in find_copies(arrays.ct_N1DHW):
        pairs.setdefault((a, b), f"the same CT, shifted, flipped or rescaled (phase correlation {similarity:.2f}),")
    matches = []
    for (a, b), kind in sorted(pairs.items()):
        first, second = arrays.cases[a].case_id, arrays.cases[b].case_id
        for split in run.folds:
            parts = {_split_part(split, first), _split_part(split, second)}
            if len(parts) > 1:
                matches.append(
                    f"{first} and {second} have {kind} and are in {' and '.join(sorted(parts))} of fold {split.fold}"
                )
                break
    if matches:
        rest = f"; and {len(matches) - 5} more pairs" if len(matches) > 5 else ""
        return AuditResult(check="duplicates", status="leak", detail="; ".join(matches[:5]) + rest)
    detail = f"none of {len(arrays.cases)} CTs occurs in two parts of a split"
    if not can_find_copies(arrays.ct_N1DHW):
        detail += "; the prepared CTs are too small to search for shifted, flipped or rescaled copies"
    return AuditResult(check="duplicates", status="holds", detail=detail)


def _split_part(split: FoldSplit, case_id: str) -> str:
    return "train" if case_id in split.train else "validation" if case_id in split.validation else "test"


def scratch_store(folder: Path) -> Path:
    """File that a large cohort's CTs are memory-mapped from during the audit."""
    return folder / "ct.npy"
