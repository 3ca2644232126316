"""Leakage checks that need the run folder alone.

Every check recomputes a value from the data that the run recorded; no recorded conclusion is trusted. Checks that need
the cohort (patients, refits, predictions of the saved models, duplicate images) are in
`tmi.training.leakage_audit.cohort_checks`.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tmi.toolkit.config.schema import POSITIVE
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import SUMMARY_FILE, FoldFolder, FoldSplit, RunFolder
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.storage.bounded_files import TABLE_BYTES, read_text
from tmi.toolkit.storage.csv_files import csv_dicts
from tmi.toolkit.storage.serialization import to_json
from tmi.training.data.splits import patient_key
from tmi.training.evaluation.calibration import calibrate, fit_threshold, is_calibrated
from tmi.training.evaluation.epoch_selection import selected_epoch
from tmi.training.evaluation.prediction_tables import Predictions, pool_folds, read_predictions
from tmi.training.evaluation.summary import optimism_note

Status = Literal["holds", "leak", "declared", "warning", "not checked"]
LIMITS = (
    "a run whose files were made to agree with each other, for example weights that were fitted on held-out cases too; "
    "only a second training with the recorded config shows it (--replay)",
    "what given weights or a given vocabulary of unknown origin were fitted on",
    "one patient under two ids, except as the same CT or as ids that differ in case and blanks alone",
    "one CT under two ids, if it was cropped, rotated or edited",
    "a leak in the cohort itself: a radiomics table that was normalised over all patients, a report or value that was "
    "written after the outcome, wrong labels",
    "choices that a person made after inspecting held-out metrics",
)
"""What the audit cannot see."""
AUC_GAP, AUC_SIGMAS = 0.1, 2.0
"""A held-out AUC is far above the inner validation's if it is higher by both: a number, and standard errors."""
RECORDED = {"loss": "lowest recorded loss", "accuracy": "highest recorded accuracy", "last": "highest number"}
"""Criterion -> what the selected epoch must have."""
LOSS_TOLERANCE = 2e-3
"""Tolerance between a loss computed on a GPU in TF32 and on a CPU; relative for losses above 1, else absolute."""


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """Result of one check of a run."""

    check: str
    """Name of the check."""
    status: Status
    """`declared`: the run's protocol leaks by definition, and the run's summary states it; `warning`: no leak is shown,
    and something that the check cannot decide should be looked into."""
    detail: str
    """One sentence; of a patient it holds case ids and numbers at most."""
    fold: int | None = None
    """Number of the fold; None: the check covers the whole run."""


def audit_folder(run: RunFolder) -> list[AuditResult]:
    """Run every check that needs only the folder of a finished run.

    Raises:
        UsageError: the run is not finished.
        DamagedError: a file is missing, malformed, or was changed after training.
    """
    run.require_finished()
    results = [AuditResult(check="files", status="holds", detail="no file was changed after training")]
    results += _protocol(run)
    results += _partition(run)
    results.append(auc_gap(run))
    for split in run.folds:
        files = run.fold(split.fold)
        metrics = read_json(files.metrics, kind="run")
        results.append(_disjoint(run, split))
        results += _initial_weights(run, split)
        results.append(_scaler_count(run, split, files))
        results += _selected_epoch(run, split, files, metrics)
        results.append(_calibration(run, split, files, metrics))
        results.append(_metrics(split, files, metrics))
    results.append(_threshold(run))
    return results


def limits(run: RunFolder, results: Sequence[AuditResult]) -> tuple[str, ...]:
    """What the audit of a run cannot see, given the checks that were run."""
    replayed = {r.fold for r in results if r.check == "replay" and r.status == "holds"}
    return LIMITS[1:] if replayed == {split.fold for split in run.folds} else LIMITS


def _protocol(run: RunFolder) -> Iterator[AuditResult]:
    note = optimism_note(run.config)
    if note:
        yield AuditResult(check="protocol", status="declared", detail=note)
    else:
        yield AuditResult(
            check="protocol", status="holds", detail="folds grouped by patient, epoch selected on an inner split"
        )


