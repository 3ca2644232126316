"""Selection of labels: several joined ones, and names in the header of the mask."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

from factories.dicom_series import (
    SeriesSpec,
    liver_at,
    liver_contour,
    liver_masks,
    make_slices,
    positions_of_volume,
    write_rtstruct,
    write_seg,
    write_slices,
)
from factories.tmi_command import tmi
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
from tmi.toolkit.ingest.image_files import LoadedCt
from tmi.toolkit.ingest.mask_importer import ImportedMask, import_mask
from tmi.toolkit.ingest.mask_labels import choose_labels, split_labels
from tmi.toolkit.ingest.tabular.mapping import ImageSource
from tmi.toolkit.storage.serialization import from_json

SPEC = SeriesSpec()


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    return write_slices(tmp_path_factory.mktemp("series"), make_slices(SPEC), shuffle=1)


@pytest.fixture(scope="module")
def ct(series) -> LoadedCt:
    return read_dicom_ct(series, series=None, fixes=(), case_id="x")


def livers(ct: LoadedCt) -> tuple[np.ndarray, np.ndarray]:
    """Return liver and tumour, a part in the middle of the liver."""
    liver = liver_at(positions_of_volume(ct.volume.array_DHW.shape, ct.volume.affine_xyz))
    middle = np.argwhere(liver).mean(axis=0).astype(int)
    tumour = np.zeros_like(liver)
    tumour[tuple(slice(m - 3, m + 4) for m in middle)] = True
    return liver, tumour & liver


def table(names: dict[int, str]) -> str:
    """Return the table of names as TotalSegmentator writes it."""
    entry = '<Label Key="{}" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[{}]]></Label>\n'
    body = "".join(entry.format(number, name) for number, name in names.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>  <VolumeInformation Index="0">   <LabelTable>\n'
        f"{body}  </LabelTable>  <VolumeType><![CDATA[Label]]></VolumeType>   </VolumeInformation>"
        "</CaretExtension>\n              "
    )


def write(path: Path, ct: LoadedCt, labels: dict[int, np.ndarray], xml: str | None = None, code: int = 0) -> Path:
    array = np.zeros(ct.volume.array_DHW.shape, dtype=np.uint8)
    for number, where in labels.items():
        array[where] = number
    image = nib.Nifti1Image(array.transpose(2, 1, 0), ct.volume.affine_xyz)
    if xml is not None:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, xml.encode()))
    nib.save(image, path)
    return path


def imported(path: Path, ct: LoadedCt, wanted=None) -> ImportedMask:
    return import_mask(path, ct, wanted=wanted, fixes=(), case_id="x")


def refused(path: Path, ct: LoadedCt, wanted=None) -> InputRejectedError:
    with pytest.raises(InputRejectedError) as error:
        imported(path, ct, wanted)
    assert error.value.code == "mask-label"
    return error.value


@pytest.mark.parametrize("wanted", ["1,2", " 1 , 2 ", [1, 2], ["1", "2"], ["1,2"], "1,2,1"])
def test_joined_labels_equal_liver_with_tumour(wanted, ct, tmp_path):
    """Liver 1 and tumour 2, as LiTS and MSD number them, are joined without a hole; the record names both."""
    liver, tumour = livers(ct)
    path = write(tmp_path / "m.nii.gz", ct, {1: liver, 2: tumour, 3: ~liver})
    mask = imported(path, ct, wanted)
    np.testing.assert_array_equal(mask.volume.array_DHW, liver)
    assert mask.source["label"] == "1,2"
    assert mask.label.explanation == "joined: label 1, as requested; label 2, as requested"
    assert imported(path, ct, 1).source["label"] == 1
    assert imported(path, ct, "1,1").source["label"] == 1


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_labels_of_other_formats_are_joined(ending, ct, tmp_path):
    """NRRD and MetaImage join labels like NIfTI."""
    liver, tumour = livers(ct)
    path = write(tmp_path / "m.nii", ct, {1: liver, 2: tumour})
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(tmp_path / f"m.{ending}"))
    np.testing.assert_array_equal(imported(tmp_path / f"m.{ending}", ct, "1,2").volume.array_DHW, liver)


@pytest.mark.parametrize("wanted", ["1,2", "liver part,rest, all", [1, 2], "2, liver part"])
def test_seg_segments_are_joined(wanted, ct, tmp_path):
    """SEG segments are joined by number and name; a name may contain a comma."""
    mask = liver_masks(SPEC)
    first, second = mask.copy(), mask.copy()
    first[: len(mask) // 2], second[len(mask) // 2 :] = False, False
    path = write_seg(tmp_path / "seg.dcm", make_slices(SPEC), [first, second], ["liver part", "rest"])
    if "all" in wanted:
        with pytest.raises(InputRejectedError, match="no label of the mask has the requested name"):
            imported(path, ct, wanted)
        return
    joined = imported(path, ct, wanted)
    np.testing.assert_array_equal(joined.volume.array_DHW, livers(ct)[0])
    assert set(str(joined.source["segment"]).split(",")) == {"1", "2"}
    assert joined.source["voxels"] == livers(ct)[0].sum()


def test_rois_are_joined_and_a_comma_may_be_part_of_a_name(ct, tmp_path):
    """The ROIs of an RTSTRUCT are joined; a name with a comma selects its ROI alone."""
    outlines = [c for k in range(SPEC.slices) if (c := liver_contour(SPEC, k)) is not None]
    lower, upper = outlines[: len(outlines) // 2], outlines[len(outlines) // 2 :]
    path = write_rtstruct(tmp_path / "rt.dcm", make_slices(SPEC)[0], {"Liver": lower, "GTV, upper": upper})
    whole = write_rtstruct(tmp_path / "all.dcm", make_slices(SPEC)[0], {"Liver": outlines})
    joined = imported(path, ct, ["Liver", "2"])
    np.testing.assert_array_equal(joined.volume.array_DHW, imported(whole, ct).volume.array_DHW)
    assert joined.source["roi"] == "1,2"
    assert imported(path, ct, "GTV, upper").label.number == 2


def test_command_joins_options_and_reports_holes(series, ct, tmp_path):
    """`--mask-label 1` reports the tumour's hole; `1,2` and two options join, and the last one is not taken alone."""
    liver, tumour = livers(ct)
    grown = np.zeros_like(liver)
    low, high = np.argwhere(liver).min(axis=0), np.argwhere(liver).max(axis=0)
    grown[tuple(slice(int(a + 0.25 * (b - a)), int(b - 0.2 * (b - a))) for a, b in zip(low, high, strict=True))] = True
    path = write(tmp_path / "m.nii.gz", ct, {1: liver, 2: (grown & liver) | tumour})
    given = ("import", tmp_path / "case", "--ct", series, "--mask", path, "--force")
    document = tmi(*given, "--mask-label", "1", "--json").document
    assert "mask-holes" in [f["code"] for f in document["findings"]]
    for options in (("--mask-label", "1,2"), ("--mask-label", "1", "--mask-label", "2")):
        document = tmi(*given, *options, "--json").document
        assert "mask-holes" not in [f["code"] for f in document["findings"]]
        assert document["source"]["mask"]["voxels"] == liver.sum()
    assert "label 1,2" in tmi(*given, "--mask-label", "1,2").out


