"""Bad input is refused with its code, its file and a mend, and the cases beside it are predicted all the same."""

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
    """A good case, every bad one, and a good case again, in one command."""
    folder = tmp_path_factory.mktemp("bad")
    first, last = good_cases
    cases = (first, *write_bad_cases(folder, first), folder / "not_there", last)
    options = ("--bundle", tiny_bundle, "--engine", "onnx", "--threads", 1, "--batch", 2, "--json")
    return tmi("predict", *cases, *options)


@pytest.fixture(scope="module")
def results(outcome) -> dict[str, dict[str, Any]]:
    return {result["case_id"]: result for result in outcome.document["results"]}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_refused_with_its_code_its_file_and_a_mend(results, outcome, name):
    result, fault = results[name], FAULTS[name]
    assert result["status"] == "refused"
    assert result["code"] == fault.code
    assert fault.message in result["what"]
    assert result["fix"]
    assert f"error: case {name}: {result['what']} [{fault.code}]\n  fix: {result['fix']}" in outcome.err


def test_a_folder_that_is_not_there_is_refused(results):
    assert results["not_there"]["code"] == "case-missing"


def test_the_good_cases_are_predicted_as_if_the_bad_ones_were_not_there(good_cases, results, tiny_bundle):
    alone = tmi("predict", *good_cases, "--bundle", tiny_bundle, "--engine", "onnx", "--threads", 1, "--json")
    assert alone.code == 0
    for expected in alone.document["results"]:
        assert results[expected["case_id"]]["status"] == "predicted"
        assert results[expected["case_id"]]["probability"] == pytest.approx(expected["probability"], abs=1e-5)


def test_the_order_of_the_input_is_kept_and_the_exit_code_is_3(results, outcome):
    assert list(results) == ["good_first", *FAULTS, "not_there", "good_last"]
    assert outcome.document["counts"] == {"predicted": 2, "refused": len(FAULTS) + 1}
    assert outcome.code == 3


def test_no_traceback_and_no_value_of_a_patient_is_told(outcome, good_cases):
    told = outcome.out + outcome.err
    assert "Traceback" not in told
    for case in good_cases:
        record = json.loads((case / "clinical.json").read_text())
        assert record["patient_id"] not in told
        assert not [v for k, v in record["values"].items() if isinstance(v, float) and f": {v}" in told]
