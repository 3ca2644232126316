"""The record that `tmi pretrain-text` leaves beside an encoder: what it was trained on, checked before it is used."""

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
    """Refuse an encoder that was taught on other text than a training writes; any other BERT passes.

    Raises:
        UsageError: another rendering, version of it, or pooling.
        DamagedError: a file of the folder is not as it was written.
    """
    document = _document(folder)
    if document is None:
        return
    rendering, pooling = config.clinical.rendering, config.network.text_encoder.pooling
    taught: dict[str, int] = document["renderings"]
    if rendering not in taught:
        raise UsageError(
            f"{KIND} {folder} were taught to read {', '.join(taught)}, and the training renders {rendering}",
            fix=f"--set clinical.rendering={next(iter(taught))}, or tmi pretrain-text --rendering {rendering}",
        )
    if taught[rendering] != RENDERING_VERSIONS[rendering]:
        raise UsageError(
            f"{KIND} {folder} were taught text {rendering!r} version {taught[rendering]}; this tmi writes version "
            f"{RENDERING_VERSIONS[rendering]}",
            fix="make them again with this tmi pretrain-text",
        )
    if document["pooling"] != pooling:
        raise UsageError(
            f"{KIND} {folder} were taught with pooling {document['pooling']}, and the training has {pooling}",
            fix=f"--set network.text_encoder.pooling={document['pooling']}",
        )


def pretraining_notes(folder: Path, schema: Schema | None) -> list[str]:
    """What people should know of an encoder before a training starts from it; of any other BERT, nothing.

    Args:
        folder: of the weights.
        schema: the training's; None: not known.
    """
    document = _document(folder)
    if document is None:
        return []
    about, r2 = document["clinical_schema"], document["r2"]
    notes = [
        f"{folder.name} was taught to read the {len(r2)} fields of {about['name']!r} on drawn records alone: R2 "
        f"{min(r2.values()):.2f} to {max(r2.values()):.2f}"
    ]
    if schema is not None and schema.digest != about["digest"]:
        known = stored_schema(folder, kind=KIND).by_name
        new = [field.name for field in schema.fields if known.get(field.name) != field]
        notes.append(
            f"the clinical schema {schema.name!r} is another one: {len(new)} of its {len(schema.fields)} fields are "
            f"new to {folder.name} or differ"
        )
    return notes


def _document(folder: Path) -> dict[str, Any] | None:
    """Content of reading.json, the files beside it held to their digests; None where there is none."""
    if not (folder / PRETRAINING_FILE).is_file():
        return None
    document: Any = read_json(folder / PRETRAINING_FILE, kind=KIND)
    if not isinstance(document, dict) or document.get("schema") != DOCUMENT_SCHEMA:
        raise DamagedError(
            f"{KIND} {folder}: {PRETRAINING_FILE} is not of the form {DOCUMENT_SCHEMA}", fix="make the folder again"
        )
    for name, digest in document["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise DamagedError(
                f"{KIND} {folder}: {name} is not as tmi pretrain-text wrote it", fix="make the folder again"
            )
    return document
