"""Length of the clinical text: complete records fit the text encoder, and lost fields are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from factories.complete_records import REPORT, complete_record
from tmi.toolkit.clinical.record import ClinicalRecord
from tmi.toolkit.clinical.rendering import field_spans, render, sentences
from tmi.toolkit.clinical.schema import load_schema, parse_schema
from tmi.toolkit.clinical.tokenizer import SPECIAL, Tokenizer
from tmi.toolkit.clinical.truncation import estimated_offsets, lost_fields, truncation_warning
from tmi.toolkit.config.presets import paper, tiny
from tmi.toolkit.qc.text_length import TextEncoderInput, check_text_length

SCHEMA = load_schema()
LIMIT = 512
RECORDS = [complete_record(SCHEMA, seed=seed) for seed in range(40)]
RENDERINGS = ("compact", "values", "flags", "pairs")


@pytest.fixture(scope="module")
def bert(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_vocab(shared_data / "bert-base-cased-vocab" / "vocab.txt")


def spelling() -> Tokenizer:
    """The longest tokenization that a vocabulary with single characters can give: one token for each character."""
    characters = [chr(i) for i in range(33, 127)]
    return Tokenizer.from_tokens([*SPECIAL, *characters, *(f"##{c}" for c in characters)], Path("spelling"))


def count(tokenizer: Tokenizer, text: str) -> int:
    return int(tokenizer.encode([text], max_length=10_000).attention_mask_BT.sum())


def lost(record: ClinicalRecord, rendering: str, tokenizer: Tokenizer | None, limit: int = LIMIT) -> tuple[str, ...]:
    spans = field_spans(sentences(record, SCHEMA, rendering))
    return lost_fields(render(record, SCHEMA, rendering), spans, tokenizer, max_length=limit)


def test_new_runs_use_the_compact_rendering():
    """The presets for new runs use the rendering in which a complete record fits."""
    assert paper().clinical.rendering == tiny().clinical.rendering == "compact"


def test_complete_record_fits_whatever_the_vocabulary():
    """Every field that is not optional fits into 512 tokens even if each character is a token of its own."""
    tokenizer = spelling()
    for seed in range(40):
        record = complete_record(SCHEMA, seed=seed, optional=False)
        assert count(tokenizer, render(record, SCHEMA, "compact")) <= LIMIT
        assert lost(record, "compact", tokenizer) == ()


def test_complete_record_and_report_fit_bert(bert):
    """With BERT's cased vocabulary a complete record and a report of 100 words fit in the default rendering only."""
    for record in RECORDS:
        reported = ClinicalRecord(patient_id=None, values=record.values, report=REPORT)
        assert count(bert, render(record, SCHEMA, "compact")) <= 302
        assert count(bert, render(reported, SCHEMA, "compact")) <= LIMIT
        assert lost(reported, "compact", bert) == ()
        assert "report" in lost(reported, "values", bert)
        assert "soft_tissue_area_fraction" in lost(record, "flags", bert)


def test_documented_token_counts_are_current(bert):
    """The numbers of tokens in docs/clinical.md are those of complete records."""
    for rendering, (low, high) in {"compact": (285, 302), "pairs": (466, 483), "values": (643, 660)}.items():
        counts = [count(bert, render(record, SCHEMA, rendering)) for record in RECORDS]
        assert low <= min(counts), rendering
        assert max(counts) <= high, rendering


def test_most_important_fields_come_first():
    """The compact text has the order of importance; fields outside the list follow in the schema's order."""
    names = [name for name, _ in sentences(RECORDS[0], SCHEMA, "compact")]
    assert names[:4] == ["sex", "age", "aetiology", "albumin"]
    assert names[-1] == "portal_vein_thrombosis"
    assert set(names) == set(SCHEMA.by_name)
    own = {"name": "copper", "label": "Urine copper", "section": "blood", "unit": "ug/day", "short": "Cu"}
    extension = {"schema": "tmi-clinical-schema/1", "extends": "liver", "name": "x", "version": "1"}
    extended = parse_schema({**extension, "fields": [own], "without": ["albumin"]}, where="x")
    values = {f.name: None for f in extended.fields} | {"copper": 80.0}
    text = render(ClinicalRecord(patient_id=None, values=values), extended, "compact")
    assert text.startswith("Sex missing TBIL missing")
    assert text.endswith(" Cu 80")


def test_lost_fields_are_those_behind_the_last_token():
    """A field is lost if one of its tokens is dropped; the report counts as a field."""
    tokenizer = spelling()
    values = {f.name: None for f in SCHEMA.fields} | {"sex": "male", "albumin": 38.0}
    record = ClinicalRecord(patient_id=None, values=values, report="Ascites.")
    text = render(record, SCHEMA, "compact")
    full = count(tokenizer, text)
    assert lost(record, "compact", tokenizer, full) == ()
    assert lost(record, "compact", tokenizer, full - 1) == ("report",)
    assert lost(record, "compact", tokenizer, full - 9) == ("soft_tissue_volume_fraction", "report")
    assert lost(record, "compact", tokenizer, 9)[:2] == ("albumin", "total_bilirubin")  # [CLS] S e x m a l e [SEP]


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_estimate_is_near_and_not_below_bert(bert, rendering):
    """Without a vocabulary the estimated number of tokens is BERT's or up to a quarter more."""
    for record in RECORDS[:10]:
        for report in (None, REPORT):
            text = render(ClinicalRecord(patient_id=None, values=record.values, report=report), SCHEMA, rendering)
            assert 0.99 * count(bert, text) <= len(estimated_offsets(text)) <= 1.25 * count(bert, text)


def test_check_names_lost_fields_and_shorter_rendering():
    """The finding names the lost fields; its fix is the shorter rendering if another one is used."""
    record = RECORDS[0]
    assert list(check_text_length(record, SCHEMA, TextEncoderInput())) == []
    (issue,) = check_text_length(record, SCHEMA, TextEncoderInput(rendering="values"))
    assert issue.code == "clinical-truncated"
    assert "more than 512 tokens by estimate" in issue.message
    assert "soft_tissue_volume_fraction" in issue.message
    assert issue.fix == "use the shorter text: --set clinical.rendering=compact"


def test_warning_counts_texts_of_each_field():
    """The warning of a cohort has the number of texts that lose each field."""
    message = truncation_warning([(), ("sat_area", "report"), ("report",)], max_length=512)
    assert message is not None
    assert message.startswith("2 of 3 clinical texts have more than 512 tokens")
    assert message.endswith("report (2), sat_area (1)")
    assert truncation_warning([(), ()], max_length=512) is None


def test_random_seed_gives_distinct_records():
    """The records of these tests differ in every number."""
    assert np.unique([record.values["albumin"] for record in RECORDS]).size == len(RECORDS)
