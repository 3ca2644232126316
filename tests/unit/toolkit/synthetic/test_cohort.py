"""Synthetic cohorts: readable, reproducible, marked as synthetic, written atomically."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import tmi.toolkit.radiomics.extractor
import tmi.toolkit.synthetic.cohort as cohort_module
from factories.tmi_command import tmi as run_tmi
from tmi.toolkit.cases.case import Case, open_cohort
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.schema import CLASSES, N_RADIOMICS
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.imaging.volume import read_ct, read_mask
from tmi.toolkit.radiomics.extractor import extract
from tmi.toolkit.radiomics.table import read_table
from tmi.toolkit.storage.atomic_files import write_json
from tmi.toolkit.synthetic.clinical_record import BLOOD, PARTS, REMARK, sample_person, sample_record
from tmi.toolkit.synthetic.cohort import ORIENTATIONS, STORAGE_TYPES, Storage, make_cohort, plan_cohort, write_images
from tmi.toolkit.synthetic.generative_model import LatentSeverityModel
from tmi.toolkit.synthetic.phantom import Grid, disease_signs, render, sample_body

MODEL = LatentSeverityModel()


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def truth_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "truth.json").read_text())
    return value


@pytest.fixture
def fake_extraction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the feature extraction by zeros; works within this process only."""
    monkeypatch.setattr(tmi.toolkit.radiomics.extractor, "extract", lambda ct, mask, *, jobs: np.zeros(N_RADIOMICS))