def test_mapping_takes_several_labels():
    """A mapping names several labels as a text or as a list, and several ROIs as a list."""
    for value in ("1,2", [1, 2], ["liver", "tumour"]):
        source = from_json(ImageSource, json.loads(json.dumps({"ct": "c", "mask_label": value})), where="images")
        assert split_labels(source.mask_label) in ((1, 2), ("liver", "tumour"))
    assert from_json(ImageSource, {"ct": "c", "roi": ["Liver", "GTV"]}, where="images").roi == ("Liver", "GTV")


def test_absent_further_label_is_told_and_absent_first_label_is_rejected():
    """A tumour's label may have no voxel; the first label, and a name that nothing defines, must exist."""
    chosen = choose_labels("1,2", {}, {1: 9}, case_id="x")
    assert (chosen.numbers, chosen.recorded) == ((1,), 1)
    assert "has no voxel" in chosen.explanation
    named = {1: ("liver",), 2: ("tumour",)}
    assert choose_labels("liver,tumour", named, {1: 9}, case_id="x").numbers == (1,)
    for wanted, names, present in (("2,1", {}, {1: 9}), ("liver,tumor", named, {1: 9}), ("1,7", named, {1: 9})):
        with pytest.raises(InputRejectedError) as error:
            choose_labels(wanted, names, present, case_id="x")
        assert error.value.code == "mask-label"
    for wanted in ("1,,2", ",", [], ""):
        with pytest.raises(UsageError):
            choose_labels(wanted, {}, {1: 9}, case_id="x")


COUINAUD = {n: f"liver_segment_{n}" for n in range(1, 9)}


