"""Tokenizer: ids equal those of transformers on BERT's cased vocabulary, and training is deterministic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tmi.toolkit.clinical.tokenizer import SPECIAL, Tokenizer
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.hashing import sha256_bytes

TEXTS = [
    "",
    "Sex: female. Height: 162 cm. Body mass index: 23.4 kg/m2. Albumin: 38 g/L. Cholinesterase: missing.",
    "Total bilirubin: 20.52 umol/L (high). White blood cells: 4.1 10^9/L.",
    "HBsAg+ cirrhosis, Child–Pugh B; ascites (grade 2)…  TIPS\tplaced\n2019. Müller's naïve façade — 肝硬化 患者 é",
    "hepatosplenomegaly pneumonoultramicroscopicsilicovolcanoconiosis " + "x" * 150,
    "control\x00char\ufffd soft\u00adhyphen zero\u200bwidth line\u2028separator [SEP] [CLS] [UNK]",
    "unassigned a\u0378b, private use \ue000x",  # transformers' slow tokenizer drops the first
]


@pytest.fixture(scope="module")
def vocab(shared_data: Path) -> Path:
    return shared_data / "bert-base-cased-vocab" / "vocab.txt"


@pytest.fixture(scope="module")
def bert(vocab: Path) -> Tokenizer:
    return Tokenizer.from_vocab(vocab)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.train(["albumin 38 g/L", "albumin 41 g/L", "bilirubin 20"], 64)


def ids(tokenizer: Tokenizer, text: str, max_length: int = 512) -> list[int]:
    return tokenizer.encode([text], max_length=max_length).input_ids_BT[0].tolist()


def test_cased_vocabulary_has_documented_ids(bert):
    """Special tokens, padding and unknown characters have BERT's ids."""
    assert bert.vocab_size == 28_996
    assert ids(bert, "") == [101, 102]
    assert ids(bert, "肝") == [101, 100, 102]
    padded = bert.encode(["", "liver disease"], max_length=512)
    assert padded.input_ids_BT[0].tolist() == [101, 102, 0, 0]
    assert padded.attention_mask_BT.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_match_transformers(bert, vocab, text):
    """Ids equal those of transformers' fast tokenizer."""
    from transformers import BertTokenizerFast

    expected = BertTokenizerFast(vocab=str(vocab), do_lower_case=False)
    assert expected.vocab_size == 28_996
    assert ids(bert, text) == expected(text)["input_ids"]


def test_case_and_accents_are_kept(bert):
    """Upper case and accents change the ids."""
    assert ids(bert, "HB") != ids(bert, "hb")
    assert ids(bert, "é") != ids(bert, "e")


def test_long_text_is_truncated_before_separator(bert):
    """A long text is truncated at its end, keeps its [SEP] and is reported as truncated."""
    long, short = "liver disease " * 300, "liver"
    encoded = bert.encode([long, short], max_length=512)
    assert encoded.truncated_B == (True, False)
    assert encoded.input_ids_BT.shape == (2, 512)
    row = encoded.input_ids_BT[0].tolist()
    assert (row[0], row[-1], row.count(102)) == (101, 102, 1)
    assert row[:-1] == ids(bert, long, max_length=10_000)[:511]
    assert encoded.attention_mask_BT.sum(axis=1).tolist() == [512, 3]


@pytest.mark.parametrize("words", [509, 510, 511])
def test_truncation_starts_above_maximum_length(bert, words):
    """A text of exactly the maximum length is not truncated."""
    encoded = bert.encode(["liver " * words], max_length=512)
    assert encoded.input_ids_BT.shape[1] == min(words + 2, 512)
    assert encoded.truncated_B == (words > 510,)


def test_padding_to_maximum_length_is_optional(bert):
    """`pad_to_max` pads to the maximum length, else to the longest text of the batch."""
    assert bert.encode(["liver"], max_length=20, pad_to_max=True).input_ids_BT.shape == (1, 20)
    assert bert.encode(["liver"], max_length=20).input_ids_BT.shape == (1, 3)
    assert bert.encode([], max_length=20).input_ids_BT.shape == (0, 0)


def test_batching_does_not_change_ids(bert):
    """A text in a batch has the ids of the text alone, padded with 0."""
    single = [ids(bert, t) for t in TEXTS]
    batch = bert.encode(TEXTS, max_length=512)
    for row, mask, expected in zip(batch.input_ids_BT, batch.attention_mask_BT, single, strict=True):
        assert row[mask == 1].tolist() == expected
        assert (row[mask == 0] == 0).all()
    assert batch.input_ids_BT.dtype == np.int64


def test_trained_vocabulary_covers_special_tokens_and_numbers(small):
    """A trained vocabulary starts with the special tokens and encodes every number without [UNK]."""
    assert ids(small, "") == [2, 3]
    assert small.vocab_size <= 64
    unknown = SPECIAL.index("[UNK]")
    assert unknown not in ids(small, "albumin 83.4 g/L".replace(".", ""))
    assert unknown in ids(small, "Z")


def test_trained_vocabulary_respects_size_limit():
    """A trained vocabulary has at most the requested size."""
    texts = [f"word{i} other{i} word{i}" for i in range(200)]
    assert Tokenizer.train(texts, 50).vocab_size == 50


