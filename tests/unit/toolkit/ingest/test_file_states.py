"""Three states of a file, never mixed: it cannot be opened, it cannot be decoded here, or it is damaged."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from factories.cases import write_case, write_cohort
from factories.dicom_series import SeriesSpec, liver_masks, make_slices, write_seg, write_series, write_slices
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import Case, open_cohort
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.ingest.case_importer import import_case
from tmi.toolkit.ingest.tabular.mapping import read_mapping
from tmi.toolkit.qc.case_checks import check_case

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
"""Transfer syntax that standard and pydicom's dictionary got at different times."""
DAMAGE = ("damaged", "truncated", "copy the file again", "export")


@pytest.fixture
def deny(monkeypatch):
    """Let the operating system refuse to open the files of a name; root could open them."""
    real = os.open

    def denied(name: str, number: int = errno.EACCES) -> None:
        def opened(path, *args, **options):
            if str(path).endswith(name):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **options)

        monkeypatch.setattr(os, "open", opened)

    return denied


def image(path: Path, array: np.ndarray) -> Path:
    """Write NRRD, MetaImage or NIfTI."""
    import SimpleITK

    volume = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    volume.SetSpacing((6.0, 7.0, 9.0))
    SimpleITK.WriteImage(volume, str(path))
    return path


@pytest.fixture
def voxels(tmp_path):
    folder = write_case(tmp_path / "P1")
    return tuple(np.asarray(nib.load(folder / name).dataobj) for name in ("ct.nii.gz", "liver.nii.gz"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", ["ct.nii.gz", "liver.nii.gz", "radiomics.csv", "clinical.json", "case.json"])
def test_unopened_file_of_a_case_is_not_damaged(tmp_path, deny, name, number):
    """A file without permission, or on a failing disk, is case-unreadable and no finding speaks of damage."""
    case = Case(folder=write_case(tmp_path / "P1"), case_id="P1")
    if name == "case.json":
        (case.folder / name).write_text("{}")
    deny(name, number)
    finding = next(f for f in check_case(case) if f.severity == "error")
    assert finding.code == "case-unreadable"
    assert os.strerror(number) in finding.message
    assert not any(word in finding.message + finding.fix for word in DAMAGE)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nii.gz"])
@pytest.mark.parametrize("use", ["ct", "mask"])
def test_unopened_source_of_an_import_is_not_damaged(tmp_path, deny, voxels, suffix, use):
    """The same holds for every image format, for CT and mask, and for the data file of a header."""
    ct, mask = image(tmp_path / "ct.nrrd", voxels[0]), image(tmp_path / f"{use}{suffix}", voxels[use == "mask"])
    for name in (mask.name, *(["mask.raw", "ct.raw"] if suffix == ".mhd" else [])):
        if not (tmp_path / name).exists():
            continue
        deny(f"/{name}")
        with pytest.raises(InputRejectedError, match="cannot be opened") as error:
            import_case(tmp_path / "out", ct=mask if use == "ct" else ct, mask=mask if use == "mask" else None)
        assert error.value.code == "case-unreadable"
        assert not any(word in str(error.value) + error.value.fix for word in DAMAGE)


def test_unopened_tables_are_no_faulty_csv(tmp_path, deny):
    """Cohort table, mapping, clinical record and features of an import name the permission."""
    cohort, mapping = write_cohort(tmp_path / "cohort", cases=1), tmp_path / "map.yaml"
    mapping.write_text("{}")
    for name, read in (
        ("cohort.csv", lambda: open_cohort(cohort)),
        ("map.yaml", lambda: read_mapping(mapping)),
        ("clinical.json", lambda: import_case(tmp_path / "o", ct=None, clinical=cohort / "C000" / "clinical.json")),
        ("radiomics.csv", lambda: import_case(tmp_path / "o", ct=None, radiomics=cohort / "C000" / "radiomics.csv")),
    ):
        deny(name)
        with pytest.raises((UsageError, InputRejectedError), match="cannot be opened \\(Permission denied\\)") as error:
            read()
        assert "CSV" not in str(error.value) + error.value.fix


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lambda data: b"no image at all, but some text that is longer than a header" * 20, "it is no NIfTI file"),
        (gzip.decompress, "it is no NIfTI file"),
        (lambda data: gzip.compress(b"text" * 300, mtime=0), "it is no NIfTI file"),
        (lambda data: data[: len(data) // 2], "truncated or damaged"),
        (lambda data: b"", "truncated or damaged"),
        (lambda data: gzip.compress(gzip.decompress(data)[:200], mtime=0), "truncated or damaged"),
        (lambda data: gzip.compress(gzip.decompress(data) + b"\0", mtime=0), "truncated or damaged"),
    ],
)
def test_other_format_and_damage_are_distinguished(tmp_path, content, what):
    """Text under the name of a CT is no NIfTI; half of a file is damaged."""
    case = Case(folder=write_case(tmp_path / "P1"), case_id="P1")
    case.ct.write_bytes(content(case.ct.read_bytes()))
    finding = next(f for f in check_case(case) if f.code == "ct-unreadable")
    assert what in finding.message
    assert ("damaged" in finding.message + finding.fix) == ("damaged" in what)


@pytest.mark.parametrize("suffix", [".img", ".hdr", ".mgz", ".nii.bz2", ".zip", ".png", ".npy", ".xyz"])
@pytest.mark.parametrize("use", ["ct", "mask"])
def test_unread_formats_are_named(tmp_path, suffix, use):
    """A file of another format is not damaged; a suffix that is not known is not repeated."""
    other, folder = tmp_path / f"Jane Doe{suffix}", write_case(tmp_path / "P1")
    other.write_bytes(b"something else")
    with pytest.raises(InputRejectedError, match="is of a format that is not read") as error:
        import_case(tmp_path / "out", ct=other if use == "ct" else folder / "ct.nii.gz", mask=other)
    text = str(error.value) + error.value.fix
    assert "NIfTI" in text
    assert not {"Jane", ".xyz"} & set(text.split())
    assert "damaged" not in text
    assert (suffix in str(error.value)) == (suffix != ".xyz")


def test_folder_as_mask(tmp_path):
    """A folder with one mask is read, whatever its format; none or several are counted."""
    case, folder = write_case(tmp_path / "P1"), tmp_path / "masks.nii.gz"
    (folder / "__MACOSX").mkdir(parents=True)
    (folder / "__MACOSX" / "liver.nii.gz").write_bytes(b"x")
    (folder / "._liver.nii.gz").write_bytes(b"\0\5\x16\7")
    with pytest.raises(UsageError, match="is a folder of 0 images and 0 DICOM files"):
        import_case(tmp_path / "out", ct=case / "ct.nii.gz", mask=folder)
    (folder / "liver.nii.gz").symlink_to(case / "liver.nii.gz")
    done = import_case(tmp_path / "out", ct=case / "ct.nii.gz", mask=folder)
    assert done.source["mask"]["kind"] == "label-map"
    (folder / "second.nrrd").write_bytes(b"x")
    with pytest.raises(UsageError, match="is a folder of 2 images and 0 DICOM files"):
        import_case(tmp_path / "out2", ct=case / "ct.nii.gz", mask=folder)
    with pytest.raises(InputRejectedError, match="holds no DICOM file, but 2 of NIfTI, NRRD or MetaImage"):
        import_case(tmp_path / "out2", ct=folder)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.100", DEFLATED_FRAMES])
def test_seg_of_an_unknown_compression_is_not_damaged(tmp_path, syntax):
    """MPEG-4, MPEG-2 and deflated frames have no decoder here, which is dicom-syntax."""
    spec = SeriesSpec()
    path = write_seg(tmp_path / "seg.dcm", make_slices(spec), [liver_masks(spec)], ["hepar"])
    data = pydicom.dcmread(path)
    data.PixelData = encapsulate([b"\0" * 64] * int(data.NumberOfFrames))
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    placeholder = "1.2.840.10008.1.2.4.90"
    data.file_meta.TransferSyntaxUID = placeholder if syntax == DEFLATED_FRAMES else syntax
    data.save_as(path)
    if syntax == DEFLATED_FRAMES:  # pydicom does not write a syntax that it does not know
        path.write_bytes(path.read_bytes().replace(placeholder.encode(), syntax.encode() + b"\0", 1))
    with pytest.raises(InputRejectedError) as error:
        import_case(tmp_path / "out", ct=write_series(tmp_path / "ct"), mask=path)
    assert error.value.code == "dicom-syntax"
    assert "damaged" not in str(error.value) + error.value.fix


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (np.diag([1.01, 1, 1, 1]), "voxels of 6.06 x 7 x 9 against 6 x 7 x 9 mm"),
        (np.eye(4) + np.eye(4, k=3) * 8, "first voxels 8 mm apart"),
        (
            np.array([[0.9976, -0.0698, 0, 0], [0.0698, 0.9976, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
            "axes turned by 4 degrees",
        ),
    ],
)
def test_other_grid_of_one_shape_says_what_differs(tmp_path, change, differs):
    """Spacing, origin or orientation is named by `tmi check` and `tmi import`, not twice the same shape."""
    folder = write_case(tmp_path / "P1")
    mask = nib.load(folder / "liver.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), change @ mask.affine), tmp_path / "m.nii.gz")
    outcome = tmi("import", tmp_path / "out", "--ct", folder / "ct.nii.gz", "--mask", tmp_path / "m.nii.gz")
    (folder / "liver.nii.gz").write_bytes((tmp_path / "m.nii.gz").read_bytes())
    for text in (outcome.err + outcome.out, tmi("check", folder).out):
        assert differs in text
        assert "[mask-grid]" in text
        assert "32x28x24" not in text


def test_files_of_operating_systems_beside_slices_are_left_out(tmp_path):
    """Resource forks with the suffix of a slice, and folders of archives and file servers, are no damaged slices."""
    folder = write_series(tmp_path / "ct")
    for path in sorted(folder.iterdir())[:3]:
        (folder / f"._{path.name}.dcm").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
        for name in ("__MACOSX", "@eaDir", "lost+found"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{path.name}.dcm").write_bytes(b"thumbnail")
    done = import_case(tmp_path / "out", ct=folder)
    assert done.source["ct"]["images"] == SeriesSpec().slices


def test_case_id_that_no_file_system_takes(tmp_path):
    """A name of 300 letters is a usage error, and in a table the rejection of its row."""
    case = write_case(tmp_path / "P1")
    with pytest.raises(UsageError, match="more than 200 bytes"):
        import_case(tmp_path / ("x" * 300), ct=case / "ct.nii.gz")
    (tmp_path / "t.csv").write_text(f"id,alb\n{'x' * 300},38\n{'é' * 101},38\nP3,38\n")
    (tmp_path / "m.yaml").write_text(
        "schema: tmi-mapping/1\ncase_id: {column: id}\nfields: {albumin: {column: alb, unit: g/L}}\n"
    )
    outcome = tmi("import", tmp_path / "cohort", "--table", tmp_path / "t.csv", "--map", tmp_path / "m.yaml")
    refused = [line for line in outcome.out.splitlines() if line.startswith("refused: row")]
    assert len(refused) == 2
    assert all("the case id in column 'id' has more than 200 bytes [id]" in line for line in refused)
    assert (tmp_path / "cohort" / "P3" / "clinical.json").exists()


KINDS = {
    "a PDF document": b"%PDF-1.7\n" + bytes(range(256)),
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(300),
    "a ZIP archive": b"PK\x03\x04" + bytes(300),
    "compressed with gzip": gzip.compress(b"DICM" * 100, mtime=0),
    "a page of HTML or XML": b"<!DOCTYPE html><html>404</html>",
    "empty": b"",
    "text": b"no image\n" * 40,
}
"""Kind of a file -> its content."""


@pytest.mark.parametrize("kind", KINDS)
def test_file_named_as_dicom_is_what_it_holds(tmp_path, kind):
    """A file of another format that is named .dcm is not damaged; beside slices it still rejects the series."""
    write_series(tmp_path / "ct")
    (tmp_path / "ct" / "zz.dcm").write_bytes(KINDS[kind])
    for path in (tmp_path / "ct", tmp_path / "ct" / "zz.dcm"):
        with pytest.raises(InputRejectedError) as error:
            import_case(tmp_path / "out", ct=path)
        assert kind in str(error.value)
        assert "damaged" not in str(error.value)
        assert kind == "empty" or "damaged" not in error.value.fix
        assert "zz" not in str(error.value)


@pytest.mark.parametrize("name", ["{}.dcm.gz", "{}.gz", "{}"])
def test_packed_slices_are_named(tmp_path, name):
    """Slices that are compressed one by one are no folder without DICOM; beside others they are not left out."""
    write_series(tmp_path / "ct")
    (tmp_path / "packed").mkdir()
    for path in (tmp_path / "ct").iterdir():
        (tmp_path / "packed" / name.format(path.name.split(".")[0])).write_bytes(
            gzip.compress(path.read_bytes(), mtime=0)
        )
    with pytest.raises(InputRejectedError, match="compressed with gzip") as error:
        import_case(tmp_path / "out", ct=tmp_path / "packed")
    assert "unpack" in error.value.fix


def test_one_packed_slice_is_not_left_out(tmp_path):
    """A compressed slice beside the others would be a missing slice at the end of the series."""
    write_series(tmp_path / "ct")
    last = max((tmp_path / "ct").iterdir())
    (tmp_path / "ct" / f"{last.name}.dcm.gz").write_bytes(gzip.compress(last.read_bytes(), mtime=0))
    last.unlink()
    with pytest.raises(InputRejectedError, match="is named as DICOM, but is compressed with gzip"):
        import_case(tmp_path / "out", ct=tmp_path / "ct")


def test_slices_without_pixels_are_not_damaged(tmp_path):
    """A header without pixels is named as such."""
    slices = make_slices()
    for data in slices:
        del data.PixelData
    with pytest.raises(InputRejectedError, match="has a header without pixels") as error:
        import_case(tmp_path / "out", ct=write_slices(tmp_path / "ct", slices))
    assert "damaged" not in error.value.fix


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("ct.nii.gz", b"%PDF-1.7\n" + bytes(300), "it is no NIfTI file: it is a PDF document"),
        ("ct.nii.gz", b"PK\x03\x04" + bytes(300), "it is no NIfTI file: it is a ZIP archive"),
        ("ct.nii", gzip.compress(bytes(2000), mtime=0), "it is no NIfTI file: it is compressed"),
        ("ct.nii", bytes(128) + b"DICM" + bytes(300), "it is no NIfTI file: it is a DICOM file"),
    ],
)
@pytest.mark.parametrize("use", ["ct", "mask"])
def test_file_named_as_nifti_is_what_it_holds(tmp_path, name, content, what, use):
    """The kind of a file is named for CT and mask."""
    good = write_case(tmp_path / "P1") / "ct.nii.gz"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputRejectedError, match=what):
        import_case(tmp_path / "out", ct=good if use == "mask" else tmp_path / name, mask=tmp_path / name)


def test_workbook_as_features_is_named(tmp_path):
    """A workbook in place of radiomics.csv is no faulty CSV."""
    (tmp_path / "radiomics.csv").write_bytes(b"PK\x03\x04" + b"xl/workbook.xml" * 30)
    with pytest.raises(InputRejectedError, match="is an Excel workbook or another ZIP archive") as error:
        import_case(tmp_path / "out", ct=None, radiomics=tmp_path / "radiomics.csv")
    assert error.value.code == "radiomics-unreadable"
