"""The case folder of an import: whole or not there, stable, and nobody can be found in it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

import tmi.toolkit.ingest.case_importer as case_import
from factories.dicom_series import SeriesSpec, liver_masks, make_slices, write_seg, write_series, write_slices
from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.cases.provenance import read_case_record
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.imaging.volume import read_ct, read_mask
from tmi.toolkit.ingest.case_importer import days_between, import_case
from tmi.toolkit.ingest.dicom.headers import HEADER_TAGS
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES

RECORD = {"patient_id": "case-7", "values": {"sex": "male", "albumin": 38}, "report": "No ascites."}
TOKENS = {
    "PN": "SECRET^NAME", "LO": "SECRET LO", "SH": "SECRET SH", "LT": "SECRET LT", "ST": "SECRET ST", "UT": "SECRET UT",
    "UC": "SECRET UC", "UR": "http://SECRET", "AE": "SECRET AE", "CS": "SECRET CS", "DA": "19711213",
    "DT": "19711213131313", "TM": "131313.131313", "AS": "077Y", "UI": "1.2.999.777.",
}  # fmt: skip
"""What stands in every element of that representation."""
SOUGHT = (b"SECRET", b"19711213", b"1971-12-13", b"131313.1313", b"077Y", b"1.2.999.777", b"Phantom")


def identify(data: Dataset, number: int) -> Dataset:
    """Fill every element of the standard that can hold text, a date or a UID: a superset of PS3.15, table E.1-1."""
    kept = {*HEADER_TAGS, "SpecificCharacterSet", "PixelData", "PhotometricInterpretation", "NumberOfFrames"}
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if vr in TOKENS and keyword and keyword not in kept and tag >> 16 not in (0x0000, 0x0002, 0x0004, 0x0028):
            setattr(data, keyword, TOKENS[vr] + (str(tag) if vr == "UI" else ""))
    data.PatientID, data.PatientAge = "SECRET-ID", "077Y"
    data.ConvolutionKernel = "SECRET"
    data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.999.777.1", "1.2.999.777.2"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.999.777.3.{number}"
    data.AcquisitionDate = data.SeriesDate = data.StudyDate = "19711213"
    inner = Dataset()
    inner.PatientName = inner.InstitutionName = "SECRET INSIDE"
    data.RequestAttributesSequence = Sequence([inner])
    block = data.private_block(0x0099, "SECRET PRIVATE", create=True)
    block.add_new(0x01, "LO", "SECRET PRIVATE VALUE")
    return data


def bytes_of(folder: Path) -> bytes:
    """Every byte of every file, also inflated, and the files' names."""
    found = b""
    for path in sorted(folder.rglob("*")):
        found += path.name.encode()
        if path.is_file():
            data = path.read_bytes()
            found += data + (gzip.decompress(data) if path.name.endswith(".gz") else b"")
    return found


def require_nobody(folder: Path, outcome: CommandResult) -> None:
    content = bytes_of(folder)
    assert len(content) > 10_000
    for token in SOUGHT:
        assert token not in content
        assert token.decode() not in outcome.out + outcome.err


def test_no_identifying_element_of_dicom_reaches_the_case_folder(tmp_path):
    spec = SeriesSpec(slices=12, step_mm=11.0)
    slices = [identify(d, k) for k, d in enumerate(make_slices(spec))]
    folder = write_slices(tmp_path / "SECRET-NAME", slices, prefix="SECRET")
    assert b"SECRET PRIVATE VALUE" in next(folder.iterdir()).read_bytes()
    seg = write_seg(tmp_path / "SECRET.dcm", make_slices(spec), [liver_masks(spec)], ["SECRET LABEL"])
    header = pydicom.dcmread(seg)
    header.PatientID, header.FrameOfReferenceUID = "SECRET-ID", "1.2.999.777.2"
    header.PatientName = header.InstitutionName = header.ContentCreatorName = header.ContentDescription = "SECRET"
    header.StudyDate = header.ContentDate = "19711213"
    header.save_as(seg)
    (tmp_path / "SECRET.json").write_text(json.dumps({**RECORD, "blood_date": "1971-12-13"}))
    given = ("--ct", folder, "--mask", seg, "--clinical", tmp_path / "SECRET.json")
    for extra in ((), ("--json", "--force")):
        outcome = tmi("import", tmp_path / "case", *given, *extra)
        assert outcome.code == 0, outcome.err
        require_nobody(tmp_path / "case", outcome)
    record = read_case_record(tmp_path / "case", case_id="case")
    assert record is not None
    assert record.days_from_blood_to_ct == 0


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_no_free_text_of_a_file_header_reaches_the_case_folder(ending, tmp_path):
    source = import_case(tmp_path / "plain", ct=write_series(tmp_path / "dicom")).case.ct
    image = nib.load(source)
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[name] = b"SECRET"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SECRET"))
    nib.save(image, tmp_path / "SECRET.nii.gz")
    if ending != "nii.gz":
        other = SimpleITK.ReadImage(str(tmp_path / "SECRET.nii.gz"))
        other.SetMetaData("PatientName", "SECRET")
        SimpleITK.WriteImage(other, str(tmp_path / f"SECRET.{ending}"))
    outcome = tmi("import", tmp_path / "case", "--ct", tmp_path / f"SECRET.{ending}")
    assert outcome.code == 0
    require_nobody(tmp_path / "case", outcome)
    header = nib.load(tmp_path / "case" / "ct.nii.gz").header
    assert not b"".join(bytes(header[n]) for n in ("descrip", "aux_file", "db_name", "intent_name")).strip(b"\0")


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha"])
def test_import_export_import_is_stable(ending, tmp_path):
    seg = write_seg(tmp_path / "seg.dcm", make_slices(), [liver_masks(SeriesSpec())], ["hepar"])
    first = import_case(tmp_path / "first", ct=write_series(tmp_path / "dicom"), mask=seg)
    for kind, path in (("ct", first.case.ct), ("mask", first.case.mask)):
        if ending.startswith("nii"):
            nib.save(nib.load(path), tmp_path / f"{kind}.{ending}")
        else:
            SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(tmp_path / f"{kind}.{ending}"))
    again = import_case(tmp_path / "again", ct=tmp_path / f"ct.{ending}", mask=tmp_path / f"mask.{ending}")
    one, other = read_ct(first.case), read_ct(again.case)
    assert np.array_equal(one.array_DHW, other.array_DHW)
    assert np.allclose(one.affine_xyz, other.affine_xyz, atol=1e-4)
    assert np.array_equal(read_mask(first.case, one).array_DHW, read_mask(again.case, other).array_DHW)


