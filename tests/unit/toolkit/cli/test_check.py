"""`tmi check`: its document, its repairs and its comparison of radiomics."""

from __future__ import annotations

import json
import shutil
from importlib import resources

import jsonschema
import nibabel as nib
import numpy as np
import pytest

from factories.good_cohort import AFFINE, phantom, write_good_cohort, write_volume
from factories.planted_cases import FAULTS
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import Case
from tmi.toolkit.cases.provenance import read_case_record
from tmi.toolkit.imaging.volume import read_ct, read_mask
from tmi.toolkit.qc.case_checks import check_case
from tmi.toolkit.qc.radiomics_comparison import compare_features
from tmi.toolkit.qc.repairs import REPAIRS
from tmi.toolkit.qc.report import document_schema
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.storage.hashing import sha256_file


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_good_cohort(tmp_path_factory.mktemp("command") / "good")


@pytest.fixture
def cohort(good, tmp_path):
    return shutil.copytree(good, tmp_path / "cohort")


def planted(cohort, name):
    FAULTS[name].corrupt(cohort / "C1")
    return Case(folder=cohort / "C1", case_id="C1", patient_id="P1")


def holds(outcome):
    jsonschema.Draft202012Validator(document_schema(), format_checker=None).validate(outcome.document)
    return outcome.document


def test_the_schema_is_itself_a_schema_and_in_the_package():
    jsonschema.Draft202012Validator.check_schema(document_schema())
    assert (resources.files("tmi.toolkit.qc") / "data" / "tmi-check-1.schema.json").is_file()


def test_good_cases_end_with_0_and_a_summary(cohort):
    outcome = tmi("check", cohort)
    assert (outcome.code, outcome.out) == (0, "2 case(s): 2 good, 0 with warnings, 0 refused\n")
    assert holds(tmi("check", cohort, "--json"))["counts"] == {"cases": 2, "good": 2, "warned": 0, "refused": 0}


def test_more_findings_than_a_screen_holds_are_counted_by_code(tmp_path):
    folder = tmp_path / "cohort"
    rows = [f"C{n},P{n},good" for n in range(12)]
    folder.mkdir()
    (folder / "cohort.csv").write_text("\n".join(["case_id,patient_id,label", *rows]) + "\n", encoding="utf-8")
    few = tmi("check", _empty_cases(folder, 12), "--json")
    counted = {}
    for finding in few.document["findings"]:
        key = (finding["severity"], finding["code"])
        counted.setdefault(key, set()).add(finding["case_id"])
    assert len(few.document["findings"]) > 20
    outcome = tmi("check", folder)
    assert outcome.code == 3
    block = outcome.out.split("by code:\n")[1].splitlines()[: len(counted)]
    assert {tuple(line.split()) for line in block} == {
        (str(len(ids)), "case(s)", severity, code) for (severity, code), ids in counted.items()
    }


def _empty_cases(folder, count):
    for n in range(count):
        (folder / f"C{n}").mkdir()
    return folder


def test_an_error_ends_with_3_a_warning_with_0_and_both_are_in_the_document(cohort):
    planted(cohort, "CT padded with -2000")
    outcome = tmi("check", cohort, "--json")
    assert outcome.code == 0
    assert holds(outcome)["cases"] == [{"case_id": "C0", "status": "good"}, {"case_id": "C1", "status": "warned"}]
    planted(cohort, "empty mask")
    outcome = tmi("check", cohort, "--json")
    assert outcome.code == 3
    assert {f["code"] for f in holds(outcome)["findings"]} == {"ct-padding", "mask-empty"}
    text = tmi("check", cohort)
    assert "error: case C1: liver.nii.gz has no voxel [mask-empty]\n  fix: " in text.out


