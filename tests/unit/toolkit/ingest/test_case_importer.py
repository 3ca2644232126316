"""Import of one case: atomic, reproducible, and free of identifying values."""

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
from factories.enhanced_ct import to_enhanced
from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.cases.provenance import read_case_record
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.imaging.volume import read_ct, read_mask
from tmi.toolkit.ingest.case_importer import days_between, import_case
from tmi.toolkit.ingest.dicom.headers import HEADER_TAGS
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES

VALUES = {"sex": "male", "height": 176, "bmi": 24, "albumin": 38, "platelets": 190, "ggt": 40}
RECORD = {"patient_id": "case-7", "values": VALUES, "report": "No ascites."}
TOKENS = {
    "PN": "SECRET^NAME", "LO": "SECRET LO", "SH": "SECRET SH", "LT": "SECRET LT", "ST": "SECRET ST", "UT": "SECRET UT",
    "UC": "SECRET UC", "UR": "http://SECRET", "AE": "SECRET AE", "CS": "SECRET CS", "DA": "19711213",
    "DT": "19711213131313", "TM": "131313.131313", "AS": "077Y", "UI": "1.2.999.777.",
}  # fmt: skip
"""Value representation -> value of every such element."""
IDENTIFYING = (b"SECRET", b"19711213", b"1971-12-13", b"131313.1313", b"077Y", b"1.2.999.777", b"Phantom")
"""Byte strings that must not occur in a case folder or a message."""


def identify(data: Dataset, number: int) -> Dataset:
    """Fill every element that can hold text, a date or a UID: a superset of PS3.15, table E.1-1."""
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
    """Return the names and bytes of all files, compressed files also inflated."""
    content = b""
    for path in sorted(folder.rglob("*")):
        content += path.name.encode()
        if path.is_file():
            data = path.read_bytes()
            content += data + (gzip.decompress(data) if path.name.endswith(".gz") else b"")
    return content


def require_deidentified(folder: Path, outcome: CommandResult) -> None:
    content = bytes_of(folder)
    assert len(content) > 10_000
    for token in IDENTIFYING:
        assert token not in content
        assert token.decode() not in outcome.out + outcome.err


def test_identifying_dicom_elements_are_not_copied(tmp_path):
    """No text, date or UID element of a DICOM source occurs in the case folder or in the output."""
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
    given = ("--ct", folder, "--mask", seg, "--mask-label", "1", "--clinical", tmp_path / "SECRET.json")
    for extra in ((), ("--json", "--force")):
        outcome = tmi("import", tmp_path / "case", *given, *extra)
        assert outcome.code == 0, outcome.err
        require_deidentified(tmp_path / "case", outcome)
    record = read_case_record(tmp_path / "case", case_id="case")
    assert record is not None
    assert record.days_from_blood_to_ct == 0


def test_identifying_elements_of_enhanced_ct_are_not_copied(tmp_path):
    """No element of an enhanced CT object, nor of its functional groups, occurs in the case folder or in the output."""
    slices = make_slices(SeriesSpec(slices=12, step_mm=11.0))
    data = to_enhanced([identify(d, k) for k, d in enumerate(slices)])
    data.PatientName = data.InstitutionName = "SECRET"
    for groups in data.PerFrameFunctionalGroupsSequence:
        groups.FrameContentSequence[0].FrameComments = "SECRET COMMENT"
        groups.FrameContentSequence[0].StackID = "SECRET"
    folder = write_slices(tmp_path / "SECRET-NAME", [data], prefix="SECRET")
    outcome = tmi("import", tmp_path / "case", "--ct", folder)
    assert outcome.code == 0, outcome.err
    require_deidentified(tmp_path / "case", outcome)


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_free_text_of_file_headers_is_not_copied(ending, tmp_path):
    """No text field, extension or metadata of an image file occurs in the case folder or in the output."""
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
    require_deidentified(tmp_path / "case", outcome)
    header = nib.load(tmp_path / "case" / "ct.nii.gz").header
    assert not b"".join(bytes(header[n]) for n in ("descrip", "aux_file", "db_name", "intent_name")).strip(b"\0")


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha"])
def test_reimport_of_exported_case_is_stable(ending, tmp_path):
    """A case that is converted to another format and imported again has the same voxels and affine."""
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


