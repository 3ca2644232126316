"""DICOM results: right values in the study of the case, and no result for the series of another patient."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from scipy import ndimage

from factories.dicom_series import SeriesSpec, liver_at, make_slices, set_hounsfield, write_slices
from factories.enhanced_ct import to_enhanced
from tmi.runtime.dicom_results.capture import OUTLINE_RGB, _orientation
from tmi.runtime.dicom_results.objects import require_root
from tmi.runtime.dicom_results.source import read_source
from tmi.runtime.dicom_results.writer import CAPTURE_FILE, REPORT_FILE, SEGMENTATION_FILE, write_dicom_results
from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import UsageError
from tmi.toolkit.ingest.case_importer import import_case

OBLIQUE_LIKE = SeriesSpec(
    slices=20, rows=44, columns=52, spacing_mm=(6.0, 6.5), step_mm=-7.0, orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
)


def _written(prediction, case, series, origin, out: Path):
    out.mkdir()
    result = write_dicom_results(prediction, case, read_source(series, case), out, origin)
    return result, *(pydicom.dcmread(out / name) for name in result.files)


def _values(report) -> dict[str, float]:
    """Measurements of a report: code -> value."""
    found = {}

    def walk(item):
        for child in item.get("ContentSequence", []):
            if child.ValueType == "NUM":
                (value,) = child.MeasuredValueSequence
                found[_code(child.ConceptNameCodeSequence[0])] = float(value.NumericValue)
            walk(child)

    walk(report)
    return found


def _codes(report) -> list[tuple[str, str]]:
    """Coded evaluations of a report: name and value."""
    found = []

    def walk(item):
        for child in item.get("ContentSequence", []):
            if child.ValueType == "CODE":
                found.append((_code(child.ConceptNameCodeSequence[0]), _code(child.ConceptCodeSequence[0])))
            walk(child)

    walk(report)
    return found


def _code(item) -> str:
    return str(item.get("CodeValue") or item.get("LongCodeValue"))


def test_report_has_the_values_of_the_prediction(imported, prediction, origin, tmp_path):
    """Every probability, the spread, the decision by its SNOMED CT concept, and the liver's volume in mL."""
    result, report, *_ = _written(prediction, imported.case, imported.series, origin, tmp_path / "out")
    assert result.files == (REPORT_FILE, SEGMENTATION_FILE, CAPTURE_FILE)
    values = _values(report)
    liver_ml = imported.liver.sum() * 5.5 * 5.5 * 6.0 / 1000
    assert values.pop("118565006") == pytest.approx(liver_ml, rel=1e-6)
    assert values == {
        "probability-good": 0.25, "probability-bad": 0.75, "fold0-good": 0.375, "fold0-bad": 0.625,
        "fold1-good": 0.125, "fold1-bad": 0.875, "spread": 0.125,
    }  # fmt: skip
    assert ("decision", "170969009") in _codes(report)
    assert report.VerificationFlag == "UNVERIFIED"
    assert report.SOPClassUID == pydicom.uid.Comprehensive3DSRStorage
    read = highdicom.sr.srread(tmp_path / "out" / REPORT_FILE)
    (group,) = read.content.get_image_measurement_groups()
    assert len(group.get_measurements()) == 7


@pytest.mark.parametrize(
    ("decision", "reasons", "value"),
    [("good", (), "170968001"), ("not-trusted", ("not-trusted",), "not-trusted"),
     ("not-decided", ("mask-name", "radiomics-incomplete"), "not-decided")],
)  # fmt: skip
def test_withheld_decision_is_no_prognosis(imported, prediction, origin, tmp_path, decision, reasons, value):
    """A withheld decision has its own code, never a prognosis, and each reason one too."""
    withheld = replace(prediction, decision=decision, reasons=reasons)
    _, report, *_ = _written(withheld, imported.case, imported.series, origin, tmp_path / "out")
    codes = _codes(report)
    assert [v for name, v in codes if name == "decision"] == [value]
    assert [v for name, v in codes if name == "reason"] == list(reasons)


