"""Pages and explanations: each file of a case is read once, and all parts are of the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from factories.cases import write_case
from factories.opened_files import count_opens
from factories.tmi_command import tmi
from tmi.runtime import Predictor
from tmi.runtime.explanation.case_explanation import explain_case
from tmi.runtime.explanation.explainer import Explainer
from tmi.runtime.explanation.model_source import bundle_models
from tmi.runtime.report.finished_pages import inputs_digest
from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.cases.loaded import load_case
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.qc.case_checks import check_case

FILES = ("ct.nii.gz", "liver.nii.gz", "radiomics.csv", "clinical.json")


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_case(tmp_path / "cases" / "P1", seed=1)


@pytest.mark.parametrize("command", [("report",), ("explain", "--quick")])
def test_command_opens_each_file_once(nano_bundle, folder, tmp_path, command):
    """`tmi report` and `tmi explain` open each file of a case once."""
    with count_opens(folder) as opened:
        outcome = tmi(*command, folder, "--bundle", nano_bundle, "--out", tmp_path / "out", "--threads", 1)
    assert outcome.code == 0, outcome.err
    assert opened == dict.fromkeys(FILES, 1)


def test_page_is_of_the_bytes_that_were_predicted(nano_bundle, folder, tmp_path):
    """Files that change between the prediction and the page reach none of the page's parts."""
    with Predictor.open(nano_bundle, engine="onnx", threads=1) as predictor:
        check_page(predictor, folder, tmp_path)


def check_page(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    schema, source = load_schema(), bundle_models(predictor.bundle, threads=1)
    explainer = Explainer(source, source.select_folds("ensemble"))
    loaded, original = load_case(folder), open_case(folder)
    (prediction,) = predictor.predict(loaded)
    findings, record = check_case(original), read_clinical(original, schema)
    digest = page_digest(original, predictor)
    other = write_case(tmp_path / "other", seed=2)
    for name in FILES:
        shutil.copy(other / name, folder / name)
    explained = explain_case(loaded, explainer, steps=0, sanity=False)
    assert explained.explanation.probability == pytest.approx(prediction.probability, abs=1e-5)
    assert (check_case(loaded), read_clinical(loaded, schema)) == (findings, record)
    assert page_digest(loaded, predictor) == digest
    changed = explain_case(original, explainer, steps=0, sanity=False)
    assert changed.explanation.probability != pytest.approx(prediction.probability, abs=1e-5), "the other files differ"
    assert page_digest(original, predictor) != digest


def page_digest(case: Case, predictor: Predictor) -> str:
    return inputs_digest(case, bundle=predictor.bundle, engine=predictor.engine_record, quick=False, version="1")
