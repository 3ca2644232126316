"""`tmi check`: JSON document, repairs and comparison of radiomics."""

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


def validated(outcome):
    jsonschema.Draft202012Validator(document_schema(), format_checker=None).validate(outcome.document)
    return outcome.document


def test_document_schema_is_valid_and_packaged():
    """The JSON Schema is valid and part of the package."""
    jsonschema.Draft202012Validator.check_schema(document_schema())
    assert (resources.files("tmi.toolkit.qc") / "data" / "tmi-check-1.schema.json").is_file()


def test_good_cases_exit_with_0(cohort):
    """Cases without findings exit with 0 and print the counts."""
    outcome = tmi("check", cohort)
    assert (outcome.code, outcome.out) == (0, "2 case(s): 2 good, 0 with warnings, 0 rejected\n")
    assert validated(tmi("check", cohort, "--json"))["counts"] == {
        "cases": 2,
        "good": 2,
        "warned": 0,
        "refused": 0,
    }


def test_many_findings_are_counted_by_code(tmp_path):
    """More than twenty findings are also counted by code."""
    folder = tmp_path / "cohort"
    rows = [f"C{n},P{n},good" for n in range(12)]
    folder.mkdir()
    (folder / "cohort.csv").write_text("\n".join(["case_id,patient_id,label", *rows]) + "\n", encoding="utf-8")
    outcome = tmi("check", _empty_cases(folder, 12), "--json")
    cases_by_code = {}
    for finding in outcome.document["findings"]:
        key = (finding["severity"], finding["code"])
        cases_by_code.setdefault(key, set()).add(finding["case_id"])
    assert len(outcome.document["findings"]) > 20
    outcome = tmi("check", folder)
    assert outcome.code == 3
    block = outcome.out.split("by code:\n")[1].splitlines()[: len(cases_by_code)]
    assert {tuple(line.split()) for line in block} == {
        (str(len(ids)), "case(s)", severity, code) for (severity, code), ids in cases_by_code.items()
    }


def _empty_cases(folder, count):
    for n in range(count):
        (folder / f"C{n}").mkdir()
    return folder


def test_error_exits_with_3_and_warning_with_0(cohort):
    """The document holds errors and warnings; only an error changes the exit code."""
    planted(cohort, "CT padded with -2000")
    outcome = tmi("check", cohort, "--json")
    assert outcome.code == 0
    assert validated(outcome)["cases"] == [
        {"case_id": "C0", "status": "good"},
        {"case_id": "C1", "status": "warned"},
    ]
    planted(cohort, "empty mask")
    outcome = tmi("check", cohort, "--json")
    assert outcome.code == 3
    assert {f["code"] for f in validated(outcome)["findings"]} == {"ct-padding", "mask-empty"}
    text = tmi("check", cohort)
    assert "error: case C1: liver.nii.gz has no voxel [mask-empty]\n  fix: " in text.out


