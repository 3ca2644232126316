"""Checking cases and cohorts: everything that is wrong with them, not only the first thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tmi.toolkit.case import CT_FILE, MASK_FILE, RADIOMICS_FILE, Case
from tmi.toolkit.check_table import CHECKS, Severity
from tmi.toolkit.clinical import read_clinical
from tmi.toolkit.clinical_schema import Schema, load_schema
from tmi.toolkit.content_checks import check_ct, check_mask
from tmi.toolkit.errors import InputRefusedError
from tmi.toolkit.hashing import sha256_file
from tmi.toolkit.radiomics_record import stale
from tmi.toolkit.radiomics_table import read_table
from tmi.toolkit.volume import read_ct, read_mask


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a case."""

    case_id: str
    """The case."""
    code: str
    """Row of `tmi.toolkit.check_table.CHECKS`."""
    severity: Severity
    """`error` or `warning`."""
    message: str
    """What is wrong."""
    fix: str
    """How to mend it."""


def check_case(case: Case, *, schema: Schema | None = None) -> list[Finding]:
    """Everything found in one case; empty when it is good. Without a schema the packaged one holds."""
    return list(_findings(case, schema or load_schema()))


def check_cases(
    cases: list[Case], *, schema: Schema | None = None, progress: Callable[[Case], None] | None = None
) -> list[Finding]:
    """Findings of every case, then those that only show when cases are compared; `schema` as in `check_case`."""
    findings: list[Finding] = []
    first: dict[str, str] = {}
    for case in cases:
        findings.extend(_findings(case, schema or load_schema()))
        if case.ct.is_file():
            digest = sha256_file(case.ct)
            if digest in first:
                findings.append(
                    _finding(
                        case.case_id,
                        "duplicate-ct",
                        f"{CT_FILE} is that of case {first[digest]}",
                        "give each case its own CT, or remove one of the two",
                    )
                )
            first.setdefault(digest, case.case_id)
        if progress is not None:
            progress(case)
    return findings


def _findings(case: Case, schema: Schema) -> Iterator[Finding]:
    if not case.folder.is_dir():
        yield _finding(
            case.case_id,
            "case-missing",
            "the case folder is not there",
            "correct cohort.csv or the path, or put the folder there",
        )
        return
    ct, found = _attempt(lambda: read_ct(case))
    yield from found
    if ct is not None:
        yield from (_finding(case.case_id, *f) for f in check_ct(ct))
    if case.mask.is_file():
        if ct is not None:
            mask, found = _attempt(lambda: read_mask(case, ct))
            yield from found
            if mask is not None:
                yield from (_finding(case.case_id, *f) for f in check_mask(ct, mask))
    elif not case.radiomics.is_file():
        yield _finding(
            case.case_id,
            "radiomics-missing",
            f"neither {RADIOMICS_FILE} nor {MASK_FILE} is there",
            f"give {RADIOMICS_FILE}, or a liver mask from which the features are extracted",
        )
    if case.radiomics.is_file():
        yield from _attempt(lambda: read_table(case.radiomics, case_id=case.case_id))[1]
        if (why := stale(case)) is not None:
            yield _finding(case.case_id, "radiomics-stale", why, "extract them anew: tmi radiomics CASE --force")
    yield from _attempt(lambda: read_clinical(case, schema))[1]


def _attempt(read: Callable[[], Any]) -> tuple[Any, list[Finding]]:
    try:
        return read(), []
    except InputRefusedError as error:
        return None, [_finding(error.case_id or "", error.code, error.what, error.fix)]


def _finding(case_id: str, code: str, message: str, fix: str) -> Finding:
    return Finding(case_id=case_id, code=code, severity=CHECKS[code].severity, message=message, fix=fix)
