"""External evaluation of a comparison: the fold models of each run predict a cohort that none of them was trained on.

A fold holds out some tens of cases, which cannot rank methods. An external cohort of another hospital, or a synthetic
one of another seed, can be larger, and every fold model predicts all of it. The ensemble is the one of a bundle: the
mean over the folds of the calibrated probabilities.

Shapes: N external cases, M folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from tmi.toolkit.cases.case import Cohort
from tmi.toolkit.cases.fingerprint import cohort_fingerprint
from tmi.toolkit.config.schema import POSITIVE, Config
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.model_registry import REFERENCE_MODEL
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.preprocessing.cache import PreparedCache
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.storage.hashing import sha256_json
from tmi.toolkit.synthetic.cohort import TRUTH_FILE
from tmi.toolkit.synthetic.generative_model import modality_subsets
from tmi.training.comparison.external_cohort import MIN_PER_CLASS
from tmi.training.comparison.runner import RECORDED_ERRORS, run_failure_reason
from tmi.training.data.dataset import CohortArrays, prepare_cohort
from tmi.training.data.splits import patient_key
from tmi.training.evaluation.calibration import positive_class_probability
from tmi.training.evaluation.fold_inference import predict_fold
from tmi.training.evaluation.metrics import binary_metrics
from tmi.training.evaluation.statistics.bootstrap import bootstrap_weights, interval, weighted_metrics
from tmi.training.evaluation.statistics.delong import DeLong, delong_test


@dataclass(frozen=True, kw_only=True)
class ExternalResult:
    """Predictions of one run's fold models and their ensemble on the external cohort."""

    key: str
    """Key of the run."""
    case_ids: tuple[str, ...]
    """Ids of the cases, in the order of the cohort."""
    positive_N: Bool[np.ndarray, " N"]
    """Whether the prognosis is bad."""
    folds_MN: Float[np.ndarray, "M N"]
    """Calibrated probability of a bad prognosis by each fold's model."""
    threshold: float
    """Threshold of the run's ensemble, fitted on its inner validation cases."""
    auc_interval: tuple[float, float] | None
    """95% bootstrap interval of the ensemble's AUC."""

    @property
    def probability_N(self) -> Float[np.ndarray, " N"]:
        """Probability of the ensemble."""
        mean: np.ndarray = self.folds_MN.mean(axis=0)
        return mean

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """Metrics of the ensemble; decisions at the run's threshold."""
        return binary_metrics(self.positive_N.astype(np.int64), self.probability_N, threshold=self.threshold)

    @property
    def fold_aucs(self) -> tuple[float, ...]:
        """AUC of each fold's model."""
        labels_N = self.positive_N.astype(np.int64)
        return tuple(
            auc for fold_N in self.folds_MN if (auc := binary_metrics(labels_N, fold_N)["roc_auc"]) is not None
        )


@dataclass(frozen=True, kw_only=True)
class ExternalEvaluation:
    """Results of all runs on one external cohort."""

    fingerprint: str
    """Fingerprint of the cohort."""
    results: Mapping[str, ExternalResult]
    """Key of a run -> its results; a run whose inputs were rejected is missing."""
    tests: Mapping[str, DeLong]
    """Key of a run -> DeLong's test of its ensemble against TMI-CLNet's."""
    rejected: tuple[InputRejectedError, ...] = ()
    """One error for each case that was left out."""
    ceiling: float | None = None
    """Synthetic cohort: AUC of the true posterior of all modalities on its cases."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Key of a run -> why it could not predict the cohort."""