def test_import_is_byte_reproducible(tmp_path):
    """Two imports of the same sources write identical bytes."""
    folder = write_series(tmp_path / "dicom")
    import_case(tmp_path / "a" / "case", ct=folder, clinical=RECORD)
    import_case(tmp_path / "b" / "case", ct=folder, clinical=RECORD)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_sources_are_not_modified(tmp_path):
    """An import with every repair leaves the source files unchanged."""
    folder = write_series(tmp_path / "dicom")
    before = bytes_of(folder)
    import_case(tmp_path / "case", ct=folder, fixes=list(case_import.IMPORT_FIXES))
    assert bytes_of(folder) == before


def test_written_files_are_canonical(tmp_path):
    """CT and mask are RAS with one affine, int16 and uint8; the folder holds no other files than documented."""
    seg = write_seg(tmp_path / "seg.dcm", make_slices(), [liver_masks(SeriesSpec())], ["hepar"])
    done = import_case(tmp_path / "case", ct=write_series(tmp_path / "dicom"), mask=seg)
    ct, mask = nib.load(done.case.ct), nib.load(done.case.mask)
    assert nib.aff2axcodes(ct.affine) == ("R", "A", "S")
    assert ct.get_data_dtype() == np.int16
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(np.unique(np.asarray(mask.dataobj)), [0, 1])
    assert np.array_equal(ct.affine, mask.affine)
    assert {p.name for p in done.case.folder.iterdir()} == {"ct.nii.gz", "liver.nii.gz", "case.json"}


def test_existing_case_survives_without_force_and_failure(tmp_path):
    """An existing case is replaced only with `force`, and only if the new import succeeds."""
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
def test_days_between_blood_and_ct(blood, ct, days):
    """The distance is signed, and None if either date is missing or invalid."""
    assert days_between(blood, ct) == days


def test_clinical_record_is_copied_without_its_date(tmp_path):
    """The record keeps its keys; its date is replaced by the distance in days."""
    done = import_case(
        tmp_path / "case", ct=write_series(tmp_path / "dicom"), clinical={**RECORD, "blood_date": "2020-03-01"}
    )
    assert json.loads(done.case.clinical.read_text()) == RECORD
    record = read_case_record(done.case.folder, case_id="case")
    assert record is not None
    assert record.days_from_blood_to_ct == 9
    assert [f.code for f in done.findings] == ["dicom-patient-id"]  # the series has P-ONE


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({**RECORD, "name": "Doe"}, "clinical-malformed"),
        ({"patient_id": "x"}, "clinical-malformed"),
        ({**RECORD, "patient_id": "other"}, "patient-mismatch"),
    ],
)
def test_invalid_clinical_record_is_rejected(record, code, tmp_path):
    """Unknown keys, missing values and another patient id reject the record."""
    with pytest.raises(InputRejectedError) as error:
        import_case(tmp_path / "case", ct=None, clinical=record, patient_id="case-7")
    assert error.value.code == code
    assert not (tmp_path / "case").exists()


def test_case_without_images_lists_missing_files(tmp_path):
    """A case of a record and features only is written, and the missing CT is listed."""
    (tmp_path / "r.csv").write_text(
        ",".join(reversed(FEATURE_NAMES)) + "\n" + ",".join("1.5" for _ in FEATURE_NAMES) + "\n"
    )
    done = import_case(tmp_path / "case", ct=None, clinical=RECORD, radiomics=tmp_path / "r.csv")
    assert [f.code for f in done.missing] == ["ct-missing"]
    assert done.case.radiomics.read_text().split("\n")[0] == ",".join(FEATURE_NAMES)