@pytest.mark.usefixtures("fake_extraction")
def test_cohort_has_all_files_of_every_case(tmp_path):
    """Every case folder has all files, and the cohort folder has the two tables."""
    cohort = make_cohort(tmp_path / "c", cases=3, seed=5, jobs=1)
    assert cohort == open_cohort(tmp_path / "c")
    assert [c.case_id for c in cohort.cases] == ["syn5-0001", "syn5-0002", "syn5-0003"]
    names = {"ct.nii.gz", "liver.nii.gz", "radiomics.csv", "clinical.json"}
    assert all({p.name for p in c.folder.iterdir()} == names for c in cohort.cases)
    assert {p.name for p in (tmp_path / "c").iterdir() if p.is_file()} == {"cohort.csv", "truth.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.long
def test_files_do_not_depend_on_process_count(tmp_path):
    """The same seed gives the same bytes for any number of processes."""
    for name, jobs in (("one", 1), ("two", 2)):
        make_cohort(tmp_path / name, cases=2, seed=3, jobs=jobs)
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert sorted(one) == sorted(two)
    assert [n for n in one if one[n] != two[n]] == []


@pytest.mark.usefixtures("fake_extraction")
def test_other_seed_gives_other_cases(tmp_path):
    """Another seed gives other case ids and other voxels."""
    one, two = (make_cohort(tmp_path / str(s), cases=2, seed=s, jobs=1) for s in (1, 2))
    assert not {c.case_id for c in one.cases} & {c.case_id for c in two.cases}
    assert one.cases[0].ct.read_bytes() != two.cases[0].ct.read_bytes()


def test_radiomics_table_equals_extraction(synthetic_cohort):
    """The table equals the features extracted from the files."""
    case = open_cohort(synthetic_cohort).cases[0]
    ct = read_ct(case)
    table = read_table(case.radiomics, case_id=case.case_id)
    assert np.isfinite(table).all()
    np.testing.assert_allclose(table, extract(ct, read_mask(case, ct)), rtol=1e-9)


def test_cases_are_readable_with_distinct_grids(synthetic_cohort):
    """All cases are plausible and readable, with different voxel spacings."""
    cohort, schema = open_cohort(synthetic_cohort), load_schema()
    spacings = set()
    for case in cohort.cases:
        ct = read_ct(case)
        mask = read_mask(case, ct)
        assert 6_000 < mask.array_DHW.sum() < 20_000
        assert 60 < np.median(ct.array_DHW[mask.array_DHW]) < 125
        assert read_clinical(case, schema).patient_id == case.patient_id
        spacings.add(tuple(round(s, 3) for s in ct.spacing_DHW_mm))
    assert len(spacings) == len(cohort.cases)


def test_truth_lists_ceilings_and_cases(synthetic_cohort):
    """`truth.json` lists the highest AUC of each set of modalities, and every case."""
    truth, cohort = truth_of(synthetic_cohort), open_cohort(synthetic_cohort)
    assert set(truth["best_auc"]) == {
        "ct", "radiomics", "clinical", "ct+radiomics", "ct+clinical", "radiomics+clinical", "ct+radiomics+clinical"
    }  # fmt: skip
    assert all(0.75 < v < 0.95 for v in truth["best_auc"].values())
    assert (truth["seed"], truth["n_cases"]) == (7, 8)
    assert [(e["case_id"], e["patient_id"], CLASSES.index(e["label"])) for e in truth["cases"]] == [
        (c.case_id, c.patient_id, c.label) for c in cohort.cases
    ]
    threshold = truth["model"]["threshold"]
    assert all((e["severity"] > threshold) == (e["label"] == "bad") for e in truth["cases"])


def test_best_auc_does_not_depend_on_sampled_cases(tmp_path, synthetic_cohort, monkeypatch):
    """`best_auc` depends on the model only; `drawn_auc` is null for a single class."""
    entry = truth_of(synthetic_cohort)["cases"][0]
    truth = cohort_module._truth(MODEL, 99, [entry])
    assert truth["best_auc"] == truth_of(synthetic_cohort)["best_auc"]
    assert set(truth["drawn_auc"].values()) == {None}


def test_all_files_are_marked_as_synthetic(synthetic_cohort):
    """Ids, headers, records and `truth.json` mark the cohort as synthetic."""
    truth, cohort = truth_of(synthetic_cohort), open_cohort(synthetic_cohort)
    assert cohort_module.is_synthetic(synthetic_cohort)
    assert truth["synthetic"] is True
    assert "phantoms, not patients" in truth["statement"]
    for case in cohort.cases:
        assert case.case_id.startswith("syn")
        assert str(case.patient_id).startswith("syn")
        for file in (case.ct, case.mask):
            assert nib.load(file).header["descrip"].item() == b"synthetic phantom, no patient"
        assert json.loads(case.clinical.read_text())["report"] in (None, REMARK)


@pytest.mark.parametrize("text", ['{"synthetic": false}', '{"synthetic": "yes"}', "[]", "{", ""])
def test_unmarked_cohort_is_not_synthetic(tmp_path, text):
    """Only `"synthetic": true` in a valid `truth.json` marks a cohort as synthetic."""
    (tmp_path / "truth.json").write_text(text)
    assert not cohort_module.is_synthetic(tmp_path)
    assert not cohort_module.is_synthetic(tmp_path / "nowhere")


def test_plan_has_prevalence_and_second_visits():
    """The plan has the model's prevalence, and one case in eight is a second visit."""
    plans = plan_cohort(184, 0, MODEL)
    patients = {p.patient.patient_id: p.patient for p in plans}
    assert len(plans) == 184
    assert sum(p.bad for p in patients.values()) == round(MODEL.prevalence * len(patients))
    visits = Counter(p.patient.patient_id for p in plans)
    assert Counter(visits.values()) == {1: len(patients) - 23, 2: 23}
    assert len({p.case_id for p in plans}) == 184


@pytest.mark.parametrize("cases", range(2, 9))
def test_small_cohorts_have_both_outcomes(cases):
    """Cohorts of any size have both outcomes."""
    assert {p.patient.bad for p in plan_cohort(cases, 1, MODEL)} == {True, False}


def test_case_order_is_independent_of_outcome():
    """The order of the cases is not correlated with the outcome."""
    bad = [p.patient.bad for p in plan_cohort(400, 2, MODEL)]
    assert np.corrcoef(np.arange(400), bad)[0, 1] == pytest.approx(0.0, abs=0.12)


@pytest.mark.parametrize("voxels", STORAGE_TYPES)
@pytest.mark.parametrize("form", ["both", "sform", "qform"])
def test_storage_does_not_change_the_volume(tmp_path, voxels, form):
    """Every storage type, form and voxel order is read back as the same volume."""
    rng = np.random.default_rng(0)
    body = sample_body(rng, female=True, bmi=23.0)
    grid = Grid(shape_XYZ=(64, 66, 24), spacing_XYZ_mm=(4.5, 4.4, 7.5), noise_hu=9.0, deposit_part=0.02)
    signs = disease_signs(liver=0.0, portal=0.0, deposit=0.0)
    phantom = render(body, signs, grid, seed=np.random.SeedSequence(0))
    for orientation, mask_orientation in zip(ORIENTATIONS, ORIENTATIONS[::-1], strict=True):
        case = Case(folder=tmp_path / orientation, case_id=orientation)
        case.folder.mkdir()
        storage = Storage(
            orientation=orientation, mask_orientation=mask_orientation, voxels=voxels, form=form, tilt_deg=3.0,
            origin_mm=(10.0, -40.0, 77.0),
        )  # fmt: skip
        write_images(case, phantom, grid, storage)
        assert "".join(nib.aff2axcodes(nib.load(case.ct).affine)) == orientation
        ct = read_ct(case)
        assert np.array_equal(ct.array_DHW, phantom.hu_XYZ.transpose(2, 1, 0))
        assert np.array_equal(read_mask(case, ct).array_DHW, phantom.liver_XYZ.transpose(2, 1, 0))
        assert ct.spacing_DHW_mm == pytest.approx((7.5, 4.4, 4.5), abs=1e-4)


def records(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(8)
    sampled = []
    for _ in range(count):
        person = sample_person(rng)
        body = sample_body(rng, female=person.sex == "female", bmi=person.bmi)
        record, _ = sample_record(rng, patient_id="syn", person=person, body=body, blood=float(rng.normal()))
        sampled.append(record)
    return sampled


def test_records_cover_every_field(tmp_path):
    """The records fill every field but those of hepatology within its range, with the expected missing rates."""
    schema = load_schema()
    case = Case(folder=tmp_path, case_id="record")
    counts: Counter[str] = Counter()
    for record in records(300):
        write_json(case.clinical, record)
        counts.update(name for name, value in read_clinical(case, schema).values.items() if value is not None)
    fields = {field.name for field in schema.fields if field.section != "liver disease"}
    assert set(counts) == fields
    assert counts["sex"] == 300
    assert all(180 < counts[name] < 265 for name in ("bile_acid", "hdl"))
    assert 235 < counts["vat_area"] < 280
    assert all(counts[name] < 300 for name in BLOOD)


def test_sum_and_parts_are_consistent():
    """A sum is not below its parts, and both are missing together."""
    for record in records(200):
        values = {n: v["value"] * 1000 if isinstance(v, dict) else v for n, v in record["values"].items()}
        for total, parts in PARTS.items():
            assert {values.get(n) is None for n in (total, *parts)} in ({True}, {False})
            if values.get(total) is not None and not isinstance(record["values"][total], dict):
                in_same_unit = [p for p in parts if not isinstance(record["values"][p], dict)]
                assert values[total] >= sum(values[p] for p in in_same_unit) - 0.5


def test_some_records_have_other_units_or_remark():
    """Some values are in other units, and some records have the remark."""
    sampled = records(200)
    units = {(n, v["unit"]) for r in sampled for n, v in r["values"].items() if isinstance(v, dict)}
    assert units == {("total_bilirubin", "mg/dL"), ("albumin", "g/dL")}
    assert {r["report"] for r in sampled} == {None, REMARK}


def test_values_follow_their_loading():
    """Values follow the sign of their loading; a value without loading does not change."""
    rng = np.random.default_rng(3)
    person = sample_person(rng)
    body = sample_body(rng, female=False, bmi=24.0)
    means = []
    for blood in (-1.5, 1.5):
        samples = [
            sample_record(rng, patient_id="s", person=person, body=body, blood=blood)[1].values for _ in range(150)
        ]
        means.append({n: np.mean([s[n] for s in samples if n in s]) for n in BLOOD})
    low, high = means
    assert high["total_bilirubin"] > 1.5 * low["total_bilirubin"]
    assert high["albumin"] < low["albumin"] - 6
    assert high["urea"] == pytest.approx(low["urea"], rel=0.12)


@pytest.mark.usefixtures("fake_extraction")
def test_existing_cohort_needs_force(tmp_path):
    """An existing cohort is kept without `force` and replaced with it."""
    out = tmp_path / "c"
    make_cohort(out, cases=2, seed=1, jobs=1)
    before = content(out)
    with pytest.raises(UsageError, match="exists") as error:
        make_cohort(out, cases=2, seed=2, jobs=1)
    assert "--force" in error.value.fix
    assert content(out) == before
    make_cohort(out, cases=2, seed=2, jobs=1, force=True)
    assert {p.name for p in out.iterdir() if p.is_dir()} == {"syn2-0001", "syn2-0002"}


@pytest.mark.parametrize("file", [True, False])
def test_force_replaces_synthetic_cohorts_only(tmp_path, file):
    """`force` does not replace a file or a real cohort."""
    out = tmp_path / "work"
    if file:
        out.write_text("thesis")
    else:
        out.mkdir()
        (out / "cohort.csv").write_text("case_id,patient_id,label\nP1,P1,good\n")
    with pytest.raises(UsageError, match="is not a synthetic cohort and is not replaced, even with --force"):
        make_cohort(out, cases=2, seed=1, jobs=1, force=True)
    assert (out if file else out / "cohort.csv").is_file()


@pytest.mark.usefixtures("fake_extraction")
@pytest.mark.parametrize("stop", [KeyboardInterrupt, InputRejectedError])
def test_interrupt_keeps_the_old_cohort(tmp_path, monkeypatch, stop):
    """An interrupt or error leaves the old cohort and no partial one."""
    out = tmp_path / "c"
    make_cohort(out, cases=2, seed=1, jobs=1)
    before, make_case = content(out), cohort_module.make_case

    def fail_second(plan: cohort_module.CasePlan, stage: Path, model: LatentSeverityModel) -> dict[str, Any]:
        if plan.index == 2:
            raise stop("stopped", fix="-", code="-") if stop is InputRejectedError else stop
        return make_case(plan, stage, model)

    monkeypatch.setattr(cohort_module, "make_case", fail_second)
    with pytest.raises(stop):
        make_cohort(out, cases=3, seed=2, jobs=1, force=True)
    with pytest.raises(stop):
        make_cohort(tmp_path / "new", cases=3, seed=2, jobs=1)
    assert content(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("invalid", [{"cases": 1}, {"cases": 10_000}, {"seed": -1}, {"jobs": 0}])
def test_numbers_out_of_range_are_rejected(tmp_path, invalid):
    """Numbers out of range are a usage error."""
    with pytest.raises(UsageError, match="synth: cases="):
        make_cohort(tmp_path / "c", **({"cases": 4, "seed": 0} | invalid))
    assert not (tmp_path / "c").exists()


@pytest.mark.usefixtures("fake_extraction")
def test_progress_is_called_after_every_case(tmp_path):
    """The callback gets the number of completed cases."""
    calls: list[tuple[int, int]] = []
    make_cohort(tmp_path / "c", cases=3, seed=1, jobs=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.usefixtures("fake_extraction")
def test_command_prints_notice_and_ceilings(tmp_path):
    """`tmi synth` prints the notice and the highest AUCs; an existing cohort needs `--force`."""
    arguments = ("synth", "c", "--cases", "2", "--seed", "1", "--jobs", "1")
    first = run_tmi(*arguments, cwd=tmp_path)
    assert first.code == 0, first.err
    assert "synthetic cohort c: 2 cases of 2 patients, 1 bad, 1 good" in first.out
    assert "No figure obtained on it says anything about patients." in first.out
    best = truth_of(tmp_path / "c")["best_auc"]["ct+radiomics+clinical"]
    assert f"ct + radiomics + clinical  {best:.3f}" in first.out
    second = run_tmi(*arguments, cwd=tmp_path)
    assert second.code == 2
    assert "cohort c exists" in second.err
    assert "replace it with --force" in second.err
    assert run_tmi(*arguments, "--force", cwd=tmp_path).code == 0
