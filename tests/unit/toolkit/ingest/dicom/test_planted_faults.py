"""The DICOM corpus: every planted fault is found under its own code, the untouched series raises none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from factories.dicom_faults import SERIES_FAULTS, each, edited, padded, put, uneven
from factories.dicom_series import (
    SeriesSpec,
    hounsfield_at,
    liver_masks,
    make_slices,
    positions_of_volume,
    write_seg,
    write_slices,
)
from factories.tmi_command import tmi
from tmi.toolkit.cases.provenance import read_case_record
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume, read_ct
from tmi.toolkit.ingest.case_importer import IMPORT_FIXES, ImportedCase, import_case
from tmi.toolkit.qc.check_registry import CHECKS

RECORD = {"patient_id": "P-ONE", "values": {"sex": "male", "albumin": 38}, "report": None}
BESIDES = {"few slices": {"mask-edge", "mask-outside", "liver-volume"}}
"""What a fault brings with it by nature."""


@pytest.fixture(scope="module")
def seg(tmp_path_factory) -> Path:
    """The liver of the good series."""
    path = tmp_path_factory.mktemp("seg") / "liver.dcm"
    return write_seg(path, make_slices(), [liver_masks(SeriesSpec())], ["hepar"])


@pytest.fixture(scope="module")
def good(tmp_path_factory, seg) -> ImportedCase:
    """The untouched series, imported whole."""
    folder = tmp_path_factory.mktemp("good")
    write_slices(folder / "dicom", make_slices(), shuffle=3)
    return import_case(folder / "case", ct=folder / "dicom", mask=seg, clinical=RECORD)


def codes_of(folder: Path, fault: str, seg: Path) -> tuple[set[str], str]:
    """Codes under which the fault is found, and the texts."""
    try:
        done = import_case(folder / "case", ct=SERIES_FAULTS[fault].write(folder / "dicom"), mask=seg, clinical=RECORD)
    except InputRejectedError as error:
        assert not (folder / "case").exists()
        return {error.code}, f"{error} {error.fix}"
    return {f.code for f in done.findings}, " ".join(f.message for f in done.findings)


def test_the_untouched_series_raises_nothing(good):
    assert good.findings == ()
    assert good.missing == ()
    assert not good.refused


@pytest.mark.parametrize("fault", SERIES_FAULTS)
def test_every_planted_fault_is_found_under_its_own_code(fault, tmp_path, seg):
    codes, texts = codes_of(tmp_path, fault, seg)
    assert codes - BESIDES.get(fault, set()) == {SERIES_FAULTS[fault].code}
    assert SERIES_FAULTS[fault].says in texts


def test_the_corpus_covers_every_dicom_check():
    elsewhere = {"dicom-patient-mismatch", "dicom-frame-mismatch", "dicom-patient-id"}  # test_import_masks, _case
    covered = {f.code for f in SERIES_FAULTS.values()}
    assert {c for c in CHECKS if c.startswith("dicom-")} - elsewhere <= covered
    assert covered <= set(CHECKS)


@pytest.mark.parametrize("fault", ["a slice twice", "one slice missing", "gantry tilt", "no slope", "uneven steps"])
def test_nothing_is_repaired_unasked_and_the_text_names_the_repair(fault, tmp_path):
    outcome = tmi("import", tmp_path / "case", "--ct", SERIES_FAULTS[fault].write(tmp_path / "dicom"))
    assert outcome.code == 3
    assert f"--fix {SERIES_FAULTS[fault].code}" in outcome.err
    assert not (tmp_path / "case").exists()


def repaired(folder: Path, slices, code: str) -> tuple[Volume, ImportedCase]:
    write_slices(folder / "dicom", slices, shuffle=5)
    done = import_case(folder / "case", ct=folder / "dicom", fixes=[code])
    record = read_case_record(done.case.folder, case_id="case")
    assert record is not None
    assert [r.code for r in record.repairs] == [code]
    assert record.repairs == done.repairs
    return read_ct(done.case), done


def test_dropping_copies_gives_the_untouched_volume(tmp_path, good):
    ct, done = repaired(tmp_path, SERIES_FAULTS["every slice twice"].slices(), "dicom-duplicate-slice")
    want = read_ct(good.case)
    assert np.array_equal(ct.array_DHW, want.array_DHW)
    assert np.allclose(ct.affine_xyz, want.affine_xyz)
    assert "24 slices left out" in done.repairs[0].what


def test_a_missing_slice_is_interpolated_and_the_others_stay(tmp_path, good):
    ct, _ = repaired(tmp_path, SERIES_FAULTS["one slice missing"].slices(), "dicom-missing-slice")
    want = read_ct(good.case).array_DHW
    differs = np.flatnonzero((ct.array_DHW != want).any(axis=(1, 2)))
    assert list(differs) == [10]
    half = (want[9].astype(float) + want[11]) / 2
    assert np.abs(ct.array_DHW[10] - half).max() <= 0.5


def test_a_gap_too_wide_is_not_filled(tmp_path):
    write_slices(tmp_path / "dicom", SERIES_FAULTS["three slices missing"].slices())
    with pytest.raises(InputRejectedError, match="too many to interpolate") as refused:
        import_case(tmp_path / "case", ct=tmp_path / "dicom", fixes=["dicom-missing-slice"])
    assert refused.value.code == "dicom-missing-slice"


def outlines_apart_mm(ct: Volume) -> float:
    """How far, at most, the body's middle lies from where the anatomy has it, over the slices and both axes."""
    want = hounsfield_at(positions_of_volume(ct.array_DHW.shape, ct.affine_xyz))
    _, height, width = ct.spacing_DHW_mm
    apart = []
    for have, there in zip(ct.array_DHW > -500, want > -500, strict=True):
        middles = [np.argwhere(mask).mean(axis=0) for mask in (have, there)]
        apart.append(np.abs((middles[0] - middles[1]) * (height, width)).max())
    return float(max(apart))


