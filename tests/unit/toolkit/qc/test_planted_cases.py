"""Corpus of planted faults: each fault is found by its own code, and valid cases pass."""

from __future__ import annotations

import numpy as np
import pytest

from factories.cases import write_case
from factories.good_cohort import write_good_cohort
from factories.paths import ROOT
from factories.planted_cases import FAULTS, VARIANTS, codes_of, score, score_line
from factories.real_case import LIVER_LABEL, write_real_case
from tmi.toolkit.cases.case import Case, open_cohort
from tmi.toolkit.qc.case_checks import check_case, check_cases
from tmi.toolkit.qc.check_registry import CHECKS

DOCUMENT = ROOT / "docs" / "checks.md"
NOT_IN_A_CASE_FOLDER = frozenset(
    {"mask-missing", "mask-label", "mask-contours", "mask-outside", "case-unreadable", "case-name"}
)
"""Checks of the import, of a required but absent mask, and of file permissions, which root always has."""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_good_cohort(tmp_path_factory.mktemp("corpus") / "good")


@pytest.fixture(scope="module")
def findings(good, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "case"
    return {name: codes_of(plant, good, folder) for name, plant in {**FAULTS, **VARIANTS}.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found_by_its_code(findings, name):
    """A fault gives its own code and no code but the declared companions."""
    plant = FAULTS[name]
    assert ("C1", plant.code) in findings[name]
    assert findings[name] <= {("C1", c) for c in {plant.code, *plant.companions}}


@pytest.mark.parametrize("name", VARIANTS)
def test_valid_variant_has_no_finding(findings, name):
    """A valid case stored in an unusual way has no finding."""
    assert findings[name] == set()


def test_every_check_has_a_planted_fault():
    """Every check that a case folder can fail has a planted fault."""
    of_import = {c for c in CHECKS if c.startswith(("dicom-", "table-", "import-"))} | NOT_IN_A_CASE_FOLDER
    assert {p.code for p in FAULTS.values()} == set(CHECKS) - of_import


def test_documented_precision_and_recall_are_current(findings):
    """The score line of the page is that of the corpus."""
    assert score_line(score(findings)) in " ".join(DOCUMENT.read_text(encoding="utf-8").split())


def test_cases_of_other_tests_pass(tmp_path, synthetic_cohort):
    """The cases that other tests use have no error."""
    findings = check_case(Case(folder=write_case(tmp_path / "P1"), case_id="P1"))
    assert [f.code for f in findings] == ["liver-volume"], "a warning: it covers 493 mL"
    assert check_cases(list(open_cohort(synthetic_cohort).cases)) == []


@pytest.fixture
def real(tmp_path, shared_data):
    return Case(folder=write_real_case(tmp_path / "real", shared_data), case_id="real", mask_label=LIVER_LABEL)


def test_real_ct_has_only_the_edge_warning(real):
    """The real CT, whose dome is cut off, gives that warning only."""
    (finding,) = check_case(real)
    assert (finding.code, finding.severity) == ("mask-edge", "warning")
    assert "last face" in finding.message


@pytest.mark.parametrize("axis", range(3))
def test_mirrored_mask_of_real_ct_is_found(real, axis):
    """A mask mirrored along any axis of the real CT is an error."""
    import nibabel as nib

    image = nib.load(real.mask)
    array = np.flip(np.asanyarray(image.dataobj), axis).copy()
    real.mask.chmod(0o600)
    nib.save(nib.Nifti1Image(array, image.affine), real.mask)
    assert {f.code for f in check_case(real)} & {"mask-flipped", "mask-content"}


def test_mr_is_rejected(tmp_path, shared_data):
    """A real MR fails the Hounsfield check."""
    folder = write_case(tmp_path / "mr")
    source = shared_data / "totalsegmentator-mr-negative"
    (folder / "ct.nii.gz").write_bytes((source / "example_mr_sm.nii.gz").read_bytes())
    (folder / "liver.nii.gz").write_bytes((source / "example_seg_mr.nii.gz").read_bytes())
    findings = check_case(Case(folder=folder, case_id="mr", mask_label=5))
    assert "ct-not-hu" in {f.code for f in findings if f.severity == "error"}
