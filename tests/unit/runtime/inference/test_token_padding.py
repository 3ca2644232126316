"""Token padding: shorter inputs give the same features."""

from __future__ import annotations

import numpy as np
import pytest

from tmi.runtime.inference import ensemble
from tmi.runtime.inference.token_padding import LENGTH_MULTIPLE, Tokens, trim_padding


def tokens(*lengths: int, width: int) -> Tokens:
    mask = np.array([[int(t < n) for t in range(width)] for n in lengths], dtype=np.int64)
    return Tokens(input_ids_BT=mask * 7, attention_mask_BT=mask)


@pytest.mark.parametrize(
    ("lengths", "width", "longest", "expected"),
    [
        ((1,), 512, 512, LENGTH_MULTIPLE),
        ((32,), 512, 512, 32),
        ((33,), 512, 512, 64),
        ((5, 350), 512, 512, 352),
        ((11,), 11, 512, 32),
        ((510,), 510, 512, 512),
        ((500,), 500, 500, 500),
        ((20,), 20, 20, 20),
        ((0,), 8, 512, 32),
    ],
)
def test_length_is_rounded_up_within_the_limit(lengths, width, longest, expected):
    """The width is a multiple of LENGTH_MULTIPLE, at most the longest input; no token is lost."""
    given = tokens(*lengths, width=width)
    found = trim_padding(given.input_ids_BT, given.attention_mask_BT, longest=longest)
    assert found.input_ids_BT.shape == found.attention_mask_BT.shape == (len(lengths), expected)
    assert found.attention_mask_BT.sum(axis=1).tolist() == list(lengths)
    assert (found.input_ids_BT == 7 * found.attention_mask_BT).all()


def test_padding_changes_no_feature(opened, monkeypatch):
    """Trimmed tokens give the features of fully padded ones."""
    manifest = opened.bundle.manifest
    longest = manifest.config.clinical.max_length
    for real in (3, 40):
        text = tokens(real, width=longest)
        texts = dict.fromkeys((fold.text for fold in manifest.folds), text)
        short = ensemble.encode_text(opened.engine, manifest, texts).features
        with monkeypatch.context() as patch:
            patch.setattr(
                ensemble, "trim_padding", lambda ids, mask, longest: Tokens(input_ids_BT=ids, attention_mask_BT=mask)
            )
            padded = ensemble.encode_text(opened.engine, manifest, texts).features
        for name, features in padded.items():
            np.testing.assert_allclose(short[name], features, atol=1e-5)
