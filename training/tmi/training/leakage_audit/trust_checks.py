"""Checks of a fold's trust statistics: fitted on its training cases alone, scored on its held-out cases; the scores of
its prediction sets are those of its inner validation cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import CLASSES
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import FoldFolder, FoldSplit, RunFolder
from tmi.toolkit.trust.conformal import class_scores
from tmi.toolkit.trust.drift import Summary
from tmi.toolkit.trust.statistics import JOINT, FoldTrust
from tmi.training.data.dataset import CohortArrays
from tmi.training.evaluation.prediction_tables import Predictions, read_predictions
from tmi.training.leakage_audit.run_checks import AuditResult

if TYPE_CHECKING:
    from tmi.training.evaluation.trust_fitting import EncoderFeatures

TOLERANCE = 1e-2
"""Largest difference of two fits of the same cases: of a mean in deviations, of a deviation or score relative; the
encoders' features are rounded differently on another processor."""


def check_trust(run: RunFolder, split: FoldSplit, arrays: CohortArrays, *, run_models: bool) -> Iterator[AuditResult]:
    """Refit the statistics on the recorded training cases; a fold without statistics has no result.

    Args:
        run: the finished run.
        split: the fold.
        arrays: its cohort.
        run_models: whether to run the saved model; without it the statistics of the encoders are not compared.
    """
    from tmi.training.data.fold_dataset import FoldDataset  # torch
    from tmi.training.evaluation.fold_inference import load_fold_network
    from tmi.training.evaluation.trust_fitting import encoder_features, fit_trust, fold_summary

    files = run.fold(split.fold)
    if not files.trust.is_file():
        return
    recorded = FoldTrust.load(files.trust, fold=split.fold)
    data = FoldDataset(
        arrays, split, run.config, tokenizer=Tokenizer.load(files.tokenizer), scaler=RadiomicsScaler.load(files.scaler)
    )
    everybody = (*split.train, *split.validation, *split.test)
    features: EncoderFeatures = {}
    if run_models:
        features = encoder_features(load_fold_network(run.config, files), data, everybody, len(arrays.cases))
    refitted = fit_trust(arrays, data, features)
    different = _differences(recorded, refitted)
    if recorded.summary is not None:
        expected = fold_summary(arrays, data, read_predictions(files.predictions), files.temperature)
        different += [] if _same_summary(recorded.summary, expected) else ["summary"]
    if not different:
        detail = f"refitting on the {len(split.train)} training cases gives the same statistics"
        detail += "" if run_models else "; those of the encoders were not compared (--no-model)"
        yield AuditResult(check="trust", status="holds", detail=detail, fold=split.fold)
        return
    detail = f"{', '.join(different[:5])} differ from a refit on the {len(split.train)} training cases"
    for name, ids in (("the held-out cases too", (*split.train, *split.test)), ("every case of the fold", everybody)):
        if not _differences(recorded, fit_trust(arrays, data, features, fitted_on=ids)):
            detail += f"; they were fitted on {name}"
            break
    yield AuditResult(check="trust", status="leak", detail=detail, fold=split.fold)


def check_conformal(run: RunFolder, split: FoldSplit) -> Iterator[AuditResult]:
    """Compare the calibration scores of a fold's prediction sets with those of its inner validation predictions.

    A fold without scores, of an earlier version or of the protocol `released`, has no result.
    """
    files = run.fold(split.fold)
    if not files.trust.is_file():
        return
    recorded = FoldTrust.load(files.trust, fold=split.fold).conformal
    if not recorded:
        return
    validation, held_out = read_predictions(files.validation), read_predictions(files.predictions)
    expected = _sorted_scores(files, validation)
    if _same_scores(recorded, expected):
        counts = ", ".join(f"{len(scores)} of {name}" for name, scores in sorted(expected.items()))
        detail = f"prediction sets are calibrated on the inner validation cases ({counts})"
        yield AuditResult(check="conformal", status="holds", detail=detail, fold=split.fold)
        return
    detail = "the calibration scores of prediction sets are not those of the inner validation cases"
    known = {float(score) for scores in expected.values() for score in scores}
    others = [float(score) for scores in recorded.values() for score in scores if float(score) not in known]
    found = np.concatenate(list(_sorted_scores(files, held_out).values()))
    leaked = sum(bool(np.isclose(found, score, rtol=1e-9, atol=1e-9).any()) for score in others)
    if leaked:
        detail += f"; {leaked} of them are those of held-out cases"
    yield AuditResult(check="conformal", status="leak", detail=detail, fold=split.fold)


def _sorted_scores(files: FoldFolder, predictions: Predictions) -> dict[str, NDArray[np.float64]]:
    """Scores by class of the cases of a table."""
    scores_NK = class_scores(predictions.logits_NK / files.temperature)
    return {name: np.sort(scores_NK[predictions.labels_N == k, k]) for k, name in enumerate(CLASSES)}


def _same_scores(recorded: Mapping[str, NDArray[np.float64]], expected: Mapping[str, NDArray[np.float64]]) -> bool:
    return {*recorded} == {*expected} and all(
        recorded[name].shape == scores.shape and np.allclose(recorded[name], scores, rtol=1e-9, atol=1e-9)
        for name, scores in expected.items()
    )


def _same_summary(recorded: Summary, expected: Summary) -> bool:
    return (
        recorded.names == expected.names
        and np.array_equal(recorded.counts_S, expected.counts_S)
        and np.allclose(recorded.edges_SE, expected.edges_SE, rtol=TOLERANCE, atol=TOLERANCE)
        and np.allclose(recorded.shares_SB, expected.shares_SB, atol=TOLERANCE)
    )


def _differences(recorded: FoldTrust, refitted: FoldTrust | None) -> list[str]:
    """Parts whose statistics differ, and `scores` if only those of the held-out cases do."""
    if refitted is None:
        return sorted(recorded.parts)
    different = []
    for name, ours in refitted.parts.items():
        stored = recorded.parts.get(name)
        if stored is None or stored.mean_D.shape != ours.mean_D.shape:
            different.append(name)
            continue
        known = np.isfinite(ours.scale_D)
        shift = np.abs(stored.mean_D - ours.mean_D)[known] / ours.scale_D[known]
        stretch = np.abs(stored.scale_D[known] / ours.scale_D[known] - 1.0)
        numbers = np.array([[p.residual, p.centre, p.spread] for p in (stored, ours)])
        relative = np.abs(numbers[0] / np.where(numbers[1] == 0, 1.0, numbers[1]) - (numbers[1] != 0))
        if max(shift.max(initial=0.0), stretch.max(initial=0.0), relative.max()) > TOLERANCE:
            different.append(name)
    same_parts = set(recorded.parts) == set(refitted.parts)
    if not different and same_parts:
        ours_n, stored_n = refitted.calibration[JOINT], recorded.calibration[JOINT]
        if ours_n.shape != stored_n.shape or not np.allclose(
            stored_n, ours_n, rtol=10 * TOLERANCE, atol=10 * TOLERANCE
        ):
            different.append("scores")
    if recorded.fitted_on != refitted.fitted_on:
        different.append("number of cases")
    return different
