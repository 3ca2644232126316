"""The predictor: the right answer beside the right case, whatever stands around it."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import tmi.runtime.serving.case_loader as inputs_module
import tmi.runtime.serving.predictor as predictor_module
from tmi.runtime import Prediction, Predictor, RejectedCase
from tmi.runtime.bundle.manifest import Manifest
from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError
from tmi.toolkit.preprocessing.pipeline import PreparedCase
from tmi.toolkit.radiomics.extractor import read_table, write_table
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES


def p_bad(answers) -> dict[str, float]:
    return {a.case_id: a.probability["bad"] for a in answers}


def codes(answer: Prediction) -> list[str]:
    return [notice.code for notice in answer.warnings]


def copy_case(case: Path, target: Path) -> Path:
    return Path(shutil.copytree(case, target))


@pytest.fixture(scope="module")
def alone(predictor, good_cases) -> dict[str, float]:
    """Each case predicted by itself."""
    return p_bad(answer for case in good_cases for answer in predictor.predict(case))


def test_cases_that_differ_get_answers_that_differ(alone):
    assert len({round(p, 6) for p in alone.values()}) == len(alone)


@pytest.mark.parametrize("batch", [2, 3, 4, 9])
def test_a_batch_answers_like_its_cases_one_by_one(predictor, good_cases, alone, batch):
    together = p_bad(predictor.predict(good_cases, batch=batch))
    assert together == pytest.approx(alone, abs=1e-5)


def test_no_order_of_the_input_gives_a_case_the_answer_of_another(predictor, good_cases, alone):
    for order in list(permutations(good_cases))[::5]:
        answers = predictor.predict(order, batch=3)
        assert [a.case_id for a in answers] == [case.name for case in order]
        assert p_bad(answers) == pytest.approx(alone, abs=1e-5)


def test_a_refused_case_keeps_its_place_and_changes_no_neighbour(predictor, good_cases, alone, tmp_path):
    missing = tmp_path / "nowhere"
    broken = copy_case(good_cases[0], tmp_path / "broken")
    (broken / "clinical.json").write_text("{")
    order = [missing, good_cases[0], broken, good_cases[1], good_cases[2], good_cases[3]]
    answers = predictor.predict(order, batch=2)
    assert [a.case_id for a in answers] == [case.name for case in order]
    assert [type(a) for a in answers] == [RejectedCase, Prediction, RejectedCase, Prediction, Prediction, Prediction]
    assert p_bad(a for a in answers if isinstance(a, Prediction)) == pytest.approx(alone, abs=1e-5)
    assert all(a.code and a.what and a.fix for a in answers if isinstance(a, RejectedCase))


def test_all_cases_refused_is_an_answer_too(predictor, tmp_path):
    assert [a.code for a in predictor.predict([tmp_path / "a", tmp_path / "b"], batch=2)] == ["case-missing"] * 2


@pytest.mark.parametrize("batch", [1, 2])
def test_no_more_cases_are_in_memory_than_two_batches(predictor, good_cases, monkeypatch, batch):
    alive: weakref.WeakSet = weakref.WeakSet()
    most: list[int] = []
    original = inputs_module.prepare_case

    def counting(case, *settings, **options):
        prepared = original(replace(case, folder=good_cases[int(case.case_id) % 4]), *settings, **options)
        alive.add(prepared)
        most.append(len(alive))
        return prepared

    monkeypatch.setattr(inputs_module, "prepare_case", counting)
    monkeypatch.setattr(PreparedCase, "__hash__", object.__hash__)
    cases = [Case(folder=good_cases[0], case_id=str(number)) for number in range(9)]
    answers = predictor.stream(cases, batch=batch)
    next(answers)
    assert len(most) <= 2 * batch + 1  # a case is begun while the first answer is given out
    assert len([*answers]) == 8
    assert max(most) <= 2 * batch


def test_the_answer_is_the_mean_of_the_folds_and_decided_at_the_threshold(predictor, good_cases):
    manifest = predictor.bundle.manifest
    for answer in predictor.predict(good_cases):
        folds = [fold.probability["bad"] for fold in answer.folds]
        assert [fold.fold for fold in answer.folds] == [fold.fold for fold in manifest.folds]
        assert answer.probability["bad"] == pytest.approx(np.mean(folds), abs=1e-12)
        assert answer.spread == pytest.approx(np.std(folds), abs=1e-12)
        assert sum(answer.probability.values()) == pytest.approx(1, abs=1e-12)
        assert answer.decision == ("bad" if answer.probability["bad"] >= manifest.threshold else "good")
        assert answer.bundle == predictor.bundle.digest
        assert answer.engine == "onnx"


@pytest.mark.parametrize(("side", "decision"), [(0.0, "bad"), (1e-9, "good")])
def test_a_probability_on_the_threshold_is_decided_positive(predictor, good_cases, alone, monkeypatch, side, decision):
    case = good_cases[0]
    manifest = replace(predictor.bundle.manifest, threshold=alone[case.name] + side)
    monkeypatch.setattr(predictor, "_manifest", manifest)
    assert predictor.predict(case)[0].decision == decision


def with_radiomics(case: Path, target: Path, change) -> Path:
    copy = copy_case(case, target)
    values = read_table(copy / "radiomics.csv", case_id="x")
    change(values)
    write_table(copy / "radiomics.csv", values)
    return copy


def test_missing_features_are_counted_and_named(predictor, good_cases, tmp_path):
    def blank(values):
        values[[3, 10, 500, 600, 700, 800, 900]] = np.nan

    (answer,) = predictor.predict(with_radiomics(good_cases[0], tmp_path / "blank", blank))
    (notice,) = [n for n in answer.warnings if n.code == "radiomics-imputed"]
    assert notice.count == 7
    assert notice.names == tuple(FEATURE_NAMES[i] for i in (3, 10, 500, 600, 700))
    assert "7 of 1781 radiomic features are missing" in notice.message
    assert notice.message.endswith("and 2 more")


def test_features_outside_the_training_range_are_counted_and_named(predictor, good_cases, tmp_path):
    def enlarge(values):
        values[:] = np.nan
        values[42] = 1e12

    (answer,) = predictor.predict(with_radiomics(good_cases[0], tmp_path / "large", enlarge))
    (notice,) = [n for n in answer.warnings if n.code == "radiomics-clipped"]
    assert (notice.count, notice.names) == (1, (FEATURE_NAMES[42],))
    assert notice.message.startswith("1 of 1781 radiomic features lie outside the range seen in training")


def test_a_text_longer_than_the_encoder_takes_is_reported(predictor, good_cases, tmp_path):
    copy = copy_case(good_cases[0], tmp_path / "long")
    record = json.loads((copy / "clinical.json").read_text())
    record["report"] = "The liver is nodular and the spleen is large. " * 200
    (copy / "clinical.json").write_text(json.dumps(record))
    (answer,) = predictor.predict(copy)
    (notice,) = [n for n in answer.warnings if n.code == "text-truncated"]
    assert "cut to its first 512 tokens" in notice.message
    assert "text-truncated" not in codes(predictor.predict(good_cases[0])[0])


def test_a_model_trained_on_synthetic_cases_says_so(predictor, good_cases, monkeypatch):
    synthetic: Manifest = replace(predictor.bundle.manifest, synthetic=True)
    monkeypatch.setattr(predictor._reader, "_manifest", synthetic)
    assert "synthetic-model" in codes(predictor.predict(good_cases[0])[0])
    monkeypatch.setattr(predictor._reader, "_manifest", replace(synthetic, synthetic=False))
    assert "synthetic-model" not in codes(predictor.predict(good_cases[0])[0])


def test_tmi_clnet_with_all_modalities_is_no_other_network(predictor, good_cases):
    assert "other-network" not in codes(predictor.predict(good_cases[0])[0])


def test_an_answer_that_is_no_number_is_refused_and_not_told(predictor, good_cases, monkeypatch):
    original = predictor_module.fuse

    def second_row_is_nan(*arguments):
        logits = original(*arguments).copy()
        logits[1, 0, 0] = np.nan
        return logits

    monkeypatch.setattr(predictor_module, "fuse", second_row_is_nan)
    answers = predictor.predict(good_cases[:3], batch=3)
    assert [type(a) for a in answers] == [Prediction, RejectedCase, Prediction]
    assert answers[1].code == "answer-not-finite"
    assert answers[1].case_id == good_cases[1].name


def test_a_case_that_needs_what_is_not_installed_is_refused_alone(predictor, good_cases, monkeypatch):
    original = inputs_module.prepare_case

    def no_extraction(case, *settings, **options):
        if case.case_id == good_cases[0].name:
            raise UnavailableError("extraction needs pyradiomics", fix="pip install 'tmi-clnet[radiomics]'")
        return original(case, *settings, **options)

    monkeypatch.setattr(inputs_module, "prepare_case", no_extraction)
    first, second = predictor.predict(good_cases[:2], batch=2)
    assert (first.code, first.fix) == ("unavailable", "pip install 'tmi-clnet[radiomics]'")
    assert isinstance(second, Prediction)


def test_one_case_id_twice_is_wrong_usage(predictor, good_cases, tmp_path):
    copy = copy_case(good_cases[0], tmp_path / good_cases[0].name)
    for cases in ([good_cases[0], copy], [good_cases[0], open_case(copy)]):
        with pytest.raises(UsageError, match="case id P000 is given twice"):
            predictor.predict(cases)


def test_no_case_and_no_batch_are_wrong_usage(predictor, good_cases):
    with pytest.raises(UsageError, match="no case given"):
        predictor.predict([])
    with pytest.raises(UsageError, match="a batch of 0 cases"):
        predictor.stream(good_cases, batch=0)


def test_a_path_as_text_and_a_case_answer_like_a_path(predictor, good_cases, alone):
    case = good_cases[0]
    for given in (str(case), open_case(case), [str(case)]):
        assert p_bad(predictor.predict(given)) == pytest.approx({case.name: alone[case.name]}, abs=1e-12)


def test_the_record_names_engine_package_precision_and_threads(predictor):
    import onnxruntime

    record = predictor.engine_record
    assert (record.name, record.asked, record.reason) == ("onnx", "onnx", "asked for")
    assert record.package == f"onnxruntime {onnxruntime.__version__}"
    assert (record.precision, record.threads) == ("float32", 1)


def test_a_changed_byte_in_any_file_of_the_bundle_is_refused(tiny_bundle, tmp_path):
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    for file in sorted(p for p in copy.rglob("*") if p.is_file()):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(DamagedError):
            Predictor.open(copy, engine="onnx")
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    Predictor.open(copy, engine="onnx").close()


def test_the_public_names_are_there_and_no_others():
    import tmi.runtime

    assert sorted(tmi.runtime.__all__) == ["FoldPrediction", "Notice", "Prediction", "Predictor", "RejectedCase"]
    assert all(getattr(tmi.runtime, name).__name__ == name for name in tmi.runtime.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Forecaster'"):
        tmi.runtime.Forecaster  # noqa: B018
