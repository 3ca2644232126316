"""A tokenizer that the user gives."""

from __future__ import annotations

from pathlib import Path

from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.errors import TmiError, UsageError


def read_vocabulary(path: Path) -> Tokenizer:
    """A BERT vocab.txt, or a saved tokenizer.json.

    Raises:
        UsageError: the file is neither.
    """
    if path.suffix != ".json":
        return Tokenizer.from_vocab(path)
    try:
        return Tokenizer.load(path)
    except TmiError as error:
        raise UsageError(error.what, fix="give a BERT vocab.txt or a tokenizer.json") from error
