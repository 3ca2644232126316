"""Provenance record of a case, `case.json`: its sources and its repairs. The file is optional.

It contains no identifying value: only file formats, digests, shapes, counts, and the codes and numbers of repairs. Of
the dates of the blood sample and the CT it contains the distance in days only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tmi.toolkit.cases.case import CASE_RECORD_FILE, Case
from tmi.toolkit.cases.loaded import case_bytes, has_file
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.storage.atomic_files import write_json
from tmi.toolkit.storage.bounded_files import RECORD_BYTES, is_access_error
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-case/1"


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One repair that was requested and applied."""

    code: str
    """Code of the check (`tmi.toolkit.qc.check_registry.CHECKS`) whose finding it repairs."""
    file: str
    """File of the case that was rewritten."""
    what: str
    """Description in one sentence, with numbers."""
    before_sha256: str | None = None
    """Digest of the file before the repair; None if there was none."""


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """Content of `case.json`."""

    source: dict[str, Any] = field(default_factory=dict)
    """Description of the sources: formats, counts, digests; no identifying value."""
    repairs: tuple[Repair, ...] = ()
    """Repairs in chronological order."""
    days_from_blood_to_ct: int | None = None
    """Days from the blood sample to the CT; negative if the CT came first, None unless both dates were known."""
    schema: str = SCHEMA
    """Schema id of the file."""

    @property
    def mask_named_otherwise(self) -> bool:
        """Whether the imported mask named the selected label as something else than a liver."""
        mask = self.source.get("mask")
        return isinstance(mask, dict) and mask.get("named_otherwise") is True


def read_case_record(source: Path | Case, *, case_id: str) -> CaseRecord | None:
    """Read the provenance record of a case, given as such or as its folder; return None if it has none.

    Raises:
        InputRejectedError: case-record: the file does not follow the schema of this version.
        OSError: it cannot be accessed.
    """
    case = source if isinstance(source, Case) else Case(folder=source, case_id=case_id)
    if not has_file(case, CASE_RECORD_FILE) and not (case.folder / CASE_RECORD_FILE).is_symlink():
        return None
    try:
        document = parse_json(case_bytes(case, CASE_RECORD_FILE, max_bytes=RECORD_BYTES))
        record = from_json(CaseRecord, document, where=CASE_RECORD_FILE)
        if record.schema != SCHEMA:
            raise UsageError(f"{CASE_RECORD_FILE} has schema {record.schema[:40]!r}", fix=f"give {SCHEMA!r}")
    except (OSError, DocumentError, UsageError) as error:
        if is_access_error(error) and not isinstance(error, FileNotFoundError):  # a link to nothing is no record
            raise
        raise InputRejectedError(
            f"{CASE_RECORD_FILE} does not follow the schema {SCHEMA}",
            fix="import the case again, or remove the file: it is optional",
            code="case-record",
            case_id=case_id,
        ) from error
    return record


def write_case_record(folder: Path, record: CaseRecord) -> None:
    """Write the provenance record of a case atomically."""
    write_json(folder / CASE_RECORD_FILE, to_json(record))


def add_repair(folder: Path, repair: Repair, *, case_id: str) -> None:
    """Append a repair to the provenance record of a case; create the record if it has none.

    Raises:
        InputRejectedError: as in `read_case_record`.
    """
    record = read_case_record(folder, case_id=case_id) or CaseRecord()
    write_case_record(folder, replace(record, repairs=(*record.repairs, repair)))
