"""Cased WordPiece tokenizer on the `tokenizers` package alone, used in training and in serving.

It is saved as one tokenizer.json. [PAD] has id 0, and a text is encoded as [CLS] ... [SEP]. Training is deterministic.
A word of a free-text report becomes a token only if at least `MIN_PATIENTS` patients have it (k-anonymity); every other
word is spelled with single characters. The vocabulary is part of every run and bundle; a patient's name must not be.
With BERT's vocabulary the ids equal those of transformers' fast tokenizer; its slow one drops unassigned characters.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from tmi.toolkit.errors import DamagedError, TmiError, UsageError
from tmi.toolkit.storage.atomic_files import write_text
from tmi.toolkit.storage.bounded_files import DOCUMENT_BYTES, read_text

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_PATIENTS = 5
"""Number of patients whose reports must contain a word before it becomes a token; the k of k-anonymity."""
SPELLING = tuple(map(chr, range(33, 127)))
"""Printable ASCII characters: the tokens that spell the other words of a report, whoever wrote them."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A batch of token ids. B batch, T tokens."""

    input_ids_BT: Int[np.ndarray, "B T"]
    """int64 ids, padded at the end."""
    attention_mask_BT: Int[np.ndarray, "B T"]
    """int64, 1 for a token and 0 for padding."""
    truncated_B: tuple[bool, ...]
    """Whether each text was truncated to the maximum length."""


