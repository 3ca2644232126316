"""Corpus of planted DICOM faults: each is found with its own code, and the unmodified series has no finding."""

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

VALUES = {"sex": "male", "height": 176, "bmi": 24, "albumin": 38, "platelets": 190, "ggt": 40}
RECORD = {"patient_id": "P-ONE", "values": VALUES, "report": None}
SIDE_EFFECTS = {"few slices": {"mask-edge", "mask-outside", "liver-volume"}}
"""Fault -> further codes that it implies."""


@pytest.fixture(scope="module")
def seg(tmp_path_factory) -> Path:
    """SEG of the liver in the valid series."""
    path = tmp_path_factory.mktemp("seg") / "liver.dcm"
    return write_seg(path, make_slices(), [liver_masks(SeriesSpec())], ["hepar"])


@pytest.fixture(scope="module")
def good(tmp_path_factory, seg) -> ImportedCase:
    """Import of the unmodified series."""
    folder = tmp_path_factory.mktemp("good")
    write_slices(folder / "dicom", make_slices(), shuffle=3)
    return import_case(folder / "case", ct=folder / "dicom", mask=seg, clinical=RECORD)


def codes_of(folder: Path, fault: str, seg: Path) -> tuple[set[str], str]:
    """Return the codes with which a fault is found, and the messages."""
    try:
        result = import_case(
            folder / "case", ct=SERIES_FAULTS[fault].write(folder / "dicom"), mask=seg, clinical=RECORD
        )
    except InputRejectedError as error:
        assert not (folder / "case").exists()
        return {error.code}, f"{error} {error.fix}"
    return {f.code for f in result.findings}, " ".join(f.message for f in result.findings)


def test_unmodified_series_has_no_finding(good):
    """The unmodified series has no finding and no missing file."""
    assert good.findings == ()
    assert good.missing == ()
    assert not good.rejected


@pytest.mark.parametrize("fault", SERIES_FAULTS)
def test_planted_fault_is_found_with_its_code(fault, tmp_path, seg):
    """Each planted fault is found with its own code and no other, except those it implies."""
    codes, texts = codes_of(tmp_path, fault, seg)
    assert codes - SIDE_EFFECTS.get(fault, set()) == {SERIES_FAULTS[fault].code}
    assert SERIES_FAULTS[fault].message in texts


def test_corpus_covers_every_dicom_check():
    """Every dicom-... check has at least one planted fault."""
    elsewhere = {"dicom-patient-mismatch", "dicom-frame-mismatch", "dicom-patient-id"}  # tested with masks and cases
    covered = {f.code for f in SERIES_FAULTS.values()}
    assert {c for c in CHECKS if c.startswith("dicom-")} - elsewhere <= covered
    assert covered <= set(CHECKS)


@pytest.mark.parametrize("fault", ["a slice twice", "one slice missing", "gantry tilt", "no slope", "uneven steps"])
def test_repairable_fault_is_rejected_by_default(fault, tmp_path):
    """A repairable fault rejects the case by default, and the message names the repair."""
    outcome = tmi("import", tmp_path / "case", "--ct", SERIES_FAULTS[fault].write(tmp_path / "dicom"))
    assert outcome.code == 3
    assert f"--fix {SERIES_FAULTS[fault].code}" in outcome.err
    assert not (tmp_path / "case").exists()


def repaired(folder: Path, slices, code: str) -> tuple[Volume, ImportedCase]:
    write_slices(folder / "dicom", slices, shuffle=5)
    result = import_case(folder / "case", ct=folder / "dicom", fixes=[code])
    record = read_case_record(result.case.folder, case_id="case")
    assert record is not None
    assert [r.code for r in record.repairs] == [code]
    assert record.repairs == result.repairs
    return read_ct(result.case), result


def test_dropping_duplicates_restores_the_volume(tmp_path, good):
    """Dropping duplicate slices gives the unmodified volume."""
    ct, result = repaired(tmp_path, SERIES_FAULTS["every slice twice"].slices(), "dicom-duplicate-slice")
    expected = read_ct(good.case)
    assert np.array_equal(ct.array_DHW, expected.array_DHW)
    assert np.allclose(ct.affine_xyz, expected.affine_xyz)
    assert "24 slices left out" in result.repairs[0].what


def test_missing_slice_is_interpolated(tmp_path, good):
    """A missing slice is the mean of its neighbours; the other slices are unchanged."""
    ct, _ = repaired(tmp_path, SERIES_FAULTS["one slice missing"].slices(), "dicom-missing-slice")
    expected = read_ct(good.case).array_DHW
    differs = np.flatnonzero((ct.array_DHW != expected).any(axis=(1, 2)))
    assert list(differs) == [10]
    half = (expected[9].astype(float) + expected[11]) / 2
    assert np.abs(ct.array_DHW[10] - half).max() <= 0.5


