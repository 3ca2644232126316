"""`tmi check` on small cases: messages, exit codes, and independence of the cases.

`test_planted_cases.py` plants a fault for every check.
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
ROOMY[2, 2] = 10.0  # with the default 9 mm the liver is just below the typical volume


def move_mask(folder: Path) -> None:
    image = nib.load(folder / "liver.nii.gz")
    affine = image.affine.copy()
    affine[2, 3] += 9.0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), folder / "liver.nii.gz")


def pad(folder: Path) -> None:
    """Fill a corner as scanners do outside their field of view."""
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


def test_check_reports_all_findings(case):
    """All problems of a case are reported, not only the first."""
    pad(case.folder)
    move_mask(case.folder)
    (case.folder / "radiomics.csv").write_text("a\n1\n")
    assert {f.code for f in check_case(case)} == {"ct-padding", "mask-grid", "radiomics-columns"}


@pytest.mark.parametrize(("value", "codes"), [(3e38, {"ct-not-hu"}), (-1e6, {"ct-not-hu"}), (30_710.0, set())])
def test_single_impossible_voxel_is_an_error(case, value, codes):
    """One voxel beyond 16 bits rejects a CT; one of the extended scale's largest value does not."""
    image = nib.load(case.folder / "ct.nii.gz")
    array = np.asarray(image.dataobj).astype(np.float32)
    array[3, 3, 3] = value
    nib.save(nib.Nifti1Image(array, image.affine), case.folder / "ct.nii.gz")
    assert {f.code for f in check_case(case)} == codes


def test_mask_is_optional_with_radiomics_table(tmp_path):
    """A case with radiomics.csv needs no mask."""
    folder = write_case(tmp_path / "P1", with_mask=False)
    assert check_case(Case(folder=folder, case_id="P1")) == []


def test_good_cohort_exits_with_0(cohort):
    """A cohort without findings exits with 0 and prints the counts."""
    outcome = tmi("check", cohort)
    assert outcome.code == 0
    assert outcome.out == "4 case(s): 4 good, 0 with warnings, 0 rejected\n"


def test_findings_name_case_code_and_fix(cohort):
    """Each finding has case, code and fix; an error exits with 3."""
    move_mask(cohort / "C001")
    pad(cohort / "C002")
    outcome = tmi("check", cohort)
    assert outcome.code == 3
    first, fix, second, _, last = outcome.out.splitlines()
    assert first.startswith("error: case C001: liver.nii.gz lies on another grid")
    assert first.endswith("[mask-grid]")
    assert fix.startswith("  fix: ")
    assert second.startswith("warning: case C002: ct.nii.gz is padded: 864 voxels of -2000 HU")
    assert last == "4 case(s): 2 good, 1 with warnings, 1 rejected"


def test_duplicate_ct_is_reported(cohort):
    """The second case with the same CT is reported and names the first."""
    shutil.copy(cohort / "C000" / "ct.nii.gz", cohort / "C003" / "ct.nii.gz")
    (finding,) = tmi("check", cohort, "--json").document["findings"]
    assert (finding["case_id"], finding["code"]) == ("C003", "duplicate-ct")
    assert "case C000" in finding["message"]


def test_patient_mismatch_is_reported_without_the_name(cohort):
    """A record of another patient is reported; its patient id is not printed."""
    record = json.loads((cohort / "C000" / "clinical.json").read_text())
    (cohort / "C000" / "clinical.json").write_text(json.dumps(record | {"patient_id": "Jane Doe"}))
    outcome = tmi("check", cohort)
    assert "[patient-mismatch]" in outcome.out
    assert "Jane" not in outcome.out + outcome.err


def test_missing_case_folder_stops_no_other_case(tmp_path):
    """A missing case folder is reported and the other cases are checked."""
    write_case(tmp_path / "P1", affine=ROOMY)
    outcome = tmi("check", tmp_path / "P1", tmp_path / "P2")
    assert outcome.code == 3
    assert "case P2: the case folder does not exist [case-missing]" in outcome.out
    assert "2 case(s): 1 good, 0 with warnings, 1 rejected" in outcome.out


def test_mask_label_selects_the_liver(case):
    """`--mask-label` selects the liver; a label without voxels is an error."""
    image = nib.load(case.mask)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * np.uint8(5), image.affine), case.mask)
    assert tmi("check", case.folder, "--mask-label", 5).code == 0
    outcome = tmi("check", case.folder, "--mask-label", 4)
    assert outcome.code == 3
    assert "no voxel of label 4" in outcome.out


def test_check_modifies_no_file(cohort):
    """Without `--fix` every file keeps its bytes."""
    move_mask(cohort / "C001")
    before = {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()}
    tmi("check", cohort)
    assert {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()} == before