def liver_areas_apart(array_DHW: np.ndarray, affine_xyz: np.ndarray) -> float:
    """Difference of the liver's area by slice against the anatomy's, as a part of all of it."""
    want = hounsfield_at(positions_of_volume(array_DHW.shape, affine_xyz))
    have, there = (((a > 60) & (a < 200)).sum(axis=(1, 2)).astype(float) for a in (array_DHW, want))
    return float(np.abs(have - there).sum() / there.sum())


def test_uneven_steps_are_resampled_to_where_the_anatomy_lies(tmp_path):
    ct, _ = repaired(tmp_path, edited(uneven)(), "dicom-nonuniform-spacing")
    assert liver_areas_apart(ct.array_DHW, ct.affine_xyz) < 0.04
    untreated = np.stack(
        [hounsfield_at(SeriesSpec().positions_of(k if k < 12 else 12 + (k - 12) * 1.3)) for k in range(24)]
    )
    even = ct.affine_xyz.copy()
    even[2, 2] *= (ct.array_DHW.shape[0] - 1) / 23
    assert (
        liver_areas_apart(untreated[:, ::-1, ::-1], even) > 0.1
    )  # as a reader that trusts first and last would have it


@pytest.mark.parametrize("tilt", [-15.0, 4.0, 22.0])
def test_a_tilted_gantry_is_sheared_to_where_the_anatomy_lies(tilt, tmp_path):
    spec = SeriesSpec(tilt_deg=tilt, slices=12, step_mm=11.0, rows=150, columns=170, spacing_mm=(2.0, 2.0))
    ct, _ = repaired(tmp_path, make_slices(spec), "dicom-gantry-tilt")
    axes = ct.affine_xyz[:3, :3] / np.linalg.norm(ct.affine_xyz[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert outlines_apart_mm(ct) < 1.5  # untreated: 60 mm * tan(tilt) at the first and last slice, 4.2 mm and more


def test_values_without_slope_are_taken_as_hu_only_where_asked_for(tmp_path, good):
    slices = make_slices(SeriesSpec(intercept=0.0))
    for data in slices:
        put(RescaleSlope=None, RescaleIntercept=None)(data)
    ct, _ = repaired(tmp_path, slices, "dicom-no-rescale")
    assert np.array_equal(ct.array_DHW, read_ct(good.case).array_DHW)


def test_padding_becomes_air(tmp_path):
    ct, done = repaired(tmp_path, each(padded)(), "ct-padding")
    assert ct.array_DHW.min() == -1024
    assert not done.findings


def test_every_repair_of_an_import_is_tried_here_or_with_the_masks():
    assert set(IMPORT_FIXES) == {
        "dicom-duplicate-slice", "dicom-missing-slice", "dicom-nonuniform-spacing", "dicom-gantry-tilt",
        "dicom-no-rescale", "ct-padding", "mask-grid",
    }  # fmt: skip


def test_intercepts_by_slice_are_applied(tmp_path, good):
    done = import_case(tmp_path / "case", ct=SERIES_FAULTS["intercept by slice"].write(tmp_path / "dicom"))
    assert np.array_equal(read_ct(done.case).array_DHW, read_ct(good.case).array_DHW)
