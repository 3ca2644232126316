"""Cased WordPiece tokenizer, on the `tokenizers` package alone: the same code in training and on a serving machine.

Saved as one tokenizer.json. [PAD] is 0; a text becomes [CLS] ... [SEP]. Training is deterministic.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.atomic_files import write_text

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A batch of token ids. B batch, T tokens."""

    input_ids_BT: Int[np.ndarray, "B T"]
    """int64 ids, padded at the end."""
    attention_mask_BT: Int[np.ndarray, "B T"]
    """int64, 1 for a token and 0 for padding."""
    truncated_B: tuple[bool, ...]
    """Whether a text was cut to the longest length allowed."""


class Tokenizer:
    """A cased BERT WordPiece tokenizer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        missing = [t for t in SPECIAL[:4] if backend.token_to_id(t) is None]
        if missing or backend.token_to_id("[PAD]") != 0:
            raise UsageError(
                f"tokenizer lacks {missing[0]}" if missing else "tokenizer's [PAD] is not 0",
                fix="give a BERT vocabulary with [PAD] first",
            )
        if backend.encode("").tokens != ["[CLS]", "[SEP]"]:
            raise UsageError(
                "tokenizer does not put a text between [CLS] and [SEP]", fix="give the tokenizer.json of a BERT model"
            )

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json.

        Raises:
            DamagedError: missing or no tokenizer.
            UsageError: not that of a BERT model.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DamagedError(
                f"tokenizer {path} cannot be read", fix="restore the run or bundle it is from"
            ) from error
        return cls(_parse(text, path))

    @classmethod
    def from_vocab(cls, path: Path) -> Tokenizer:
        """A tokenizer over a BERT vocab.txt, one token a line; cased: no lower-casing, no stripping of accents.

        Raises:
            UsageError: the file is missing or no vocabulary.
        """
        try:
            tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"vocabulary {path} cannot be read", fix="give a BERT vocab.txt in UTF-8") from error
        return cls.from_tokens(tokens, path)

    @classmethod
    def from_tokens(cls, tokens: Sequence[str], path: Path) -> Tokenizer:
        """A cased tokenizer over the tokens of a BERT vocabulary, in the order of their ids; `path` is for errors.

        Raises:
            UsageError: special tokens are missing.
        """
        if any(t not in tokens for t in SPECIAL[:4]):
            raise UsageError(f"vocabulary {path} lacks one of {', '.join(SPECIAL[:4])}", fix="give a BERT vocab.txt")
        return cls(_bert({token: i for i, token in enumerate(tokens)}))

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int) -> Tokenizer:
        """A WordPiece vocabulary of at most `vocab_size` tokens, fitted on `texts` in any order.

        The trainer of the `tokenizers` package breaks ties in hash order: the same texts gave another vocabulary in
        every process. This one ranks by count and then alphabetically, so the same texts give the same bytes.
        """
        backend = _bert({token: i for i, token in enumerate(SPECIAL)})
        counts: Counter[str] = Counter()
        for text in texts:
            normal = backend.normalizer.normalize_str(text)
            counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
        return cls(_bert(_word_pieces(counts, vocab_size)))

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
        """Write tokenizer.json, vocabulary in the order of its ids."""
        data = json.loads(self._backend.to_str())
        vocab = data["model"]["vocab"]
        data["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
        write_text(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")

    def encode(self, texts: Sequence[str], *, max_length: int, pad_to_max: bool = False) -> Encoded:
        """Token ids of a batch, padded to its longest text, or to `max_length` when asked.

        Args:
            texts: B texts.
            max_length: longest sequence, [CLS] and [SEP] included; longer texts lose their end, never the [SEP].
            pad_to_max: pad every sequence to `max_length`.
        """
        separator: int = self._backend.encode("").ids[-1]
        rows = [encoding.ids for encoding in self._backend.encode_batch(list(texts))]
        truncated = tuple(len(row) > max_length for row in rows)
        rows = [[*row[: max_length - 1], separator] if cut else row for row, cut in zip(rows, truncated, strict=True)]
        width = max_length if pad_to_max else max((len(row) for row in rows), default=0)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return Encoded(input_ids_BT=ids, attention_mask_BT=mask, truncated_B=truncated)

    def offsets(self, text: str, *, max_length: int) -> list[tuple[int, int]]:
        """Where each token of `encode`'s row for one text lies in it: (start, end) characters; (0, 0) for specials."""
        places: list[tuple[int, int]] = self._backend.encode(text).offsets
        return [*places[: max_length - 1], (0, 0)] if len(places) > max_length else places


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


def _word_pieces(counts: Counter[str], vocab_size: int) -> dict[str, int]:
    """Special tokens, every character on its own and as a continuation, then whole words by the characters they save.

    A clinical record is a few dozen fixed labels and free numbers: words and digits are the pieces that matter there,
    and with every character kept no number becomes [UNK].
    """
    tokens = dict.fromkeys(SPECIAL)
    letters = sorted({c for word in counts for c in word})
    for piece in [*letters, *(f"##{c}" for c in letters)]:
        tokens.setdefault(piece)
    candidates = Counter({word: n * (len(word) - 1) for word, n in counts.items() if len(word) > 1 and n > 1})
    for piece, _ in sorted(candidates.items(), key=lambda item: (-item[1], item[0])):
        if len(tokens) >= vocab_size:
            break
        tokens.setdefault(piece)
    return {token: i for i, token in enumerate(list(tokens)[:vocab_size])}
