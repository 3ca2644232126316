"""Trust of predictions: p-values against the training cases, in every document and on every engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from factories.planted_faults import manifest_at
from factories.tmi_command import tmi
from tmi.runtime import Predictor
from tmi.runtime.serving.postprocessing import to_prediction
from tmi.runtime.serving.results import ALERTS, document_schema
from tmi.runtime.serving.trust import NOT_ASSESSED
from tmi.toolkit.errors import UsageError
from tmi.toolkit.issues.issue import Issue


@pytest.fixture(scope="module")
def case(synthetic_cohort: Path) -> Path:
    """A case that the statistics were fitted on."""
    return sorted(p for p in synthetic_cohort.iterdir() if p.is_dir())[0]


@pytest.fixture
def strange_case(case: Path, tmp_path: Path) -> Path:
    """The same case with half of its record missing and the other numbers at a tenth: another unit."""
    folder = shutil.copytree(case, tmp_path / "strange")
    record = json.loads((folder / "clinical.json").read_text())
    values = record["values"]
    for number, name in enumerate(sorted(values)):
        if number % 2:
            values[name] = None
    (folder / "clinical.json").write_text(json.dumps(record))
    return folder


def predict(bundle: Path, *cases: Path, engine: str = "onnx", level: float | None = None):
    with Predictor.open(bundle, engine=engine, threads=1, trust_level=level) as predictor:
        return predictor.predict(cases)


def test_known_case_is_trusted_and_a_strange_one_is_not(trusted_bundle, case, strange_case):
    """The verdict is the joint p-value's; an untrusted case has an alert, which comes first."""
    known, strange = predict(trusted_bundle, case, strange_case)
    assert (known.trust.verdict, known.trust.cases) == ("trusted", 60)
    assert (known.reasons, known.decision) == ((), max(known.probability, key=known.probability.get))
    assert [w.code for w in known.warnings if w.code == "radiomics-clipped"], "the scaler is a random one"
    assert strange.trust.verdict == strange.reasons[0] == strange.warnings[0].code == "not-trusted"
    assert strange.trust.p_values["clinical"] == min(strange.trust.p_values.values()) <= 0.05
    assert strange.trust.p_values["image"] == known.trust.p_values["image"]
    assert "clinical 0.0" in strange.warnings[0].message


def test_statistics_change_no_prediction(trusted_bundle, nano_bundle, case, strange_case):
    """Probabilities with and without statistics are equal to the last bit."""
    for assessed, plain in zip(
        predict(trusted_bundle, case, strange_case), predict(nano_bundle, case, strange_case), strict=True
    ):
        assert assessed.probability == plain.probability
        assert assessed.folds == plain.folds
        assert plain.trust is None


@pytest.mark.parametrize("engine", ["openvino", "torchscript", "eager"])
def test_every_engine_gives_the_same_verdict(trusted_bundle, case, strange_case, engine):
    """Verdict and p-values of each engine are those of ONNX Runtime."""
    cases = (case, strange_case)
    expected = [result.trust for result in predict(trusted_bundle, *cases)]
    found = [result.trust for result in predict(trusted_bundle, *cases, engine=engine)]
    assert [trust.verdict for trust in found] == [trust.verdict for trust in expected]
    sets = [[r.prediction_set.classes for r in predict(trusted_bundle, *cases, engine=e)] for e in ("onnx", engine)]
    assert sets[0] == sets[1]
    for ours, reference in zip(found, expected, strict=True):
        assert ours.p_values == pytest.approx(reference.p_values, abs=2 / 61)


def test_level_decides(trusted_bundle, case):
    """A p-value at the level is not trusted; a level below the smallest possible p-value is said to be too small."""
    (result,) = predict(trusted_bundle, case)
    (at_level,) = predict(trusted_bundle, case, level=result.trust.p_value)
    assert at_level.reasons == ("not-trusted", *result.reasons)
    (too_small,) = predict(trusted_bundle, case, level=0.016)
    assert too_small.trust.verdict == "too-few-cases"
    assert too_small.reasons == ("unlike-training",), "the rule of thumb is an alert where no p-value can be given"


def test_level_without_statistics_is_rejected(nano_bundle, case):
    """A level has no effect without statistics, so it is an error; so is a level that is no probability."""
    with pytest.raises(UsageError, match="no statistics of its training cases"):
        predict(nano_bundle, case, level=0.05)
    outcome = tmi("predict", case, "--bundle", nano_bundle, "--engine", "onnx", "--trust-level", "0.1")
    assert outcome.code == 2


def test_level_is_a_probability(trusted_bundle, case):
    """0 and 1 decide the same for every case."""
    with pytest.raises(UsageError, match="no probability between 0 and 1"):
        predict(trusted_bundle, case, level=1.0)


