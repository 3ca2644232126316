"""Fingerprint of a cohort: whether another folder holds the same cases."""

from __future__ import annotations

from pathlib import Path

from tmi.toolkit.cases.case import COHORT_FILE, Cohort
from tmi.toolkit.storage.hashing import sha256_file, sha256_json


def cohort_fingerprint(cohort: Cohort) -> str:
    """SHA-256 over the cohort's table and every file of its cases; identifies the training data of a run."""
    digests = {
        f"{case.case_id}/{path.name}": _digest(path)
        for case in cohort.cases
        for path in (case.ct, case.mask, case.radiomics, case.clinical)
        if path.is_file()
    }
    return sha256_json({"table": sha256_file(cohort.folder / COHORT_FILE), "files": digests})


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None if it cannot be read, as the case's own check then rejects the case."""
    try:
        return sha256_file(path)
    except OSError:
        return None