def test_message_contains_no_patient_value(cohort):
    """A message names field and units, but not the value."""
    planted(cohort, "albumin in g/dL")
    outcome = tmi("check", cohort)
    assert "albumin is implausible in g/L and looks like g/dL" in outcome.out
    assert "3.8" not in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fix", "everything"), "there is no repair 'everything'"),
        (("--fix", ""), "--fix names no repair"),
        (("--fix", "mask-flipped"), "there is no repair 'mask-flipped'"),
        (("--recompute", "--tolerance", "-1"), "--tolerance -1"),
    ],
)
def test_invalid_option_is_usage_error(cohort, options, message):
    """An unknown repair or an invalid tolerance is a usage error."""
    outcome = tmi("check", cohort, *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


REPAIRABLE = {
    "mask on a shifted grid": "mask-grid",
    "mask of coarser voxels": "mask-grid",
    "CT padded with -2000": "ct-padding",
    "CT in metres, declared": "ct-spacing",
    "CT in millimetres that says metres": "ct-unit",
    "CT tilted": "ct-oblique",
    "CT of a tilted gantry": "ct-sheared",
}


@pytest.mark.parametrize("name", REPAIRABLE)
def test_repair_fixes_its_finding_and_is_recorded(cohort, name):
    """A repair removes its finding and records the digest of the old file."""
    code = REPAIRABLE[name]
    case = planted(cohort, name)
    before = {p.name: sha256_file(p) for p in case.folder.iterdir()}
    outcome = tmi("check", cohort, "--fix", code, "--json")
    assert outcome.code == 0, outcome.document["findings"]
    remaining = {f["code"] for f in validated(outcome)["findings"]}
    assert remaining <= {"mask-edge"}, "a mask shifted by a wrong header stays shifted"
    repairs = outcome.document["repairs"]
    assert {r["code"] for r in repairs} == {code}
    record = read_case_record(case.folder, case_id="C1")
    assert [(r.code, r.file, r.what) for r in record.repairs] == [(r["code"], r["file"], r["what"]) for r in repairs]
    assert all(r.before_sha256 == before[r.file] for r in record.repairs)
    changed = {p.name for p in case.folder.iterdir() if before.get(p.name) != sha256_file(p)}
    assert changed == {r.file for r in record.repairs} | {"case.json"}
    assert all(r.file in ("ct.nii.gz", "liver.nii.gz") for r in record.repairs)
    assert tmi("check", cohort, "--fix", code, "--json").document["repairs"] == [], "nothing is repaired twice"


def test_every_repair_has_a_case():
    """`REPAIRABLE` covers every repair."""
    assert set(REPAIRABLE.values()) == set(REPAIRS)


@pytest.mark.parametrize(
    "name", ["no record", "CT cut off", "mask flipped left to right", "case record that is no JSON"]
)
def test_case_without_repair_is_unchanged(cohort, name):
    """A case that no repair can fix keeps its bytes."""
    case = planted(cohort, name)
    before = {p.name: sha256_file(p) for p in case.folder.iterdir()}
    outcome = tmi("check", cohort, "--fix", ",".join(REPAIRS), "--json")
    assert (outcome.code, outcome.document["repairs"]) == (3, [])
    assert {p.name: sha256_file(p) for p in case.folder.iterdir()} == before


def test_flipped_finer_mask_is_resampled_onto_its_organ(cohort):
    """A flipped mask of finer voxels is resampled exactly onto the CT."""
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


def test_straightening_keeps_organ_under_mask(cohort):
    """Straightening keeps the liver's volume and median, and gives axes along the patient's."""
    case = planted(cohort, "CT tilted")
    ct = read_ct(case)
    mask = read_mask(case, ct)
    tmi("check", cohort, "--fix", "ct-oblique")
    straight = read_ct(case)
    resampled = read_mask(case, straight)
    volumes = [m.array_DHW.sum() * np.prod(v.spacing_DHW_mm) for v, m in ((ct, mask), (straight, resampled))]
    assert abs(volumes[1] / volumes[0] - 1) < 0.02
    means = [float(np.median(v.array_DHW[m.array_DHW])) for v, m in ((ct, mask), (straight, resampled))]
    assert abs(means[1] - means[0]) < 4
    assert np.allclose(straight.affine_xyz[:3, :3], np.diag(np.diag(straight.affine_xyz)[:3]))


def test_repair_replaces_a_link_not_its_target(cohort, tmp_path):
    """A symbolic link is replaced; its target keeps its bytes."""
    planted(cohort, "CT padded with -2000")
    original = (cohort / "C1" / "ct.nii.gz").rename(tmp_path / "original.nii.gz")
    (cohort / "C1" / "ct.nii.gz").symlink_to(original)
    digest = sha256_file(original)
    tmi("check", cohort, "--fix", "ct-padding")
    assert sha256_file(original) == digest
    assert nib.load(cohort / "C1" / "ct.nii.gz").get_fdata().min() == -1024


def test_recompute_agrees_with_extracted_table(synthetic_cohort):
    """`--recompute` agrees with an extracted table."""
    case = next(synthetic_cohort.glob("syn7-*"))
    outcome = tmi("check", case, "--recompute", "--json")
    assert outcome.code == 0
    (comparison,) = validated(outcome)["recomputed"]
    assert (comparison["compared"], comparison["differ"], comparison["largest"]) == (len(FEATURE_NAMES), 0, [])


def test_recompute_lists_differing_features(cohort):
    """`--recompute` lists the ten largest differences and their number."""
    outcome = tmi("check", cohort / "C1", "--recompute", "--json")
    assert outcome.code == 3
    document = validated(outcome)
    (finding,) = document["findings"]
    (comparison,) = document["recomputed"]
    assert finding["code"] == "radiomics-differ"
    assert f"{comparison['differ']} of 1781 features" in finding["message"]
    assert comparison["largest"][0]["feature"] in finding["message"]
    assert len(comparison["largest"]) == 10
    assert "agree within 1e-06 relative" in tmi("check", cohort / "C1", "--recompute").out


def test_one_sided_value_differs():
    """A value on one side only is a difference; a value missing on both sides is not."""
    given = np.linspace(1, 2, len(FEATURE_NAMES))
    computed = given * (1 + 1e-9)
    given[[3, 5]] = np.nan
    computed[5] = np.nan
    computed[7] *= 1.001
    comparison = compare_features("P1", given, computed, tolerance=1e-6)
    assert comparison.differ == 2
    assert comparison.largest[0] == (FEATURE_NAMES[3], None)
    assert comparison.largest[1] == (FEATURE_NAMES[7], pytest.approx(0.001, rel=0.01))
    json.dumps(comparison.largest, allow_nan=False)


def test_single_case_is_checked_alike(cohort):
    """`check_case` gives the same finding."""
    assert [f.code for f in check_case(planted(cohort, "mask flipped back to front"))] == ["mask-flipped"]


def test_fix_option_is_repeatable(cohort):
    """`--fix` is repeatable."""
    planted(cohort, "CT padded with -2000")
    outcome = tmi("check", cohort, "--fix", "ct-padding", "--fix", "mask-grid", "--json")
    assert [r["code"] for r in outcome.document["repairs"]] == ["ct-padding"]


def test_unreadable_file_stops_no_other_case(cohort, monkeypatch):
    """A file without read permission, or an overlong name, stops no other case."""
    planted(cohort, "table whose record names another CT")

    def deny(path, **limit):
        if path.suffix == ".csv":
            return sha256_file(path, **limit)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tmi.toolkit.radiomics.provenance.sha256_file", deny)
    outcome = tmi("check", cohort, cohort / ("x" * 300))
    assert outcome.code == 3
    assert "3 case(s): 2 good, 0 with warnings, 1 rejected" in outcome.out
    assert f"case {'x' * 300}: the case folder does not exist [case-missing]" in outcome.out


def test_repair_that_cannot_be_written_stops_no_other_case(cohort, monkeypatch):
    """A full disk under one case is a finding of that case; the checks of all cases follow."""
    planted(cohort, "CT padded with -2000")

    def full(image, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("tmi.toolkit.qc.repairs.nib.save", full)
    outcome = tmi("check", cohort, "--fix", "ct-padding")
    assert outcome.code == 3
    assert "error: case C1: repaired ct.nii.gz cannot be written (No space left on device)" in outcome.out
    assert "[ct-padding]" in outcome.out
    assert "2 case(s)" in outcome.out
