"""`tmi check` on small cases: one bad case stops no other, nothing is changed, and what is told names case and code.

Every single check has its planted fault in `test_planted_cases.py`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from factories.cases import AFFINE, write_case, write_cohort
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import Case
from tmi.toolkit.qc.case_checks import check_case

ROOMY = AFFINE.copy()
ROOMY[2, 2] = 10.0  # with the builder's own 9 mm the liver stays just below the usual volumes


def move_mask(folder: Path) -> None:
    image = nib.load(folder / "liver.nii.gz")
    affine = image.affine.copy()
    affine[2, 3] += 9.0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), folder / "liver.nii.gz")


def pad(folder: Path) -> None:
    """A corner as scanners fill it outside their field of view."""
    image = nib.load(folder / "ct.nii.gz")
    array = np.asarray(image.dataobj).copy()
    array[:6, :6] = -2000
    nib.save(nib.Nifti1Image(array, image.affine), folder / "ct.nii.gz")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(folder=write_case(tmp_path / "P1", affine=ROOMY), case_id="P1")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "cohort", cases=4, affine=ROOMY)


def test_everything_that_is_wrong_is_found_and_not_only_the_first_thing(case):
    pad(case.folder)
    move_mask(case.folder)
    (case.folder / "radiomics.csv").write_text("a\n1\n")
    assert {f.code for f in check_case(case)} == {"ct-padding", "mask-grid", "radiomics-columns"}


def test_a_mask_is_not_needed_where_the_features_are_given(tmp_path):
    folder = write_case(tmp_path / "P1", with_mask=False)
    assert check_case(Case(folder=folder, case_id="P1")) == []


def test_a_good_cohort_ends_with_0_and_says_so(cohort):
    outcome = tmi("check", cohort)
    assert outcome.code == 0
    assert outcome.out == "4 case(s): 4 good, 0 with warnings, 0 refused\n"


def test_findings_are_told_with_case_code_and_fix_and_end_with_3(cohort):
    move_mask(cohort / "C001")
    pad(cohort / "C002")
    outcome = tmi("check", cohort)
    assert outcome.code == 3
    first, mend, second, _, last = outcome.out.splitlines()
    assert first.startswith("error: case C001: liver.nii.gz lies on another grid")
    assert first.endswith("[mask-grid]")
    assert mend.startswith("  fix: ")
    assert second.startswith("warning: case C002: ct.nii.gz is padded: 864 voxels of -2000 HU")
    assert last == "4 case(s): 2 good, 1 with warnings, 1 refused"


def test_two_cases_with_one_ct_are_told_apart_from_good_ones(cohort):
    shutil.copy(cohort / "C000" / "ct.nii.gz", cohort / "C003" / "ct.nii.gz")
    (finding,) = tmi("check", cohort, "--json").document["findings"]
    assert (finding["case_id"], finding["code"]) == ("C003", "duplicate-ct")
    assert "case C000" in finding["message"]


def test_a_record_of_another_patient_is_found_in_a_cohort(cohort):
    record = json.loads((cohort / "C000" / "clinical.json").read_text())
    (cohort / "C000" / "clinical.json").write_text(json.dumps(record | {"patient_id": "Jane Doe"}))
    outcome = tmi("check", cohort)
    assert "[patient-mismatch]" in outcome.out
    assert "Jane" not in outcome.out + outcome.err


def test_a_case_that_is_not_there_is_found_and_the_others_are_checked(tmp_path):
    write_case(tmp_path / "P1", affine=ROOMY)
    outcome = tmi("check", tmp_path / "P1", tmp_path / "P2")
    assert outcome.code == 3
    assert "case P2: the case folder is not there [case-missing]" in outcome.out
    assert "2 case(s): 1 good, 0 with warnings, 1 refused" in outcome.out


def test_the_label_of_the_liver_can_be_chosen(case):
    image = nib.load(case.mask)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * np.uint8(5), image.affine), case.mask)
    assert tmi("check", case.folder, "--mask-label", 5).code == 0
    outcome = tmi("check", case.folder, "--mask-label", 4)
    assert outcome.code == 3
    assert "no voxel of label 4" in outcome.out


def test_check_changes_nothing(cohort):
    move_mask(cohort / "C001")
    before = {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()}
    tmi("check", cohort)
    assert {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()} == before
