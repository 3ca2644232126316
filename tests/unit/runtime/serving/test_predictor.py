"""Predictor: each case gets its own result, whatever its batch, order and neighbours."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import tmi.runtime.serving.pipeline as pipeline_module
from tmi.runtime import Prediction, Predictor, RejectedCase
from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.table import read_table, write_table


def p_bad(results) -> dict[str, float]:
    return {result.case_id: result.probability["bad"] for result in results}


def codes(prediction: Prediction) -> list[str]:
    return [notice.code for notice in prediction.warnings]


def copy_case(case: Path, target: Path) -> Path:
    return Path(shutil.copytree(case, target))


@pytest.fixture(scope="module")
def alone(predictor, good_cases) -> dict[str, float]:
    """Each case predicted by itself."""
    return p_bad(result for case in good_cases for result in predictor.predict(case))


def test_different_cases_get_different_results(alone):
    """The cases of these tests are distinguishable by their results."""
    assert len({round(p, 6) for p in alone.values()}) == len(alone)


@pytest.mark.parametrize("batch", [2, 3, 4, 9])
def test_batch_matches_single_cases(predictor, good_cases, alone, batch):
    """A batch gives the same probabilities as its cases alone."""
    batched = p_bad(predictor.predict(good_cases, batch=batch))
    assert batched == pytest.approx(alone, abs=1e-5)


def test_results_follow_the_input_order(predictor, good_cases, alone):
    """Under any permutation each case keeps its own result."""
    for order in list(permutations(good_cases))[::5]:
        results = predictor.predict(order, batch=3)
        assert [r.case_id for r in results] == [case.name for case in order]
        assert p_bad(results) == pytest.approx(alone, abs=1e-5)


def test_rejected_case_keeps_its_position(predictor, good_cases, alone, tmp_path):
    """A rejected case keeps its position, states a code and a fix, and changes no other result."""
    missing = tmp_path / "nowhere"
    broken = copy_case(good_cases[0], tmp_path / "broken")
    (broken / "clinical.json").write_text("{")
    order = [missing, good_cases[0], broken, good_cases[1], good_cases[2], good_cases[3]]
    results = predictor.predict(order, batch=2)
    assert [r.case_id for r in results] == [case.name for case in order]
    assert [type(r) for r in results] == [RejectedCase, Prediction, RejectedCase, Prediction, Prediction, Prediction]
    assert p_bad(r for r in results if isinstance(r, Prediction)) == pytest.approx(alone, abs=1e-5)
    assert all(r.code and r.what and r.fix for r in results if isinstance(r, RejectedCase))


def test_all_cases_may_be_rejected(predictor, tmp_path):
    """A batch of rejected cases alone is returned without an error."""
    assert [r.code for r in predictor.predict([tmp_path / "a", tmp_path / "b"], batch=2)] == ["case-missing"] * 2


@pytest.mark.parametrize("batch", [1, 2])
def test_at_most_two_batches_are_in_memory(opened, good_cases, batch):
    """The number of prepared cases that are alive never exceeds two batches."""
    alive: list[weakref.ref] = []
    alive_counts: list[int] = []
    pipeline = opened.pipeline

    def counting(case, on_text_ready):
        prepared = pipeline.prepare(replace(case, folder=good_cases[int(case.case_id) % 4]), on_text_ready)
        alive.append(weakref.ref(prepared))
        alive_counts.append(sum(reference() is not None for reference in alive))
        return prepared

    cases = [Case(folder=good_cases[0], case_id=str(number)) for number in range(9)]
    results = opened.predictor(prepare=counting).stream(cases, batch=batch)
    next(results)
    assert len(alive_counts) <= 2 * batch + 1  # a case is started while the first result is returned
    assert len([*results]) == 8
    assert max(alive_counts) <= 2 * batch


def test_prediction_is_the_mean_of_the_folds(predictor, good_cases):
    """Probability is the mean of the folds, `spread` their standard deviation, the decision follows the threshold."""
    manifest = predictor.bundle.manifest
    for result in predictor.predict(good_cases):
        folds = [fold.probability["bad"] for fold in result.folds]
        assert [fold.fold for fold in result.folds] == [fold.fold for fold in manifest.folds]
        assert result.probability["bad"] == pytest.approx(np.mean(folds), abs=1e-12)
        assert result.spread == pytest.approx(np.std(folds), abs=1e-12)
        assert sum(result.probability.values()) == pytest.approx(1, abs=1e-12)
        assert result.decision == ("bad" if result.probability["bad"] >= manifest.threshold else "good")
        assert result.bundle == predictor.bundle.digest
        assert result.engine == "onnx"


@pytest.mark.parametrize(("side", "decision"), [(0.0, "bad"), (1e-9, "good")])
def test_probability_at_the_threshold_is_positive(opened, good_cases, alone, side, decision):
    """A probability equal to the threshold gives the positive class."""
    case = good_cases[0]
    changed = opened.with_manifest(threshold=alone[case.name] + side)
    assert changed.predictor().predict(case)[0].decision == decision


def with_radiomics(case: Path, target: Path, change) -> Path:
    copy = copy_case(case, target)
    values = read_table(copy / "radiomics.csv", case_id="x")
    change(values)
    write_table(copy / "radiomics.csv", values)
    return copy


def test_missing_features_are_counted_and_named(predictor, good_cases, tmp_path):
    """A notice counts the imputed features and names the first five."""

    def blank(values):
        values[[3, 10, 500, 600, 700, 800, 900]] = np.nan

    (result,) = predictor.predict(with_radiomics(good_cases[0], tmp_path / "blank", blank))
    (notice,) = [n for n in result.warnings if n.code == "radiomics-imputed"]
    assert notice.count == 7
    assert notice.names == tuple(FEATURE_NAMES[i] for i in (3, 10, 500, 600, 700))
    assert "7 of 1781 radiomic features are missing" in notice.message
    assert notice.message.endswith("and 2 more")


def test_clipped_features_are_counted_and_named(predictor, good_cases, tmp_path):
    """A notice counts and names the features outside the training range."""

    def enlarge(values):
        values[:] = np.nan
        values[42] = 1e12

    (result,) = predictor.predict(with_radiomics(good_cases[0], tmp_path / "large", enlarge))
    (notice,) = [n for n in result.warnings if n.code == "radiomics-clipped"]
    assert (notice.count, notice.names) == (1, (FEATURE_NAMES[42],))
    assert notice.message.startswith("1 of 1781 radiomic features lie outside the training range")


def test_truncated_text_is_reported(predictor, good_cases, tmp_path):
    """A text longer than the encoder's maximum length gives a notice."""
    copy = copy_case(good_cases[0], tmp_path / "long")
    record = json.loads((copy / "clinical.json").read_text())
    record["report"] = "The liver is nodular and the spleen is large. " * 200
    (copy / "clinical.json").write_text(json.dumps(record))
    (result,) = predictor.predict(copy)
    (notice,) = [n for n in result.warnings if n.code == "clinical-truncated"]
    assert "cut to its first 512 tokens" in notice.message
    assert "clinical-truncated" not in codes(predictor.predict(good_cases[0])[0])


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_model_is_reported(opened, good_cases, synthetic):
    """A model trained on synthetic cases gives a notice with every prediction."""
    (result,) = opened.with_manifest(synthetic=synthetic).predictor().predict(good_cases[0])
    assert ("synthetic-model" in codes(result)) == synthetic


