"""Golden inputs: identical bytes on every machine, and extremes in few cases."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from factories.small_bundle import small_manifest
from tmi.runtime.bundle.manifest_records import GoldenRecord
from tmi.runtime.verification.golden_case import golden_config, write_golden_case
from tmi.runtime.verification.golden_inputs import (
    extreme_case,
    first_golden_input,
    golden_count,
    join,
    largest_batch,
    make_golden,
    padded,
    trimmed,
)
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.presets import paper, tiny
from tmi.toolkit.config.schema import ClinicalConfig, CtConfig
from tmi.toolkit.preprocessing.pipeline import prepare_case

CONFIG = replace(
    tiny(), ct=CtConfig(shape_DHW=(9, 12, 10), scale_to=(0.0, 255.0)), clinical=ClinicalConfig(max_length=60)
)
VOCABULARIES = {"text-0": 300, "text-1": 31}


@pytest.fixture(scope="module")
def golden():
    return make_golden(CONFIG, seed=11, count=5, folds=2, vocabularies=VOCABULARIES)


def test_seed_determines_the_bytes(golden):
    """A seed gives the same bytes on every machine."""
    assert golden.digests() == {
        "ct": "cb8afe3deed54ee04ca77e0c51e51cb03be2aa194d9f68b48f177d4bd8941360",
        "radiomics": "187f27a0d91d233440357e45047f65ddf673905f21bef0c6ac025b9fb70a45e7",
        "text-0.input_ids": "e744ea812a1a9d0d38574d917813de9a14b2fae06255c69fb6d8846528c86508",
        "text-0.attention_mask": "e94beb47ea4339691cce765338e5aada2ecb2c6693c909718d5025cedfba5941",
        "text-1.input_ids": "a17b9d2308024afd7410b0e2defbc794f5173697de80dc5ad6c444cbf14955dd",
        "text-1.attention_mask": "e94beb47ea4339691cce765338e5aada2ecb2c6693c909718d5025cedfba5941",
    }


def test_another_seed_gives_other_inputs(golden):
    """Two seeds share no array except attention masks."""
    other = make_golden(CONFIG, seed=12, count=5, folds=2, vocabularies=VOCABULARIES)
    assert not set(other.digests().values()) & {d for n, d in golden.digests().items() if "mask" not in n}


def test_volumes_stay_in_the_scale_range(golden):
    """Volumes stay in the scale range; case 1 is constant, the others vary."""
    ct = golden.ct_B1DHW
    assert ct.shape == (5, 1, 9, 12, 10)
    assert ct.dtype == np.float32
    assert ct.min() >= 0
    assert ct.max() <= 255
    std = ct.std(axis=(1, 2, 3, 4))
    assert std[1] == 0
    assert (np.delete(std, 1) > 20).all()


def test_texts_cover_lengths_and_vocabulary(golden):
    """Texts have several lengths, ids within the vocabulary, and zeros as padding."""
    for name, size in VOCABULARIES.items():
        text = golden.texts[name]
        assert text.attention_mask_BT.sum(axis=1).tolist() == [20, 3, 60, 12, 10]
        ids = text.input_ids_BT
        assert ids.max() < size
        assert ids.max() > 0.8 * size
        assert (ids[text.attention_mask_BT == 1] > 0).all()
        assert (ids[text.attention_mask_BT == 0] == 0).all()


def test_radiomics_differ_between_folds(golden):
    """Radiomics differ between folds; case 1 is zero, case 2 at the limits."""
    values = golden.radiomics_BFR
    assert values.shape == (5, 2, 1781)
    assert np.abs(values).max() <= 1
    assert not values[1].any()
    assert set(np.unique(values[2])) == {-1.0, 1.0}
    assert (values[0, 0] != values[0, 1]).mean() > 0.9


def test_trimming_and_padding_keep_the_tokens(golden):
    """Trimming and padding change the width only."""
    short = trimmed(golden.rows([1]))
    assert short.texts["text-0"].input_ids_BT.shape == (1, 3)
    wide = padded(short, 60)
    np.testing.assert_array_equal(wide.texts["text-0"].input_ids_BT, golden.texts["text-0"].input_ids_BT[1:2])
    np.testing.assert_array_equal(wide.texts["text-0"].attention_mask_BT, golden.texts["text-0"].attention_mask_BT[1:2])


def test_extreme_case_is_outside_every_range(golden):
    """The extreme case exceeds the range of voxels and of radiomics."""
    extreme = extreme_case(golden, CONFIG)
    assert extreme.ct_B1DHW.max() == 255 * 65
    assert extreme.ct_B1DHW.min() == -255 * 64
    assert np.abs(extreme.radiomics_BFR).min() == 100
    both = join(extreme, golden.rows([0]))
    assert both.ct_B1DHW.shape == (2, 1, 9, 12, 10)


def test_large_volume_gets_two_cases():
    """A large volume gets two golden cases and no larger batch."""
    assert golden_count(paper()) == 2
    assert golden_count(tiny()) == 4
    assert largest_batch(paper()) == 2
    assert largest_batch(tiny()) == 8


def test_first_input_is_case_0_of_the_set():
    """`first_golden_input` equals case 0 of the full set."""
    record = GoldenRecord(seed=11, count=4, vocabularies=VOCABULARIES, digests={})
    manifest = replace(small_manifest(), config=CONFIG, golden=record)
    alone = first_golden_input(manifest)
    expected = trimmed(make_golden(CONFIG, seed=11, count=4, folds=1, vocabularies=VOCABULARIES).rows([0]))
    assert alone.digests() == expected.digests()


def test_golden_case_is_permuted_and_deterministic(tmp_path):
    """The golden case has an unusual orientation and three different sizes, and follows its seed."""
    case = write_golden_case(tmp_path / "golden", load_schema(), seed=3)
    image = nib.load(case.ct)
    assert nib.aff2axcodes(image.affine) == ("S", "L", "P")
    assert image.dataobj.inter == -1024
    prepared = prepare_case(case, golden_config(CONFIG), load_schema())
    assert prepared.ct_1DHW.shape == (1, 11, 17, 13)
    assert np.isnan(prepared.radiomics_F).sum() == 2
    again = write_golden_case(tmp_path / "again", load_schema(), seed=3)
    np.testing.assert_array_equal(prepare_case(again, golden_config(CONFIG), load_schema()).ct_1DHW, prepared.ct_1DHW)
    other = write_golden_case(tmp_path / "other", load_schema(), seed=4)
    assert (prepare_case(other, golden_config(CONFIG), load_schema()).ct_1DHW != prepared.ct_1DHW).any()


@pytest.mark.parametrize(("count", "folds"), [(1, 2), (2, 0)])
def test_too_few_cases_or_folds_are_rejected(count, folds):
    """A golden set needs two cases and one fold."""
    with pytest.raises(ValueError, match="golden inputs need 2 cases and 1 fold"):
        make_golden(CONFIG, seed=0, count=count, folds=folds, vocabularies=VOCABULARIES)
