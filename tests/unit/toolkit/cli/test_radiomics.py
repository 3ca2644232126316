"""`tmi radiomics`: extraction of many cases, its records, its cache, and import of external tables."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import yaml

import tmi.toolkit.radiomics.extractor as extractor
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
    """A read-only synthetic cohort of two cases; the tables extracted by `synth` are moved to synth.csv."""
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
def extractions(monkeypatch):
    """Replaces the extraction by a fake and returns the list of its calls, as mask sizes."""
    calls = []

    def fake(ct, mask, *, jobs=None):
        calls.append(int(mask.array_DHW.sum()))
        return ExtractedFeatures(values_F=np.arange(1781.0) + calls[-1])

    monkeypatch.setattr(extractor, "extract_with_note", fake)
    return calls


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "radiomics"


def test_cohort_is_extracted_in_parallel_once(cohort):
    """Two processes write table and record of each case; a second run leaves them, and `check` finds them current."""
    result = tmi("radiomics", cohort, "--jobs", 2)
    assert (result.code, result.out) == (0, "2 case(s): 2 written, 0 up to date, 0 rejected\n")
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
    second = tmi("radiomics", cohort)
    assert (second.code, second.out) == (0, "2 case(s): 0 written, 2 up to date, 0 rejected\n")
    assert case_in(cohort).radiomics.stat().st_mtime_ns == before
    assert not any(f["code"] == "radiomics-stale" for f in tmi("check", cohort, "--json").document["findings"])


def test_rejected_case_does_not_stop_others(cohort, extractions):
    """A rejected case is reported with code and fix, leaves no table, and the other cases are written."""
    case_in(cohort).mask.write_bytes(b"no image")
    result = tmi("radiomics", cohort, "--jobs", 1)
    assert (result.code, result.out) == (3, "2 case(s): 1 written, 0 up to date, 1 rejected\n")
    assert f"error: case {case_in(cohort).case_id}: liver.nii.gz cannot be read as NIfTI: it is no NIfTI" in result.err
    assert "\n  fix: " in result.err
    assert case_in(cohort, 2).radiomics.is_file()
    assert not case_in(cohort).radiomics.exists()


def test_missing_case_folder_is_rejected(tmp_path):
    """A case folder that does not exist is reported with its own code, if it is not the only one."""
    (tmp_path / "P1").mkdir()
    result = tmi("radiomics", tmp_path / "P9", tmp_path / "P1")
    assert (result.code, result.out) == (3, "2 case(s): 0 written, 0 up to date, 2 rejected\n")
    assert "the case folder does not exist [case-missing]" in result.err


def test_table_of_other_origin_needs_force(cohort, extractions):
    """A table without a record is overwritten only with --force."""
    case = case_in(cohort)
    write_table(case.radiomics, np.full(1781, 7.0))
    result = tmi("radiomics", case.folder)
    assert result.code == 3
    assert "radiomics.csv exists and was not extracted here [radiomics-exists]" in result.err
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
    "another mask": (_other_mask, "was computed from a different liver.nii.gz"),
    "another CT": (
        lambda case: case.ct.write_bytes(case.ct.read_bytes() + b"\0"),
        "was computed from a different ct.nii.gz",
    ),
    "an edited table": (lambda case: write_table(case.radiomics, np.zeros(1781)), "was changed after"),
    "other settings": (_edit_record(settings_digest="0" * 64), "with other settings"),
    "a damaged record": (_edit_record(schema="tmi-radiomics/9"), "not follow the schema tmi-radiomics/1"),
    "a record with an unknown key": (_edit_record(surprise=1), "not follow the schema tmi-radiomics/1"),
    "no JSON": (lambda case: (case.folder / "radiomics.json").write_text("{"), "not follow the schema tmi-radiomics/1"),
}


@pytest.mark.parametrize("name", STALE)
def test_stale_table_is_reported_and_kept(name, cohort, extractions):
    """`check` warns of a table that no longer matches its files, and `radiomics` replaces it only with --force."""
    plant, message = STALE[name]
    case = case_in(cohort)
    assert tmi("radiomics", case.folder).code == 0
    plant(case)
    findings = [f for f in tmi("check", case.folder, "--json").document["findings"] if f["code"] == "radiomics-stale"]
    assert len(findings) == 1
    assert message in findings[0]["message"]
    assert findings[0]["severity"] == "warning"
    result = tmi("radiomics", case.folder)
    assert result.code == 3
    assert message in result.err
    assert "[radiomics-stale]" in result.err, "the code of `tmi check`"
    assert tmi("radiomics", case.folder, "--force").code == 0
    assert tmi("radiomics", case.folder).out == "1 case(s): 0 written, 1 up to date, 0 rejected\n"


def test_table_of_other_label_is_rejected(cohort, extractions):
    """A table extracted from another mask label is not replaced without --force."""
    case = case_in(cohort)
    assert tmi("radiomics", case.folder, "--mask-label", 1).code == 0
    result = tmi("radiomics", case.folder)
    assert result.code == 3
    assert "from another label of liver.nii.gz" in result.err


def test_run_interrupted_before_table_is_completed(cohort, extractions):
    """A case with a record but without a table is extracted by the next run."""
    case = case_in(cohort)
    assert tmi("radiomics", case.folder).code == 0
    case.radiomics.unlink()
    assert tmi("radiomics", case.folder).out == "1 case(s): 1 written, 0 up to date, 0 rejected\n"


def test_extraction_is_cached_unless_disabled(cohort, extractions, cache):
    """A second extraction is read from the cache; --no-cache and a damaged entry extract again."""
    case = case_in(cohort)
    for _ in range(2):
        assert tmi("radiomics", case.folder, "--force").code == 0
    assert len(extractions) == 1
    assert tmi("radiomics", case.folder, "--force", "--no-cache").code == 0
    assert len(extractions) == 2
    (entry,) = cache.glob("*.entry")
    entry.write_bytes(entry.read_bytes()[:-8])
    assert tmi("radiomics", case.folder, "--force").code == 0
    assert len(extractions) == 3
    assert read_table(case.radiomics, case_id="P")[0] == extractions[-1]


def test_repeated_preparation_extracts_once(cohort, extractions, cache, micro_config):
    """Preparing a case without a table uses the cache and writes no table into the case."""
    first, second = (prepare_case(case_in(cohort), micro_config, load_schema()) for _ in range(2))
    assert len(extractions) == 1
    np.testing.assert_array_equal(first.radiomics_F, second.radiomics_F)
    assert not case_in(cohort).radiomics.exists()


def test_reference_extraction_is_reported(cohort, monkeypatch, micro_config, tmp_path):
    """The note of a slow extraction is a warning of preparation and command, and is part of the record."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))  # the second extraction must not be a hit without a note
    note = "radiomics were extracted by the slow reference path: another SimpleITK"
    slow = ExtractedFeatures(values_F=np.arange(1781.0), note=note)
    monkeypatch.setattr(extractor, "extract_with_note", lambda ct, mask, *, jobs=None: slow)
    case = case_in(cohort)
    assert note in [i.message for i in prepare_case(case, micro_config, load_schema()).warnings]
    result = tmi("radiomics", case.folder)
    expected = (
        f"warning: case {case.case_id}: {note} [radiomics-extractor]\n  fix: install the versions of constraints.txt\n"
    )
    assert (result.code, result.err) == (0, expected)
    assert json.loads((case.folder / "radiomics.json").read_text())["note"] == note


