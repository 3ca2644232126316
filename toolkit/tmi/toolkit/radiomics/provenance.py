"""`radiomics.json`: the sources, settings and package versions of the values in the `radiomics.csv` next to it.

The record is optional: a user's own table has none until `tmi radiomics --from` imports it. Prediction never reads the
record. `tmi check` does, and reports a table that no longer matches its files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tmi.toolkit.cases.case import (
    CT_FILE,
    MASK_FILE,
    RADIOMICS_FILE,
    RADIOMICS_RECORD_FILE,
    Case,
    MaskLabel,
    format_label,
)
from tmi.toolkit.cases.loaded import LoadedCase, case_bytes, has_file
from tmi.toolkit.errors import UsageError
from tmi.toolkit.radiomics.settings import AXES, SETTINGS_DIGEST
from tmi.toolkit.storage.atomic_files import write_json
from tmi.toolkit.storage.bounded_files import FEATURES_BYTES, IMAGE_BYTES, RECORD_BYTES, is_access_error
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.hashing import sha256_file
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-radiomics/1"


@dataclass(frozen=True, kw_only=True)
class RadiomicsRecord:
    """Provenance of a radiomics table."""

    source: Literal["extracted", "table"]
    """`extracted` from the mask by this package, or imported from an external `table`."""
    table_sha256: str
    """SHA-256 of radiomics.csv."""
    ct_sha256: str | None
    """SHA-256 of the CT's file; None if it did not exist."""
    mask_sha256: str | None
    """SHA-256 of the mask's file; None if it did not exist."""
    mask_label: MaskLabel | None = None
    """Label of the liver in the mask; None for every non-zero voxel."""
    settings_digest: str | None = None
    """SHA-256 of the settings; None if they are unknown."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings, as in a pyradiomics parameter file; empty if they are unknown."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that computed the values; empty if they are unknown."""
    mapping: dict[str, str] = field(default_factory=dict)
    """Feature name -> its name in the external table, if the two differ."""
    note: str | None = None
    """Deviation from the default extraction, such as the use of the reference path."""
    axes: str | None = None
    """Directions of the axes that the features were extracted in (`tmi.toolkit.radiomics.settings.AXES`); None for an
    external table, whose axes are unknown, and in records of earlier versions, which extracted in RAS."""
    schema: str = SCHEMA
    """Schema id of the file."""


def record_path(case: Case) -> Path:
    """Return the path of the case's record."""
    return case.folder / RADIOMICS_RECORD_FILE


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of an image or a table; None if it does not exist.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than an image can be.
    """
    return sha256_file(path, max_bytes=IMAGE_BYTES) if path.exists() else None


def write_record(case: Case, record: RadiomicsRecord) -> None:
    """Write the case's record atomically."""
    write_json(record_path(case), to_json(record))


def read_record(case: Case) -> RadiomicsRecord | None:
    """Read the case's record; None if it has none.

    Raises:
        UsageError: the record does not follow the schema that this version reads.
        OSError: it cannot be opened.
    """
    path = record_path(case)
    if not has_file(case, RADIOMICS_RECORD_FILE):
        return None
    try:
        document = parse_json(case_bytes(case, RADIOMICS_RECORD_FILE, max_bytes=RECORD_BYTES))
        record = from_json(RadiomicsRecord, document, where=path.name)
    except (OSError, DocumentError) as error:
        if is_access_error(error):
            raise
        reason = f"it {error.reason}" if isinstance(error, DocumentError) else error.strerror
        raise UsageError(f"{path.name} cannot be read as JSON: {reason}", fix="extract again with --force") from error
    if record.schema != SCHEMA:
        raise UsageError(f"{path.name} has schema {record.schema[:40]!r}", fix="extract again with --force")
    return record


def table_axes(case: Case) -> str:
    """Return the axes of the case's features: `RAS`, if they are extracted here, or `unknown`."""
    if not case.radiomics.exists():
        return AXES
    try:
        record = read_record(case)
    except (UsageError, OSError):
        record = None
    if record is None or record.table_sha256 != file_digest(case.radiomics):
        return "unknown"
    return record.axes or (AXES if record.source == "extracted" else "unknown")


def staleness_reason(case: Case) -> str | None:
    """Return why the case's radiomics.csv no longer matches its record, CT, mask or label; None if no reason is found.

    The CT and the mask are read and hashed, so this function is part of checks but not of prediction.
    """
    if not case.has_radiomics:
        return None
    try:
        record = read_record(case)
    except UsageError:
        return f"{RADIOMICS_RECORD_FILE} does not follow the schema {SCHEMA}"
    if record is None:
        return None
    if _digest(case, RADIOMICS_FILE, max_bytes=FEATURES_BYTES) != record.table_sha256:
        return f"{RADIOMICS_FILE} was changed after {RADIOMICS_RECORD_FILE} was written"
    if record.source == "extracted" and record.settings_digest != SETTINGS_DIGEST:
        return f"{RADIOMICS_FILE} was extracted with other settings than this version's"
    for name, recorded in ((CT_FILE, record.ct_sha256), (MASK_FILE, record.mask_sha256)):
        try:
            current = _digest(case, name, max_bytes=IMAGE_BYTES) if has_file(case, name) else None
        except OSError:
            continue  # the check of the file itself reports that it cannot be read
        if recorded is not None and current is not None and current != recorded:
            return f"{RADIOMICS_FILE} was computed from a different {name} than the one in the case folder"
    if case.mask_label is not None and record.source == "extracted" and record.mask_label != case.mask_label:
        label = "every label" if record.mask_label is None else f"label {format_label(record.mask_label)}"
        current_label = format_label(case.mask_label)
        return f"{RADIOMICS_FILE} was extracted from {label} of the mask, not from label {current_label}"
    return None


def _digest(case: Case, name: str, *, max_bytes: int) -> str:
    """SHA-256 of a file of a case; that of a loaded case is of the bytes that were read."""
    return case.digest(name) if isinstance(case, LoadedCase) else sha256_file(case.folder / name, max_bytes=max_bytes)