@pytest.mark.parametrize("code", [0, 30])
def test_names_in_the_nifti_header_come_first(code, ct, tmp_path):
    """The header's names select the label, by default and by name; a number of another numbering is not assumed."""
    liver, _ = livers(ct)
    path = write(
        tmp_path / "m.nii.gz", ct, {6: liver, 5: ~liver}, table({5: "esophagus", 6: "liver", 9: "unused"}), code
    )
    for wanted in (None, "liver", "Liver", 6):
        np.testing.assert_array_equal(imported(path, ct, wanted).volume.array_DHW, liver)
    assert (
        "label 5, TotalSegmentator's number of the requested name, has another name"
        in refused(path, ct, "total:liver").what
    )
    assert "5 (esophagus), 6 (liver)" in refused(path, ct, "spleen").what


def test_couinaud_segment_is_not_taken_for_the_liver(ct, tmp_path):
    """`liver` is rejected where the header calls number 5 a segment; all eight segments can be joined."""
    liver, _ = livers(ct)
    rows = np.arange(liver.shape[0])[:, None, None] % 8 + 1
    path = write(tmp_path / "m.nii.gz", ct, {n: liver & (rows == n) for n in COUINAUD}, table(COUINAUD))
    assert "another name in the mask" in refused(path, ct, "liver").what
    np.testing.assert_array_equal(imported(path, ct, ",".join(COUINAUD.values())).volume.array_DHW, liver)


def test_two_names_of_one_label_are_rejected(ct, tmp_path):
    """A header that gives one label two names contradicts itself, in NIfTI and in NRRD."""
    liver, _ = livers(ct)
    xml = table({5: "liver"}).replace("</LabelTable>", '<Label Key="5"><![CDATA[spleen]]></Label></LabelTable>')
    assert "two names" in refused(write(tmp_path / "m.nii.gz", ct, {5: liver}, xml), ct, 5).what
    image = SimpleITK.ReadImage(str(write(tmp_path / "n.nii", ct, {5: liver})))
    for k, name in enumerate(("liver", "spleen")):
        image.SetMetaData(f"Segment{k}_Name", name)
        image.SetMetaData(f"Segment{k}_LabelValue", "5")
    SimpleITK.WriteImage(image, str(tmp_path / "n.nrrd"))
    assert "two names" in refused(tmp_path / "n.nrrd", ct, 5).what


@pytest.mark.parametrize(
    "xml",
    [
        "<CaretExtension><LabelTable><Label Key=",
        '<!DOCTYPE a [<!ENTITY b "c">]><a><LabelTable/></a>',
        '<LabelTable><Label Key="x">n</Label></LabelTable>',
    ],
)
def test_damaged_table_of_names_is_rejected(xml, ct, tmp_path):
    """A table that cannot be read is rejected rather than ignored; document types are not parsed."""
    with pytest.raises(InputRejectedError) as error:
        imported(write(tmp_path / "m.nii.gz", ct, {5: livers(ct)[0]}, xml), ct, 5)
    assert error.value.code == "mask-unreadable"


def test_other_extensions_are_ignored(ct, tmp_path):
    """An extension without a table of names leaves a mask without names."""
    path = write(tmp_path / "m.nii.gz", ct, {5: livers(ct)[0]}, "a comment", 6)
    assert imported(path, ct, "liver").label.number == 5


@pytest.mark.parametrize(
    ("names", "accepted"),
    [
        (("Spleen", "10200004", "Liver", "liver"), False),  # label of a SEG segment, and its code
        (("liver", "78961009", "Spleen"), False),
        (("Liver tumour", "10200004", "Liver", "liver"), False),
        (("liver", "85756007", "Tissue"), True),
        (("Segment_1", "10200004", "Liver", "liver"), True),
        (("liver", "14016003", "Left kidney"), False),
    ],
)
@pytest.mark.parametrize("wanted", [None, "liver"])
def test_contradicting_names_of_one_label_are_rejected(names, accepted, wanted):
    """A label that is a liver by one name and something else by another one needs its number or another name."""
    if accepted:
        assert choose_labels(wanted, {1: names}, {1: 5}, case_id="x").number == 1
        return
    with pytest.raises(InputRejectedError, match="contradict each other") as error:
        choose_labels(wanted, {1: names}, {1: 5}, case_id="x")
    assert " = ".join(names)[:40] in error.value.what
    assert choose_labels(1, {1: names}, {1: 5}, case_id="x").number == 1


TERMINOLOGY = "Segmentation.Status:completed|TerminologyEntry:General Anatomy~SCT^123037004^Structure~SCT^{}~^^~~^^~^^|"


