"""Import of a table with image columns, with a mask that does not fit its CT."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from factories.cases import write_case
from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.cases.case import open_cohort

MAPPING = {
    "schema": "tmi-mapping/1",
    "case_id": {"column": "id", "prefix": "H-"},
    "label": {"column": "outcome", "values": {"0": "good", "1": "bad"}},
    "images": {"ct": "ct", "mask": "mask", "radiomics": "features"},
    "fields": {"albumin": {"column": "alb", "unit": "g/dL"}},
}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Path:
    """Files of three patients and a table; the mask of the second one lies far from its CT."""
    folder = tmp_path_factory.mktemp("hospital")
    rows = [["id", "outcome", "alb", "ct", "mask", "features"]]
    for i in range(3):
        case = write_case(folder / f"p{i}", seed=i)
        rows.append([str(i), str(i % 2), "3.8", *(f"p{i}/{n}" for n in ("ct.nii.gz", "liver.nii.gz", "radiomics.csv"))])
        if i == 1:
            mask = nib.load(case / "liver.nii.gz")
            nib.save(
                nib.Nifti1Image(np.asarray(mask.dataobj), mask.affine + np.eye(4, k=3) * 900), case / "liver.nii.gz"
            )
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    (folder / "mapping.json").write_text(json.dumps(MAPPING))
    return folder


@pytest.fixture(scope="module")
def outcome(hospital) -> CommandResult:
    return tmi(
        "import",
        hospital / "cohort",
        "--table",
        hospital / "table.csv",
        "--map",
        hospital / "mapping.json",
        "--accept-losses",
        cwd=hospital,
    )


def test_valid_rows_become_complete_cases(hospital, outcome):
    """Valid rows become complete cases; the defective row is reported without its values."""
    assert outcome.code == 3, outcome.err
    output = outcome.out + outcome.err
    assert "[mask-grid]" in output or "[mask-outside]" in output
    assert "H-1" in output
    assert "3.8" not in output
    cases = open_cohort(hospital / "cohort").cases
    assert [c.case_id for c in cases] == ["H-0", "H-2"]
    for case in cases:
        assert {"ct.nii.gz", "liver.nii.gz", "radiomics.csv", "clinical.json"} <= {
            p.name for p in case.folder.iterdir()
        }
        assert json.loads(case.clinical.read_text())["values"] == {"albumin": 38.0}


def test_imported_cohort_passes_check(hospital, outcome):
    """`tmi check` accepts the imported cohort."""
    checked = tmi("check", hospital / "cohort")
    assert checked.code == 0, checked.out
