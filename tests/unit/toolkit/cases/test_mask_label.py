"""Option `--mask-label` of the commands that read case folders."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from factories.cases import write_case
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import find_cases, format_label, parse_mask_label
from tmi.toolkit.errors import UsageError
from tmi.toolkit.radiomics.provenance import RadiomicsRecord
from tmi.toolkit.storage.serialization import from_json, to_json


@pytest.mark.parametrize(
    ("texts", "label"),
    [(None, None), ([], None), (["5"], 5), (["1,2"], (1, 2)), (["1", " 2"], (1, 2)), (["1,1"], 1), ([1, 2], (1, 2))],
)
def test_labels_are_parsed(texts, label):
    """Commas and repeated options join labels; one label stays a number, as in records that exist."""
    assert parse_mask_label(texts) == label
    if label is not None:
        assert parse_mask_label([format_label(label)]) == label


@pytest.mark.parametrize("text", ["", "1,", "liver", "1.5", "١", "9" * 400])
def test_other_texts_are_usage_errors(text):
    """A label of a case folder's mask is an integer."""
    with pytest.raises(UsageError, match="not an integer"):
        parse_mask_label([text])


@pytest.mark.parametrize("text", ["0", "0,1", "1,0", "00", "-0"])
def test_background_is_no_label(text, tmp_path):
    """Label 0 is what is not segmented: it is a usage error, alone and joined, by option and in a program."""
    with pytest.raises(UsageError, match="label 0"):
        parse_mask_label([text])
    with pytest.raises(UsageError, match="label 0"):
        find_cases([write_case(tmp_path / "P1", with_mask=False)], mask_label=(1, 0))


@pytest.mark.parametrize("label", [None, 5, (1, 2)])
def test_labels_survive_the_radiomics_record(label):
    """The record of a table keeps one label as a number and several as a list."""
    record = RadiomicsRecord(source="extracted", table_sha256="", ct_sha256=None, mask_sha256=None, mask_label=label)
    assert from_json(RadiomicsRecord, to_json(record), where="record").mask_label == label


def test_check_joins_labels(tmp_path):
    """`tmi check --mask-label 1,2` checks the union; a wrong text exits with code 2."""
    folder = write_case(tmp_path / "P1")
    image = nib.load(folder / "liver.nii.gz")
    liver = np.asarray(image.dataobj) > 0
    labels = np.where(liver, 1, 0).astype(np.uint8)
    labels[liver & (np.arange(liver.shape[2]) % 2 == 1)] = 2
    nib.save(nib.Nifti1Image(labels, image.affine), folder / "liver.nii.gz")
    for options, gap in ((("--mask-label", "1"), True), (("--mask-label", "1,2"), False)):
        codes = {f["code"] for f in tmi("check", folder, *options, "--json").document["findings"]}
        assert ("mask-gap" in codes) == gap
        assert "mask-labels" not in codes
    twice = tmi("check", folder, "--mask-label", "1", "--mask-label", "2", "--json").document["findings"]
    assert "mask-gap" not in {f["code"] for f in twice}
    assert tmi("check", folder, "--mask-label", "liver").code == 2
