"""Cross-validation folds and, inside each, the inner validation split on which the epoch is picked.

`grouped`: stratified by label and grouped by patient; the inner validation split is taken from the training part in the
same way. `released`: shuffled KFold over cases, neither stratified nor grouped, and the epoch is picked on the held-out
fold itself, as in the authors' code.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import Case
from tmi.toolkit.config.schema import CLASSES, TrainConfig
from tmi.toolkit.errors import UsageError
from tmi.toolkit.run_folder import FoldSplit

Indices = NDArray[np.intp]


def make_folds(cases: Sequence[Case], config: TrainConfig) -> tuple[FoldSplit, ...]:
    """Split cases into folds of case ids; the same cases in the same order and the same seed give the same folds.

    Raises:
        UsageError: a class has too few patients for the number of folds.
    """
    labels = np.array([c.label for c in cases])
    patients = np.array(_unify([c.patient_id or c.case_id for c in cases]))
    if config.protocol == "released":
        return _released(cases, config)
    _require_patients(labels, patients, config.folds)
    folds = []
    for number, (train, test) in enumerate(_split(labels, patients, config.folds, config.seed)):
        inner, validation = _inner_split(labels[train], patients[train], config)
        folds.append(_to_fold_split(number, cases, train[inner], train[validation], test))
    return tuple(folds)


def patient_key(patient_id: str) -> str:
    """The id without case, blanks and Unicode's compatibility forms: ids with equal keys are one patient's."""
    return "".join(unicodedata.normalize("NFKC", patient_id).casefold().split())


def _unify(patient_ids: Sequence[str]) -> list[str]:
    """Each id replaced by the first, in sorted order, of those with the same key; distinct ids keep their order."""
    first: dict[str, str] = {}
    for patient_id in sorted(patient_ids):
        first.setdefault(patient_key(patient_id), patient_id)
    return [first[patient_key(patient_id)] for patient_id in patient_ids]


def _released(cases: Sequence[Case], config: TrainConfig) -> tuple[FoldSplit, ...]:
    from sklearn.model_selection import KFold

    # BatchNorm cannot be trained on one case
    if len(cases) < config.folds or len(cases) - math.ceil(len(cases) / config.folds) < 2:
        raise UsageError(
            f"{len(cases)} cases are too few for {config.folds} folds", fix="give more cases, or fewer folds: --folds N"
        )
    splitter = KFold(config.folds, shuffle=True, random_state=config.seed)
    return tuple(
        _to_fold_split(number, cases, train, test, test)
        for number, (train, test) in enumerate(splitter.split(np.zeros(len(cases))))
    )


def _split(labels: Indices, patients: NDArray[np.str_], folds: int, seed: int) -> list[tuple[Indices, Indices]]:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(labels)), labels, patients))


def _inner_split(labels: Indices, patients: NDArray[np.str_], config: TrainConfig) -> tuple[Indices, Indices]:
    """The inner split with the validation size nearest to the configured fraction and both classes in both parts."""
    parts = max(2, min(round(1 / config.validation_fraction), _minority_patients(labels, patients)))
    target_size = config.validation_fraction * len(labels)
    candidates = [
        (abs(len(validation) - target_size), i, train, validation)
        for i, (train, validation) in enumerate(_split(labels, patients, parts, config.seed))
        if len(set(labels[train])) == len(set(labels[validation])) == len(CLASSES)
    ]
    if not candidates:
        raise UsageError(
            "too few patients of a class for an inner validation split",
            fix="give more cases, fewer folds (--folds N), or a larger --set train.validation_fraction",
        )
    _, _, train, validation = min(candidates, key=lambda c: c[:2])
    return train, validation


def _minority_patients(labels: Indices, patients: NDArray[np.str_]) -> int:
    """Number of patients of the class with the fewest."""
    return min(len(set(patients[labels == k])) for k in range(len(CLASSES)))


def _require_patients(labels: Indices, patients: NDArray[np.str_], folds: int) -> None:
    fewest = _minority_patients(labels, patients)
    # the training part of each fold is split again, and both inner parts need each class
    needed = folds if folds > 2 else 4
    if fewest < needed:
        raise UsageError(
            f"{fewest} patients of a class are too few for {folds} folds with an inner validation split",
            fix=f"give at least {needed} patients of each class, or fewer folds: --folds N",
        )


def _to_fold_split(number: int, cases: Sequence[Case], train: Indices, validation: Indices, test: Indices) -> FoldSplit:
    def ids(indices: Indices) -> tuple[str, ...]:
        return tuple(cases[i].case_id for i in sorted(indices))

    return FoldSplit(fold=number, train=ids(train), validation=ids(validation), test=ids(test))
