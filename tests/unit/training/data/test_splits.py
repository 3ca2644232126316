"""Splits: stratified and grouped by patient without overlap; the protocol `released` matches the released code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tmi.toolkit.cases.case import Case
from tmi.toolkit.config.schema import TrainConfig
from tmi.toolkit.errors import UsageError
from tmi.training.data.splits import make_folds


def cohort(patients: int, *, bad: float = 0.4, seed: int = 0, repeats: bool = True) -> list[Case]:
    """Patients with one to three cases each; `bad` of the patients have a bad prognosis."""
    random = np.random.default_rng(seed)
    cases = []
    for p in range(patients):
        for visit in range(int(random.integers(1, 4)) if repeats else 1):
            name = f"P{p:03d}-{visit}"
            cases.append(Case(folder=Path(name), case_id=name, patient_id=f"P{p:03d}", label=int(p < bad * patients)))
    return [cases[i] for i in random.permutation(len(cases))]


def patients_of(ids: tuple[str, ...]) -> set[str]:
    return {i.partition("-")[0] for i in ids}


SIZES = [(184, 5, 42), (184, 10, 1), (40, 5, 0), (16, 3, 7), (16, 2, 3), (14, 2, 5)]


@pytest.mark.parametrize(("patients", "folds", "seed"), SIZES)
def test_folds_partition_cases_without_patient_overlap(patients, folds, seed):
    """Every case is held out once, and no patient is in two parts of a fold."""
    cases = cohort(patients, bad=0.5 if patients < 20 else 0.4)
    splits = make_folds(cases, TrainConfig(folds=folds, seed=seed))
    assert [s.fold for s in splits] == list(range(folds))
    assert sorted(i for s in splits for i in s.test) == sorted(c.case_id for c in cases)
    for split in splits:
        parts = [split.train, split.validation, split.test]
        assert sorted(i for part in parts for i in part) == sorted(c.case_id for c in cases)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert not patients_of(parts[a]) & patients_of(parts[b])


@pytest.mark.parametrize(("patients", "folds", "seed"), SIZES)
def test_train_and_validation_have_both_classes(patients, folds, seed):
    """The training and the validation part of every fold have both classes."""
    cases = cohort(patients, bad=0.5 if patients < 20 else 0.4)
    label = {c.case_id: c.label for c in cases}
    for split in make_folds(cases, TrainConfig(folds=folds, seed=seed)):
        for part in (split.train, split.validation):
            assert {label[i] for i in part} == {0, 1}


def test_folds_are_stratified():
    """With 75 positives of 184, as in the paper, and one case for each patient, every fold has 15 positives."""
    cases = cohort(184, bad=75 / 184, repeats=False)
    label = {c.case_id: c.label for c in cases}
    for split in make_folds(cases, TrainConfig()):
        assert sum(label[i] for i in split.test) == 15
        assert len(split.test) in (36, 37)
        share = sum(label[i] for i in split.validation) / len(split.validation)
        assert share == pytest.approx(75 / 184, abs=0.03)


@pytest.mark.parametrize(("fraction", "part"), [(0.1, 10), (0.2, 5), (0.3, 3), (0.4, 2)])
def test_inner_validation_fraction_is_rounded(fraction, part):
    """The inner validation part is the fraction 1/n nearest to the configured one."""
    cases = cohort(184, repeats=False)
    for split in make_folds(cases, TrainConfig(validation_fraction=fraction)):
        total = len(split.train) + len(split.validation)
        assert len(split.validation) / total == pytest.approx(1 / part, abs=0.01)


def test_seed_determines_folds():
    """The same seed gives the same folds, and another seed gives different ones."""
    cases = cohort(40)
    config = TrainConfig()
    assert make_folds(cases, config) == make_folds(cases, config)
    assert make_folds(cases, config) != make_folds(cases, replace(config, seed=43))


@pytest.mark.parametrize(
    ("patients", "folds", "bad", "message"),
    [
        (10, 5, 0.4, "4 patients of a class are too few for 5 folds"),
        (6, 2, 0.5, "3 patients of a class are too few for 2 folds"),
        (20, 3, 0.0, "0 patients of a class"),
    ],
)
def test_too_few_patients_of_class_are_rejected(patients, folds, bad, message):
    """Too few patients of a class are a usage error with the number needed."""
    with pytest.raises(UsageError) as error:
        make_folds(cohort(patients, bad=bad), TrainConfig(folds=folds))
    assert message in str(error.value)
    assert "--folds" in error.value.fix


def test_many_cases_of_few_patients_are_rejected():
    """Patients are counted, not cases."""
    cases = [
        Case(folder=Path("x"), case_id=f"P{p}-{v}", patient_id=f"P{p}", label=p % 2) for p in range(4) for v in range(9)
    ]
    with pytest.raises(UsageError, match="2 patients of a class"):
        make_folds(cases, TrainConfig(folds=2))


RELEASED = TrainConfig(protocol="released")


def test_released_protocol_is_shuffled_kfold():
    """The protocol `released` is scikit-learn's shuffled KFold, with the held-out fold as validation split."""
    from sklearn.model_selection import KFold

    cases = cohort(30)
    expected = KFold(5, shuffle=True, random_state=42).split(np.zeros(len(cases)))
    for split, (train, test) in zip(make_folds(cases, RELEASED), expected, strict=True):
        assert set(split.train) == {cases[i].case_id for i in train}
        assert set(split.test) == {cases[i].case_id for i in test}
        assert split.validation == split.test


def test_released_protocol_does_not_group_patients():
    """With the protocol `released` a patient may be in the training and the held-out part."""
    splits = make_folds(cohort(30), RELEASED)
    assert any(patients_of(s.train) & patients_of(s.test) for s in splits)


@pytest.mark.parametrize(("cases", "folds"), [(3, 5), (2, 2), (3, 2)])
def test_released_protocol_needs_two_training_cases(cases, folds):
    """A training part of fewer than two cases is a usage error."""
    with pytest.raises(UsageError, match="too few") as error:
        make_folds(cohort(cases, repeats=False), replace(RELEASED, folds=folds))
    assert "--folds" in error.value.fix


def test_batch_size_of_one_is_rejected():
    """A batch size of 1 is a usage error, because BatchNorm cannot be trained on it."""
    with pytest.raises(UsageError, match=r"train\.batch_size=1") as error:
        TrainConfig(batch_size=1)
    assert "BatchNorm" in error.value.fix
