"""What the runs of a comparison say of the cases none of their models saw. N cases, in one order for all runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tmi.toolkit.cases.case import Cohort
from tmi.toolkit.config.schema import POSITIVE, Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.synthetic.cohort import TRUTH_FILE
from tmi.training.comparison.paper_tables import REFERENCE_MODEL
from tmi.training.evaluation.calibration import positive_class_probability as positive_probability
from tmi.training.evaluation.metrics import METRICS, aggregate_folds, binary_metrics
from tmi.training.evaluation.prediction_tables import read_predictions
from tmi.training.evaluation.statistics.bootstrap import bootstrap_weights, interval, weighted_metrics
from tmi.training.evaluation.statistics.delong import DeLong, delong
from tmi.training.evaluation.statistics.mcnemar import McNemar, mcnemar

THRESHOLD = 0.5
"""From which the tables' decisions are positive, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Held-out predictions of one run, pooled over its folds, and their figures."""

    key: str
    """Key of the run."""
    config: Config
    """Its config."""
    case_ids: tuple[str, ...]
    """Cases, sorted."""
    positive_N: Bool[np.ndarray, " N"]
    """Whether the prognosis was bad."""
    probability_N: Float[np.ndarray, " N"]
    """Probability of bad, as the model says it."""
    calibrated_N: Float[np.ndarray, " N"]
    """The same by the fold's temperature."""
    fold_N: Int[np.ndarray, " N"]
    """Fold that held the case out."""
    folds: tuple[Mapping[str, float | None], ...]
    """Figures of each fold."""
    over_folds: Mapping[str, Mapping[str, float | int | None]]
    """Their mean and sample standard deviation."""
    pooled: Mapping[str, float | None]
    """Figures over all cases together."""
    intervals: Mapping[str, tuple[float, float] | None]
    """95% bootstrap intervals of `pooled`."""
    histories: tuple[tuple[Mapping[str, str], ...], ...]
    """Rows of each fold's history.csv."""

    @property
    def modalities(self) -> str:
        """What the system sees, as the paper abbreviates it: I, R, C."""
        short = {"image": "I", "radiomics": "R", "clinical": "C"}
        return "+".join(short[m] for m in short if m in active_modalities(self.config))

    @property
    def correct_N(self) -> Bool[np.ndarray, " N"]:
        """Which cases are decided rightly."""
        right: np.ndarray = (self.probability_N >= THRESHOLD) == self.positive_N
        return right


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A run against TMI-CLNet on the same cases."""

    mcnemar: McNemar
    """Of the decisions; `first` is the run."""
    delong: DeLong | None
    """Of the ranking; None where a class has fewer than two cases."""


def read_results(
    runs: Mapping[str, RunFolder], patients: Mapping[str, str]
) -> tuple[dict[str, Result], Float[np.ndarray, "R N"]]:
    """Results of finished runs on the same folds, and the bootstrap's weights that all share.

    Raises:
        DamagedError: two runs have other folds, or a file is malformed.
    """
    folds = {run.folds for run in runs.values()}
    if len(folds) > 1:
        raise DamagedError("the runs of this comparison have different folds", fix="delete them and compare again")
    weights: np.ndarray | None = None
    results: dict[str, Result] = {}
    for key, run in runs.items():
        raw = _pooled(run)
        if weights is None:
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
    together = {name: np.concatenate(arrays)[order] for name, arrays in parts.items()}
    labels = together.pop("labels")
    return {"case_ids": tuple(ids[i] for i in order), "positive_N": labels == POSITIVE, **together}


def _result(key: str, run: RunFolder, raw: Mapping[str, Any], weights_RN: Float[np.ndarray, "R N"]) -> Result:
    folds = tuple(read_json(run.fold(s.fold).metrics, kind="run")["test"] for s in run.folds)
    drawn = weighted_metrics(raw["positive_N"], raw["probability_N"], weights_RN, threshold=THRESHOLD)
    return Result(
        key=key,
        config=run.config,
        **raw,
        folds=folds,
        over_folds=aggregate_folds(folds),
        pooled=binary_metrics(raw["positive_N"].astype(np.int64), raw["probability_N"], threshold=THRESHOLD),
        intervals={name: interval(drawn[name]) for name in METRICS},
        histories=tuple(_history(run.fold(s.fold).history) for s in run.folds),
    )


def _history(path: Path) -> tuple[Mapping[str, str], ...]:
    return tuple(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def compare_with_reference(results: Mapping[str, Result]) -> dict[str, PairedTest]:
    """Every other run against TMI-CLNet; empty where TMI-CLNet is not there."""
    if REFERENCE_MODEL not in results:
        return {}
    ours = results[REFERENCE_MODEL]
    enough = min(int(ours.positive_N.sum()), int((~ours.positive_N).sum())) >= 2
    return {
        key: PairedTest(
            mcnemar=mcnemar(result.correct_N, ours.correct_N),
            delong=delong(ours.positive_N, result.probability_N, ours.probability_N) if enough else None,
        )
        for key, result in results.items()
        if key != REFERENCE_MODEL
    }


@dataclass(frozen=True, kw_only=True)
class PerformanceCeiling:
    """What a synthetic cohort allows from some modalities."""

    name: str
    """`ct`, `ct + clinical`, ..."""
    best: float
    """Highest AUC that any method can expect (the law of the cohort)."""
    sampled: float | None
    """AUC that the true posterior reaches on the cases that were drawn."""
    reached: Result | None
    """TMI-CLNet, or its ablation, with these modalities."""


def ceilings(cohort: Cohort, results: Mapping[str, Result]) -> tuple[PerformanceCeiling, ...]:
    """The ceilings in `truth.json`; none where the cohort has no such file."""
    file = cohort.folder / TRUTH_FILE
    if not file.is_file():
        return ()
    truth = json.loads(file.read_text(encoding="utf-8"))
    words = {"ct": "image", "radiomics": "radiomics", "clinical": "clinical"}
    found = []
    for name, best in truth["best_auc"].items():
        wanted = {words[part] for part in name.split("+")}
        reached = next(
            (
                r
                for r in results.values()
                if r.config.system.name == "tmi-clnet" and set(r.config.network.modalities) == wanted
            ),
            None,
        )
        found.append(
            PerformanceCeiling(
                name=name.replace("+", " + "), best=best, sampled=truth["drawn_auc"].get(name), reached=reached
            )
        )
    return tuple(found)