def _partition(run: RunFolder) -> Iterator[AuditResult]:
    """Every case is held out exactly once, and every fold holds the same cases."""
    counts = Counter(case_id for split in run.folds for case_id in split.test)
    repeated = sorted(case_id for case_id, n in counts.items() if n > 1)
    fold_cases = [set(s.train) | set(s.validation) | set(s.test) for s in run.folds]
    missing = sorted(set().union(*fold_cases) - set(counts))
    unequal = [s.fold for s, cases in zip(run.folds, fold_cases, strict=True) if cases != fold_cases[0]]
    findings = [
        *([f"held out more than once: {_join_ids(repeated)}"] if repeated else []),
        *([f"never held out: {_join_ids(missing)}"] if missing else []),
        *([f"folds {unequal} hold other cases than fold 0"] if unequal else []),
    ]
    yield _result("partition", findings, f"each of {len(counts)} cases is held out once")


def _disjoint(run: RunFolder, split: FoldSplit) -> AuditResult:
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    released = run.config.train.protocol == "released"
    findings = []
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sorted(set(parts[a]) & set(parts[b]))
        # the released protocol validates on the held-out fold by definition
        if shared and not (released and (a, b) == ("validation", "test")):
            findings.append(f"in both {a} and {b}: {_join_ids(shared)}")
    findings += [f"listed twice in {name}" for name, ids in parts.items() if len(set(ids)) < len(ids)]
    return _result("cases", findings, "no case is in two parts", fold=split.fold)


def _initial_weights(run: RunFolder, split: FoldSplit) -> Iterator[AuditResult]:
    """The weights that training started from were not fitted on held-out cases, as far as their origin is recorded."""
    if not run.pretrained.is_file():
        detail = "no weights were given: every encoder started from random ones"
        yield AuditResult(check="initial-weights", status="holds", detail=detail, fold=split.fold)
        return
    for encoder, report in read_json(run.pretrained, kind="run").items():
        origin = report.get("origin") if isinstance(report, dict) else None
        status, detail = check_origin(origin, split, cohort=run.state["cohort"]["fingerprint"])
        yield AuditResult(check="initial-weights", status=status, detail=f"{encoder}: {detail}", fold=split.fold)


def check_origin(origin: Any, split: FoldSplit, *, cohort: str) -> tuple[Status, str]:
    """Compare the recorded origin of given weights or of a given vocabulary with a fold's held-out cases.

    Args:
        origin: record of `tmi.training.pretrained.origin`, or None if the run has none.
        split: the fold.
        cohort: fingerprint of the run's cohort.

    Returns:
        Status and detail of the check.
    """
    origin = origin if isinstance(origin, dict) else {}
    kind, source = origin.get("kind"), f"{origin.get('kind')} {origin.get('run')!r}"
    if kind == "synthetic":
        return "holds", "fitted on synthetic records by tmi pretrain-text"
    if kind == "public":
        return "holds", f"the published {origin.get('name')}"
    if kind == "run":
        fitted_on = {patient_key(str(i)) for i in origin.get("cases", ())}
        shared = [i for i in split.test if patient_key(i) in fitted_on]
        if shared:
            return "leak", f"from {source}, which was fitted on {len(shared)} held-out case(s): {_join_ids(shared)}"
        return "holds", f"from {source}, which was fitted on none of the held-out cases"
    if kind == "bundle" and origin.get("cohort") == cohort:
        return "leak", f"from {source} of this cohort, whose folds were fitted on held-out cases"
    if kind == "bundle":
        return "warning", f"from {source} of another cohort; which cases it was fitted on is not recorded"
    return "warning", "given by the user; its origin is not known, and held-out cases may have been used to fit it"