@pytest.mark.parametrize(
    ("entries", "wanted", "message"),
    [
        ({"Name": "spleen"}, "liver", "without a label value"),
        ({"Name": "spleen", "LabelValue": "5.0"}, None, "without a label value"),
        ({"Name": "liver", "LabelValue": "5", "Tags": TERMINOLOGY.format("78961009^Spleen")}, None, "contradict"),
        ({"Name": "liver", "LabelValue": "5", "Tags": TERMINOLOGY.format("85756007^Tissue")}, None, None),
        ({"Name": "Segment_1", "LabelValue": "5", "Tags": TERMINOLOGY.format("10200004^Liver")}, "liver", None),
        (
            {"Name": "Segment_1", "LabelValue": "5", "Tags": TERMINOLOGY.format("78961009^Spleen")},
            None,
            "not named liver",
        ),
    ],
)
def test_segment_entries_of_an_nrrd_header_are_never_ignored(entries, wanted, message, ct, tmp_path):
    """Names without a label value, and a name against the type of the segment, reject the mask."""
    nib.save(nib.load(write(tmp_path / "m.nii", ct, {5: livers(ct)[0]})), tmp_path / "n.nii")
    image = SimpleITK.ReadImage(str(tmp_path / "n.nii"))
    for entry, value in entries.items():
        image.SetMetaData(f"Segment0_{entry}", value)
    SimpleITK.WriteImage(image, str(tmp_path / "n.nrrd"))
    if message is None:
        assert imported(tmp_path / "n.nrrd", ct, wanted).label.number == 5
    else:
        assert message in refused(tmp_path / "n.nrrd", ct, wanted).what


def test_two_segments_of_one_number_are_rejected(ct, tmp_path):
    """A SEG that gives two segments one number is rejected; the second name would hide the first."""
    mask = liver_masks(SPEC)
    path = write_seg(tmp_path / "s.dcm", make_slices(SPEC), [mask, ~mask], ["hepar", "rest"])
    data = pydicom.dcmread(path)
    data.SegmentSequence[1].SegmentNumber = 1
    data.save_as(path)
    with pytest.raises(InputRejectedError) as error:
        imported(path, ct)
    assert error.value.code == "mask-unreadable"


@pytest.mark.parametrize(
    ("name", "accepted"),
    [("liver", True), ("Leber gesamt", True), ("Segment_1", True), ("", True), ("liver_mask", True),
     ("GTV_Mass_CT", False), ("liver tumour", False), ("spleen", False), ("Liver, GTV", False),
     ("liver_segment_5", False), ("liver vessels", False), ("left lobe of the liver", False)],
)  # fmt: skip
def test_only_label_is_taken_unless_named_otherwise(name, accepted):
    """An only label of another name than the liver's needs a selection; the names are listed."""
    names = {1: (name,) if name else ()}
    if accepted:
        assert choose_labels(None, names, {1: 5}, case_id="x").number == 1
        return
    with pytest.raises(InputRejectedError, match="the only label of the mask is not named liver") as error:
        choose_labels(None, names, {1: 5}, case_id="x")
    assert f"1 ({name})" in error.value.what
    assert choose_labels(1, names, {1: 5}, case_id="x").number == 1


@pytest.mark.parametrize(
    ("names", "wanted", "otherwise"),
    [
        ({1: "spleen", 2: "liver"}, 1, True),
        ({1: "spleen", 2: "liver"}, "spleen", True),
        ({1: "spleen", 2: "liver"}, 2, False),
        ({1: "liver", 2: "liver tumour"}, "1,2", False),
        ({1: "Segment_1"}, 1, False),
        (None, 1, False),
    ],
)
def test_label_that_is_named_as_something_else_is_recorded(names, wanted, otherwise, ct, series, tmp_path):
    """A requested label with another organ's name is imported with the alert `mask-name`; a liver's part is none."""
    liver, tumour = livers(ct)
    path = write(tmp_path / "m.nii.gz", ct, {1: liver, 2: tumour}, None if names is None else table(names))
    assert imported(path, ct, wanted).label.named_otherwise is otherwise
    if wanted == 1:
        out = tmp_path / "case"
        outcome = tmi("import", out, "--ct", series, "--mask", path, "--mask-label", wanted)
        assert ("[mask-name]" in outcome.out) is otherwise
        assert json.loads((out / "case.json").read_text())["source"]["mask"].get("named_otherwise", False) is otherwise
