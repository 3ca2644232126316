"""`tmi check`: everything that is wrong with a case, by code, as text and as JSON; exit code 3 on a refused case."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from factories.cases import AFFINE, write_case, write_cohort
from factories.tmi_command import tmi
from tmi.toolkit.case import Case
from tmi.toolkit.check import check_case
from tmi.toolkit.check_table import CHECKS


def _edit(name: str, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> Callable:
    """A fault that rewrites a volume."""

    def spoil(folder: Path) -> None:
        image = nib.load(folder / name)
        array = change(np.asarray(image.dataobj))
        nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), folder / name)

    return spoil


def ct(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    return _edit("ct.nii.gz", change)


def mask(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    return _edit("liver.nii.gz", change)


def both(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> Callable:
    def spoil(folder: Path) -> None:
        for name in ("ct.nii.gz", "liver.nii.gz"):
            _edit(name, change, affine)(folder)

    return spoil


def _one_nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[5, 5, 5] = np.nan
    return array


def _one_voxel_moved(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[0, 0, 0] = -2000
    return array


def _middle_only(array: np.ndarray) -> np.ndarray:
    kept = np.zeros_like(array)
    kept[20:23, 13:16, 12:15] = 1
    return kept


def _on_the_edge(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[20:24, 12:16, :3] = 1
    return array


def _in_air(array: np.ndarray) -> np.ndarray:
    kept = np.zeros_like(array)
    kept[:, :3, 4:-4] = 1
    return kept


def _mirror(folder: Path) -> None:
    """A mask that fits soft tissue only when mirrored: the body lies left of the middle, its mask right of it."""
    image = nib.load(folder / "ct.nii.gz")
    array = np.asarray(image.dataobj).copy()
    array[:16] = -1000
    nib.save(nib.Nifti1Image(array, image.affine), folder / "ct.nii.gz")
    spoilt = np.asarray(nib.load(folder / "liver.nii.gz").dataobj)[::-1]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(spoilt), image.affine), folder / "liver.nii.gz")


def no_affine(name: str) -> Callable:
    def spoil(folder: Path) -> None:
        data = bytearray(nib.load(folder / name).to_bytes())
        data[252:254], data[280:328] = bytes(2), struct.pack("<12f", *([0.0] * 12))
        with nib.openers.ImageOpener(folder / name, "wb") as stream:
            stream.write(bytes(data))

    return spoil


def cut(name: str) -> Callable:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:60])


def clinical(**change: object) -> Callable:
    def spoil(folder: Path) -> None:
        record = json.loads((folder / "clinical.json").read_text())
        record["values"] |= change
        (folder / "clinical.json").write_text(json.dumps(record))

    return spoil


def table(change: Callable[[list[str], list[str]], list[list[str]]]) -> Callable:
    def spoil(folder: Path) -> None:
        header, row = (line.split(",") for line in (folder / "radiomics.csv").read_text().splitlines())
        (folder / "radiomics.csv").write_text("\n".join(",".join(r) for r in change(header, row)) + "\n")

    return spoil


def without(*names: str) -> Callable:
    return lambda folder: [(folder / n).unlink() for n in names]


ROOMY = AFFINE.copy()
ROOMY[2, 2] = 10.0  # with the builder's own 9 mm the liver stays just below the usual volumes
TILTED = np.eye(4)
TILTED[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
SHIFTED = ROOMY.copy()
SHIFTED[2, 3] += 9.0
MICRONS = ROOMY.copy()
MICRONS[:3] *= 1000

FAULTS: dict[str, Callable] = {
    "case-missing": shutil.rmtree,
    "ct-missing": without("ct.nii.gz"),
    "ct-unreadable": cut("ct.nii.gz"),
    "ct-not-3d": ct(lambda a: np.stack([a, a], axis=-1)),
    "ct-affine": no_affine("ct.nii.gz"),
    "ct-nan": ct(_one_nan),
    "ct-not-hu": ct(lambda a: ((a.clip(-160, 240) + 160) * 255 / 400).astype(np.uint8)),
    "ct-spacing": both(lambda a: a, MICRONS),
    "ct-few-slices": both(lambda a: a[:, :, 8:16]),
    "ct-oblique": both(lambda a: a, TILTED @ ROOMY),
    "ct-padding": ct(_one_voxel_moved),
    "mask-unreadable": cut("liver.nii.gz"),
    "mask-not-3d": mask(lambda a: np.stack([a, a], axis=-1)),
    "mask-affine": no_affine("liver.nii.gz"),
    "mask-nan": mask(_one_nan),
    "mask-grid": _edit("liver.nii.gz", lambda a: a, SHIFTED),
    "mask-empty": mask(np.zeros_like),
    "mask-flipped": _mirror,
    "mask-content": mask(_in_air),
    "mask-tiny": mask(_middle_only),
    "mask-edge": mask(_on_the_edge),
    "liver-volume": mask(lambda a: a * (np.indices(a.shape)[2] > 12).astype(np.uint8)),
    "radiomics-missing": without("radiomics.csv", "liver.nii.gz"),
    "radiomics-unreadable": lambda folder: (folder / "radiomics.csv").write_bytes(b"\xff\xfe\x00"),
    "radiomics-columns": table(lambda header, row: [header[:-1], row[:-1]]),
    "radiomics-rows": table(lambda header, row: [header, row, row]),
    "radiomics-value": table(lambda header, row: [header, ["inf", *row[1:]]]),
    "clinical-missing": without("clinical.json"),
    "clinical-malformed": cut("clinical.json"),
    "clinical-unknown-field": clinical(albumen=40),
    "clinical-type": clinical(albumin="forty"),
    "clinical-unit": clinical(albumin={"value": 40, "unit": "stone"}),
    "clinical-range": clinical(albumin=4.0),
}
"""Code -> a fault that must be found under it, planted into a good case."""
ELSEWHERE = {
    "mask-missing": "a mask is optional to `check`; tests/toolkit/test_volume.py",
    "radiomics-mask": "found when features are extracted, not by `check`",
    "patient-mismatch": "needs a cohort; below",
    "duplicate-ct": "needs two cases; below",
    "case-record": "written by imports and repairs alone",
}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(folder=write_case(tmp_path / "P1", affine=ROOMY), case_id="P1")


def test_a_good_case_has_no_finding(case):
    assert check_case(case) == []


def test_every_check_has_a_planted_fault_here_or_elsewhere():
    assert set(FAULTS) | set(ELSEWHERE) >= set(CHECKS)


@pytest.mark.parametrize("code", FAULTS)
def test_a_planted_fault_is_found_under_its_code_with_a_mend(case, code):
    FAULTS[code](case.folder)
    found = {f.code: f for f in check_case(case)}
    assert code in found, sorted(found)
    finding = found[code]
    assert finding.case_id == "P1"
    assert finding.severity == CHECKS[code].severity
    assert finding.message
    assert finding.fix
    if CHECKS[code].severity == "warning":
        assert {f.severity for f in found.values()} == {"warning"}


def test_everything_that_is_wrong_is_found_and_not_only_the_first_thing(case):
    for code in ("ct-padding", "mask-grid", "radiomics-rows", "clinical-range"):
        FAULTS[code](case.folder)
    assert {f.code for f in check_case(case)} == {"ct-padding", "mask-grid", "radiomics-rows", "clinical-range"}


def test_a_mask_is_not_needed_where_the_features_are_given(tmp_path):
    folder = write_case(tmp_path / "P1", with_mask=False)
    assert check_case(Case(folder=folder, case_id="P1")) == []


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "cohort", cases=4, affine=ROOMY)


def test_a_good_cohort_ends_with_0_and_says_so(cohort):
    outcome = tmi("check", cohort)
    assert outcome.code == 0
    assert outcome.out == "4 case(s): 4 good, 0 with warnings, 0 refused\n"


def test_findings_are_told_with_case_code_and_fix_and_end_with_3(cohort):
    FAULTS["mask-grid"](cohort / "C001")
    FAULTS["ct-padding"](cohort / "C002")
    outcome = tmi("check", cohort)
    assert outcome.code == 3
    first, mend, second, _, last = outcome.out.splitlines()
    assert first.startswith("error: case C001: liver.nii.gz lies on another grid")
    assert first.endswith("[mask-grid]")
    assert mend.startswith("  fix: ")
    assert second.startswith("warning: case C002: ct.nii.gz holds values down to -2000 HU")
    assert last == "4 case(s): 2 good, 1 with warnings, 1 refused"


def test_warnings_alone_end_with_0(cohort):
    FAULTS["ct-padding"](cohort / "C002")
    assert tmi("check", cohort).code == 0


def test_json_is_one_document_with_every_case_and_finding(cohort):
    FAULTS["clinical-range"](cohort / "C003")
    outcome = tmi("check", cohort, "--json")
    assert outcome.code == 3
    document = outcome.document
    assert document["schema"] == "tmi-check/1"
    assert document["cases"] == ["C000", "C001", "C002", "C003"]
    (finding,) = document["findings"]
    assert (finding["case_id"], finding["code"], finding["severity"]) == ("C003", "clinical-range", "error")
    assert set(finding) == {"case_id", "code", "severity", "message", "fix"}


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
    mask(lambda a: a * 5)(case.folder)
    assert tmi("check", case.folder, "--mask-label", 5).code == 0
    outcome = tmi("check", case.folder, "--mask-label", 4)
    assert outcome.code == 3
    assert "no voxel of label 4" in outcome.out


def test_check_changes_nothing(cohort):
    FAULTS["mask-grid"](cohort / "C001")
    before = {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()}
    tmi("check", cohort)
    assert {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()} == before


def test_an_mr_is_no_ct(shared_data, tmp_path):
    """The real abdominal MR with its liver label must be refused."""
    source = shared_data / "totalsegmentator-mr-negative"
    files = sorted(source.glob("*.nii.gz"))
    images = {p: nib.load(p) for p in files}
    folder = write_case(tmp_path / "MR", with_mask=False)
    (mr,) = (p for p, i in images.items() if np.asarray(i.dataobj).max() > 255)
    shutil.copy(mr, folder / "ct.nii.gz")
    assert "ct-not-hu" in {f.code for f in check_case(Case(folder=folder, case_id="MR"))}
