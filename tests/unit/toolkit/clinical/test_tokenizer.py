"""The tokenizer answers like transformers' own on BioBERT's vocabulary, and training one is deterministic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tmi.toolkit.clinical.tokenizer import SPECIAL, Tokenizer
from tmi.toolkit.errors import DamagedError, UsageError

TEXTS = [
    "",
    "Sex: female. Height: 162 cm. Body mass index: 23.4 kg/m2. Albumin: 38 g/L. Cholinesterase: missing.",
    "Total bilirubin: 20.52 umol/L (high). White blood cells: 4.1 10^9/L.",
    "HBsAg+ cirrhosis, Child–Pugh B; ascites (grade 2)…  TIPS\tplaced\n2019. Müller's naïve façade — 肝硬化 患者 é",
    "hepatosplenomegaly pneumonoultramicroscopicsilicovolcanoconiosis " + "x" * 150,
    "control\x00char\ufffd soft\u00adhyphen zero\u200bwidth line\u2028separator [SEP] [CLS] [UNK]",
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


def test_the_cased_vocabulary_has_its_documented_ids(bert):
    assert bert.vocab_size == 28_996
    assert ids(bert, "") == [101, 102]
    assert ids(bert, "肝") == [101, 100, 102]
    padded = bert.encode(["", "liver disease"], max_length=512)
    assert padded.input_ids_BT[0].tolist() == [101, 102, 0, 0]
    assert padded.attention_mask_BT.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(bert, vocab, text):
    from transformers import BertTokenizerFast

    theirs = BertTokenizerFast(vocab=str(vocab), do_lower_case=False)
    assert theirs.vocab_size == 28_996
    assert ids(bert, text) == theirs(text)["input_ids"]


def test_case_and_accents_are_kept(bert):
    assert ids(bert, "HB") != ids(bert, "hb")
    assert ids(bert, "é") != ids(bert, "e")


def test_a_text_longer_than_allowed_loses_its_end_but_keeps_its_separator_and_is_reported(bert):
    long, short = "liver disease " * 300, "liver"
    encoded = bert.encode([long, short], max_length=512)
    assert encoded.truncated_B == (True, False)
    assert encoded.input_ids_BT.shape == (2, 512)
    row = encoded.input_ids_BT[0].tolist()
    assert (row[0], row[-1], row.count(102)) == (101, 102, 1)
    assert row[:-1] == ids(bert, long, max_length=10_000)[:511]
    assert encoded.attention_mask_BT.sum(axis=1).tolist() == [512, 3]


@pytest.mark.parametrize("words", [509, 510, 511])
def test_a_text_is_truncated_from_the_first_token_beyond_the_longest(bert, words):
    encoded = bert.encode(["liver " * words], max_length=512)
    assert encoded.input_ids_BT.shape[1] == min(words + 2, 512)
    assert encoded.truncated_B == (words > 510,)


def test_padding_to_the_longest_length_is_a_choice(bert):
    assert bert.encode(["liver"], max_length=20, pad_to_max=True).input_ids_BT.shape == (1, 20)
    assert bert.encode(["liver"], max_length=20).input_ids_BT.shape == (1, 3)
    assert bert.encode([], max_length=20).input_ids_BT.shape == (0, 0)


def test_a_neighbour_changes_no_ids(bert):
    alone = [ids(bert, t) for t in TEXTS]
    batch = bert.encode(TEXTS, max_length=512)
    for row, mask, own in zip(batch.input_ids_BT, batch.attention_mask_BT, alone, strict=True):
        assert row[mask == 1].tolist() == own
        assert (row[mask == 0] == 0).all()
    assert batch.input_ids_BT.dtype == np.int64


def test_a_trained_vocabulary_starts_with_the_special_tokens_and_knows_every_number(small):
    assert ids(small, "") == [2, 3]
    assert small.vocab_size <= 64
    unknown = SPECIAL.index("[UNK]")
    assert unknown not in ids(small, "albumin 83.4 g/L".replace(".", ""))
    assert unknown in ids(small, "Z")


def test_a_vocabulary_is_never_larger_than_asked_for():
    texts = [f"word{i} other{i} word{i}" for i in range(200)]
    assert Tokenizer.train(texts, 50).vocab_size == 50


def test_the_same_texts_give_the_same_bytes_in_any_order_and_in_any_process(tmp_path):
    texts = [f"Albumin: {i} g/L. Platelets: {7 * i}." for i in range(30)]
    program = (
        "import sys, json; from pathlib import Path; from tmi.toolkit.clinical.tokenizer import Tokenizer;"
        "Tokenizer.train(json.loads(sys.argv[1]), 80).save(Path(sys.argv[2]))"
    )
    Tokenizer.train(texts, 80).save(tmp_path / "here.json")
    for name, given in (("there", texts), ("reversed", texts[::-1])):
        subprocess.run([sys.executable, "-c", program, json.dumps(given), tmp_path / f"{name}.json"], check=True)
        assert (tmp_path / f"{name}.json").read_bytes() == (tmp_path / "here.json").read_bytes()


def test_a_saved_tokenizer_gives_the_same_ids(bert, tmp_path):
    bert.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert [ids(loaded, t) for t in TEXTS] == [ids(bert, t) for t in TEXTS]


@pytest.mark.parametrize("break_line", ["\x85", "\u2028", "\x0c", "\x1c"], ids=ascii)
def test_only_a_line_feed_ends_a_token_of_a_vocabulary(break_line, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, f"a{break_line}b", "liver"]) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.from_vocab(tmp_path / "vocab.txt")
    assert ids(tokenizer, "liver") == [2, 6, 3]
    assert tokenizer.vocab_size == 7


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"liver\nspleen\n", "lacks one of"),
        ("\n".join(t for t in SPECIAL if t != "[CLS]").encode(), "lacks one of"),
        (b"[UNK]\n[PAD]\n[CLS]\n[SEP]\n", "[PAD] is not 0"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_bert_vocabulary_is_refused(content, told, tmp_path):
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UsageError) as error:
        Tokenizer.from_vocab(tmp_path / "vocab.txt")
    assert told in str(error.value)
    assert "vocab" in error.value.fix


@pytest.mark.parametrize("content", [None, b"{}", b"\xff", b'{"model": 1}'])
def test_a_damaged_tokenizer_is_damage(content, tmp_path):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_tokenizer_that_frames_no_text_is_refused(small, tmp_path):
    """A tokenizer.json without [CLS] ... [SEP] around a text is another model's."""
    small.save(tmp_path / "tokenizer.json")
    data = json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"\[CLS\]"):
        Tokenizer.load(tmp_path / "tokenizer.json")