def test_no_value_of_a_patient_is_told(cohort):
    planted(cohort, "albumin in g/dL")
    outcome = tmi("check", cohort)
    assert "albumin is implausible in g/L and looks like g/dL" in outcome.out
    assert "3.8" not in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--fix", "everything"), "there is no repair 'everything'"),
        (("--fix", ""), "--fix names no repair"),
        (("--fix", "mask-flipped"), "there is no repair 'mask-flipped'"),
        (("--recompute", "--tolerance", "-1"), "--tolerance -1"),
    ],
)
def test_what_cannot_be_asked_for_is_wrong_usage(cohort, options, told):
    outcome = tmi("check", cohort, *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert told in outcome.err


MENDED = {
    "mask on a shifted grid": "mask-grid",
    "mask of coarser voxels": "mask-grid",
    "CT padded with -2000": "ct-padding",
    "CT in metres, declared": "ct-spacing",
    "CT in millimetres that says metres": "ct-unit",
    "CT tilted": "ct-oblique",
    "CT of a tilted gantry": "ct-sheared",
}


@pytest.mark.parametrize("name", MENDED)
def test_a_repair_mends_what_it_was_asked_for_and_is_recorded_with_the_digest_of_before(cohort, name):
    code = MENDED[name]
    case = planted(cohort, name)
    before = {p.name: sha256_file(p) for p in case.folder.iterdir()}
    outcome = tmi("check", cohort, "--fix", code, "--json")
    assert outcome.code == 0, outcome.document["findings"]
    left = {f["code"] for f in holds(outcome)["findings"]}
    assert left <= {"mask-edge"}, "a mask moved by a wrong header stays where its header put it"
    told = outcome.document["repairs"]
    assert {r["code"] for r in told} == {code}
    record = read_case_record(case.folder, case_id="C1")
    assert [(r.code, r.file, r.what) for r in record.repairs] == [(r["code"], r["file"], r["what"]) for r in told]
    assert all(r.before_sha256 == before[r.file] for r in record.repairs)
    changed = {p.name for p in case.folder.iterdir() if before.get(p.name) != sha256_file(p)}
    assert changed == {r.file for r in record.repairs} | {"case.json"}
    assert all(r.file in ("ct.nii.gz", "liver.nii.gz") for r in record.repairs)
    assert tmi("check", cohort, "--fix", code, "--json").document["repairs"] == [], "nothing is repaired twice"


def test_every_repair_is_tried_above():
    assert set(MENDED.values()) == set(REPAIRS)


@pytest.mark.parametrize(
    "name", ["no record", "CT cut off", "mask flipped left to right", "case record that is no JSON"]
)
def test_what_has_no_repair_is_left_byte_for_byte(cohort, name):
    case = planted(cohort, name)
    before = {p.name: sha256_file(p) for p in case.folder.iterdir()}
    outcome = tmi("check", cohort, "--fix", ",".join(REPAIRS), "--json")
    assert (outcome.code, outcome.document["repairs"]) == (3, [])
    assert {p.name: sha256_file(p) for p in case.folder.iterdir()} == before


def test_a_mask_stored_the_other_way_round_on_half_the_voxels_comes_back_onto_its_organ(cohort):
    liver = phantom(1).liver_XYZ
    flipped = AFFINE @ np.diag([-1, 1, 1, 1])
    flipped[:3, 3] += AFFINE[:3, 0] * (liver.shape[0] - 1)
    finer = np.repeat(liver[::-1], 2, axis=0).astype(np.uint8)
    affine = flipped @ np.diag([0.5, 1, 1, 1])
    affine[:3, 3] -= flipped[:3, 0] / 4
    write_volume(cohort / "C1" / "liver.nii.gz", finer, affine)
    assert tmi("check", cohort).code == 3
    assert tmi("check", cohort, "--fix", "mask-grid").code == 0
    case = Case(folder=cohort / "C1", case_id="C1")
    assert np.array_equal(read_mask(case, read_ct(case)).array_DHW, liver.transpose(2, 1, 0))


def test_straightening_keeps_the_organ_under_its_mask(cohort):
    case = planted(cohort, "CT tilted")
    ct = read_ct(case)
    mask = read_mask(case, ct)
    tmi("check", cohort, "--fix", "ct-oblique")
    straight = read_ct(case)
    moved = read_mask(case, straight)
    volumes = [m.array_DHW.sum() * np.prod(v.spacing_DHW_mm) for v, m in ((ct, mask), (straight, moved))]
    assert abs(volumes[1] / volumes[0] - 1) < 0.02
    means = [float(np.median(v.array_DHW[m.array_DHW])) for v, m in ((ct, mask), (straight, moved))]
    assert abs(means[1] - means[0]) < 4
    assert np.allclose(straight.affine_xyz[:3, :3], np.diag(np.diag(straight.affine_xyz)[:3]))


def test_a_repair_replaces_a_link_and_not_the_file_it_leads_to(cohort, tmp_path):
    planted(cohort, "CT padded with -2000")
    original = (cohort / "C1" / "ct.nii.gz").rename(tmp_path / "original.nii.gz")
    (cohort / "C1" / "ct.nii.gz").symlink_to(original)
    digest = sha256_file(original)
    tmi("check", cohort, "--fix", "ct-padding")
    assert sha256_file(original) == digest
    assert nib.load(cohort / "C1" / "ct.nii.gz").get_fdata().min() == -1024


def test_recompute_agrees_with_the_table_that_was_extracted(synthetic_cohort):
    case = next(synthetic_cohort.glob("syn7-*"))
    outcome = tmi("check", case, "--recompute", "--json")
    assert outcome.code == 0
    (compared,) = holds(outcome)["recomputed"]
    assert (compared["compared"], compared["differ"], compared["largest"]) == (len(FEATURE_NAMES), 0, [])


def test_recompute_names_the_features_that_differ_and_by_how_much(cohort):
    outcome = tmi("check", cohort / "C1", "--recompute", "--json")
    assert outcome.code == 3
    document = holds(outcome)
    (finding,) = document["findings"]
    (compared,) = document["recomputed"]
    assert finding["code"] == "radiomics-differ"
    assert f"{compared['differ']} of 1781 features" in finding["message"]
    assert compared["largest"][0]["feature"] in finding["message"]
    assert len(compared["largest"]) == 10
    assert "agree within 1e-06 relative" in tmi("check", cohort / "C1", "--recompute").out


def test_a_feature_with_a_value_on_one_side_only_differs_and_one_without_any_does_not():
    given = np.linspace(1, 2, len(FEATURE_NAMES))
    computed = given * (1 + 1e-9)
    given[[3, 5]] = np.nan
    computed[5] = np.nan
    computed[7] *= 1.001
    found = compare_features("P1", given, computed, tolerance=1e-6)
    assert found.differ == 2
    assert found.largest[0] == (FEATURE_NAMES[3], None)
    assert found.largest[1] == (FEATURE_NAMES[7], pytest.approx(0.001, rel=0.01))
    json.dumps(found.largest, allow_nan=False)


def test_a_finding_is_found_one_case_at_a_time_too(cohort):
    assert [f.code for f in check_case(planted(cohort, "mask flipped back to front"))] == ["mask-flipped"]


def test_repairs_may_be_named_together_or_one_by_one(cohort):
    planted(cohort, "CT padded with -2000")
    outcome = tmi("check", cohort, "--fix", "ct-padding", "--fix", "mask-grid", "--json")
    assert [r["code"] for r in outcome.document["repairs"]] == ["ct-padding"]


def test_a_file_that_may_not_be_read_stops_no_other_case(cohort, monkeypatch):
    planted(cohort, "table whose record names another CT")

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tmi.toolkit.radiomics.provenance.sha256_file", denied)
    outcome = tmi("check", cohort, cohort / ("x" * 300))
    assert outcome.code == 3
    assert "3 case(s): 2 good, 0 with warnings, 1 refused" in outcome.out
    assert f"case {'x' * 300}: the case folder is not there [case-missing]" in outcome.out