def test_full_tmi_clnet_has_no_network_notice(predictor, good_cases):
    """TMI-CLNet with all modalities gives no `other-network` notice."""
    assert "other-network" not in codes(predictor.predict(good_cases[0])[0])


def test_non_finite_output_is_rejected(opened, good_cases):
    """A case whose logits are not finite is rejected; its batch is predicted."""
    pipeline = opened.pipeline

    def second_row_is_nan(*arguments):
        logits = pipeline.fuse(*arguments).copy()
        logits[1, 0, 0] = np.nan
        return logits

    results = opened.predictor(fuse=second_row_is_nan).predict(good_cases[:3], batch=3)
    assert [type(r) for r in results] == [Prediction, RejectedCase, Prediction]
    assert results[1].code == "answer-not-finite"
    assert results[1].case_id == good_cases[1].name


def test_missing_package_rejects_one_case(predictor, good_cases, monkeypatch):
    """A case that needs a missing package is rejected with its fix; the others are predicted."""
    original = pipeline_module.prepare_case

    def no_extraction(case, *settings, **options):
        if case.case_id == good_cases[0].name:
            raise UnavailableError("extraction needs pyradiomics", fix="pip install 'tmi-clnet[radiomics]'")
        return original(case, *settings, **options)

    monkeypatch.setattr(pipeline_module, "prepare_case", no_extraction)
    first, second = predictor.predict(good_cases[:2], batch=2)
    assert (first.code, first.fix) == ("unavailable", "pip install 'tmi-clnet[radiomics]'")
    assert isinstance(second, Prediction)


def test_duplicate_case_id_is_a_usage_error(predictor, good_cases, tmp_path):
    """Two cases of one id are not accepted in one call."""
    copy = copy_case(good_cases[0], tmp_path / good_cases[0].name)
    for cases in ([good_cases[0], copy], [good_cases[0], open_case(copy)]):
        with pytest.raises(UsageError, match="case id P000 is given twice"):
            predictor.predict(cases)


def test_empty_input_is_a_usage_error(predictor, good_cases):
    """No case, or a batch size below 1, raises at once."""
    with pytest.raises(UsageError, match="no case given"):
        predictor.predict([])
    with pytest.raises(UsageError, match="invalid batch size 0"):
        predictor.stream(good_cases, batch=0)


def test_str_and_case_are_accepted_like_a_path(predictor, good_cases, alone):
    """A string, a `Case` and a list give the same result as a path."""
    case = good_cases[0]
    for given in (str(case), open_case(case), [str(case)]):
        assert p_bad(predictor.predict(given)) == pytest.approx({case.name: alone[case.name]}, abs=1e-12)


def test_engine_record_describes_the_engine(predictor):
    """The record names engine, package version, precision and threads."""
    import onnxruntime

    record = predictor.engine_record
    assert (record.name, record.asked, record.reason) == ("onnx", "onnx", "asked for")
    assert record.package == f"onnxruntime {onnxruntime.__version__}"
    assert (record.precision, record.threads) == ("float32", 1)


def test_any_changed_byte_is_rejected(tiny_bundle, tmp_path):
    """A bundle with one flipped bit in any file does not open."""
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
