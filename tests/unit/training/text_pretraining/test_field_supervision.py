"""Supervision of the tokens of each field: membership of tokens, and both errors by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tmi.toolkit.clinical.schema import parse_schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.training.text_pretraining.field_supervision import NO_FIELD, FieldReader, token_fields

SCHEMA = parse_schema(
    {
        "schema": "tmi-clinical-schema/1",
        "name": "two",
        "version": "1",
        "sections": ["blood"],
        "fields": [
            {"name": "age", "label": "Age", "section": "blood", "unit": "years", "plausible": [0, 120]},
            {"name": "ascites", "label": "Ascites", "section": "blood", "choices": ["no", "yes"]},
        ],
    },
    where="two",
)


def test_tokens_belong_to_the_field_that_they_stand_in():
    """Special tokens and padding belong to none; a text without its first field begins with the second."""
    tokenizer = Tokenizer.train(["Age 54 Ascites yes no"], 200)
    texts, spans = (
        ["Age 54 Ascites yes", "Ascites no"],
        [
            [("age", 0, 6), ("ascites", 7, 18)],
            [("ascites", 0, 10)],
        ],
    )
    fields = token_fields(texts, spans, SCHEMA, tokenizer, max_length=64)
    ids = tokenizer.encode(texts, max_length=64).input_ids_BT
    assert fields.shape == ids.shape
    for row, text, pieces in zip(fields, texts, spans, strict=True):
        offsets = tokenizer.offsets(text, max_length=64)
        for (start, end), field in zip(offsets, row, strict=False):
            inside = [i for i, (name, a, z) in enumerate(pieces) if a <= start and end <= z and end]
            expected = [f.name for f in SCHEMA.fields].index(pieces[inside[0]][0]) if inside else NO_FIELD
            assert field == expected
    assert (fields[1, len(tokenizer.offsets(texts[1], max_length=64)) :] == NO_FIELD).all()


def test_truncated_text_has_as_many_fields_as_tokens():
    """Fields follow the tokens of a truncated text, whose last token is special."""
    tokenizer = Tokenizer.train(["Age 54 Ascites yes"], 200)
    fields = token_fields(
        ["Age 54 Ascites yes"], [[("age", 0, 6), ("ascites", 7, 18)]], SCHEMA, tokenizer, max_length=4
    )
    assert fields.shape == (1, 4)
    assert fields[0, 0] == fields[0, -1] == NO_FIELD


def test_errors_equal_those_by_hand():
    """Own columns of present fields are compared with their targets, all other columns with 0."""
    reader = FieldReader(1, SCHEMA)  # columns: age, no, yes, and the presences of both
    assert reader.own_FK.tolist() == [[True, False, False, False, False], [False, True, True, False, False]]
    with torch.no_grad():
        reader.linear.weight.fill_(1.0)
        reader.linear.bias.zero_()
    hidden = torch.tensor([[[9.0], [1.0], [3.0], [5.0]]])  # special token, two of age (mean 2), one of ascites
    fields, targets = torch.tensor([[-1, 0, 0, 1]]), torch.tensor([[0.5, 1.0, 3.0, 7.0, 7.0]])
    own, leak = reader(hidden, fields, targets, torch.tensor([[True, True]]))
    assert own.item() == pytest.approx((1.5**2 + (4.0**2 + 2.0**2) / 2) / 2)
    assert leak.item() == pytest.approx((4 * 2.0**2 + 3 * 5.0**2) / 10)
    own, _ = reader(hidden, fields, targets, torch.tensor([[True, False]]))
    assert own.item() == pytest.approx(1.5**2)
    assert np.isfinite(reader(hidden, torch.full((1, 4), -1), targets, torch.zeros(1, 2, dtype=torch.bool))[0].item())