def evaluate_external(
    runs: Mapping[str, RunFolder],
    external: Cohort,
    *,
    scratch: Path,
    cache: PreparedCache | None = None,
    on_run: Callable[[str], None] = lambda key: None,
) -> ExternalEvaluation:
    """Predict the external cohort with every run.

    A case that any run's preparation rejects is left out for all runs, so that all have the same cases.

    Args:
        runs: finished runs by key.
        external: cohort with labels.
        scratch: folder for CTs that do not fit in memory; the caller removes it.
        cache: cache of prepared images; None prepares every case for this call alone.
        on_run: called after each run with its key.
    """
    patients = {case.case_id: patient_key(case.patient_id or case.case_id) for case in external.cases}
    prepared: dict[str, CohortArrays] = {}
    failed: dict[str, str] = {}
    probabilities: dict[str, Mapping[str, Float[np.ndarray, " M"]]] = {}
    rejected: dict[str | None, InputRejectedError] = {}
    for key, run in runs.items():
        name = _preparation(run.config, run)
        try:
            if name not in prepared:  # one preparation in memory at a time: the CTs of a cohort may be large
                prepared = {
                    name: prepare_cohort(external, run.config, run.schema, store=scratch / "external.npy", cache=cache)
                }
            arrays = prepared[name]
            rejected |= {error.case_id: error for error in arrays.rejected}
            ids = tuple(case.case_id for case in arrays.cases)
            if ids:
                folds_MN = np.stack([_fold_probability(run, split.fold, arrays, ids) for split in run.folds])
                probabilities[key] = dict(zip(ids, folds_MN.T, strict=True))
            else:
                failed[key] = "every external case was rejected"
        except RECORDED_ERRORS as error:
            failed[key] = run_failure_reason(error)
        on_run(key)
    kept = [case for case in external.cases if all(case.case_id in p for p in probabilities.values())]
    positive_N = np.array([case.label == POSITIVE for case in kept], dtype=bool)
    results: dict[str, ExternalResult] = {}
    if probabilities and min(positive_N.sum(), (~positive_N).sum()) >= MIN_PER_CLASS:
        weights_RN = bootstrap_weights(positive_N, [patients[case.case_id] for case in kept], seed=0)
        for key, by_case in probabilities.items():
            folds_MN = np.stack([by_case[case.case_id] for case in kept], axis=1)
            replicates = weighted_metrics(positive_N, folds_MN.mean(axis=0), weights_RN)
            results[key] = ExternalResult(
                key=key,
                case_ids=tuple(case.case_id for case in kept),
                positive_N=positive_N,
                folds_MN=folds_MN,
                threshold=runs[key].threshold,
                auc_interval=interval(replicates["roc_auc"]),
            )
    else:
        failed |= dict.fromkeys(probabilities, "too few external cases were accepted")
    reference = results.get(REFERENCE_MODEL)
    tests = {
        key: delong_test(positive_N, result.probability_N, reference.probability_N)
        for key, result in results.items()
        if reference is not None and key != REFERENCE_MODEL
    }
    return ExternalEvaluation(
        fingerprint=cohort_fingerprint(external),
        results=results,
        tests=tests,
        rejected=tuple(rejected.values()),
        ceiling=_ceiling(external),
        failed=failed,
    )


def _fold_probability(run: RunFolder, fold: int, arrays: CohortArrays, ids: tuple[str, ...]) -> Float[np.ndarray, " N"]:
    files = run.fold(fold)
    split = next(s for s in run.folds if s.fold == fold)
    predictions = predict_fold(run.config, files, split, arrays, ids)
    return positive_class_probability(predictions.logits_NK, files.temperature)


def _preparation(config: Config, run: RunFolder) -> str:
    """Key of all settings that the preparation of a case depends on."""
    return sha256_json(
        {
            "ct": repr(config.ct),
            "clinical": repr(config.clinical),
            "radiomics": repr(config.radiomics),
            "modalities": list(active_modalities(config)),
            "schema": repr(run.schema),
        }
    )


def _ceiling(external: Cohort) -> float | None:
    file = external.folder / TRUTH_FILE
    if not file.is_file():
        return None
    sampled: Mapping[str, float | None] = read_json(file, kind="cohort")["drawn_auc"]
    *_, all_modalities = modality_subsets()  # the last set is the largest
    return sampled.get(all_modalities)
