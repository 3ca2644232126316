"""DICOM results in a real PACS: Orthanc holds them in the study of the CT, and gives them back unchanged."""

from __future__ import annotations

import io

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from factories.cases import write_case
from factories.orthanc import is_installed, orthanc
from factories.tmi_command import tmi
from tmi.toolkit.ingest.case_importer import import_case

SERIES, MODALITY, STUDY = "0020000E", "00080060", "0020000D"


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="Orthanc is not installed (Debian: orthanc orthanc-dicomweb)")
def test_results_stand_in_the_study(shared_data, nano_bundle, tmp_path):
    """A real JPEG 2000 series and its results: QIDO finds all in one study; WADO gives the same voxels."""
    source = shared_data / "totalsegmentator-ct-dicom"
    (tmp_path / "series").mkdir()
    for number, path in enumerate(sorted((source / "dicom").iterdir())):
        data = pydicom.dcmread(path)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(data, name, generate_uid(entropy_srcs=[name]))
        data.PatientID = "P1"
        data.save_as(tmp_path / "series" / f"{number}.dcm")
    study = str(generate_uid(entropy_srcs=["StudyInstanceUID"]))
    other = write_case(tmp_path / "other")
    import_case(
        tmp_path / "P1", ct=tmp_path / "series", mask=source / "example_seg_dicom.nii.gz", mask_label=5,
        clinical=other / "clinical.json", radiomics=other / "radiomics.csv",
    )  # fmt: skip
    results = tmp_path / "results"
    words = ("--bundle", nano_bundle, "--engine", "onnx", "--threads", 1, "--dicom-source", tmp_path / "series")
    outcome = tmi("predict", tmp_path / "P1", *words, "--dicom", results, "--json")
    assert outcome.code == 0, outcome.err
    with orthanc(tmp_path / "orthanc") as pacs:
        for folder in ("series", "results"):
            for path in sorted((tmp_path / folder).iterdir()):
                assert pacs.send(path)["Status"] == "Success"
        (found,) = pacs.get("dicom-web/studies")
        assert found[STUDY]["Value"] == [study]
        series = {
            row[MODALITY]["Value"][0]: row[SERIES]["Value"][0] for row in pacs.get(f"dicom-web/studies/{study}/series")
        }
        assert sorted(series) == ["CT", "OT", "SEG", "SR"]
        stored = {}
        for modality in ("SEG", "SR"):
            (instance,) = pacs.get(f"dicom-web/studies/{study}/series/{series[modality]}/instances")
            (entry,) = [
                i
                for i in pacs.get("instances?expand")
                if i["MainDicomTags"]["SOPInstanceUID"] == instance["00080018"]["Value"][0]
            ]
            stored[modality] = pydicom.dcmread(io.BytesIO(pacs.read(f"instances/{entry['ID']}/file")))
    sent = pydicom.dcmread(results / "liver.dcm")
    assert np.array_equal(stored["SEG"].pixel_array, sent.pixel_array)
    (group,) = highdicom.sr.Comprehensive3DSR.from_dataset(stored["SR"]).content.get_image_measurement_groups()
    numbers = {str(m.name.value): float(m.value) for m in group.get_measurements()}
    (result,) = outcome.document["results"]
    assert numbers["probability-bad"] == pytest.approx(result["probability"]["bad"], rel=1e-12)
