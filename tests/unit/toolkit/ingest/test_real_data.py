"""Imports of real series and masks of five data sets."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import open_case
from tmi.toolkit.imaging.volume import read_ct, read_mask


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    case = open_case(folder)
    ct = read_ct(case)
    return ct.array_DHW, read_mask(case, ct).array_DHW


def test_jpeg_2000_series_with_flipped_mask(shared_data, tmp_path):
    """A series with empty UIDs in JPEG 2000 is read, and its flipped mask is placed on the liver."""
    source = shared_data / "totalsegmentator-ct-dicom"
    outcome = tmi(
        "import", tmp_path / "A", "--ct", source, "--mask", source / "example_seg_dicom.nii.gz", "--mask-label", "liver"
    )
    assert outcome.code == 0, outcome.err
    assert "label 5, by its name in the mask" in outcome.out
    ct, mask = read(tmp_path / "A")
    assert ct.shape == (20, 512, 512)
    assert mask.sum() == 366_708
    assert ct[mask].mean() == pytest.approx(89, abs=0.5)
    assert ct[mask].std() == pytest.approx(22, abs=0.5)


def test_seg_equals_nrrd_of_same_segmentation(shared_data, tmp_path):
    """SEG and NRRD of one segmentation give equal voxels; padding becomes air on request."""
    source = shared_data / "dcmqi-liver-seg"
    for name, file in (("seg", "liver.dcm"), ("nrrd", "liver_seg.nrrd")):
        outcome = tmi("import", tmp_path / name, "--ct", source / "ct-3slice", "--mask", source / file)
        assert outcome.code == 3
        assert "error: ct.nii.gz has 3 slices [ct-few-slices]" in outcome.out
        assert "-3024 HU" in outcome.out
        assert "[ct-padding]" in outcome.out
    ct, mask = read(tmp_path / "seg")
    assert mask.sum() == 107_098
    assert np.array_equal(mask, read(tmp_path / "nrrd")[1])
    itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(source / "liver_seg.nrrd"))) > 0
    assert np.array_equal(mask, itk[:, ::-1, ::-1])
    assert ct.min() == -3024
    tmi("import", tmp_path / "air", "--ct", source / "ct-3slice", "--fix", "ct-padding")
    padded = ct == -3024
    air = read_ct(open_case(tmp_path / "air")).array_DHW
    assert np.array_equal(air, np.where(padded, -1024, ct))


def test_rtstruct_gives_its_reference_mask(shared_data, tmp_path):
    """The IBSI structure set equals its reference mask (Dice at least 0.998)."""
    source = shared_data / "ibsi-sts019-rtstruct"
    outcome = tmi(
        "import", tmp_path / "C", "--ct", source / "image", "--mask", source / "RS.dcm", "--roi", "GTV_Mass_CT"
    )
    assert outcome.code == 3
    assert "[mask-tiny]" in outcome.out  # a tumour of the thigh, not a liver
    _, mask = read(tmp_path / "C")
    reference = nib.as_closest_canonical(nib.load(source / "CT_mask.nii.gz"))
    expected = np.asarray(reference.dataobj).transpose(2, 1, 0) > 0
    assert expected.sum() == 5564
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) >= 0.998


def test_mr_is_rejected_without_output(shared_data, tmp_path):
    """An MR volume is rejected, and no folder is written."""
    source = shared_data / "totalsegmentator-mr-negative"
    outcome = tmi("import", tmp_path / "D", "--ct", source / "example_mr_sm.nii.gz")
    assert outcome.code == 3
    assert "values from -47 to 833" in outcome.err
    assert not (tmp_path / "D").exists()


def test_nifti_ct_with_multi_label_mask(shared_data, tmp_path):
    """A NIfTI CT is imported with the label that the header of a mask with many labels names liver."""
    source = shared_data / "totalsegmentator-ct-3mm"
    mask_file = source / "example_seg_fast_force_split.nii.gz"
    given = ("import", tmp_path / "E", "--ct", source / "example_ct.nii.gz", "--mask", mask_file)
    outcome = tmi(*given, "--mask-label", "hepar")
    assert outcome.code == 3
    assert "no label of the mask has the requested name" in outcome.err
    outcome = tmi(*given)
    assert outcome.code == 0
    assert "label 5, named liver in the mask" in outcome.out
    ct, mask = read(tmp_path / "E")
    assert ct.dtype == np.int16
    assert mask.sum() == 41_692


def sessions() -> dict[str, tuple[str, str]]:
    """Return case -> command and printed output of the sessions in docs/import.md on the shared data sets."""
    page = (ROOT / "docs" / "import.md").read_text(encoding="utf-8")
    blocks = [block.split("\n```")[0] for block in page.split("$ tmi ")[1:]]
    parts = (block.strip().split("\n", 1) for block in blocks if "--ct data/" in block)
    return {command.split()[1].removeprefix("cases/"): (command, output) for command, output in parts}


@pytest.mark.parametrize("case_id", "ABCDE")
def test_documented_sessions_match_output(case_id, shared_data, tmp_path):
    """docs/import.md shows the output of the command."""
    command, expected = sessions()[case_id]
    arguments = [str(shared_data / a.removeprefix("data/")) if a.startswith("data/") else a for a in command.split()]
    outcome = tmi(*arguments, cwd=tmp_path)
    assert (outcome.out + outcome.err).strip() == expected.strip()