def test_radiomics_table_with_unknown_column_is_rejected(tmp_path):
    """A feature table with an unknown column is rejected, because the column could identify the patient."""
    (tmp_path / "r.csv").write_text(",".join([*FEATURE_NAMES, "Image"]) + "\n" + "1," * len(FEATURE_NAMES) + "/x\n")
    with pytest.raises(InputRejectedError) as error:
        import_case(tmp_path / "case", ct=None, radiomics=tmp_path / "r.csv")
    assert error.value.code == "radiomics-columns"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to import"),
        (("--mask", "dicom"), "without its CT"),
        (("--ct", "dicom", "--fix", "everything"), "unknown repair 'everything'"),
        (("--ct", "dicom", "--fix", "mask-grid,everything"), "unknown repair 'everything'"),
        (("--ct", "dicom", "--mask", "dicom", "--roi", "a", "--mask-label", "b"), "both a mask label and a ROI"),
        (("--ct", "nowhere"), "nowhere does not exist"),
        (("--table", "t.csv"), "--table and --map belong together"),
        (("--table", "t.csv", "--map", "t.csv", "--ct", "dicom"), "--table excludes the other inputs"),
        (("--ct", "dicom", "--resume"), "--resume needs --table"),
    ],
)
def test_inconsistent_arguments_are_usage_errors(arguments, message, tmp_path):
    """Inconsistent arguments exit with code 2 and a message."""
    (tmp_path / "dicom").mkdir()
    (tmp_path / "t.csv").write_text("")
    outcome = tmi("import", "case", *arguments, cwd=tmp_path)
    assert outcome.code == 2
    assert message in outcome.err


def test_source_inside_case_folder_is_a_usage_error(tmp_path):
    """A source inside the case folder would be deleted by the import."""
    write_series(tmp_path / "case" / "dicom")
    with pytest.raises(UsageError, match="lies in the case folder itself"):
        import_case(tmp_path / "case", ct=tmp_path / "case" / "dicom", force=True)


def test_command_exits_3_for_defective_content(tmp_path):
    """A case with an error finding is written, listed with its findings, and exits with code 3."""
    few = write_series(tmp_path / "few", SeriesSpec(slices=8))
    outcome = tmi("import", tmp_path / "case", "--ct", few)
    assert outcome.code == 3
    assert "error: ct.nii.gz has 8 slices [ct-few-slices]" in outcome.out
    assert "still to be added: clinical.json is missing [clinical-missing]" in outcome.out
    assert (tmp_path / "case" / "ct.nii.gz").is_file()
    document = tmi("import", tmp_path / "case", "--ct", few, "--force", "--json").document
    assert document["schema"] == "tmi-import/2"
    assert [f["code"] for f in document["findings"]] == ["ct-few-slices"]
    assert document["source"]["ct"]["images"] == 8


def test_rejection_code_is_printed_and_in_json(tmp_path):
    """The text and the JSON document of a rejected import carry the check code; the document keeps its keys."""
    (tmp_path / "empty").mkdir()
    outcome = tmi("import", tmp_path / "case", "--ct", tmp_path / "empty", "--json")
    assert outcome.code == 3
    assert "error: case case: no DICOM file found [dicom-not-ct]\n  fix: " in outcome.err
    assert (outcome.document["case_id"], outcome.document["written"]) == ("case", False)
    assert [(f["code"], f["severity"]) for f in outcome.document["findings"]] == [("dicom-not-ct", "error")]
    written = tmi("import", tmp_path / "case", "--ct", write_series(tmp_path / "good"), "--json")
    assert written.document["written"] is True
    assert set(written.document) == set(outcome.document)


def test_unprintable_case_name_is_a_usage_error(tmp_path):
    """A case id has to be printable."""
    with pytest.raises(UsageError, match="cannot be printed"):
        import_case(tmp_path / "a\nb", ct=None, clinical={"values": {}})


def test_fix_accepts_a_list_of_codes(tmp_path):
    """`--fix` accepts several codes separated by commas and spaces."""
    padded = write_series(tmp_path / "padded")
    outcome = tmi("import", tmp_path / "case", "--ct", padded, "--fix", "ct-padding, dicom-duplicate-slice")
    assert "unknown repair" not in outcome.err
    assert outcome.code == 0
