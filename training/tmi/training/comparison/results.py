"""Results of a comparison's runs on held-out cases. Shapes: N cases, in the same order for all runs; R replicates."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tmi.toolkit.cases.case import Cohort
from tmi.toolkit.config.schema import POSITIVE, Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.modality import FILE_NAMES, INITIALS
from tmi.toolkit.model_registry import REFERENCE_MODEL
from tmi.toolkit.models.registry import active_modalities, configured_model
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.storage.bounded_files import TABLE_BYTES, read_text
from tmi.toolkit.storage.csv_files import csv_dicts
from tmi.toolkit.synthetic.cohort import TRUTH_FILE
from tmi.training.evaluation.calibration import positive_class_probability as positive_probability
from tmi.training.evaluation.metrics import METRICS, aggregate_folds, binary_metrics
from tmi.training.evaluation.prediction_tables import read_predictions
from tmi.training.evaluation.statistics.bootstrap import bootstrap_weights, interval, weighted_metrics
from tmi.training.evaluation.statistics.delong import DeLong, delong_test
from tmi.training.evaluation.statistics.mcnemar import McNemar, mcnemar_test

THRESHOLD = 0.5
"""Probability from which a decision is positive in the tables, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Held-out predictions of one run, pooled over its folds, and their metrics."""

    key: str
    """Key of the run."""
    config: Config
    """Config of the run."""
    case_ids: tuple[str, ...]
    """Case ids, sorted."""
    positive_N: Bool[np.ndarray, " N"]
    """Whether the prognosis is bad."""
    probability_N: Float[np.ndarray, " N"]
    """Predicted probability of a bad prognosis, uncalibrated."""
    calibrated_N: Float[np.ndarray, " N"]
    """The same after the fold's temperature scaling."""
    fold_N: Int[np.ndarray, " N"]
    """Fold whose test part holds the case."""
    folds: tuple[Mapping[str, float | None], ...]
    """Metrics of each fold."""
    over_folds: Mapping[str, Mapping[str, float | int | None]]
    """Mean and sample standard deviation of the folds' metrics."""
    pooled: Mapping[str, float | None]
    """Metrics of all cases pooled."""
    intervals: Mapping[str, tuple[float, float] | None]
    """95% bootstrap intervals of `pooled`."""
    histories: tuple[tuple[Mapping[str, str], ...], ...]
    """Rows of each fold's history.csv."""

    @property
    def modalities(self) -> str:
        """Active modalities in the paper's abbreviations: I image, R radiomics, C clinical."""
        return "+".join(initial for m, initial in INITIALS.items() if m in active_modalities(self.config))

    @property
    def n_cases(self) -> int:
        """Number of held-out cases."""
        return len(self.case_ids)

    @property
    def has_epochs(self) -> bool:
        """Whether the models were trained in epochs; an estimator of scikit-learn is fitted at once."""
        return configured_model(self.config).trainer != "sklearn"

    @property
    def correct_N(self) -> Bool[np.ndarray, " N"]:
        """Whether the decision of each case is correct."""
        correct: np.ndarray = (self.probability_N >= THRESHOLD) == self.positive_N
        return correct


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Paired tests of a run against TMI-CLNet on the same cases."""

    mcnemar: McNemar
    """Test of the decisions; `first` is the run."""
    delong: DeLong | None
    """Test of the AUC; None if a class has fewer than two cases."""


def read_results(
    runs: Mapping[str, RunFolder], patients: Mapping[str, str]
) -> tuple[dict[str, Result], Float[np.ndarray, "R N"]]:
    """Read the results of finished runs.

    Args:
        runs: key -> finished run; all on the same folds.
        patients: case id -> patient id.

    Returns:
        Results by key, and the bootstrap weights [R,N] that all runs share.

    Raises:
        DamagedError: the runs have different folds, or a file is malformed.
    """
    folds = {run.folds for run in runs.values()}
    if len(folds) > 1:
        raise DamagedError(
            "the runs of this comparison have different folds", fix="delete them and repeat the comparison"
        )
    weights: np.ndarray | None = None
    results: dict[str, Result] = {}
    for key, run in runs.items():
        raw = _pooled(run)
        if weights is None:  # the same replicates for every run, so that intervals and curves are comparable
            owners = [patients[i] for i in raw["case_ids"]]
            weights = bootstrap_weights(raw["positive_N"], owners, seed=run.config.train.seed)
        results[key] = _result(key, run, raw, weights)
    return results, np.zeros((0, 0)) if weights is None else weights


def _pooled(run: RunFolder) -> dict[str, Any]:
    ids: list[str] = []
    parts: dict[str, list[np.ndarray]] = {"labels": [], "probability_N": [], "calibrated_N": [], "fold_N": []}
    for split in run.folds:
        files = run.fold(split.fold)
        table = read_predictions(files.predictions)
        temperature = read_json(files.metrics, kind="run")["calibration"]["temperature"]
        ids += table.case_ids
        parts["labels"].append(table.labels_N)
        parts["probability_N"].append(positive_probability(table.logits_NK))
        parts["calibrated_N"].append(positive_probability(table.logits_NK, temperature))
        parts["fold_N"].append(np.full(len(table.labels_N), split.fold))
    order = np.argsort(np.array(ids), kind="stable")
    pooled = {name: np.concatenate(arrays)[order] for name, arrays in parts.items()}
    labels = pooled.pop("labels")
    return {"case_ids": tuple(ids[i] for i in order), "positive_N": labels == POSITIVE, **pooled}


def _result(key: str, run: RunFolder, raw: Mapping[str, Any], weights_RN: Float[np.ndarray, "R N"]) -> Result:
    folds = tuple(read_json(run.fold(s.fold).metrics, kind="run")["test"] for s in run.folds)
    replicates = weighted_metrics(raw["positive_N"], raw["probability_N"], weights_RN, threshold=THRESHOLD)
    return Result(
        key=key,
        config=run.config,
        **raw,
        folds=folds,
        over_folds=aggregate_folds(folds),
        pooled=binary_metrics(raw["positive_N"].astype(np.int64), raw["probability_N"], threshold=THRESHOLD),
        intervals={name: interval(replicates[name]) for name in METRICS},
        histories=tuple(_history(run.fold(s.fold).history) for s in run.folds),
    )


def _history(path: Path) -> tuple[Mapping[str, str], ...]:
    try:
        return tuple(csv_dicts(read_text(path, max_bytes=TABLE_BYTES)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DamagedError(f"run: {path} is missing or malformed", fix="train the run again") from error


def compare_with_reference(results: Mapping[str, Result]) -> dict[str, PairedTest]:
    """Test every other run against TMI-CLNet; empty if TMI-CLNet has no results."""
    if REFERENCE_MODEL not in results:
        return {}
    reference = results[REFERENCE_MODEL]
    has_two_per_class = min(int(reference.positive_N.sum()), int((~reference.positive_N).sum())) >= 2
    return {
        key: PairedTest(
            mcnemar=mcnemar_test(result.correct_N, reference.correct_N),
            delong=(
                delong_test(reference.positive_N, result.probability_N, reference.probability_N)
                if has_two_per_class
                else None
            ),
        )
        for key, result in results.items()
        if key != REFERENCE_MODEL
    }


@dataclass(frozen=True, kw_only=True)
class PerformanceCeiling:
    """Performance ceiling of a synthetic cohort for a set of modalities."""

    name: str
    """Modalities: `ct`, `ct + clinical`, ..."""
    best: float
    """Highest expected AUC of any method, from the cohort's generative model."""
    sampled: float | None
    """AUC of the true posterior on the sampled cases."""
    reached: Result | None
    """Results of TMI-CLNet or its ablation with these modalities; None if it was not trained."""


def ceilings(cohort: Cohort, results: Mapping[str, Result]) -> tuple[PerformanceCeiling, ...]:
    """Read the ceilings from `truth.json`; empty if the cohort has no such file."""
    file = cohort.folder / TRUTH_FILE
    if not file.is_file():
        return ()
    truth = read_json(file, kind="cohort")
    modality_of = {name: modality for modality, name in FILE_NAMES.items()}
    entries = []
    for name, best in truth["best_auc"].items():
        modalities = {modality_of[part] for part in name.split("+")}
        reached = next(
            (
                r
                for r in results.values()
                if r.config.system.name == REFERENCE_MODEL and set(r.config.network.modalities) == modalities
            ),
            None,
        )
        entries.append(
            PerformanceCeiling(
                name=name.replace("+", " + "), best=best, sampled=truth["drawn_auc"].get(name), reached=reached
            )
        )
    return tuple(entries)