def test_cache_key_covers_all_inputs_of_values(monkeypatch):
    """The key changes with voxels, dtype, mask, spacing, shape and package versions, but not with the origin."""
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


def test_concurrent_processes_share_cache(tmp_path):
    """Processes that extract the same case at once get equal bytes and leave one entry."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        values = pool.map(_extract_small, [str(tmp_path)] * 4, chunksize=1)
    assert len(set(values)) == 1
    assert len(list((tmp_path / "radiomics").glob("*.entry"))) == 1


def external_table(path, *, rows, rename=None, drop=(), extra=(), delimiter=","):
    """Write a table like pyradiomics' command line: columns of inputs and diagnostics, then features."""
    names = [n for n in reversed(FEATURE_NAMES) if n not in drop]
    header = ["ID", "Image", "Mask", "diagnostics_Versions_Numpy", *[(rename or {}).get(n, n) for n in names], *extra]
    lines = [delimiter.join(header)]
    for case_id, value in rows:
        cells = [case_id, "ct.nrrd", "seg.nrrd", "1.26", *[repr(value + FEATURE_NAMES.index(n)) for n in names]]
        lines.append(delimiter.join([*cells, *["5"] * len(extra)]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_pyradiomics_table_is_imported_by_case_id(cohort, tmp_path, delimiter):
    """Rows of a table of pyradiomics' command line are assigned by case id, for each delimiter."""
    one, two = case_in(cohort, 1), case_in(cohort, 2)
    table = external_table(
        tmp_path / "all.csv", rows=[(two.case_id, 2000.0), (one.case_id, 1000.0)], delimiter=delimiter
    )
    result = tmi("radiomics", cohort, "--from", table)
    assert (result.code, result.out) == (0, "2 case(s): 2 written, 0 up to date, 0 rejected\n")
    np.testing.assert_array_equal(read_table(one.radiomics, case_id="1"), np.arange(1781.0) + 1000)
    np.testing.assert_array_equal(read_table(two.radiomics, case_id="2"), np.arange(1781.0) + 2000)
    record = json.loads((one.folder / "radiomics.json").read_text())
    assert (record["source"], record["settings_digest"], record["versions"]) == ("table", None, {})


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_renamed_columns_are_mapped_and_recorded(cohort, tmp_path, form):
    """A JSON or YAML mapping renames or ignores columns, and the record contains the renamed ones."""
    case = case_in(cohort)
    external_names = {"gradient_ngtdm_Strength": "grad strength"}
    table = external_table(tmp_path / "t.csv", rows=[(case.case_id, 0.0)], rename=external_names, extra=["age"])
    mapping = tmp_path / f"map.{form}"
    data = {"grad strength": "gradient_ngtdm_Strength", "age": None}
    mapping.write_text(json.dumps(data) if form == "json" else yaml.safe_dump(data))
    assert tmi("radiomics", case.folder, "--from", table, "--map", mapping).code == 0
    assert read_table(case.radiomics, case_id="P")[-1] == 1780.0
    assert json.loads((case.folder / "radiomics.json").read_text())["mapping"] == external_names


NAME = "original_glcm_Idm"
BAD_TABLES = {
    "missing": ({"drop": (NAME, "original_glcm_Id")}, {}, "has no column for original_glcm_Id and 1 more"),
    "unknown": ({"extra": ["age"]}, {}, "has the unknown column 'age'"),
    "twice": ({"extra": [NAME]}, {}, f"has two columns for {NAME}"),
    "mapped column absent": ({}, {"nowhere": NAME}, "has no column 'nowhere', which the mapping names"),
    "mapped to no feature": (
        {},
        {NAME: "original_glcm_Homogeneity9"},
        "to 'original_glcm_Homogeneity9', which is not a feature",
    ),
    "two to one": ({}, {"a": NAME, "b": NAME}, f"maps two columns to {NAME}"),
    "no mapping": ({}, ["a"], "is not a mapping of names"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_invalid_external_columns_are_rejected_by_name(name, cohort, tmp_path):
    """A missing, unknown, duplicate or wrongly mapped column is named in the error, and nothing is written."""
    options, mapping, message = BAD_TABLES[name]
    case = case_in(cohort)
    table = external_table(tmp_path / "t.csv", rows=[(case.case_id, 0.0)], **options)
    (tmp_path / "map.json").write_text(json.dumps(mapping))
    result = tmi("radiomics", case.folder, "--from", table, "--map", tmp_path / "map.json")
    assert result.code == 2
    assert message in result.err
    assert "\n  fix: " in result.err
    assert not case.radiomics.exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("other", 0.0)], "t.csv has no row of this case"),
        ([("ID", 0.0), ("ID", 1.0)], "t.csv has 2 rows of this case"),
    ],
    ids=["no row", "two rows"],
)
def test_case_without_exactly_one_row_is_rejected(rows, message, cohort, tmp_path):
    """A case with no row or several rows in the external table is rejected by its id."""
    case = case_in(cohort)
    table = external_table(tmp_path / "t.csv", rows=[(case.case_id if i == "ID" else i, v) for i, v in rows])
    result = tmi("radiomics", case.folder, "--from", table)
    assert result.code == 3
    assert f"error: case {case.case_id}: {message} [radiomics-rows]" in result.err


def test_several_rows_need_case_ids(tmp_path):
    """A table of several rows needs a case id column, by its usual name or by --id-column."""
    table = external_table(tmp_path / "t.csv", rows=[("a", 0.0), ("b", 1.0)])
    table.write_text(table.read_text().replace("ID,", "Scan,", 1))
    with pytest.raises(UsageError, match="2 rows and no column of case ids"):
        read_external_table(table, {"Scan": None})
    assert read_external_table(table, id_column="Scan").values_of("b")[0] == 1.0


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"\xff\xfe\x00", b'a,"b\n1,2\n', b"a,b\n1\n"])
def test_unreadable_table_is_rejected(content, tmp_path, cohort):
    """A file that is empty, without rows, not UTF-8 or broken CSV is a usage error."""
    (tmp_path / "t.csv").write_bytes(content)
    result = tmi("radiomics", case_in(cohort).folder, "--from", tmp_path / "t.csv")
    assert result.code == 2
    assert "t.csv" in result.err


def test_mapping_without_table_is_usage_error(cohort):
    """--map needs --from."""
    result = tmi("radiomics", cohort, "--map", "names.json")
    assert result.code == 2
    assert "give the table with --from" in result.err
