"""Small records of what was found out on this machine, in the user's cache folder: self-tests, times of engines.

A record belongs to a combination: everything that its content depends on (bundle, versions, processor). Each
combination has one JSON file, whose name is the digest of the combination and which holds the complete combination. A
damaged file, one of another combination, and one that another user wrote or can write do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.hashing import canonical_json, sha256_json
from tmi.toolkit.storage.private_files import open_private, write_private
from tmi.toolkit.storage.user_folders import cache_root

MAX_RECORD_BYTES = 2**20
"""Largest file that is read, in bytes; they have about 1 kB."""
COMBINATION = "combination"
"""Key of the combination in a record."""


def record_file(kind: str, combination: Mapping[str, Any]) -> Path | None:
    """File of a combination in folder `kind` of the cache, which may not exist; None if caching is off."""
    root = cache_root()
    return None if root is None else root / kind / f"{sha256_json(combination)}.json"


def read_record(file: Path | None, combination: Mapping[str, Any]) -> dict[str, Any] | None:
    """Content of a combination's file; None if there is none that counts."""
    if file is None:
        return None
    try:
        # The file name is a digest of the combination; comparing the stored one guards against edited files.
        with open_private(file) as stream:
            data: dict[str, Any] = parse_json(stream.read(MAX_RECORD_BYTES))
        return data if sha256_json(data[COMBINATION]) == sha256_json(combination) else None
    except (OSError, DocumentError, TypeError, KeyError):
        return None


def write_record(file: Path, combination: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write a record atomically.

    Raises:
        OSError: the disk is full, or the folder cannot be written or belongs to another user.
    """
    write_private(file, [canonical_json({COMBINATION: combination, **content}).encode()])
