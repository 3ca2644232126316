"""Cohorts of clinical records alone: their inputs, and the table of text encoder against numeric baselines."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from factories.cases import write_case
from factories.nano import nano
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import Cohort, open_cohort
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.overrides import override
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.preprocessing.clinical_features import clinical_inputs, numbers
from tmi.training.cli.compare import _command_line
from tmi.training.comparison.paper_tables import BASELINES, CLINICAL, REFERENCE_MODEL
from tmi.training.comparison.plan import make_plan, select_tables
from tmi.training.comparison.report_content import BASELINES_NOTE, build_report
from tmi.training.data.dataset import prepare_cohort

SCHEMA = load_schema(None)
TEXT_ALONE = ('network.modalities=["clinical"]',)


def write_records(folder: Path, *, cases: int) -> Path:
    """Write a cohort of clinical records alone; albumin determines the label."""
    random = np.random.default_rng(5)
    rows = ["case_id,patient_id,label"]
    for i in range(cases):
        bad = i % 2 == 1
        values = {
            "sex": ("female", "male")[int(random.integers(2))],
            "albumin": round(float(random.uniform(24, 32) if bad else random.uniform(38, 48)), 1),
            "platelets": round(float(random.uniform(80, 300))),
        }
        case = folder / f"R{i:02d}"
        case.mkdir(parents=True)
        (case / "clinical.json").write_text(json.dumps({"patient_id": f"R{i:02d}", "values": values, "report": None}))
        rows.append(f"R{i:02d},R{i:02d},{'bad' if bad else 'good'}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records") / "cohort", cases=40)


def arrays_of(folder, *settings):
    return prepare_cohort(
        open_cohort(folder), override(nano(), settings), SCHEMA, store=folder.with_name("store") / "ct.npy"
    )


def test_record_is_converted_to_numbers(records):
    """Numbers are in the order of the schema's fields; a choice is encoded by its index; missing values are not
    finite.
    """
    case = open_cohort(records).cases[0]
    record = read_clinical(case, SCHEMA)
    values = dict(zip((f.name for f in SCHEMA.fields), numbers(record, SCHEMA), strict=True))
    choices = SCHEMA.by_name["sex"].choices
    assert choices is not None
    assert values["sex"] == choices.index(str(record.values["sex"]))
    assert values["albumin"] == record.values["albumin"]
    assert {name for name, value in values.items() if np.isfinite(value)} == {"sex", "albumin", "platelets"}


def test_implausible_value_rejects_record(records, tmp_path):
    """A value outside its plausible range rejects the record, as in a case with images."""
    folder = write_records(tmp_path / "cohort", cases=2)
    path = folder / "R00" / "clinical.json"
    path.write_text(path.read_text().replace('"platelets": ', '"platelets": 99999'))
    with pytest.raises(InputRejectedError) as error:
        clinical_inputs(open_cohort(folder).cases[0], nano(), SCHEMA)
    assert (error.value.code, error.value.case_id) == ("clinical-range", "R00")
    arrays = arrays_of(folder, *TEXT_ALONE)
    assert [case.case_id for case in arrays.cases] == ["R01"]
    assert [error.case_id for error in arrays.rejected] == ["R00"]


def test_records_are_enough_for_clinical_models(records):
    """A model that uses the record alone accepts cases without images; each CT is a single voxel."""
    arrays = arrays_of(records, *TEXT_ALONE)
    assert (len(arrays.cases), arrays.rejected) == (40, ())
    assert arrays.ct_N1DHW.shape == (40, 1, 1, 1, 1)
    assert all("Albumin" in text for text in arrays.texts)


def test_records_are_rejected_for_image_models(records):
    """A model that uses images rejects cases without images."""
    arrays = arrays_of(records)
    assert len(arrays.rejected) == 40
    assert {error.code for error in arrays.rejected} == {"radiomics-missing"}


def test_mixed_cohort_requires_images(tmp_path):
    """If one case of a cohort has images, every case needs them, whatever the model uses."""
    folder = write_records(tmp_path / "cohort", cases=2)
    write_case(folder / "W00", patient_id="W00")
    with (folder / "cohort.csv").open("a") as table:
        table.write("W00,W00,bad\n")
    arrays = arrays_of(folder, *TEXT_ALONE)
    assert [case.case_id for case in arrays.cases] == ["W00"]
    assert arrays.ct_N1DHW.shape == (1, 1, *nano().ct.shape_DHW)


def test_clinical_table_is_selected_by_name():
    """`clinical` selects the table, and `all` does not include it."""
    assert select_tables("clinical") == (CLINICAL,)
    assert CLINICAL not in select_tables("all")
    with pytest.raises(UsageError, match="unknown table '5'"):
        select_tables("5")


def test_baselines_table_is_selected_by_name():
    """`baselines` selects the simple models and TMI-CLNet with all modalities; the report states what they see."""
    assert select_tables("baselines") == (BASELINES,)
    assert BASELINES not in select_tables("all")
    plan = make_plan(nano(), (BASELINES,))
    assert [run.config.system.name for run in plan.runs] == [row.key for row in BASELINES.rows]
    assert plan.runs[0].config == nano()
    content = build_report(plan, {}, {}, {}, Cohort(folder=Path("none"), cases=()), (), command="")
    assert content.title == BASELINES.title
    assert content.notes == (BASELINES_NOTE,)


def test_clinical_table_uses_records_alone():
    """Every row of the clinical table uses the clinical modality alone."""
    plan = make_plan(nano(), (CLINICAL,))
    assert [run.key for run in plan.runs] == [
        REFERENCE_MODEL,
        "flags",
        "no-dropout",
        "flags-no-dropout",
        "logreg",
        "clinical-rf",
    ]
    assert {run.config.network.modalities for run in plan.runs} == {("clinical",)}
    assert [run.config.clinical.rendering for run in plan.runs][:4] == ["values", "flags", "values", "flags"]
    assert [run.config.network.text_encoder.dropout for run in plan.runs][:4] == [0.1, 0.1, 0.0, 0.0]


def test_reported_command_names_files_without_folders():
    """The command line in a report holds every given option, and files by name."""
    schema = Path("/data/of/somebody/my schema.json")
    options = {"preset": "tiny", "folds": 5, "epochs": None, "vocab": None, "schema": schema, "mask-label": 5}
    assert _command_line("clinical", [], ["train.batch_size=16"], options) == (
        "tmi compare COHORT --table clinical --preset tiny --folds 5 --schema 'my schema.json' --mask-label 5 "
        "--set train.batch_size=16 --out DIR"
    )


@pytest.mark.long
def test_clinical_table_has_no_paper_metrics(records, tmp_path):
    """The report of the clinical table has our metrics alone."""
    out = tmp_path / "out"
    outcome = tmi(
        "compare", records, "--table", "clinical", "--preset", "tiny", "--folds", "2", "--epochs", "1",
        "--set", "train.batch_size=12", "--set", "network.text_encoder.hidden_size=16",
        "--set", "network.text_encoder.layers=1", "--out", out,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader((out / "clinical.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["row"] for row in rows] == [row.key for row in CLINICAL.rows]
    assert not any(column.endswith("_paper") for column in rows[0])
    # albumin determines the label, so the baselines must find it
    assert min(float(row["roc_auc_mean"]) for row in rows[4:]) > 0.85
    text = (out / "tables.md").read_text(encoding="utf-8")
    assert f"# {CLINICAL.title}" in text
    assert "The paper has no such table." in text
    assert "| paper |" not in text
