"""`tmi predict --dicom`: the command, its mistakes, and the real series of the shared data."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from factories.cases import write_case
from factories.dicom_series import SeriesSpec, liver_at, make_slices, write_seg, write_slices
from factories.tmi_command import tmi
from tmi.toolkit.ingest.case_importer import import_case

SPEC = SeriesSpec(slices=24, rows=48, columns=64, spacing_mm=(5.5, 5.5), step_mm=6.0)


class Imported(NamedTuple):
    """A case and its series."""

    case: Path
    series: Path


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Imported:
    """A complete case from a series; read-only."""
    folder = tmp_path_factory.mktemp("predicted")
    other = write_case(folder / "other")
    slices = make_slices(SPEC)
    liver = np.stack([liver_at(SPEC.positions_of(k)) for k in range(SPEC.slices)])
    series = write_slices(folder / "series", slices, shuffle=3)
    seg = write_seg(folder / "seg.dcm", slices, [liver.astype(np.uint8)], ["hepar"])
    import_case(folder / "P1", ct=series, mask=seg, clinical=other / "clinical.json", radiomics=other / "radiomics.csv")
    return Imported(folder / "P1", series)


@pytest.fixture
def predict(nano_bundle):
    """`tmi predict` with one thread of ONNX Runtime."""

    def run(*words):
        return tmi("predict", *words, "--bundle", nano_bundle, "--engine", "onnx", "--threads", 1)

    return run


def _numbers(path: Path) -> dict[str, float]:
    (group,) = highdicom.sr.srread(path).content.get_image_measurement_groups()
    return {str(m.name.value): float(m.value) for m in group.get_measurements()}


def test_report_equals_the_document(predict, imported, tmp_path):
    """The report's values are those of `--json`, to the 16 characters that a DICOM number has."""
    out = tmp_path / "results"
    outcome = predict(imported.case, "--dicom", out, "--dicom-source", imported.series, "--json")
    assert outcome.code == 0, outcome.err
    assert f"written {out}: report.dcm, liver.dcm, outline.dcm" in outcome.err
    (result,) = outcome.document["results"]
    numbers = _numbers(out / "report.dcm")
    assert numbers["probability-bad"] == pytest.approx(result["probability"]["bad"], rel=1e-12)
    for fold in result["folds"]:
        assert numbers[f"fold{fold['fold']}-bad"] == pytest.approx(fold["probability"]["bad"], rel=1e-12)
    assert {path.name for path in out.iterdir()} == {"report.dcm", "liver.dcm", "outline.dcm"}
    again = predict(imported.case, "--dicom", out, "--dicom-source", imported.series)
    assert (again.code, "exists" in again.err) == (2, True)
    assert predict(imported.case, "--dicom", out, "--dicom-source", imported.series, "--force").code == 0


def test_series_of_another_patient_is_rejected_before_the_prediction(predict, imported, tmp_path):
    """The mistake is found before an engine is opened, and nothing is written."""
    other = SeriesSpec(slices=24, rows=48, columns=64, spacing_mm=(5.5, 5.5), step_mm=6.5)
    series = write_slices(tmp_path / "series", make_slices(other, seed=1))
    outcome = predict(imported.case, "--dicom", tmp_path / "results", "--dicom-source", series)
    assert (outcome.code, "is not the CT of case P1" in outcome.err) == (2, True), outcome.err
    assert "engine onnx" not in outcome.err
    assert not (tmp_path / "results").exists()


def test_rejected_case_has_no_results(predict, imported, tmp_path):
    """A case that is not predicted is said to have no results, with exit code 3."""
    case = Path(shutil.copytree(imported.case, tmp_path / "P1"))
    (case / "clinical.json").write_text("{")
    outcome = predict(case, "--dicom", tmp_path / "results", "--dicom-source", imported.series)
    assert (outcome.code, "is not written: the case was rejected" in outcome.err) == (3, True)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dicom", "out"), "none is given"),
        (("--dicom-source", "{series}"), "have no effect without --dicom"),
        (("--uid-root", "1.2"), "have no effect without --dicom"),
        (("--dicom", "out", "--dicom-source", "missing"), "series missing does not exist"),
        (("--dicom", "out.dcm", "--dicom-source", "{series}"), "named as a .dcm file"),
        (("--dicom", "out", "--dicom-source", "{series}", "--uid-root", "x.1"), "UID root 'x.1' is not valid"),
        (("{case}/../other", "--dicom", "out", "--dicom-source", "{series}"), "of one case, not of 2"),
    ],
)
def test_wrong_usage(predict, imported, words, message, monkeypatch, tmp_path):
    """Mistakes end with exit code 2 before anything is predicted."""
    monkeypatch.chdir(tmp_path)
    given = [str(word).format(series=imported.series, case=imported.case) for word in words]
    outcome = predict(imported.case, *given)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err


def test_service_writes_no_dicom_results(imported):
    """`--server` predicts elsewhere; the option is rejected instead of ignored."""
    words = ("--dicom", "out", "--dicom-source", imported.series, "--server", "http://127.0.0.1:1")
    outcome = tmi("predict", imported.case, *words)
    assert (outcome.code, "--dicom has no effect with --server" in outcome.err) == (2, True), outcome.err


@pytest.mark.long
def test_real_series(predict, shared_data, tmp_path):
    """JPEG 2000 slices of a real CT: the segmentation is the mask, and dciodvfy finds what the source has, no more."""
    source = shared_data / "totalsegmentator-ct-dicom"
    series = tmp_path / "series"
    series.mkdir()
    for number, path in enumerate(sorted((source / "dicom").iterdir())):
        data = pydicom.dcmread(path)
        # The identifiers of this export are blank; a PACS has them. Those of the file's head are used.
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(data, name, generate_uid(entropy_srcs=[name]))
        data.PatientID = "P1"
        data.save_as(series / f"{number}.dcm")
    other = write_case(tmp_path / "other")
    import_case(
        tmp_path / "P1", ct=series, mask=source / "example_seg_dicom.nii.gz", mask_label=5,
        clinical=other / "clinical.json", radiomics=other / "radiomics.csv", patient_id=None,
    )  # fmt: skip
    blank = predict(tmp_path / "P1", "--dicom", tmp_path / "blank", "--dicom-source", source / "dicom")
    assert (blank.code, "have no StudyInstanceUID" in blank.err) == (2, True)
    out = tmp_path / "results"
    outcome = predict(tmp_path / "P1", "--dicom", out, "--dicom-source", series)
    assert outcome.code == 0, outcome.err
    import_case(tmp_path / "again" / "P1", ct=series, mask=out / "liver.dcm")
    masks = [nibabel.load(tmp_path / folder / "P1" / "liver.nii.gz").get_fdata() for folder in (".", "again")]
    assert np.array_equal(masks[0], masks[1])
    assert masks[0].sum() == 366_708
    if shutil.which("dciodvfy") is not None:
        known = _errors(series / "0.dcm")
        for name in ("report.dcm", "liver.dcm", "outline.dcm"):
            assert _errors(out / name) <= known


def _errors(path: Path) -> set[str]:
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    return {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}
