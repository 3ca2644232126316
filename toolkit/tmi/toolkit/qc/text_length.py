"""Warns of a clinical record whose text is longer than the text encoder takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tmi.toolkit.clinical.record import ClinicalRecord
from tmi.toolkit.clinical.rendering import Rendering, field_spans, render, sentences
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.clinical.truncation import enumerate_fields, lost_fields, truncation_fix
from tmi.toolkit.issues.issue import Issue


@dataclass(frozen=True, kw_only=True)
class TextEncoderInput:
    """How a training turns a record into tokens."""

    rendering: Rendering = "compact"
    """Rendering of the record."""
    max_length: int = 512
    """Maximum number of tokens, special tokens included."""
    tokenizer: Tokenizer | None = None
    """Tokenizer of the text encoder; None: the number of tokens is estimated."""


def check_text_length(record: ClinicalRecord, schema: Schema, encoder_input: TextEncoderInput) -> Iterator[Issue]:
    """Yield the issue if the end of the record's text is not received by the text encoder."""
    rendering, limit = encoder_input.rendering, encoder_input.max_length
    text = render(record, schema, rendering)
    spans = field_spans(sentences(record, schema, rendering))
    lost = lost_fields(text, spans, encoder_input.tokenizer, max_length=limit)
    if lost:
        estimate = " by estimate (--vocab counts them)" if encoder_input.tokenizer is None else ""
        yield Issue.of(
            "clinical-truncated",
            f"the clinical text ({rendering}) has more than {limit} tokens{estimate}; the text encoder does not "
            f"receive the end: {enumerate_fields(lost)}",
            truncation_fix(rendering),
        )