def test_wide_gap_is_not_interpolated(tmp_path):
    """A gap of three slices is rejected in spite of the repair."""
    write_slices(tmp_path / "dicom", SERIES_FAULTS["three slices missing"].slices())
    with pytest.raises(InputRejectedError, match="too many to interpolate") as error:
        import_case(tmp_path / "case", ct=tmp_path / "dicom", fixes=["dicom-missing-slice"])
    assert error.value.code == "dicom-missing-slice"


def centroid_error_mm(ct: Volume) -> float:
    """Return the largest distance, over slices and in-plane axes, of the body's centroid from the anatomy."""
    expected = hounsfield_at(positions_of_volume(ct.array_DHW.shape, ct.affine_xyz))
    _, height, width = ct.spacing_DHW_mm
    distances = []
    for body, expected_body in zip(ct.array_DHW > -500, expected > -500, strict=True):
        centroids = [np.argwhere(mask).mean(axis=0) for mask in (body, expected_body)]
        distances.append(np.abs((centroids[0] - centroids[1]) * (height, width)).max())
    return float(max(distances))


def liver_area_error(array_DHW: np.ndarray, affine_xyz: np.ndarray) -> float:
    """Return the summed difference of the liver areas per slice, relative to the anatomy."""
    expected = hounsfield_at(positions_of_volume(array_DHW.shape, affine_xyz))
    areas, expected_areas = (((a > 60) & (a < 200)).sum(axis=(1, 2)).astype(float) for a in (array_DHW, expected))
    return float(np.abs(areas - expected_areas).sum() / expected_areas.sum())


def test_uneven_steps_are_resampled_to_the_anatomy(tmp_path):
    """Resampled slices show the anatomy at their positions."""
    ct, _ = repaired(tmp_path, edited(uneven)(), "dicom-nonuniform-spacing")
    assert liver_area_error(ct.array_DHW, ct.affine_xyz) < 0.04
    unrepaired = np.stack(
        [hounsfield_at(SeriesSpec().positions_of(k if k < 12 else 12 + (k - 12) * 1.3)) for k in range(24)]
    )
    even = ct.affine_xyz.copy()
    even[2, 2] *= (ct.array_DHW.shape[0] - 1) / 23
    assert (
        liver_area_error(unrepaired[:, ::-1, ::-1], even) > 0.1
    )  # what a reader gets that uses the first and the last position only


@pytest.mark.parametrize("tilt", [-15.0, 4.0, 22.0])
def test_gantry_tilt_is_sheared_to_the_anatomy(tilt, tmp_path):
    """Sheared slices show the anatomy at their positions on orthogonal axes."""
    spec = SeriesSpec(tilt_deg=tilt, slices=12, step_mm=11.0, rows=150, columns=170, spacing_mm=(2.0, 2.0))
    ct, _ = repaired(tmp_path, make_slices(spec), "dicom-gantry-tilt")
    axes = ct.affine_xyz[:3, :3] / np.linalg.norm(ct.affine_xyz[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert centroid_error_mm(ct) < 1.5  # unrepaired: 60 mm * tan(tilt) at the first and last slice, 4.2 mm and more


def test_missing_rescale_is_taken_as_hu_on_request(tmp_path, good):
    """With the repair, stored values without slope and intercept are HU."""
    slices = make_slices(SeriesSpec(intercept=0.0))
    for data in slices:
        put(RescaleSlope=None, RescaleIntercept=None)(data)
    ct, _ = repaired(tmp_path, slices, "dicom-no-rescale")
    assert np.array_equal(ct.array_DHW, read_ct(good.case).array_DHW)


def test_padding_is_set_to_air(tmp_path):
    """Marked padding becomes -1024 HU."""
    ct, result = repaired(tmp_path, each(padded)(), "ct-padding")
    assert ct.array_DHW.min() == -1024
    assert not result.findings


def test_every_repair_has_a_test():
    """A new repair needs a test here or with the masks."""
    assert set(IMPORT_FIXES) == {
        "dicom-duplicate-slice", "dicom-missing-slice", "dicom-nonuniform-spacing", "dicom-gantry-tilt",
        "dicom-no-rescale", "ct-padding", "mask-grid",
    }  # fmt: skip


def test_rescale_is_applied_per_slice(tmp_path, good):
    """Slices with different intercepts give the unmodified volume."""
    result = import_case(tmp_path / "case", ct=SERIES_FAULTS["intercept by slice"].write(tmp_path / "dicom"))
    assert np.array_equal(read_ct(result.case).array_DHW, read_ct(good.case).array_DHW)
