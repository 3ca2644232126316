"""`tmi radiomics`: many cases, its record, its cache, and tables that were computed elsewhere."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import yaml

import tmi.toolkit.radiomics.extractor as radiomics
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.errors import UsageError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.radiomics.cache import cache_key, extract_cached
from tmi.toolkit.radiomics.external_table import read_external_table
from tmi.toolkit.radiomics.extractor import ExtractedFeatures
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.settings import SETTINGS_DIGEST
from tmi.toolkit.radiomics.table import read_table, write_table
from tmi.toolkit.synthetic.cohort import make_cohort


@pytest.fixture(scope="module")
def two_cases(tmp_path_factory):
    """A synthetic cohort of two, with the tables that synth extracted moved aside. Read only."""
    folder = tmp_path_factory.mktemp("cohort") / "cohort"
    cohort = make_cohort(folder, cases=2, seed=3, jobs=1)
    for case in cohort.cases:
        case.radiomics.rename(case.folder / "synth.csv")
    return folder


@pytest.fixture
def cohort(two_cases, tmp_path):
    shutil.copytree(two_cases, tmp_path / "cohort")
    return tmp_path / "cohort"


def case_in(cohort, number=1) -> Case:
    folder = sorted(p for p in cohort.iterdir() if p.is_dir())[number - 1]
    return Case(folder=folder, case_id=folder.name)


@pytest.fixture
def counted(monkeypatch):
    """Extractions that were made, with an invented answer; nothing is computed."""
    made = []

    def invented(ct, mask, *, jobs=None):
        made.append(int(mask.array_DHW.sum()))
        return ExtractedFeatures(values_F=np.arange(1781.0) + made[-1])

    monkeypatch.setattr(radiomics, "extract_with_note", invented)
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "radiomics"


def test_a_cohort_is_extracted_over_processes_recorded_and_then_left_alone(cohort):
    done = tmi("radiomics", cohort, "--jobs", 2)
    assert (done.code, done.out) == (0, "2 case(s): 2 written, 0 up to date, 0 rejected\n")
    for number in (1, 2):
        case = case_in(cohort, number)
        values_F = read_table(case.radiomics, case_id=case.case_id)
        np.testing.assert_array_equal(values_F, read_table(case.folder / "synth.csv", case_id=case.case_id))
        record = json.loads((case.folder / "radiomics.json").read_text())
        assert (record["schema"], record["source"]) == ("tmi-radiomics/1", "extracted")
        assert record["settings_digest"] == SETTINGS_DIGEST
        assert record["settings"]["setting"]["binWidth"] == 25
        assert set(record["versions"]) == {"pyradiomics", "SimpleITK", "PyWavelets", "numpy"}
    before = case_in(cohort).radiomics.stat().st_mtime_ns
    again = tmi("radiomics", cohort)
    assert (again.code, again.out) == (0, "2 case(s): 0 written, 2 up to date, 0 rejected\n")
    assert case_in(cohort).radiomics.stat().st_mtime_ns == before
    assert not any(f["code"] == "radiomics-stale" for f in tmi("check", cohort, "--json").document["findings"])


def test_one_bad_case_is_told_and_the_others_go_on(cohort, counted):
    case_in(cohort).mask.write_bytes(b"no image")
    done = tmi("radiomics", cohort, "--jobs", 1)
    assert (done.code, done.out) == (3, "2 case(s): 1 written, 0 up to date, 1 rejected\n")
    assert f"error: case {case_in(cohort).case_id}: liver.nii.gz cannot be read as NIfTI [mask-unreadable]" in done.err
    assert "\n  fix: " in done.err
    assert case_in(cohort, 2).radiomics.is_file()
    assert not case_in(cohort).radiomics.exists()


def test_a_missing_folder_is_told_as_such(tmp_path):
    done = tmi("radiomics", tmp_path / "P9")
    assert (done.code, done.out) == (3, "1 case(s): 0 written, 0 up to date, 1 rejected\n")
    assert "the case folder does not exist [case-missing]" in done.err


def test_a_table_of_other_origin_is_never_written_over_without_force(cohort, counted):
    case = case_in(cohort)
    write_table(case.radiomics, np.full(1781, 7.0))
    done = tmi("radiomics", case.folder)
    assert done.code == 3
    assert "radiomics.csv exists and was not extracted here [radiomics-exists]" in done.err
    assert read_table(case.radiomics, case_id="P")[0] == 7.0
    assert tmi("radiomics", case.folder, "--force").code == 0
    assert read_table(case.radiomics, case_id="P")[0] != 7.0


def _other_mask(case):
    image = nib.load(case.mask)
    voxels = np.asanyarray(image.dataobj).copy()
    voxels[tuple(np.argwhere(voxels)[0])] = 0
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), case.mask)


def _edit_record(**changes):
    def edit(case):
        path = case.folder / "radiomics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


STALE = {
    "another mask": (_other_mask, "was made from another liver.nii.gz"),
    "another CT": (lambda case: case.ct.write_bytes(case.ct.read_bytes() + b"\0"), "was made from another ct.nii.gz"),
    "an edited table": (lambda case: write_table(case.radiomics, np.zeros(1781)), "was changed after"),
    "other settings": (_edit_record(settings_digest="0" * 64), "with other settings"),
    "a damaged record": (_edit_record(schema="tmi-radiomics/9"), "not of the form tmi-radiomics/1"),
    "a record of another form": (_edit_record(surprise=1), "not of the form tmi-radiomics/1"),
    "no JSON": (lambda case: (case.folder / "radiomics.json").write_text("{"), "not of the form tmi-radiomics/1"),
}


@pytest.mark.parametrize("name", STALE)
def test_a_table_that_no_longer_fits_is_found_by_check_and_kept_until_forced(name, cohort, counted):
    plant, told = STALE[name]
    case = case_in(cohort)
    assert tmi("radiomics", case.folder).code == 0
    plant(case)
    findings = [f for f in tmi("check", case.folder, "--json").document["findings"] if f["code"] == "radiomics-stale"]
    assert len(findings) == 1
    assert told in findings[0]["message"]
    assert findings[0]["severity"] == "warning"
    done = tmi("radiomics", case.folder)
    assert done.code == 3
    assert told in done.err
    assert tmi("radiomics", case.folder, "--force").code == 0
    assert tmi("radiomics", case.folder).out == "1 case(s): 0 written, 1 up to date, 0 rejected\n"


def test_another_label_than_the_tables_is_refused(cohort, counted):
    case = case_in(cohort)
    assert tmi("radiomics", case.folder, "--mask-label", 1).code == 0
    done = tmi("radiomics", case.folder)
    assert done.code == 3
    assert "from another label of liver.nii.gz" in done.err


def test_a_stop_before_the_table_is_written_is_made_good_by_the_next_run(cohort, counted):
    case = case_in(cohort)
    assert tmi("radiomics", case.folder).code == 0
    case.radiomics.unlink()
    assert tmi("radiomics", case.folder).out == "1 case(s): 1 written, 0 up to date, 0 rejected\n"


def test_what_was_extracted_once_is_remembered_unless_told_otherwise(cohort, counted, cache):
    case = case_in(cohort)
    for _ in range(2):
        assert tmi("radiomics", case.folder, "--force").code == 0
    assert len(counted) == 1
    assert tmi("radiomics", case.folder, "--force", "--no-cache").code == 0
    assert len(counted) == 2
    (entry,) = cache.glob("*.entry")
    entry.write_bytes(entry.read_bytes()[:-8])
    assert tmi("radiomics", case.folder, "--force").code == 0
    assert len(counted) == 3
    assert read_table(case.radiomics, case_id="P")[0] == counted[-1]


def test_repeated_preparation_of_a_case_extracts_once(cohort, counted, cache, micro_config):
    first, second = (prepare_case(case_in(cohort), micro_config, load_schema()) for _ in range(2))
    assert len(counted) == 1
    np.testing.assert_array_equal(first.radiomics_F, second.radiomics_F)
    assert not case_in(cohort).radiomics.exists()


def test_a_plain_extraction_is_told_by_prediction_and_by_the_command(cohort, monkeypatch, micro_config, tmp_path):
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))  # a hit must not swallow it
    note = "radiomics were extracted the slow way: another SimpleITK"
    slow = ExtractedFeatures(values_F=np.arange(1781.0), note=note)
    monkeypatch.setattr(radiomics, "extract_with_note", lambda ct, mask, *, jobs=None: slow)
    case = case_in(cohort)
    assert note in prepare_case(case, micro_config, load_schema()).warnings
    done = tmi("radiomics", case.folder)
    assert (done.code, done.err) == (0, f"warning: case {case.case_id}: {note}\n")
    assert json.loads((case.folder / "radiomics.json").read_text())["note"] == note


def test_the_key_changes_with_every_content_that_a_value_depends_on(monkeypatch):
    ct_DHW = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    mask_DHW = ct_DHW % 7 == 0
    affine = np.diag([1.0, 2.0, 3.0, 1.0])

    def key(ct_DHW=ct_DHW, mask_DHW=mask_DHW, affine=affine):
        return cache_key(Volume(array_DHW=ct_DHW, affine_xyz=affine), Volume(array_DHW=mask_DHW, affine_xyz=affine))

    first = key()
    moved = affine.copy()
    moved[:3, 3] = 50.0
    assert key() == key(affine=moved) == first
    others = {
        key(ct_DHW=ct_DHW + np.int16(1)),
        key(ct_DHW=ct_DHW.astype(np.float32)),
        key(mask_DHW=~mask_DHW),
        key(affine=np.diag([1.0, 2.0, 3.5, 1.0])),
        key(ct_DHW=ct_DHW.reshape(3, 5, 4), mask_DHW=mask_DHW.reshape(3, 5, 4)),
    }
    monkeypatch.setattr("tmi.toolkit.radiomics.cache.package_versions", lambda: {"numpy": "0"})
    assert len(others | {key(), first}) == 7


def _extract_small(folder: str) -> bytes:
    os.environ["TMI_CACHE"] = folder
    rng = np.random.default_rng(0)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    ct = Volume(array_DHW=rng.normal(60, 40, (9, 10, 11)).astype(np.int16), affine_xyz=affine)
    mask = Volume(array_DHW=rng.random((9, 10, 11)) < 0.5, affine_xyz=affine)
    return extract_cached(ct, mask, jobs=1).values_F.tobytes()


def test_processes_share_the_cache_and_agree(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        answers = pool.map(_extract_small, [str(tmp_path)] * 4, chunksize=1)
    assert len(set(answers)) == 1
    assert len(list((tmp_path / "radiomics").glob("*.entry"))) == 1


def foreign_table(path, *, rows, rename=None, drop=(), extra=(), delimiter=","):
    """As pyradiomics' command line writes it: columns of input and of diagnostics, then features, a row a case."""
    names = [n for n in reversed(FEATURE_NAMES) if n not in drop]
    header = ["ID", "Image", "Mask", "diagnostics_Versions_Numpy", *[(rename or {}).get(n, n) for n in names], *extra]
    lines = [delimiter.join(header)]
    for case_id, value in rows:
        cells = [case_id, "ct.nrrd", "seg.nrrd", "1.26", *[repr(value + FEATURE_NAMES.index(n)) for n in names]]
        lines.append(delimiter.join([*cells, *["5"] * len(extra)]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_pyradiomics_own_command_is_taken_in_by_case_id(cohort, tmp_path, delimiter):
    one, two = case_in(cohort, 1), case_in(cohort, 2)
    table = foreign_table(
        tmp_path / "all.csv", rows=[(two.case_id, 2000.0), (one.case_id, 1000.0)], delimiter=delimiter
    )
    done = tmi("radiomics", cohort, "--from", table)
    assert (done.code, done.out) == (0, "2 case(s): 2 written, 0 up to date, 0 rejected\n")
    np.testing.assert_array_equal(read_table(one.radiomics, case_id="1"), np.arange(1781.0) + 1000)
    np.testing.assert_array_equal(read_table(two.radiomics, case_id="2"), np.arange(1781.0) + 2000)
    record = json.loads((one.folder / "radiomics.json").read_text())
    assert (record["source"], record["settings_digest"], record["versions"]) == ("table", None, {})


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_other_names_are_mapped_and_recorded(cohort, tmp_path, form):
    case = case_in(cohort)
    theirs = {"gradient_ngtdm_Strength": "grad strength"}
    table = foreign_table(tmp_path / "t.csv", rows=[(case.case_id, 0.0)], rename=theirs, extra=["age"])
    mapping = tmp_path / f"map.{form}"
    data = {"grad strength": "gradient_ngtdm_Strength", "age": None}
    mapping.write_text(json.dumps(data) if form == "json" else yaml.safe_dump(data))
    assert tmi("radiomics", case.folder, "--from", table, "--map", mapping).code == 0
    assert read_table(case.radiomics, case_id="P")[-1] == 1780.0
    assert json.loads((case.folder / "radiomics.json").read_text())["mapping"] == theirs


NAME = "original_glcm_Idm"
BAD_TABLES = {
    "missing": ({"drop": (NAME, "original_glcm_Id")}, {}, "lacks original_glcm_Id, with 1 others"),
    "unknown": ({"extra": ["age"]}, {}, "has the unknown column 'age'"),
    "twice": ({"extra": [NAME]}, {}, f"gives {NAME} twice"),
    "mapped column absent": ({}, {"nowhere": NAME}, "has no column 'nowhere', which the mapping names"),
    "mapped to no feature": ({}, {NAME: "original_glcm_Homogeneity9"}, "to 'original_glcm_Homogeneity9', which is no"),
    "two to one": ({}, {"a": NAME, "b": NAME}, f"maps two columns to {NAME}"),
    "no mapping": ({}, ["a"], "is no mapping of names"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_what_is_missing_or_unknown_in_a_foreign_table_is_refused_by_name(name, cohort, tmp_path):
    options, mapping, told = BAD_TABLES[name]
    case = case_in(cohort)
    table = foreign_table(tmp_path / "t.csv", rows=[(case.case_id, 0.0)], **options)
    (tmp_path / "map.json").write_text(json.dumps(mapping))
    done = tmi("radiomics", case.folder, "--from", table, "--map", tmp_path / "map.json")
    assert done.code == 2
    assert told in done.err
    assert "\n  fix: " in done.err
    assert not case.radiomics.exists()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("other", 0.0)], "t.csv has no row of this case"),
        ([("ID", 0.0), ("ID", 1.0)], "t.csv has 2 rows of this case"),
    ],
    ids=["no row", "two rows"],
)
def test_a_case_without_its_one_row_is_refused_and_named(rows, told, cohort, tmp_path):
    case = case_in(cohort)
    table = foreign_table(tmp_path / "t.csv", rows=[(case.case_id if i == "ID" else i, v) for i, v in rows])
    done = tmi("radiomics", case.folder, "--from", table)
    assert done.code == 3
    assert f"error: case {case.case_id}: {told} [radiomics-rows]" in done.err


def test_rows_without_a_column_of_case_ids_are_refused(tmp_path):
    table = foreign_table(tmp_path / "t.csv", rows=[("a", 0.0), ("b", 1.0)])
    table.write_text(table.read_text().replace("ID,", "Scan,", 1))
    with pytest.raises(UsageError, match="2 rows and no column of case ids"):
        read_external_table(table, {"Scan": None})
    assert read_external_table(table, id_column="Scan").values_of("b")[0] == 1.0


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"\xff\xfe\x00", b'a,"b\n1,2\n', b"a,b\n1\n"])
def test_what_is_no_table_is_refused(content, tmp_path, cohort):
    (tmp_path / "t.csv").write_bytes(content)
    done = tmi("radiomics", case_in(cohort).folder, "--from", tmp_path / "t.csv")
    assert done.code == 2
    assert "t.csv" in done.err


def test_a_mapping_without_a_table_is_wrong_usage(cohort):
    done = tmi("radiomics", cohort, "--map", "names.json")
    assert done.code == 2
    assert "give the table with --from" in done.err