class Tokenizer:
    """A cased BERT WordPiece tokenizer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        missing = [t for t in SPECIAL[:4] if backend.token_to_id(t) is None]
        if missing or backend.token_to_id("[PAD]") != 0:
            raise UsageError(
                f"the tokenizer has no token {missing[0]}" if missing else "the id of the tokenizer's [PAD] is not 0",
                fix="give a BERT vocabulary with [PAD] first",
            )
        if backend.encode("").tokens != ["[CLS]", "[SEP]"]:
            raise UsageError(
                "the tokenizer does not enclose a text in [CLS] and [SEP]",
                fix="give the tokenizer.json of a BERT model",
            )

    @classmethod
    def load(cls, path: Path, *, data: bytes | None = None) -> Tokenizer:
        """Read a tokenizer.json.

        Args:
            path: its file.
            data: content of the file, if the caller has read it; the file is then not opened.

        Raises:
            DamagedError: the file is missing or is not a tokenizer.
            UsageError: the tokenizer is not that of a BERT model.
        """
        try:
            text = read_text(path, max_bytes=DOCUMENT_BYTES) if data is None else data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DamagedError(
                f"tokenizer {path} cannot be read", fix="restore the run or bundle it is from"
            ) from error
        return cls(_parse(text, path))

    @classmethod
    def read(cls, path: Path) -> Tokenizer:
        """Read a tokenizer that a user gives: a BERT vocab.txt or a saved tokenizer.json.

        Raises:
            UsageError: the file is neither.
        """
        if path.suffix != ".json":
            return cls.from_vocab(path)
        try:
            return cls.load(path)
        except TmiError as error:
            raise UsageError(error.what, fix="give a BERT vocab.txt or a tokenizer.json") from error

    @classmethod
    def from_vocab(cls, path: Path) -> Tokenizer:
        """A cased tokenizer from a BERT vocab.txt with one token on each line: no lower-casing, accents are kept.

        Raises:
            UsageError: the file is missing or is not a BERT vocabulary.
        """
        try:
            text = read_text(path, max_bytes=DOCUMENT_BYTES)
            tokens = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"vocabulary {path} cannot be read", fix="give a BERT vocab.txt in UTF-8") from error
        return cls.from_tokens(tokens, path)

    @classmethod
    def from_tokens(cls, tokens: Sequence[str], path: Path) -> Tokenizer:
        """A cased tokenizer from the tokens of a BERT vocabulary in the order of their ids; `path` is for errors.

        Raises:
            UsageError: special tokens are missing.
        """
        if any(t not in tokens for t in SPECIAL[:4]):
            raise UsageError(
                f"vocabulary {path} does not contain all of {', '.join(SPECIAL[:4])}", fix="give a BERT vocab.txt"
            )
        return cls(_bert({token: i for i, token in enumerate(tokens)}))

    @classmethod
    def train(
        cls,
        texts: Sequence[str],
        vocab_size: int,
        *,
        reports: Mapping[str, Sequence[str]] | None = None,
        min_patients: int = MIN_PATIENTS,
    ) -> Tokenizer:
        """Train a WordPiece vocabulary of at most `vocab_size` tokens; the order of the texts does not matter.

        The trainer of the `tokenizers` package breaks ties in hash order, so its vocabulary differs between processes.
        This one ranks by saved characters and then alphabetically, so the same texts give the same bytes.

        Args:
            texts: rendered records without their free-text reports.
            vocab_size: maximum number of tokens.
            reports: patient -> free-text reports. Their words and characters count only if at least `min_patients`
                patients have them. Printable ASCII is added as single characters, so that the other words can be
                spelled.
            min_patients: the k of the k-anonymity.
        """
        backend = _bert({token: i for i, token in enumerate(SPECIAL)})
        counts = Counter(_words(backend, texts))
        characters = {c for word in counts for c in word}
        if any(report.strip() for patient in (reports or {}).values() for report in patient):
            by_patient = [Counter(_words(backend, patient)) for patient in (reports or {}).values()]
            letters = [{c for word in words for c in word} for words in by_patient]
            characters |= set(SPELLING) | _shared(letters, min_patients)
            for word in _shared(by_patient, min_patients):
                counts[word] += sum(words[word] for words in by_patient)
        return cls(_bert(_word_pieces(counts, characters, vocab_size)))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self._backend.get_vocab_size())

    @property
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary in the order of its ids."""
        vocab: dict[str, int] = self._backend.get_vocab()
        return tuple(sorted(vocab, key=vocab.__getitem__))

    def save(self, path: Path) -> None:
        """Write tokenizer.json, with the vocabulary in the order of its ids."""
        data = json.loads(self._backend.to_str())
        vocab = data["model"]["vocab"]
        data["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
        write_text(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")

    def encode(self, texts: Sequence[str], *, max_length: int, pad_to_max: bool = False) -> Encoded:
        """Encode a batch of texts, padded to the longest of them or to `max_length`.

        Args:
            texts: B texts.
            max_length: maximum sequence length with [CLS] and [SEP]; longer texts are truncated before the [SEP].
            pad_to_max: pad every sequence to `max_length`.
        """
        separator: int = self._backend.encode("").ids[-1]
        rows = [encoding.ids for encoding in self._backend.encode_batch(list(texts))]
        truncated = tuple(len(row) > max_length for row in rows)
        rows = [[*row[: max_length - 1], separator] if t else row for row, t in zip(rows, truncated, strict=True)]
        width = max_length if pad_to_max else max((len(row) for row in rows), default=0)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return Encoded(input_ids_BT=ids, attention_mask_BT=mask, truncated_B=truncated)

    def offsets(self, text: str, *, max_length: int) -> list[tuple[int, int]]:
        """Character range (start, end) of each token of a text, as encoded by `encode`; (0, 0) for special tokens."""
        offsets: list[tuple[int, int]] = self._backend.encode(text).offsets
        return [*offsets[: max_length - 1], (0, 0)] if len(offsets) > max_length else offsets


def _parse(text: str, path: Path) -> Backend:
    try:
        return Backend.from_str(text)
    except Exception as error:
        raise DamagedError(f"tokenizer {path} is malformed", fix="restore the run or bundle it is from") from error


def _bert(vocab: dict[str, int]) -> Backend:
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    backend.add_special_tokens([t for t in SPECIAL if t in vocab])
    return backend


def _words(backend: Backend, texts: Iterable[str]) -> Iterable[str]:
    """Words of the texts, as the tokenizer splits them."""
    for text in texts:
        normalized = backend.normalizer.normalize_str(text)
        yield from (word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized))


def _shared(by_patient: Sequence[Iterable[str]], min_patients: int) -> set[str]:
    """Pieces that at least `min_patients` patients have, however often each of them has it."""
    patients = Counter(piece for pieces in by_patient for piece in set(pieces))
    return {piece for piece, n in patients.items() if n >= min_patients}


def _word_pieces(counts: Counter[str], characters: Iterable[str], vocab_size: int) -> dict[str, int]:
    """Vocabulary: special tokens, every character alone and as a continuation, then words by the characters they save.

    A clinical record consists of a few dozen fixed labels and of numbers, so words and digits are the useful pieces.
    As every character is included, no number becomes [UNK].
    """
    tokens = dict.fromkeys(SPECIAL)
    ordered = sorted(characters)
    for piece in [*ordered, *(f"##{c}" for c in ordered)]:
        tokens.setdefault(piece)
    candidates = Counter({word: n * (len(word) - 1) for word, n in counts.items() if len(word) > 1 and n > 1})
    for piece, _ in sorted(candidates.items(), key=lambda item: (-item[1], item[0])):
        if len(tokens) >= vocab_size:
            break
        tokens.setdefault(piece)
    return {token: i for i, token in enumerate(list(tokens)[:vocab_size])}
