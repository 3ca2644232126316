"""`case.json`: where a case came from and what was repaired in it. Optional; a case written by hand has none.

It holds no identifying value: kinds of files, digests, shapes, counts, codes of repairs and their figures. Dates stay
out; of the two that matter only their distance in days is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tmi.toolkit.cases.case import CASE_RECORD_FILE
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.storage.atomic_files import write_json
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-case/1"


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One repair that was asked for and made."""

    code: str
    """Row of `tmi.toolkit.qc.check_registry.CHECKS` that it mends."""
    file: str
    """File of the case that was written anew."""
    what: str
    """What was done, in one sentence, with its figures."""
    before_sha256: str | None = None
    """Digest of the file before, where there was one."""


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """What is known of a case besides its files."""

    source: dict[str, Any] = field(default_factory=dict)
    """What it was imported from: kinds, counts, digests. Nothing that identifies a patient."""
    repairs: tuple[Repair, ...] = ()
    """Repairs, oldest first."""
    days_from_blood_to_ct: int | None = None
    """Days from the blood sample to the CT, where both dates were given; negative: the CT came first."""
    schema: str = SCHEMA
    """Form of the file."""


def read_case_record(folder: Path, *, case_id: str) -> CaseRecord | None:
    """The case's record; None where there is none.

    Raises:
        InputRejectedError: case-record: it is not of the form this version reads.
    """
    path = folder / CASE_RECORD_FILE
    if not path.is_file():
        return None
    try:
        record = from_json(CaseRecord, json.loads(path.read_bytes()), where=CASE_RECORD_FILE)
        if record.schema != SCHEMA:
            raise UsageError(f"{CASE_RECORD_FILE} has schema {record.schema[:40]!r}", fix=f"give {SCHEMA!r}")
    except (OSError, ValueError, RecursionError, UsageError) as error:
        raise InputRejectedError(
            f"{CASE_RECORD_FILE} is not of the form {SCHEMA}",
            fix="import the case again, or remove the file: it is optional",
            code="case-record",
            case_id=case_id,
        ) from error
    return record


def write_case_record(folder: Path, record: CaseRecord) -> None:
    """Write it, atomically."""
    write_json(folder / CASE_RECORD_FILE, to_json(record))


def add_repair(folder: Path, repair: Repair, *, case_id: str) -> None:
    """Append a repair to the case's record, which is made where there is none.

    Raises:
        InputRejectedError: as `read_case_record`.
    """
    record = read_case_record(folder, case_id=case_id) or CaseRecord()
    write_case_record(folder, replace(record, repairs=(*record.repairs, repair)))
