"""Did anything of a held-out case reach what is reported of it? What a run folder itself can prove.

Every answer is recomputed from what the run recorded; nothing is believed because the run says so. What needs the
cohort (patients, refits, the model's own answers, duplicate images) is in `tmi.training.leakage_audit.cohort_checks`.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tmi.toolkit.errors import DamagedError
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import SUMMARY_FILE, FoldFolder, FoldSplit, RunFolder
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.storage.serialization import to_json
from tmi.training.evaluation.calibration import calibrate, fit_threshold, is_calibrated
from tmi.training.evaluation.prediction_tables import Predictions, pool_folds, read_predictions
from tmi.training.evaluation.summary import optimism_note

Status = Literal["holds", "leak", "declared", "not checked"]
LOSS_TOLERANCE = 2e-3
"""Of a loss that was computed on a GPU in TF32 and again on a CPU, relative to a loss of 1 or more."""


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """The outcome of one question about a run."""

    check: str
    """Short name."""
    status: Status
    """`declared`: the run's protocol leaks here and its summary says so."""
    detail: str
    """One sentence; case ids and figures, nothing else of a patient."""
    fold: int | None = None
    """The fold, where it is about one."""


def audit_folder(run: RunFolder) -> list[AuditResult]:
    """Every question that the folder of a finished run can answer.

    Raises:
        UsageError: the run is not finished.
        DamagedError: a file is missing, malformed, or was changed after the training.
    """
    run.require_finished()
    answers = [AuditResult(check="files", status="holds", detail="no file was changed after the training")]
    answers += _protocol(run)
    answers += _partition(run)
    for split in run.folds:
        files = run.fold(split.fold)
        metrics = read_json(files.metrics, kind="run")
        answers.append(_disjoint(run, split))
        answers.append(_scaler_count(run, split, files))
        answers += _picked_epoch(run, split, files, metrics)
        answers.append(_calibration(run, split, files, metrics))
        answers.append(_metrics(split, files, metrics))
    answers.append(_threshold(run))
    return answers


def _protocol(run: RunFolder) -> Iterator[AuditResult]:
    why = optimism_note(run.config)
    if why:
        yield AuditResult(check="protocol", status="declared", detail=why)
    else:
        yield AuditResult(
            check="protocol", status="holds", detail="folds grouped by patient, an inner split for the epoch"
        )


def _partition(run: RunFolder) -> Iterator[AuditResult]:
    """Every case is held out exactly once, and every fold is about the same cases."""
    times = Counter(case_id for split in run.folds for case_id in split.test)
    more = sorted(case_id for case_id, n in times.items() if n > 1)
    everyone = [set(s.train) | set(s.validation) | set(s.test) for s in run.folds]
    other = sorted(set().union(*everyone) - set(times))
    unequal = [s.fold for s, cases in zip(run.folds, everyone, strict=True) if cases != everyone[0]]
    wrong = [
        *([f"held out more than once: {_join_ids(more)}"] if more else []),
        *([f"never held out: {_join_ids(other)}"] if other else []),
        *([f"folds {unequal} are not about the cases of fold 0"] if unequal else []),
    ]
    yield _result("partition", wrong, f"each of {len(times)} cases is held out once")


def _disjoint(run: RunFolder, split: FoldSplit) -> AuditResult:
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    released = run.config.train.protocol == "released"
    wrong = []
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = sorted(set(parts[a]) & set(parts[b]))
        if both and not (released and (a, b) == ("validation", "test")):
            wrong.append(f"in {a} and {b}: {_join_ids(both)}")
    wrong += [f"listed twice in {name}" for name, ids in parts.items() if len(set(ids)) < len(ids)]
    return _result("cases", wrong, "no case is in two parts", fold=split.fold)


def _scaler_count(run: RunFolder, split: FoldSplit, files: FoldFolder) -> AuditResult:
    fitted = RadiomicsScaler.load(files.scaler).fitted_on
    if run.config.radiomics.fit_on == "cohort":
        return AuditResult(
            check="scaler-count", status="declared", detail="fitted on the whole cohort", fold=split.fold
        )
    wrong = [] if fitted == len(split.train) else [f"fitted on {fitted} cases, {len(split.train)} are trained on"]
    return _result("scaler-count", wrong, f"fitted on {fitted} cases, as many as are trained on", fold=split.fold)


