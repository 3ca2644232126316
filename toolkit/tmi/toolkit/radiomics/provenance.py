"""`radiomics.json`: what the values in `radiomics.csv` beside it were made from, and with which settings and packages.

It is optional: a table that a user brings has none until `tmi radiomics --from` takes it in. Prediction never reads it;
`tmi check` does, and says so where table and files no longer belong together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tmi.toolkit.cases.case import CT_FILE, MASK_FILE, RADIOMICS_FILE, RADIOMICS_RECORD_FILE, Case
from tmi.toolkit.errors import UsageError
from tmi.toolkit.radiomics.settings import SETTINGS_DIGEST
from tmi.toolkit.storage.atomic_files import write_json
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-radiomics/1"


@dataclass(frozen=True, kw_only=True)
class RadiomicsRecord:
    """Where a table comes from."""

    source: Literal["extracted", "table"]
    """Extracted from the mask here, or taken from a table that was computed elsewhere."""
    table_sha256: str
    """Digest of radiomics.csv."""
    ct_sha256: str | None
    """Digest of the CT's file; None where there was none."""
    mask_sha256: str | None
    """Digest of the mask's file; None where there was none."""
    mask_label: int | None = None
    """Label of the liver in the mask; None for every voxel that is not zero."""
    settings_digest: str | None = None
    """Digest of the settings; None where they are not known."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings, as in a pyradiomics parameter file; empty where they are not known."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that computed the values; empty where they are not known."""
    mapping: dict[str, str] = field(default_factory=dict)
    """Our feature name -> its name in the foreign table, where they differ."""
    note: str | None = None
    """What was done otherwise than usual."""
    schema: str = SCHEMA
    """Form of the file."""


def record_path(case: Case) -> Path:
    """Where a case keeps the record."""
    return case.folder / RADIOMICS_RECORD_FILE


def file_digest(path: Path) -> str | None:
    """Digest of a file; None where there is none."""
    return sha256_file(path) if path.is_file() else None


def write_record(case: Case, record: RadiomicsRecord) -> None:
    """Write it, atomically."""
    write_json(record_path(case), to_json(record))


def read_record(case: Case) -> RadiomicsRecord | None:
    """The record; None where there is none.

    Raises:
        UsageError: it is not of the form this version reads.
    """
    path = record_path(case)
    if not path.is_file():
        return None
    try:
        record = from_json(RadiomicsRecord, json.loads(path.read_bytes()), where=path.name)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} cannot be read as JSON", fix="extract anew with --force") from error
    if record.schema != SCHEMA:
        raise UsageError(f"{path.name} has schema {record.schema[:40]!r}", fix="extract anew with --force")
    return record


def staleness_reason(case: Case) -> str | None:
    """In what the case's radiomics.csv no longer fits what lies beside it; None where nothing is known against it.

    Reads and hashes the CT and the mask: a matter of checking, never of predicting.
    """
    if not case.radiomics.is_file():
        return None
    try:
        record = read_record(case)
    except UsageError:
        return f"{RADIOMICS_RECORD_FILE} is not of the form {SCHEMA}"
    if record is None:
        return None
    if sha256_bytes(case.radiomics.read_bytes()) != record.table_sha256:
        return f"{RADIOMICS_FILE} was changed after {RADIOMICS_RECORD_FILE} was written"
    if record.source == "extracted" and record.settings_digest != SETTINGS_DIGEST:
        return f"{RADIOMICS_FILE} was extracted with other settings than this version's"
    for name, path, known in ((CT_FILE, case.ct, record.ct_sha256), (MASK_FILE, case.mask, record.mask_sha256)):
        try:
            found = file_digest(path)
        except OSError:
            continue  # its own check says that it cannot be read
        if known is not None and found is not None and found != known:
            return f"{RADIOMICS_FILE} was made from another {name} than the one that is there"
    if case.mask_label is not None and record.source == "extracted" and record.mask_label != case.mask_label:
        told = "every label" if record.mask_label is None else f"label {record.mask_label}"
        return f"{RADIOMICS_FILE} was extracted from {told} of the mask, not from label {case.mask_label}"
    return None