def test_the_same_import_writes_the_same_bytes(tmp_path):
    folder = write_series(tmp_path / "dicom")
    import_case(tmp_path / "a" / "case", ct=folder, clinical=RECORD)
    import_case(tmp_path / "b" / "case", ct=folder, clinical=RECORD)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_originals_stay_as_they_are(tmp_path):
    folder = write_series(tmp_path / "dicom")
    before = bytes_of(folder)
    import_case(tmp_path / "case", ct=folder, fixes=list(case_import.IMPORT_FIXES))
    assert bytes_of(folder) == before


def test_the_files_written_are_canonical_and_small(tmp_path):
    seg = write_seg(tmp_path / "seg.dcm", make_slices(), [liver_masks(SeriesSpec())], ["hepar"])
    done = import_case(tmp_path / "case", ct=write_series(tmp_path / "dicom"), mask=seg)
    ct, mask = nib.load(done.case.ct), nib.load(done.case.mask)
    assert nib.aff2axcodes(ct.affine) == ("R", "A", "S")
    assert ct.get_data_dtype() == np.int16
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(np.unique(np.asarray(mask.dataobj)), [0, 1])
    assert np.array_equal(ct.affine, mask.affine)
    assert {p.name for p in done.case.folder.iterdir()} == {"ct.nii.gz", "liver.nii.gz", "case.json"}


def test_a_case_that_is_there_is_kept_unless_forced_and_also_when_the_new_one_fails(tmp_path):
    folder = write_series(tmp_path / "dicom")
    import_case(tmp_path / "case", ct=folder, clinical=RECORD)
    before = bytes_of(tmp_path / "case")
    with pytest.raises(UsageError, match="exists"):
        import_case(tmp_path / "case", ct=folder)
    sorted(folder.iterdir())[3].write_bytes(b"damaged")
    with pytest.raises(InputRejectedError):
        import_case(tmp_path / "case", ct=folder, force=True)
    assert bytes_of(tmp_path / "case") == before
    assert {p.name for p in tmp_path.iterdir()} == {"dicom", "case"}


@pytest.mark.parametrize(
    ("blood", "ct", "days"),
    [
        ("2020-03-01", "20200310", 9),
        ("2020-03-12", "20200310", -2),
        ("2020-03-12", "", None),
        ("2020-03-12", None, None),
        (None, "20200310", None),
        ("12.3.2020", "20200310", None),
        ("2020-03-12", "20201399", None),
    ],
)
def test_of_two_dates_only_their_distance_is_kept(blood, ct, days):
    assert days_between(blood, ct) == days


