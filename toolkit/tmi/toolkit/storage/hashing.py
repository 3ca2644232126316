"""SHA-256 of files, bytes and JSON values; the one canonical JSON form that hashes and files share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hex digest of bytes, or of an array's buffer."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> str:
    """Sorted keys, two-space indent, no NaN, a final newline: the same value always gives the same text.

    Raises:
        ValueError: the value holds NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sha256_json(value: Any) -> str:
    """Hex digest of a value's canonical JSON form."""
    return sha256_bytes(canonical_json(value).encode())