def test_results_are_in_the_study_of_the_series(imported, prediction, origin, tmp_path):
    """Patient, study and frame of reference are those of the slices; series and instances are new, below the root."""
    _, report, seg, capture = _written(prediction, imported.case, imported.series, origin, tmp_path / "out")
    source = pydicom.dcmread(next(imported.series.iterdir()))
    for data in (report, seg, capture):
        for name in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate"):
            assert data[name].value == source[name].value
        assert data.SeriesInstanceUID != source.SeriesInstanceUID
        assert data.SeriesInstanceUID.startswith("1.2.826.0.1.3680043.9.")
        assert data.SOPInstanceUID.startswith("1.2.826.0.1.3680043.9.")
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert report.SeriesInstanceUID != seg.SeriesInstanceUID
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    referenced = {str(i.ReferencedSOPInstanceUID) for s in evidence for i in s.ReferencedSOPSequence}
    assert seg.SOPInstanceUID in referenced
    assert {str(pydicom.dcmread(path).SOPInstanceUID) for path in imported.series.iterdir()} <= referenced


def test_uids_need_no_root(imported, prediction, origin, tmp_path):
    """Without a root, UIDs are derived from UUIDs and differ between two results of one case."""
    without = replace(origin, uid_root=None)
    _, one, *_ = _written(prediction, imported.case, imported.series, without, tmp_path / "one")
    _, two, *_ = _written(prediction, imported.case, imported.series, without, tmp_path / "two")
    assert one.SOPInstanceUID.startswith("2.25.")
    assert one.SOPInstanceUID != two.SOPInstanceUID


