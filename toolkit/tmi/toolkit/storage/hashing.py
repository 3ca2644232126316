"""SHA-256 digests of files, bytes and JSON values, and the canonical JSON form used for digests and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tmi.toolkit.storage.bounded_files import open_regular


def sha256_file(path: Path, *, max_bytes: int | None = None) -> str:
    """Return the hex digest of the bytes of a regular file; with `max_bytes`, of one of at most this size.

    Raises:
        OSError: it cannot be read, is no regular file, or is too large.
    """
    with open_regular(path, max_bytes=max_bytes) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the hex digest of bytes, or of the buffer of an array."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> str:
    """Serialize to canonical JSON: sorted keys, two-space indent, no NaN, final newline. Equal values give equal text.

    Raises:
        ValueError: the value contains NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sha256_json(value: Any) -> str:
    """Return the hex digest of the canonical JSON form of a value."""
    return sha256_bytes(canonical_json(value).encode())