def test_command_states_trust_first(trusted_bundle, nano_bundle, case, strange_case):
    """Table, JSON and CSV have the verdict; a bundle without statistics is said not to assess trust."""
    words = ("predict", case, strange_case, "--engine", "onnx", "--threads", 1, "--bundle")
    table = tmi(*words, trusted_bundle).out
    assert table.startswith("attention: strange: out of distribution")
    assert "1 of 2 cases not trusted at level 0.05, against 60 held-out training cases" in table
    document = tmi(*words, trusted_bundle, "--json").document
    jsonschema.validate(document, document_schema())
    assert document["alerts"][0]["code"] == "not-trusted"
    assert document["bundle"]["trust"] == {"level": 0.05, "cases": 60}
    assert [r["trust"]["verdict"] for r in document["results"]] == ["trusted", "not-trusted"]
    assert NOT_ASSESSED in tmi(*words, nano_bundle).out
    plain = tmi(*words, nano_bundle, "--json").document
    jsonschema.validate(plain, document_schema())
    assert [r["trust"] for r in plain["results"]] == [None, None]


def test_log_is_resumed_at_its_level_only(trusted_bundle, case, tmp_path):
    """A finished result depends on the level, so another level cannot continue its log."""
    words = (
        "predict",
        case,
        "--bundle",
        trusted_bundle,
        "--engine",
        "onnx",
        "--threads",
        1,
        "-o",
        tmp_path / "r.jsonl",
    )
    assert tmi(*words).code == 0
    assert tmi(*words, "--resume").code == 0
    assert "another trust_level" in tmi(*words, "--resume", "--trust-level", 0.2).err


def test_prediction_set_is_in_every_document(trusted_bundle, nano_bundle, case):
    """Table and JSON have the set at the given coverage; it cannot be given with too few calibration cases."""
    words = ("predict", case, "--engine", "onnx", "--threads", 1, "--bundle")
    document = tmi(*words, trusted_bundle, "--json", "--coverage", "0.8").document
    jsonschema.validate(document, document_schema())
    found = document["results"][0]["prediction_set"]
    assert (found["coverage"], found["cases"]) == (0.8, {"good": 60, "bad": 60})
    assert set(found["classes"]) == {name for name, p in found["p_values"].items() if p > 0.2}
    assert "prediction set at coverage 0.9: {" in tmi(*words, trusted_bundle).out
    assert "a coverage of 0.99 cannot be given" in tmi(*words, trusted_bundle, "--coverage", "0.99").out
    assert tmi(*words, trusted_bundle, "--coverage", "1").code == 2
    assert tmi(*words, nano_bundle, "--json").document["results"][0]["prediction_set"] is None


@pytest.mark.parametrize(
    ("codes", "decision"),
    [
        ([], "bad"),
        (["radiomics-extracted"], "bad"),
        (["not-trusted"], "not-trusted"),
        (["unlike-training"], "not-decided"),
        (["clinical-incomplete", "radiomics-clipped"], "not-decided"),
        (["not-trusted", "liver-place"], "not-decided"),
    ],
)
def test_alert_withholds_the_decision(trusted_bundle, nano_bundle, codes, decision):
    """A bundle with statistics gives no class to a case with an alert; one without keeps its decisions."""
    notices = tuple(Issue.of(code, "message", "fix") for code in codes)
    logits = np.array([[[0.0, 1.0], [0.0, 1.0]]], np.float32)
    for bundle, expected in ((trusted_bundle, decision), (nano_bundle, "bad")):
        result = to_prediction(
            "P1", logits, manifest=manifest_at(bundle), digest="0" * 64, engine="onnx", notices=notices
        )
        assert result.decision == expected
        assert result.reasons == tuple(code for code in codes if code in ALERTS)
        assert result.probability["bad"] == pytest.approx(1 / (1 + np.exp(-1)))


def test_clipped_features_count_by_their_p_value(trusted_bundle, nano_bundle, case):
    """More than a tenth of the features clipped is an alert only where trust cannot be assessed."""
    (assessed,), (plain,) = predict(trusted_bundle, case), predict(nano_bundle, case)
    assert assessed.trust.verdict == "trusted"
    assert "unlike-training" not in {w.code for w in assessed.warnings}
    assert plain.reasons == ("unlike-training",)
    assert {w.code for w in plain.warnings} == {w.code for w in assessed.warnings} | {"unlike-training"}


def test_strict_ends_with_3_for_a_withheld_decision(trusted_bundle, strange_case):
    """Without `--strict` a withheld decision is a result (exit code 0)."""
    words = ("predict", strange_case, "--bundle", trusted_bundle, "--engine", "onnx", "--threads", 1)
    assert tmi(*words).code == 0
    strict = tmi(*words, "--strict")
    assert strict.code == 3
    assert "not-trusted" in strict.out