def auc_gap(run: RunFolder) -> AuditResult:
    """A held-out AUC far above the inner validation's, on which the epoch was selected, needs an explanation.

    Both are means over the folds in which they are defined. A difference is far if it exceeds `AUC_GAP` and
    `AUC_SIGMAS` standard errors by J. A. Hanley and B. J. McNeil 1982, folds taken as independent.
    """
    tables = [(read_predictions(f.predictions), read_predictions(f.validation)) for f in map(run.fold, _numbers(run))]
    means, variances = [], []
    for part in zip(*tables, strict=True):
        defined = [(auc, table) for table in part if (auc := table.metrics()["roc_auc"]) is not None]
        if not defined:
            detail = "no fold has both classes in the inner validation and the held-out part"
            return AuditResult(check="auc-gap", status="not checked", detail=detail)
        means.append(float(np.mean([auc for auc, _ in defined])))
        variances.append(sum(_auc_variance(auc, table) for auc, table in defined) / len(defined) ** 2)
    gap, error = means[0] - means[1], math.sqrt(sum(variances))
    detail = f"mean AUC {means[0]:.3f} on the held-out cases, {means[1]:.3f} on the inner validation cases"
    if gap > max(AUC_GAP, AUC_SIGMAS * error):
        detail += f": the first is {gap:.3f} higher (standard error {error:.3f}), as if its cases had been trained on"
        return AuditResult(check="auc-gap", status="warning", detail=detail)
    return AuditResult(check="auc-gap", status="holds", detail=detail)


def _numbers(run: RunFolder) -> list[int]:
    return [split.fold for split in run.folds]


def _auc_variance(auc: float, table: Predictions) -> float:
    """Variance of an AUC by Hanley and McNeil; n positive, m negative cases."""
    n = int((table.labels_N == POSITIVE).sum())
    m = len(table.labels_N) - n
    q1, q2 = auc / (2.0 - auc), 2.0 * auc * auc / (1.0 + auc)
    return (auc * (1.0 - auc) + (n - 1) * (q1 - auc * auc) + (m - 1) * (q2 - auc * auc)) / (n * m)


def _scaler_count(run: RunFolder, split: FoldSplit, files: FoldFolder) -> AuditResult:
    fitted = RadiomicsScaler.load(files.scaler).fitted_on
    if run.config.radiomics.fit_on == "cohort":
        return AuditResult(
            check="scaler-count", status="declared", detail="fitted on the whole cohort", fold=split.fold
        )
    findings = (
        []
        if fitted == len(split.train)
        else [f"fitted on {fitted} cases, not on the {len(split.train)} training cases"]
    )
    return _result("scaler-count", findings, f"fitted on {fitted} cases, the number of training cases", fold=split.fold)