def _picked_epoch(
    run: RunFolder, split: FoldSplit, files: FoldFolder, metrics: dict[str, Any]
) -> Iterator[AuditResult]:
    """The picked epoch is the first minimum of the recorded losses, and its loss is that of the inner split."""
    try:
        rows = list(csv.DictReader(io.StringIO(files.history.read_text(encoding="utf-8"))))
        losses = [float(row["validation_loss"]) for row in rows]
        epochs, picked = [int(row["epoch"]) for row in rows], int(metrics["picked_epoch"])
        recorded = losses[picked]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedError(f"run: {files.history} is missing or malformed", fix="train the run again") from error
    wrong = [] if epochs == list(range(len(rows))) else ["the history's epochs are not 0, 1, 2, ..."]
    if picked != losses.index(min(losses)):
        wrong.append(
            f"epoch {picked} was picked, the lowest recorded loss is that of epoch {losses.index(min(losses))}"
        )
    yield _result("epoch", wrong, f"epoch {picked} has the lowest of {len(losses)} recorded losses", fold=split.fold)

    validation, test = read_predictions(files.validation), read_predictions(files.predictions)
    loss, on_test = mean_loss(validation), mean_loss(test)
    wrong = [] if validation.case_ids == split.validation else ["the validation predictions are of other cases"]
    if not _is_close(loss, recorded):
        wrong.append(
            f"epoch {picked} was picked by the loss {recorded:.6g}, the inner validation cases give {loss:.6g}"
        )
        if _is_close(on_test, recorded):
            wrong.append("it is the loss of the held-out cases: the epoch was picked on the fold that is reported")
    if run.config.train.protocol == "released" and not wrong:
        detail = "picked on the very fold that is reported"
        yield AuditResult(check="epoch-split", status="declared", detail=detail, fold=split.fold)
        return
    yield _result("epoch-split", wrong, "its loss is that of the inner validation cases", fold=split.fold)


def _calibration(run: RunFolder, split: FoldSplit, files: FoldFolder, metrics: dict[str, Any]) -> AuditResult:
    recorded = {k: metrics.get("calibration", {}).get(k) for k in ("temperature", "threshold", "fitted_on")}
    validation = read_predictions(files.validation)
    if is_calibrated(run.config):
        fitted = to_json(calibrate(validation.logits_NK, validation.labels_N))
    else:
        fitted = {"temperature": 1.0, "threshold": 0.5, "fitted_on": 0}
    wrong = [
        f"{name} is {recorded[name]}, the inner validation predictions give {value}"
        for name, value in fitted.items()
        if not isinstance(recorded[name], (int, float)) or not math.isclose(recorded[name], value, rel_tol=1e-6)
    ]
    return _result("calibration", wrong, "temperature and threshold are refitted to the same values", fold=split.fold)


def _threshold(run: RunFolder) -> AuditResult:
    """The ensemble's threshold, refitted."""
    tables = [read_predictions(run.fold(s.fold).validation) for s in run.folds]
    fitted = 0.5
    if is_calibrated(run.config):
        fitted = fit_threshold(*pool_folds(tables, [run.fold(s.fold).temperature for s in run.folds]))
    wrong = [] if math.isclose(run.threshold, fitted, rel_tol=1e-6) else [
        f"{SUMMARY_FILE} says {run.threshold}, the inner validation predictions give {fitted}"
    ]  # fmt: skip
    return _result("threshold", wrong, "the ensemble's threshold is refitted to the same value")


def _metrics(split: FoldSplit, files: FoldFolder, metrics: dict[str, Any]) -> AuditResult:
    test = read_predictions(files.predictions)
    wrong = [] if test.case_ids == split.test else ["the predictions are of other cases than the held-out ones"]
    if metrics.get("test") != test.metrics():
        wrong.append("the figures are not those of the predictions")
    return _result("figures", wrong, f"those of the predictions of {len(split.test)} held-out cases", fold=split.fold)


def mean_loss(table: Predictions) -> float:
    """Mean cross entropy."""
    highest = table.logits_NK.max(axis=1)
    normaliser = highest + np.log(np.exp(table.logits_NK - highest[:, None]).sum(axis=1))
    return float((normaliser - table.logits_NK[np.arange(len(table.labels_N)), table.labels_N]).mean())


def _is_close(a: float, b: float) -> bool:
    return abs(a - b) <= LOSS_TOLERANCE * max(1.0, abs(b))


def _join_ids(case_ids: list[str]) -> str:
    return ", ".join(case_ids[:5]) + (f" and {len(case_ids) - 5} more" if len(case_ids) > 5 else "")


def _result(check: str, wrong: list[str], right: str, *, fold: int | None = None) -> AuditResult:
    return AuditResult(check=check, status="leak" if wrong else "holds", detail="; ".join(wrong) or right, fold=fold)
