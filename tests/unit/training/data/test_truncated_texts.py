"""Warning before a training whose text encoder does not receive the end of some records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from factories.small_fold import SPLIT, make_arrays, small_config
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.training.data.truncated_texts import text_truncation


@pytest.fixture
def arrays():
    """Thirteen texts, of which the last three have a long report; every field has its span."""
    plain = make_arrays()
    reports = [("word " * 40).strip() if k >= 10 else "" for k in range(len(plain.texts))]
    texts = [f"{text} {report}".strip() for text, report in zip(plain.texts, reports, strict=True)]
    spans = [
        (("albumin", 0, 15), *(((None, len(text) - len(report), len(text)),) if report else ()))
        for text, report in zip(texts, reports, strict=True)
    ]
    return replace(plain, texts=tuple(texts), reports=tuple(reports), spans=tuple(spans))


def config_with(micro_config, **clinical):
    config = small_config(micro_config)
    return replace(config, clinical=replace(config.clinical, **clinical))


@pytest.mark.parametrize("given", [True, False])
def test_lost_fields_are_named_before_training(arrays, micro_config, given):
    """The warning has the number of truncated texts and the fields, with a given vocabulary and a trained one."""
    tokenizer = Tokenizer.train(list(arrays.texts), 200) if given else None
    config = config_with(micro_config, max_length=32)
    warning = text_truncation(arrays, [SPLIT], config, tokenizer)
    assert warning is not None
    assert warning.startswith("3 of 13 clinical texts have more than 32 tokens")
    assert "report (3)" in warning
    assert "albumin" not in warning
    assert text_truncation(arrays, [SPLIT], config_with(micro_config, max_length=512), tokenizer) is None


def test_rendering_decides_the_fix(arrays, micro_config):
    """A run with sentences is referred to the shorter rendering."""
    config = config_with(micro_config, max_length=32, rendering="values")
    assert "--set clinical.rendering=compact" in str(text_truncation(arrays, [SPLIT], config, None))


def test_model_without_text_encoder_has_no_warning(arrays, micro_config):
    """A model that does not read the text, or reads values as numbers, is not warned of it."""
    config = config_with(micro_config, max_length=32)
    for name in ("resnet50", "rf", "logreg"):
        assert text_truncation(arrays, [SPLIT], replace(config, system=replace(config.system, name=name)), None) is None