def test_segmentation_equals_the_mask(imported, prediction, origin, tmp_path):
    """Voxel for voxel on the slices, and again after its import as the mask of a case."""
    _, _, seg, _ = _written(prediction, imported.case, imported.series, origin, tmp_path / "out")
    read = highdicom.seg.segread(tmp_path / "out" / SEGMENTATION_FILE)
    slices = sorted((pydicom.dcmread(p) for p in imported.series.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    frames = read.get_pixels_by_source_instance(
        [d.SOPInstanceUID for d in slices], assert_missing_frames_are_empty=True
    )
    assert np.array_equal(frames[..., 0] != 0, imported.liver)
    assert seg.SegmentationType == "BINARY"
    import_case(tmp_path / "P1", ct=imported.series, mask=tmp_path / "out" / SEGMENTATION_FILE)
    again, before = tmp_path / "P1" / "liver.nii.gz", imported.case.mask
    import nibabel

    assert np.array_equal(nibabel.load(again).get_fdata(), nibabel.load(before).get_fdata())


def test_segmentation_of_a_sagittal_series(prediction, origin, tmp_path):
    """The order of slices, rows and columns follows the series, whose positions run backwards here."""
    slices = make_slices(OBLIQUE_LIKE)
    liver = np.stack([liver_at(OBLIQUE_LIKE.positions_of(k)) for k in range(OBLIQUE_LIKE.slices)])
    series = write_slices(tmp_path / "series", slices, shuffle=5)
    from factories.dicom_series import write_seg

    seg = write_seg(tmp_path / "seg.dcm", slices, [liver.astype(np.uint8)], ["hepar"])
    import_case(tmp_path / "P1", ct=series, mask=seg)
    _written(prediction, Case(folder=tmp_path / "P1", case_id="P1"), series, origin, tmp_path / "out")
    read = highdicom.seg.segread(tmp_path / "out" / SEGMENTATION_FILE)
    frames = read.get_pixels_by_source_instance(
        [d.SOPInstanceUID for d in slices], assert_missing_frames_are_empty=True
    )
    assert np.array_equal(frames[..., 0] != 0, liver)


def test_outline_is_on_the_slice_with_most_liver(imported, prediction, origin, tmp_path):
    """Grey is the HU in the soft-tissue window; the edge of the liver, and nothing else, has the colour."""
    *_, capture = _written(prediction, imported.case, imported.series, origin, tmp_path / "out")
    number = imported.liver.sum(axis=(1, 2)).argmax()
    slices = sorted((pydicom.dcmread(p) for p in imported.series.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    hu = slices[number].pixel_array.astype(float) + slices[number].RescaleIntercept
    liver = imported.liver[number]
    edge = liver & ~ndimage.binary_erosion(liver)
    picture = capture.pixel_array
    assert (picture[edge] == OUTLINE_RGB).all()
    grey = np.rint(np.clip((hu + 160) / 400, 0, 1) * 255)
    assert np.array_equal(picture[~edge], np.repeat(grey[~edge][:, None], 3, axis=1))
    assert list(capture.PatientOrientation) == ["L", "P"]
    assert capture.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage


@pytest.mark.parametrize(
    ("orientation", "letters"),
    [((1, 0, 0, 0, 1, 0), ("L", "P")), ((-1, 0, 0, 0, 1, 0), ("R", "P")), ((0, 1, 0, 0, 0, -1), ("P", "F")),
     ((0.99, 0.1, 0, 0, 0.1, 0.99), ("L", "H"))],
)  # fmt: skip
def test_orientation_letters(orientation, letters):
    """DICOM's axes point to the left, to the back and to the head."""
    data = pydicom.Dataset()
    data.ImageOrientationPatient = list(orientation)
    assert _orientation(data) == letters


def _other_pixels(slices):
    set_hounsfield(slices[7], np.full((slices[7].Rows, slices[7].Columns), 55))


def _moved(slices):
    for data in slices:
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [x + 12, y, z]


def _no_study(slices):
    for data in slices:
        data.StudyInstanceUID = ""


def _no_frame_of_reference(slices):
    for data in slices:
        del data.FrameOfReferenceUID


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_pixels, "is not the CT of case P1: .* voxels differ"),
        (_moved, "is not the CT of case P1: first voxels 12 mm apart"),
        (_no_study, "24 of 24 slices .* have no StudyInstanceUID"),
        (_no_frame_of_reference, "24 of 24 slices .* have no FrameOfReferenceUID"),
    ],
)
def test_series_of_another_case_is_rejected(imported, tmp_path, change, message):
    """One other slice or another position is another CT; identifiers that were blanked cannot be referred to."""
    slices = [pydicom.dcmread(path) for path in sorted(imported.series.iterdir())]
    change(slices)
    series = write_slices(tmp_path / "series", slices)
    with pytest.raises(UsageError, match=message):
        read_source(series, imported.case)


def test_multiframe_source_is_named(imported, tmp_path):
    """Enhanced CT, although it is the case's CT, has no instance for each slice: rejected before pixels are kept."""
    slices = [pydicom.dcmread(path) for path in sorted(imported.series.iterdir())]
    series = write_slices(tmp_path / "series", [to_enhanced(slices)])
    with pytest.raises(UsageError, match="is enhanced multi-frame CT"):
        read_source(series, imported.case)


def test_no_segmentation_without_a_mask_or_on_another_grid(imported, prediction, origin, tmp_path):
    """A case without a mask has a report alone; so has a CT that the import repaired, whose grid is another."""
    bare = Path(shutil.copytree(imported.case.folder, tmp_path / "P1"))
    (bare / "liver.nii.gz").unlink()
    case = Case(folder=bare, case_id="P1")
    result, report = _written(prediction, case, imported.series, origin, tmp_path / "bare")
    assert (result.no_segmentation, "118565006" in _values(report)) == ("the case has no mask", False)
    tilted = SeriesSpec(slices=24, rows=48, columns=64, spacing_mm=(5.5, 5.5), tilt_deg=8.0)
    series = write_slices(tmp_path / "tilted", make_slices(tilted))
    import_case(tmp_path / "P2", ct=series, fixes=["dicom-gantry-tilt"])
    shutil.copy(tmp_path / "P2" / "ct.nii.gz", tmp_path / "P2" / "liver.nii.gz")
    case = Case(folder=tmp_path / "P2", case_id="P2")
    result, _ = _written(prediction, case, series, origin, tmp_path / "repaired")
    assert result.no_segmentation == "the import repaired the CT, so its grid is not that of the slices"


@pytest.mark.parametrize("root", ["", "1.2.", "abc", "1..2", "01.2", "1.2.826.0.1.3680043.9.999999"])
def test_malformed_uid_root_is_rejected(root):
    """A root is numbers with dots, short enough for the number behind it."""
    with pytest.raises(UsageError, match="is not valid"):
        require_root(root)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dsrdump is not installed (Debian: dcmtk)")
def test_validators_find_no_error(imported, prediction, origin, tmp_path):
    """The validators dciodvfy and dsrdump accept both objects; a planted fault is found by both."""
    _, report, *_ = _written(prediction, imported.case, imported.series, origin, tmp_path / "out")
    for name in (REPORT_FILE, SEGMENTATION_FILE, CAPTURE_FILE):
        assert _errors(tmp_path / "out" / name) == []
    assert subprocess.run(["dsrdump", tmp_path / "out" / REPORT_FILE], capture_output=True, check=False).returncode == 0
    report.ContentSequence[0].ValueType = "WRONG"
    report.save_as(tmp_path / "wrong.dcm")
    assert _errors(tmp_path / "wrong.dcm") != []
    assert subprocess.run(["dsrdump", tmp_path / "wrong.dcm"], capture_output=True, check=False).returncode != 0


def _errors(path: Path) -> list[str]:
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