def _selected_epoch(
    run: RunFolder, split: FoldSplit, files: FoldFolder, metrics: dict[str, Any]
) -> Iterator[AuditResult]:
    """The selected epoch is the best by the recorded values, and its loss is that of the inner split."""
    try:
        rows = list(csv_dicts(read_text(files.history, max_bytes=TABLE_BYTES)))
        losses = [float(row["validation_loss"]) for row in rows]
        epochs, picked = [int(row["epoch"]) for row in rows], int(metrics["picked_epoch"])
        recorded = losses[picked]
        train = run.config.train
        # earlier versions, which select by the loss, have no accuracies
        needed = train.select_by == "accuracy"
        accuracies = [float(row["validation_accuracy"]) for row in rows] if needed else losses
    except (OSError, csv.Error, ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedError(f"run: {files.history} is missing or malformed", fix="train the run again") from error
    findings = [] if epochs == list(range(len(rows))) else ["the epochs in history.csv are not 0, 1, 2, ..."]
    best = RECORDED[train.select_by] + (f", mean of {train.select_over} epochs," if train.select_over > 1 else "")
    first = selected_epoch(losses, accuracies, train)
    if picked != first:
        findings.append(f"epoch {picked} was selected, but the {best} is that of epoch {first}")
    yield _result("epoch", findings, f"epoch {picked} has the {best} of {len(losses)} epochs", fold=split.fold)

    validation, test = read_predictions(files.validation), read_predictions(files.predictions)
    loss, on_test = mean_loss(validation), mean_loss(test)
    findings = [] if validation.case_ids == split.validation else ["the validation predictions belong to other cases"]
    if not _is_close(loss, recorded):
        findings.append(
            f"epoch {picked} was selected by the loss {recorded:.6g}, but the inner validation cases give {loss:.6g}"
        )
        if _is_close(on_test, recorded):
            findings.append("it is the loss of the held-out cases: the epoch was selected on the reported fold")
    if run.config.train.protocol == "released" and not findings:
        detail = "selected on the reported fold itself"
        yield AuditResult(check="epoch-split", status="declared", detail=detail, fold=split.fold)
        return
    yield _result("epoch-split", findings, "its loss is that of the inner validation cases", fold=split.fold)


def _calibration(run: RunFolder, split: FoldSplit, files: FoldFolder, metrics: dict[str, Any]) -> AuditResult:
    recorded = {k: metrics.get("calibration", {}).get(k) for k in ("temperature", "threshold", "fitted_on")}
    validation = read_predictions(files.validation)
    if is_calibrated(run.config):
        fitted = to_json(calibrate(validation.logits_NK, validation.labels_N))
    else:
        fitted = {"temperature": 1.0, "threshold": 0.5, "fitted_on": 0}
    findings = [
        f"{name} is {recorded[name]}, but the inner validation predictions give {value}"
        for name, value in fitted.items()
        if not isinstance(recorded[name], (int, float)) or not math.isclose(recorded[name], value, rel_tol=1e-6)
    ]
    return _result("calibration", findings, "refitting gives the same temperature and threshold", fold=split.fold)


def _threshold(run: RunFolder) -> AuditResult:
    """The ensemble's threshold equals the one refitted on the inner validation predictions."""
    tables = [read_predictions(run.fold(s.fold).validation) for s in run.folds]
    fitted = 0.5
    if is_calibrated(run.config):
        fitted = fit_threshold(*pool_folds(tables, [run.fold(s.fold).temperature for s in run.folds]))
    findings = [] if math.isclose(run.threshold, fitted, rel_tol=1e-6) else [
        f"{SUMMARY_FILE} has {run.threshold}, but the inner validation predictions give {fitted}"
    ]  # fmt: skip
    return _result("threshold", findings, "refitting gives the same ensemble threshold")


def _metrics(split: FoldSplit, files: FoldFolder, metrics: dict[str, Any]) -> AuditResult:
    test = read_predictions(files.predictions)
    findings = [] if test.case_ids == split.test else ["the predictions belong to other cases than the held-out ones"]
    if metrics.get("test") != test.metrics():
        findings.append("the recorded metrics differ from those of the predictions")
    return _result(
        "figures", findings, f"recomputed from the predictions of {len(split.test)} held-out cases", fold=split.fold
    )


def mean_loss(table: Predictions) -> float:
    """Mean cross entropy of a table of logits [N,K] in nats."""
    highest = table.logits_NK.max(axis=1)  # log-sum-exp, shifted by the maximum against overflow
    normaliser = highest + np.log(np.exp(table.logits_NK - highest[:, None]).sum(axis=1))
    return float((normaliser - table.logits_NK[np.arange(len(table.labels_N)), table.labels_N]).mean())


def _is_close(a: float, b: float) -> bool:
    return abs(a - b) <= LOSS_TOLERANCE * max(1.0, abs(b))


def _join_ids(case_ids: list[str]) -> str:
    return ", ".join(case_ids[:5]) + (f" and {len(case_ids) - 5} more" if len(case_ids) > 5 else "")


def _result(check: str, findings: list[str], success: str, *, fold: int | None = None) -> AuditResult:
    return AuditResult(
        check=check, status="leak" if findings else "holds", detail="; ".join(findings) or success, fold=fold
    )
