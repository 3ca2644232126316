"""Invalid cases among valid ones: each is rejected with a code, a file and a fix, and the valid ones are predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factories.bad_cases import FAULTS, write_bad_cases
from factories.cases import write_case
from factories.tmi_command import CommandResult, tmi


@pytest.fixture(scope="module")
def good_cases(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("good")
    for seed, name in enumerate(("good_first", "good_last")):
        write_case(folder / name, seed=seed)
    return [folder / "good_first", folder / "good_last"]


@pytest.fixture(scope="module")
def outcome(good_cases, tmp_path_factory, tiny_bundle) -> CommandResult:
    """One command over a valid case, every invalid case, a missing folder and a second valid case."""
    folder = tmp_path_factory.mktemp("bad")
    first, last = good_cases
    cases = (first, *write_bad_cases(folder, first), folder / "not_there", last)
    options = ("--bundle", tiny_bundle, "--engine", "onnx", "--threads", 1, "--batch", 2, "--json")
    return tmi("predict", *cases, *options)


@pytest.fixture(scope="module")
def results(outcome) -> dict[str, dict[str, Any]]:
    return {result["case_id"]: result for result in outcome.document["results"]}


@pytest.mark.parametrize("name", FAULTS)
def test_invalid_case_is_rejected_with_code_and_fix(results, outcome, name):
    """Its result has the code, names the file and suggests a fix, and standard error repeats them."""
    result, fault = results[name], FAULTS[name]
    assert result["status"] == "refused"
    assert result["code"] == fault.code
    assert fault.message in result["what"]
    assert result["fix"]
    assert f"error: case {name}: {result['what']} [{fault.code}]\n  fix: {result['fix']}" in outcome.err


def test_missing_folder_is_rejected(results):
    """A case folder that does not exist is rejected as `case-missing`."""
    assert results["not_there"]["code"] == "case-missing"


def test_valid_cases_are_not_affected_by_invalid_ones(good_cases, results, tiny_bundle):
    """A valid case has the probability that it has without the invalid cases."""
    alone = tmi("predict", *good_cases, "--bundle", tiny_bundle, "--engine", "onnx", "--threads", 1, "--json")
    assert alone.code == 0
    for expected in alone.document["results"]:
        assert results[expected["case_id"]]["status"] == "predicted"
        assert results[expected["case_id"]]["probability"] == pytest.approx(expected["probability"], abs=1e-5)


def test_results_keep_input_order_and_exit_code_is_3(results, outcome):
    """Results come in the order of the input, and the exit code reports that cases were rejected."""
    assert list(results) == ["good_first", *FAULTS, "not_there", "good_last"]
    assert outcome.document["counts"] == {"predicted": 2, "refused": len(FAULTS) + 1}
    assert outcome.code == 3


def test_output_has_no_traceback_and_no_patient_value(outcome, good_cases):
    """Neither stream has a traceback, a patient id or a value of a record."""
    printed = outcome.out + outcome.err
    assert "Traceback" not in printed
    for case in good_cases:
        record = json.loads((case / "clinical.json").read_text())
        assert record["patient_id"] not in printed
        assert not [v for k, v in record["values"].items() if isinstance(v, float) and f": {v}" in printed]
