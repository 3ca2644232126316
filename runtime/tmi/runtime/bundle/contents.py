"""Readers of a bundle's JSON files: clinical schema, radiomics scalers, tokenizers.

Each is parsed from the bytes whose digest is compared with the manifest (`Bundle.read`).
"""

from __future__ import annotations

from tmi.runtime.bundle.reader import Bundle
from tmi.toolkit.clinical.schema import SCHEMA_FILE, Schema, stored_schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.storage.bounded_files import DOCUMENT_BYTES


def bundled_schema(bundle: Bundle) -> Schema:
    """The clinical schema.

    Raises:
        DamagedError: the file is missing, malformed, or differs from the manifest.
    """
    return stored_schema(
        bundle.folder, kind="bundle", data=bundle.read(bundle.folder / SCHEMA_FILE, max_bytes=DOCUMENT_BYTES)
    )


def bundled_scaler(bundle: Bundle, name: str) -> RadiomicsScaler:
    """The scaler in file `name`, relative to the bundle.

    Raises:
        DamagedError: the file is missing, malformed, or differs from the manifest.
    """
    path = bundle.folder / name
    return RadiomicsScaler.load(path, data=bundle.read(path, max_bytes=DOCUMENT_BYTES))


def bundled_tokenizer(bundle: Bundle, name: str) -> Tokenizer:
    """The tokenizer in file `name`, relative to the bundle.

    Raises:
        DamagedError: the file is missing, is no tokenizer, or differs from the manifest.
    """
    path = bundle.folder / name
    return Tokenizer.load(path, data=bundle.read(path, max_bytes=DOCUMENT_BYTES))
