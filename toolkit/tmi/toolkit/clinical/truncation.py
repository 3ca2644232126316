"""Finds the fields of a clinical text that the text encoder does not receive, because the text has too many tokens.

Without a tokenizer the tokens are estimated: a word is split into pieces of 4 letters, numbers and abbreviations into
pieces of 2 characters. BERT's cased vocabulary gives 2 to 22% fewer tokens on records and reports.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from tmi.toolkit.clinical.tokenizer import Tokenizer

Spans: TypeAlias = Sequence[tuple[str | None, int, int]]
"""Name, first character and one past the last of each piece of a text; the name of the report is None."""
REPORT = "report"
"""Name of the free-text report in a message."""
MAX_NAMED = 8
"""Largest number of fields that a message names."""


WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
"""A word, or a punctuation mark, as BERT splits a text."""
LOWER_CASE_PIECE, OTHER_PIECE = 4, 2
"""Estimated characters of a piece of a lower-case word, and of a number or an abbreviation."""


def lost_fields(text: str, spans: Spans, tokenizer: Tokenizer | None, *, max_length: int) -> tuple[str, ...]:
    """Names of the fields that a truncated text loses in whole or in part, in their order; the report's is `report`.

    Args:
        text: a rendered record.
        spans: its pieces, from `tmi.toolkit.clinical.rendering.field_spans`.
        tokenizer: tokenizer of the text encoder; None: the tokens are estimated.
        max_length: maximum number of tokens, special tokens included.
    """
    # at most one token for each character
    offsets = estimated_offsets(text) if tokenizer is None else tokenizer.offsets(text, max_length=len(text) + 2)
    if len(offsets) <= max_length:
        return ()
    first_dropped = offsets[max_length - 1][0]  # the last of the max_length tokens is [SEP]
    return tuple(name or REPORT for name, _, end in spans if end > first_dropped)


def estimated_offsets(text: str) -> list[tuple[int, int]]:
    """Character range of each token of a text as BERT's cased vocabulary may split it; (0, 0) for special tokens."""
    offsets = [(0, 0)]
    for match in WORD.finditer(text):
        word = match.group()
        # the first letter may be a capital
        step = LOWER_CASE_PIECE if word[1:] == word[1:].lower() and not word.isdigit() else OTHER_PIECE
        offsets += [(i, min(i + step, match.end())) for i in range(match.start(), match.end(), step)]
    return [*offsets, (0, 0)]


def truncation_warning(lost: Sequence[tuple[str, ...]], *, max_length: int) -> str | None:
    """Message on the texts of a cohort that lose fields; None if none does.

    Args:
        lost: for each text, the names from `lost_fields`.
        max_length: maximum number of tokens.
    """
    affected = [names for names in lost if names]
    if not affected:
        return None
    counts = Counter(name for names in affected for name in names)
    # the most frequently lost field first; among equals the order of the text
    fields = enumerate_fields([f"{name} ({n})" for name, n in counts.most_common()])
    return (
        f"{len(affected)} of {len(lost)} clinical texts have more than {max_length} tokens, and the text encoder does "
        f"not receive their ends: {fields}"
    )


def enumerate_fields(names: Sequence[str]) -> str:
    """The first names of a list, and the number of the others."""
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + rest


def truncation_fix(rendering: str) -> str:
    """Fix of a truncation, by the rendering that is used."""
    if rendering == "compact":
        return "shorten the report; fields of the schema can have a `short` name, and `importance` orders them"
    return "use the shorter text: --set clinical.rendering=compact"