def test_training_is_deterministic(tmp_path):
    """The same texts give the same bytes in any order and in any process."""
    texts = [f"Albumin: {i} g/L. Platelets: {7 * i}." for i in range(30)]
    program = (
        "import sys, json; from pathlib import Path; from tmi.toolkit.clinical.tokenizer import Tokenizer;"
        "Tokenizer.train(json.loads(sys.argv[1]), 80).save(Path(sys.argv[2]))"
    )
    Tokenizer.train(texts, 80).save(tmp_path / "expected.json")
    for name, given in (("process", texts), ("reversed", texts[::-1])):
        subprocess.run([sys.executable, "-c", program, json.dumps(given), tmp_path / f"{name}.json"], check=True)
        assert (tmp_path / f"{name}.json").read_bytes() == (tmp_path / "expected.json").read_bytes()


RECORDS = [f"Albumin: {30 + i} g/L. Platelets: {7 * i} 10^9/L." for i in range(12)]
BEFORE_REPORTS = "eb23221b71157cdf8f3fd6f94fd510d8e308d20bbeed781764527e6cca811b1b"
"""SHA-256 of the vocabulary of `RECORDS` before reports were treated separately."""


def train_with_reports(reports: dict[str, list[str]]) -> Tokenizer:
    return Tokenizer.train(RECORDS, 400, reports=reports)


def test_word_of_few_patients_is_no_token():
    """A report's word is a token only if five patients have it; every other word is spelled without [UNK]."""
    name = "Erika Mustermann, Lindenallee 4711; born 1950-03-09. "
    reports = {f"P{i}": ["cirrhosis with ascites. " + (name * 9 if i < 4 else "")] * 3 for i in range(12)}
    tokens = train_with_reports(reports).tokens
    assert {"cirrhosis", "ascites"} <= set(tokens)
    assert not {"Erika", "Mustermann", "Lindenallee", "4711", "1950", "born"} & set(tokens)
    unknown = SPECIAL.index("[UNK]")
    assert unknown not in ids(train_with_reports(reports), name)
    reports["P4"] = [name]
    assert {"Erika", "Mustermann", "4711"} <= set(train_with_reports(reports).tokens)


def test_anonymity_counts_patients_not_reports():
    """A name in twenty reports of one patient is no token."""
    assert "Mustermann" not in train_with_reports({"P0": ["Erika Mustermann"] * 20, "P1": ["ascites"]}).tokens


def test_characters_of_a_name_are_anonymous_too():
    """Characters that are names by themselves, and those of other scripts, need five patients; ASCII is there."""
    reports = {f"P{i}": ["患者 李明 Łukasz" if i == 0 else "患者"] for i in range(6)}
    tokens = set(train_with_reports(reports).tokens)
    assert {"患", "者", "Z", "##z"} <= tokens
    assert not {"李", "明", "Ł", "##Ł"} & tokens


def test_number_of_a_report_needs_patients_beside_a_record():
    """A number that one record and one report have does not become a token by adding the two up."""
    assert "4711" not in Tokenizer.train([*RECORDS, "Platelets: 4711."], 400, reports={"P0": ["call 4711 4711"]}).tokens


@pytest.mark.parametrize("reports", [None, {}, {"P0": [], "P1": ["", "  "]}], ids=repr)
def test_vocabulary_without_reports_is_unchanged(reports):
    """Records without reports give the vocabulary that earlier versions gave."""
    tokens = Tokenizer.train(RECORDS, 60, reports=reports).tokens
    assert sha256_bytes("\n".join(tokens).encode()) == BEFORE_REPORTS


def test_saved_tokenizer_gives_same_ids(bert, tmp_path):
    """A saved and loaded tokenizer gives the same ids."""
    bert.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert [ids(loaded, t) for t in TEXTS] == [ids(bert, t) for t in TEXTS]


@pytest.mark.parametrize("break_line", ["\x85", "\u2028", "\x0c", "\x1c"], ids=ascii)
def test_only_line_feed_separates_vocabulary_tokens(break_line, tmp_path):
    """Other Unicode line breaks are part of a token."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, f"a{break_line}b", "liver"]) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.from_vocab(tmp_path / "vocab.txt")
    assert ids(tokenizer, "liver") == [2, 6, 3]
    assert tokenizer.vocab_size == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"liver\nspleen\n", "does not contain all of"),
        ("\n".join(t for t in SPECIAL if t != "[CLS]").encode(), "does not contain all of"),
        (b"[UNK]\n[PAD]\n[CLS]\n[SEP]\n", "[PAD] is not 0"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_invalid_vocabulary_is_rejected(content, message, tmp_path):
    """A file that is not a BERT vocabulary is a usage error with a fix."""
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UsageError) as error:
        Tokenizer.from_vocab(tmp_path / "vocab.txt")
    assert message in str(error.value)
    assert "vocab" in error.value.fix


@pytest.mark.parametrize("content", [None, b"{}", b"\xff", b'{"model": 1}'])
def test_damaged_tokenizer_file_is_rejected(content, tmp_path):
    """A missing or malformed tokenizer.json is a DamagedError."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_tokenizer_without_special_tokens_is_rejected(small, tmp_path):
    """A tokenizer.json that does not enclose a text in [CLS] and [SEP] is not that of a BERT model."""
    small.save(tmp_path / "tokenizer.json")
    data = json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"\[CLS\]"):
        Tokenizer.load(tmp_path / "tokenizer.json")
