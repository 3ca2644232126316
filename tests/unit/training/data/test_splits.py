"""Folds: stratified, grouped by patient, nobody in two parts; the released protocol is the released one."""

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
def test_every_case_is_held_out_once_and_no_patient_is_in_two_parts(patients, folds, seed):
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
def test_every_part_that_is_fitted_or_picked_on_holds_both_classes(patients, folds, seed):
    cases = cohort(patients, bad=0.5 if patients < 20 else 0.4)
    label = {c.case_id: c.label for c in cases}
    for split in make_folds(cases, TrainConfig(folds=folds, seed=seed)):
        for part in (split.train, split.validation):
            assert {label[i] for i in part} == {0, 1}


def test_folds_are_stratified_as_well_as_the_cohort_allows():
    """75 of 184, as in the paper: with one case a patient every fold has its share to within one case."""
    cases = cohort(184, bad=75 / 184, repeats=False)
    label = {c.case_id: c.label for c in cases}
    for split in make_folds(cases, TrainConfig()):
        assert sum(label[i] for i in split.test) == 15
        assert len(split.test) in (36, 37)
        share = sum(label[i] for i in split.validation) / len(split.validation)
        assert share == pytest.approx(75 / 184, abs=0.03)


@pytest.mark.parametrize(("fraction", "part"), [(0.1, 10), (0.2, 5), (0.3, 3), (0.4, 2)])
def test_the_inner_validation_split_is_the_nearest_whole_part(fraction, part):
    cases = cohort(184, repeats=False)
    for split in make_folds(cases, TrainConfig(validation_fraction=fraction)):
        whole = len(split.train) + len(split.validation)
        assert len(split.validation) / whole == pytest.approx(1 / part, abs=0.01)


def test_the_seed_fixes_the_folds_and_another_gives_others():
    cases = cohort(40)
    config = TrainConfig()
    assert make_folds(cases, config) == make_folds(cases, config)
    assert make_folds(cases, config) != make_folds(cases, replace(config, seed=43))


@pytest.mark.parametrize(
    ("patients", "folds", "bad", "told"),
    [
        (10, 5, 0.4, "4 patients of a class are too few for 5 folds"),
        (6, 2, 0.5, "3 patients of a class are too few for 2 folds"),
        (20, 3, 0.0, "0 patients of a class"),
    ],
)
def test_too_few_patients_of_a_class_are_wrong_usage(patients, folds, bad, told):
    with pytest.raises(UsageError) as error:
        make_folds(cohort(patients, bad=bad), TrainConfig(folds=folds))
    assert told in str(error.value)
    assert "--folds" in error.value.fix


def test_many_cases_of_few_patients_do_not_make_up_for_patients():
    cases = [
        Case(folder=Path("x"), case_id=f"P{p}-{v}", patient_id=f"P{p}", label=p % 2) for p in range(4) for v in range(9)
    ]
    with pytest.raises(UsageError, match="2 patients of a class"):
        make_folds(cases, TrainConfig(folds=2))


RELEASED = TrainConfig(protocol="released")


def test_the_released_protocol_is_a_shuffled_kfold_whose_epoch_is_picked_on_the_reported_fold():
    from sklearn.model_selection import KFold

    cases = cohort(30)
    theirs = KFold(5, shuffle=True, random_state=42).split(np.zeros(len(cases)))
    for split, (train, test) in zip(make_folds(cases, RELEASED), theirs, strict=True):
        assert set(split.train) == {cases[i].case_id for i in train}
        assert set(split.test) == {cases[i].case_id for i in test}
        assert split.validation == split.test


def test_the_released_protocol_groups_no_patients():
    splits = make_folds(cohort(30), RELEASED)
    assert any(patients_of(s.train) & patients_of(s.test) for s in splits)


@pytest.mark.parametrize(("cases", "folds"), [(3, 5), (2, 2), (3, 2)])
def test_the_released_protocol_needs_two_cases_to_train_on(cases, folds):
    with pytest.raises(UsageError, match="too few") as error:
        make_folds(cohort(cases, repeats=False), replace(RELEASED, folds=folds))
    assert "--folds" in error.value.fix


def test_a_batch_of_one_cannot_be_asked_for():
    with pytest.raises(UsageError, match=r"train\.batch_size=1") as error:
        TrainConfig(batch_size=1)
    assert "BatchNorm" in error.value.fix
