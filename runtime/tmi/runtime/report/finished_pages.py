"""Pages that an interrupted `tmi report` finished: each carries a record of its inputs and of its prediction.

The record is a JSON block of the page with the digest of everything that the page depends on. `--resume` keeps a page
whose digest is the same and writes any other again. A rejected case has no page and is predicted again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.results import Prediction, result_from_json, result_to_json
from tmi.toolkit.cases.case import CASE_RECORD_FILE, Case, format_label, reading
from tmi.toolkit.cases.loaded import LoadedCase
from tmi.toolkit.errors import TmiError
from tmi.toolkit.storage.bounded_files import DOCUMENT_BYTES, read_text
from tmi.toolkit.storage.documents import parse_json
from tmi.toolkit.storage.hashing import sha256_file, sha256_json

SCHEMA = "tmi-report-page/1"
RECORD = re.compile(r'<script type="application/json" id="record">(.*?)</script>', re.DOTALL)


def inputs_digest(
    case: Case, *, bundle: Bundle, engine: EngineRecord, quick: bool, version: str, trust_level: float | None = None
) -> str:
    """SHA-256 of what a page depends on: files of the case, bundle, engine, options, version of this package.

    Raises:
        InputRejectedError: a file of the case cannot be read.
    """
    files = (case.ct, case.mask, case.radiomics, case.clinical, case.folder / CASE_RECORD_FILE)
    loaded = case if isinstance(case, LoadedCase) else None
    with reading(case.case_id):
        digests = {
            path.name: sha256_file(path) if loaded is None else loaded.digest(path.name)
            for path in files
            if path.is_file()
        }
    return sha256_json(
        {
            "case": case.case_id,
            "files": digests,
            "mask_label": None if case.mask_label is None else format_label(case.mask_label),
            "bundle": bundle.digest,
            "engine": [engine.name, engine.package, engine.precision],
            "quick": quick,
            "version": version,
            **({} if trust_level is None else {"trust_level": trust_level}),
        }
    )


def page_record(result: Prediction, inputs: str) -> dict[str, Any]:
    """JSON values that a page carries."""
    return {"schema": SCHEMA, "inputs": inputs, "result": result_to_json(result)}


def finished_result(page: Path, inputs: str) -> Prediction | None:
    """Prediction of a finished page whose inputs are the same; None if there is no such page."""
    try:
        text = read_text(page, max_bytes=DOCUMENT_BYTES)
    except (OSError, UnicodeDecodeError, TmiError):
        return None
    found = RECORD.search(text)
    if found is None or not text.rstrip().endswith("</html>"):
        return None
    try:
        record = parse_json(found[1])
        if not isinstance(record, dict) or (record.get("schema"), record.get("inputs")) != (SCHEMA, inputs):
            return None
        result = result_from_json(record["result"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, TmiError):
        return None
    return result if isinstance(result, Prediction) else None
