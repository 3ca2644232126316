"""Alerts: warnings that stand first in a prediction, in the document and above the table."""

from __future__ import annotations

import shutil
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from factories.paths import ROOT
from factories.tmi_command import CommandResult, tmi
from tmi.runtime.bundle.reader import inspect_bundle
from tmi.runtime.cli.tables.predictions import print_table
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.input_warnings import case_notices
from tmi.runtime.serving.results import Issue, document_schema, result_from_json
from tmi.toolkit.preprocessing.pipeline import PreparedCase

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"
R = 1781
"""Number of radiomic features."""


def notices(*, clipped: int = 0, imputed: int = 0, alerts: tuple[Issue, ...] = ()) -> list[tuple[str, int | None]]:
    """Code and count of the notices for so many features, which are the last ones, and for the case's own alerts."""
    case = PreparedCase(
        case_id="P1",
        patient_id=None,
        ct_1DHW=np.zeros((1, 1, 1, 1), np.float32),
        radiomics_F=np.zeros(R),
        text="",
        warnings=(*alerts, Issue.of("ct-unit", "x", "fix")),
    )
    order = np.arange(R)
    manifest = replace(inspect_bundle(PUBLISHED / "bundle").manifest, synthetic=False)
    found = case_notices(
        case,
        imputed_R=order >= R - imputed,
        clipped_R=order >= R - clipped,
        modalities=manifest.modalities,
        synthetic=manifest.synthetic,
        system="tmi-clnet",
    )
    return [(n.code, n.count) for n in found]


@pytest.fixture
def published_copy(tmp_path):
    return shutil.copytree(PUBLISHED, tmp_path / "published")


@pytest.fixture(scope="module")
def words() -> tuple[object, ...]:
    """`tmi predict` with the published bundle and its case, 762 of whose features lie outside the training range."""
    return ("predict", PUBLISHED / "case", "--bundle", PUBLISHED / "bundle", "--engine", "onnx", "--threads", 1)


@pytest.fixture(scope="module")
def document(words) -> CommandResult:
    return tmi(*words, "--json")


def test_more_than_a_tenth_is_an_alert_and_stands_first():
    """178 of 1,781 features are a notice, 179 an alert before every other notice; the notice stays."""
    assert notices(clipped=178) == [("ct-unit", None), ("radiomics-clipped", 178)]
    assert notices(clipped=179) == [("unlike-training", 179), ("ct-unit", None), ("radiomics-clipped", 179)]


def test_missing_features_are_an_alert_too():
    """More than a tenth of missing features is an alert of its own."""
    assert notices(imputed=178)[0] == ("ct-unit", None)
    assert notices(imputed=R, clipped=R)[:3] == [("unlike-training", R), ("radiomics-incomplete", R), ("ct-unit", None)]


def test_alerts_of_the_checks_stand_first():
    """An empty record and a mask elsewhere stand before the alerts of the features."""
    own = (
        Issue.of("clinical-incomplete", "42 of 42 x", "fix", count=42),
        Issue.of("liver-place", "y", "fix"),
    )
    expected = [("clinical-incomplete", 42), ("liver-place", None), ("unlike-training", R), ("ct-unit", None)]
    assert notices(clipped=R, alerts=own)[:4] == expected


def test_empty_record_is_an_alert_in_document_table_and_csv(published_copy):
    """The number of missing fields is in the JSON document, above the table, and its code in the row."""
    case = published_copy / "case"
    (case / "clinical.json").write_text('{"patient_id": "case", "values": {}}')
    words = ("predict", case, "--bundle", published_copy / "bundle", "--engine", "onnx", "--threads", 1)
    document = tmi(*words, "--json").document
    jsonschema.validate(document, document_schema())
    alert = document["alerts"][0]
    assert (alert["code"], alert["count"]) == ("clinical-incomplete", 3)
    assert alert["message"].startswith("3 of 3 fields of clinical.json are missing")
    lines = tmi(*words).out.splitlines()
    assert lines[0].startswith("attention: case: 3 of 3 fields of clinical.json are missing")


def test_alert_is_at_the_top_of_the_document(document):
    """The document starts with the alerts; the result lists the alert first, and the schema holds."""
    jsonschema.validate(document.document, document_schema())
    assert document.out.startswith('{\n  "alerts": [\n')
    (alert,) = document.document["alerts"]
    (result,) = document.document["results"]
    assert alert == {"case_id": "case", **result["warnings"][0]}
    assert (alert["code"], alert["count"]) == ("unlike-training", 762)
    assert "762 of 1781 radiomic features lie outside the training range" in alert["message"]
    assert [w["code"] for w in result["warnings"]].count("radiomics-clipped") == 1


def test_alert_is_printed_above_the_table(words):
    """The table's first line is the alert, and the case's row names it."""
    lines = tmi(*words).out.splitlines()
    assert lines[0].startswith("attention: case: 762 of 1781 radiomic features lie outside the training range")
    assert lines[0].endswith("[unlike-training]")
    (row,) = [line for line in lines if line.startswith("\u2502 case ")]
    assert "unlike-training" in row
    assert "radiomics-clipped" not in row


def test_alerts_of_several_cases_share_one_line(document, capsys):
    """Cases of one alert are listed with their counts; a case without an alert is not."""
    first = result_from_json(document.document["results"][0])
    quiet = replace(first, case_id="Q", warnings=first.warnings[1:])
    bundle = inspect_bundle(PUBLISHED / "bundle")
    record = EngineRecord(**document.document["engine"])
    print_table([first, quiet, replace(first, case_id="Z")], bundle=bundle, engine=record)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("attention: case 762, Z 762 of 1781 radiomic features lie outside")
    print_table([quiet], bundle=bundle, engine=record)
    assert "attention" not in capsys.readouterr().out
    elsewhere = Issue.of("liver-place", "elsewhere", "fix")
    own = [replace(quiet, case_id=i, warnings=(elsewhere,)) for i in "AB"]
    print_table(own, bundle=bundle, engine=record)
    assert capsys.readouterr().out.startswith("attention: A, B: elsewhere [liver-place]")