def test_the_clinical_record_keeps_its_own_keys_and_loses_the_date(tmp_path):
    done = import_case(
        tmp_path / "case", ct=write_series(tmp_path / "dicom"), clinical={**RECORD, "blood_date": "2020-03-01"}
    )
    assert json.loads(done.case.clinical.read_text()) == RECORD
    record = read_case_record(done.case.folder, case_id="case")
    assert record is not None
    assert record.days_from_blood_to_ct == 9
    assert [f.code for f in done.findings] == ["dicom-patient-id"]  # the series says P-ONE


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({**RECORD, "name": "Doe"}, "clinical-malformed"),
        ({"patient_id": "x"}, "clinical-malformed"),
        ({**RECORD, "patient_id": "other"}, "patient-mismatch"),
    ],
)
def test_a_record_of_other_keys_or_of_another_patient_is_refused(record, code, tmp_path):
    with pytest.raises(InputRejectedError) as refused:
        import_case(tmp_path / "case", ct=None, clinical=record, patient_id="case-7")
    assert refused.value.code == code
    assert not (tmp_path / "case").exists()


def test_a_record_alone_and_features_alone_make_a_case_that_says_what_is_missing(tmp_path):
    (tmp_path / "r.csv").write_text(
        ",".join(reversed(FEATURE_NAMES)) + "\n" + ",".join("1.5" for _ in FEATURE_NAMES) + "\n"
    )
    done = import_case(tmp_path / "case", ct=None, clinical=RECORD, radiomics=tmp_path / "r.csv")
    assert [f.code for f in done.missing] == ["ct-missing"]
    assert done.case.radiomics.read_text().split("\n")[0] == ",".join(FEATURE_NAMES)


def test_a_table_with_other_columns_is_not_copied(tmp_path):
    (tmp_path / "r.csv").write_text(",".join([*FEATURE_NAMES, "Image"]) + "\n" + "1," * len(FEATURE_NAMES) + "/x\n")
    with pytest.raises(InputRejectedError) as refused:
        import_case(tmp_path / "case", ct=None, radiomics=tmp_path / "r.csv")
    assert refused.value.code == "radiomics-columns"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to import"),
        (("--mask", "x"), "without its CT"),
        (("--ct", "dicom", "--fix", "everything"), "no repair 'everything'"),
        (("--ct", "dicom", "--fix", "mask-grid,everything"), "no repair 'everything'"),
        (("--ct", "dicom", "--mask", "dicom", "--roi", "a", "--mask-label", "b"), "both a mask label and a ROI"),
        (("--ct", "nowhere"), "nowhere is not there"),
        (("--table", "t.csv"), "--table and --map belong together"),
        (("--table", "t.csv", "--map", "m.yaml", "--ct", "dicom"), "--table stands alone"),
        (("--ct", "dicom", "--resume"), "--resume is for --table"),
    ],
)
def test_wishes_that_make_no_sense_are_usage_errors(arguments, says, tmp_path):
    (tmp_path / "dicom").mkdir()
    outcome = tmi("import", "case", *arguments, cwd=tmp_path)
    assert outcome.code == 2
    assert says in outcome.err


def test_a_source_inside_the_case_folder_is_not_replaced_by_its_own_case(tmp_path):
    write_series(tmp_path / "case" / "dicom")
    with pytest.raises(UsageError, match="lies in the case folder itself"):
        import_case(tmp_path / "case", ct=tmp_path / "case" / "dicom", force=True)


def test_the_command_prints_what_was_taken_and_exits_3_for_content_that_is_refused(tmp_path):
    few = write_series(tmp_path / "few", SeriesSpec(slices=8))
    outcome = tmi("import", tmp_path / "case", "--ct", few)
    assert outcome.code == 3
    assert "error: ct.nii.gz has 8 slices [ct-few-slices]" in outcome.out
    assert "still to be added: clinical.json is missing [clinical-missing]" in outcome.out
    assert (tmp_path / "case" / "ct.nii.gz").is_file()
    document = tmi("import", tmp_path / "case", "--ct", few, "--force", "--json").document
    assert document["schema"] == "tmi-import/1"
    assert [f["code"] for f in document["findings"]] == ["ct-few-slices"]
    assert document["source"]["ct"]["images"] == 8


def test_a_refusal_names_its_code_for_people_and_in_the_document(tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = tmi("import", tmp_path / "case", "--ct", tmp_path / "empty", "--json")
    assert outcome.code == 3
    assert "error: case case: no DICOM file is there [dicom-not-ct]\n  fix: " in outcome.err
    assert (outcome.document["case_id"], outcome.document["written"]) == ("case", False)
    assert [(f["code"], f["severity"]) for f in outcome.document["findings"]] == [("dicom-not-ct", "error")]
    written = tmi("import", tmp_path / "case", "--ct", write_series(tmp_path / "good"), "--json")
    assert written.document["written"] is True
    assert set(written.document) == set(outcome.document)


def test_a_case_whose_name_cannot_be_printed_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="cannot be printed"):
        import_case(tmp_path / "a\nb", ct=None, clinical={"values": {}})


def test_repairs_of_an_import_may_be_named_together(tmp_path):
    padded = write_series(tmp_path / "padded")
    outcome = tmi("import", tmp_path / "case", "--ct", padded, "--fix", "ct-padding, dicom-duplicate-slice")
    assert "no repair" not in outcome.err
    assert outcome.code == 0
