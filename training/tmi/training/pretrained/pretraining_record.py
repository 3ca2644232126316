"""Reads the record that `tmi pretrain-text` writes next to an encoder, and compares it with a training.

A BERT folder without such a record passes every check.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmi.toolkit.clinical.rendering import RENDERING_VERSIONS
from tmi.toolkit.clinical.schema import Schema, stored_schema
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.storage.hashing import sha256_file

PRETRAINING_FILE = "reading.json"
DOCUMENT_SCHEMA = "tmi-reading/1"
WEIGHTS, VOCABULARY = "model.safetensors", "vocab.txt"
KIND = "text weights"


def require_matching_pretraining(folder: Path, config: Config) -> None:
    """Reject an encoder that was pre-trained on text of another form than the training's.

    Raises:
        UsageError: the rendering, its version or the pooling differs.
        DamagedError: a file of the folder was changed after it was written.
    """
    document = _document(folder)
    if document is None:
        return
    rendering, pooling = config.clinical.rendering, config.network.text_encoder.pooling
    versions: dict[str, int] = document["renderings"]
    if rendering not in versions:
        raise UsageError(
            f"{KIND} {folder} were pre-trained on rendering {', '.join(versions)}, but the training uses {rendering}",
            fix=f"--set clinical.rendering={next(iter(versions))}, or tmi pretrain-text --rendering {rendering}",
        )
    if versions[rendering] != RENDERING_VERSIONS[rendering]:
        raise UsageError(
            f"{KIND} {folder} were pre-trained on rendering {rendering!r} version {versions[rendering]}; this tmi "
            f"writes version {RENDERING_VERSIONS[rendering]}",
            fix="run tmi pretrain-text again with this version of tmi",
        )
    if document["pooling"] != pooling:
        raise UsageError(
            f"{KIND} {folder} were pre-trained with pooling {document['pooling']}, but the training uses {pooling}",
            fix=f"--set network.text_encoder.pooling={document['pooling']}",
        )


def pretraining_notes(folder: Path, schema: Schema | None) -> list[str]:
    """Notes for the log on the pre-training of an encoder; empty for a BERT without a record.

    Args:
        folder: folder of the weights.
        schema: clinical schema of the training; None if unknown.
    """
    document = _document(folder)
    if document is None:
        return []
    about, r2 = document["clinical_schema"], document["r2"]
    notes = [
        f"{folder.name} was pre-trained on synthetic records with the {len(r2)} fields of {about['name']!r}: R2 "
        f"{min(r2.values()):.2f} to {max(r2.values()):.2f}"
    ]
    if schema is not None and schema.digest != about["digest"]:
        known = stored_schema(folder, kind=KIND).by_name
        new = [field.name for field in schema.fields if known.get(field.name) != field]
        notes.append(
            f"the clinical schema {schema.name!r} is not that of the pre-training: {len(new)} of its "
            f"{len(schema.fields)} fields are new to {folder.name} or differ"
        )
    return notes


def _document(folder: Path) -> dict[str, Any] | None:
    """Content of reading.json after checking the digests of the other files; None if the file is missing."""
    if not (folder / PRETRAINING_FILE).is_file():
        return None
    document: Any = read_json(folder / PRETRAINING_FILE, kind=KIND)
    if not isinstance(document, dict) or document.get("schema") != DOCUMENT_SCHEMA:
        raise DamagedError(
            f"{KIND} {folder}: {PRETRAINING_FILE} is not a {DOCUMENT_SCHEMA} document",
            fix="run tmi pretrain-text again",
        )
    for name, digest in document["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise DamagedError(
                f"{KIND} {folder}: {name} was changed after tmi pretrain-text wrote it",
                fix="run tmi pretrain-text again",
            )
    return document
