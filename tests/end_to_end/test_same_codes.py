"""One problem has one code, message and fix in `tmi check`, `predict`, `import`, `radiomics` and `report`."""

from __future__ import annotations

import json
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from factories.good_cohort import write_good_cohort
from factories.planted_cases import FAULTS
from factories.tmi_command import tmi
from tmi.toolkit.issues.codes import CASE_CODES, CODES
from tmi.toolkit.qc.check_registry import ALERTS

OF_CHECK_ALONE = frozenset(
    {"clinical-date", "dates-apart", "radiomics-stale", "duplicate-ct", "duplicate-radiomics", "duplicate-record",
     "patient-mismatch"}
)  # fmt: skip
"""Codes that need other cases, the cohort table or a record's history, which a prediction does not read."""
PLANTED = {
    plant.code: plant
    for plant in FAULTS.values()
    if plant.code not in OF_CHECK_ALONE | {"case-missing"} and not plant.recompute
}
"""Code -> a fault of one case that has it."""
IMPORTED = ("ct-nan", "ct-8bit", "ct-unit", "ct-padding", "mask-values", "mask-edge", "clinical-malformed")
"""Faults of files that an import takes."""
EXTRACTED = ("ct-missing", "ct-nan", "ct-8bit", "mask-grid", "mask-empty", "mask-flipped", "mask-nan")
"""Faults that reject a case before its features are extracted."""

Issues = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with one planted case for each code, named by it."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "cases").mkdir()
    good = write_good_cohort(folder / "good")
    for code, plant in PLANTED.items():
        cohort = shutil.copytree(good, folder / "one")
        plant.corrupt(cohort / "C1")
        shutil.move(cohort / "C1", folder / "cases" / code)
        shutil.rmtree(cohort)
    return folder / "cases"


def by_case(issues: list[dict[str, Any]]) -> dict[str, Issues]:
    """Case -> code -> issue."""
    found: dict[str, Issues] = {}
    for issue in issues:
        found.setdefault(issue["case_id"], {})[issue["code"]] = issue
    return found


@pytest.fixture(scope="module")
def checked(corpus) -> dict[str, Issues]:
    return by_case(tmi("check", corpus, "--json").document["findings"])


@pytest.fixture(scope="module")
def predicted(corpus, nano_bundle) -> dict[str, dict[str, Any]]:
    outcome = tmi("predict", corpus, "--bundle", nano_bundle, "--engine", "onnx", "--json", "--no-verify")
    return {result["case_id"]: result for result in outcome.document["results"]}


def issues_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Issues of a result of `tmi predict --json`."""
    return result["warnings"] if result["status"] == "predicted" else result["issues"]


@pytest.mark.parametrize("code", PLANTED)
def test_prediction_has_the_code_of_the_check(code, checked, predicted):
    """A planted fault is in both documents, as the same issue; a prediction has no code that only it knows."""
    result, findings = predicted[code], checked[code]
    issues = {issue["code"]: issue for issue in issues_of(result)}
    assert issues[code]["case_id"] == code
    rejected = findings[code]["severity"] == "error"
    assert result["status"] == ("refused" if rejected else "predicted")
    if rejected:
        assert (result["code"], result["fix"]) == (code, findings[code]["fix"])
    for other in set(issues) & set(CASE_CODES) - {"clinical-truncated"} - ALERTS:
        assert issues[other] == findings[other]
    if code in ALERTS:
        assert issues[code]["message"] == f"{findings[code]['message']}; do not rely on the prediction"
    assert set(issues) <= set(CODES)


@pytest.mark.parametrize("code", IMPORTED)
def test_import_has_the_code_of_the_check(code, corpus, checked, tmp_path):
    """A planted fault is found by its code when its files are imported, whether or not a case is written."""
    case = corpus / code
    files = ("--ct", case / "ct.nii.gz", "--mask", case / "liver.nii.gz", "--clinical", case / "clinical.json")
    document = tmi("import", tmp_path / code, *files, "--json").document
    (issue,) = (found for found in document["findings"] if found["code"] == code)
    assert {**issue, "message": "", "fix": ""} == {**checked[code][code], "message": "", "fix": ""}
    assert issue["fix"]


def test_radiomics_has_the_code_of_the_check(corpus, tmp_path):
    """A case that is rejected before the extraction has the code of its check."""
    for code in EXTRACTED:
        shutil.copytree(corpus / code, tmp_path / code)
        (tmp_path / code / "radiomics.csv").unlink()
    outcome = tmi("radiomics", tmp_path, "--jobs", 1)
    assert outcome.code == 3
    assert [code for code in EXTRACTED if f"case {code}: " not in outcome.err or f"[{code}]" not in outcome.err] == []


def test_report_and_journal_have_the_code_of_the_check(corpus, checked, nano_bundle, tmp_path):
    """Page, rejection and journal name code and fix of a warning and of an error."""
    cases = (corpus / "mask-edge", corpus / "mask-grid")
    bundle = ("--bundle", nano_bundle, "--engine", "onnx")
    outcome = tmi("report", *cases, *bundle, "--out", tmp_path / "report", "--quick")
    assert outcome.code == 3
    assert f"[mask-grid]\n  fix: {checked['mask-grid']['mask-grid']['fix']}" in outcome.err
    page = unescape((tmp_path / "report" / "cases" / "mask-edge.html").read_text())
    issue = checked["mask-edge"]["mask-edge"]
    row = f'<th scope="row">mask-edge</th><td>{issue["message"]}</td><td>{issue["fix"]}</td>'
    assert page.count(row) == 1
    journal = tmp_path / "answers.jsonl"
    assert tmi("predict", *cases, *bundle, "--no-verify", "-o", journal).code == 3
    results = {line["case_id"]: line for line in map(json.loads, journal.read_text().splitlines()[1:])}
    for code in ("mask-edge", "mask-grid"):
        assert checked[code][code] in issues_of(results[code])
