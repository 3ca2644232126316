"""Checking cases and cohorts: everything that is wrong with them, not only the first thing.

One case is in memory at a time; of the others only digests are kept, by which cases of a cohort are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tmi.toolkit.cases.case import CT_FILE, MASK_FILE, RADIOMICS_FILE, Case, is_folder
from tmi.toolkit.cases.provenance import read_case_record
from tmi.toolkit.clinical.record import ClinicalRecord, read_clinical
from tmi.toolkit.clinical.schema import Schema, load_schema
from tmi.toolkit.clinical.units import check_units
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume, read_ct, read_mask
from tmi.toolkit.qc.check_registry import CHECKS, Severity
from tmi.toolkit.qc.hu_checks import NOT_HU
from tmi.toolkit.qc.image_checks import check_ct, check_mask
from tmi.toolkit.qc.radiomics_comparison import RadiomicsComparison, compare_radiomics
from tmi.toolkit.radiomics.provenance import staleness_reason
from tmi.toolkit.radiomics.table import read_table
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_json

MAX_DAYS_APART = 90
"""Days between blood sample and CT from which on a user should look."""
MIN_SHARED_VALUES = 5
"""Two patients may share fewer values by chance."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a case."""

    case_id: str
    """The case."""
    code: str
    """Row of `tmi.toolkit.qc.check_registry.CHECKS`."""
    severity: Severity
    """`error` or `warning`."""
    message: str
    """What is wrong."""
    fix: str
    """How to mend it."""


@dataclass(kw_only=True)
class _FirstOccurrences:
    """Digests of what cases hold -> the first case that held it."""

    ct: dict[str, Case] = field(default_factory=dict)
    radiomics: dict[str, Case] = field(default_factory=dict)
    record: dict[str, tuple[Case, str | None]] = field(default_factory=dict)


def check_case(case: Case, *, schema: Schema | None = None) -> list[Finding]:
    """Everything found in one case; empty when it is good. Without a schema the packaged one holds."""
    return check_cases([case], schema=schema)


def check_cases(
    cases: list[Case],
    *,
    schema: Schema | None = None,
    progress: Callable[[Case], None] | None = None,
    radiomics_tolerance: float | None = None,
    on_comparison: Callable[[RadiomicsComparison], None] | None = None,
) -> list[Finding]:
    """Findings of every case, those included that only show when cases are compared.

    Args:
        cases: as `find_cases` gives them.
        schema: clinical schema of the records; None: the packaged one.
        progress: called with each case when it is done.
        radiomics_tolerance: relative tolerance; radiomics.csv is compared with what is extracted from the mask. None:
        it is not.
        on_comparison: called with the outcome of each such comparison.

    Raises:
        UnavailableError: radiomics must be extracted and pyradiomics is not installed.
    """
    findings: list[Finding] = []
    seen = _FirstOccurrences()
    for case in cases:
        try:
            findings.extend(_findings(case, schema or load_schema(), seen, radiomics_tolerance, on_comparison))
        except OSError as error:
            what = f"its files cannot be read ({error.strerror or type(error).__name__})"
            findings.append(
                _make_finding(case.case_id, "case-unreadable", what, "let the user read the folder and its files")
            )
        if progress is not None:
            progress(case)
    return findings


def _findings(
    case: Case,
    schema: Schema,
    seen: _FirstOccurrences,
    radiomics_tolerance: float | None,
    on_comparison: Callable[[RadiomicsComparison], None] | None,
) -> Iterator[Finding]:
    if not is_folder(case.folder):
        yield _make_finding(
            case.case_id,
            "case-missing",
            "the case folder is not there",
            "correct cohort.csv or the path, or put the folder there",
        )
        return
    ct, found = _try_read(lambda: read_ct(case))
    yield from found
    in_hu = False
    if ct is not None:
        of_ct = list(check_ct(ct))
        in_hu = not any(code in NOT_HU for code, *_ in of_ct)
        yield from (_make_finding(case.case_id, *f) for f in of_ct)
        yield from _same_ct(case, ct, seen)
    mask = None
    if case.mask.is_file():
        if ct is not None:
            mask, found = _try_read(lambda: read_mask(case, ct))
            yield from found
            if mask is not None:
                yield from (_make_finding(case.case_id, *f) for f in check_mask(ct, mask, in_hu=in_hu))
    elif not case.radiomics.is_file():
        yield _make_finding(
            case.case_id,
            "radiomics-missing",
            f"neither {RADIOMICS_FILE} nor {MASK_FILE} is there",
            f"give {RADIOMICS_FILE}, or a liver mask from which the features are extracted",
        )
    if case.radiomics.is_file():
        yield from _radiomics(case, ct, mask, seen, radiomics_tolerance, on_comparison)
    yield from _clinical(case, schema, seen)
    yield from _record(case)


def _same_ct(case: Case, ct: Volume, seen: _FirstOccurrences) -> Iterator[Finding]:
    first = seen.ct.setdefault(sha256_bytes(np.ascontiguousarray(ct.array_DHW).view(np.uint8).data), case)
    if first is not case:
        patients = {first.patient_id, case.patient_id}
        of_another = " of another patient" if len(patients) == 2 and None not in patients else ""
        yield _make_finding(
            case.case_id,
            "duplicate-ct",
            f"the voxels of {CT_FILE} are those of case {first.case_id}{of_another}",
            "give each case its own CT, or remove one of the two",
        )


def _radiomics(
    case: Case,
    ct: Volume | None,
    mask: Volume | None,
    seen: _FirstOccurrences,
    radiomics_tolerance: float | None,
    on_comparison: Callable[[RadiomicsComparison], None] | None,
) -> Iterator[Finding]:
    values_F, found = _try_read(lambda: read_table(case.radiomics, case_id=case.case_id))
    yield from found
    if values_F is None:
        return
    if (why := staleness_reason(case)) is not None:
        yield _make_finding(case.case_id, "radiomics-stale", why, "extract them anew: tmi radiomics CASE --force")
    first = seen.radiomics.setdefault(sha256_bytes(values_F.tobytes()), case)
    if first is not case:
        yield _make_finding(
            case.case_id,
            "duplicate-radiomics",
            f"the features of {RADIOMICS_FILE} are those of case {first.case_id}",
            "extract the features of each case from its own CT and mask with `tmi radiomics --force`",
        )
    if radiomics_tolerance is not None and ct is not None and mask is not None:
        comparison, found = _try_read(
            lambda: compare_radiomics(case, values_F, ct, mask, tolerance=radiomics_tolerance)
        )
        yield from found
        if comparison is not None:
            if on_comparison is not None:
                on_comparison(comparison)
            if comparison.differ:
                yield _make_finding(case.case_id, "radiomics-differ", *comparison.to_message())


def _clinical(case: Case, schema: Schema, seen: _FirstOccurrences) -> Iterator[Finding]:
    record: ClinicalRecord | None
    record, found = _try_read(lambda: read_clinical(case, schema))
    yield from found
    if record is None:
        return
    yield from (_make_finding(case.case_id, *f) for f in check_units(record.values, schema))
    if sum(v is not None for v in record.values.values()) < MIN_SHARED_VALUES:
        return
    patient = case.patient_id or record.patient_id
    first, its_patient = seen.record.setdefault(sha256_json(dict(record.values)), (case, patient))
    if first is not case and patient != its_patient:
        yield _make_finding(
            case.case_id,
            "duplicate-record",
            f"the clinical values are those of case {first.case_id}, which is of another patient",
            "look whether one of the two records was put into the wrong case, or one patient has two ids",
        )


def _record(case: Case) -> Iterator[Finding]:
    record, found = _try_read(lambda: read_case_record(case.folder, case_id=case.case_id))
    yield from found
    days = None if record is None else record.days_from_blood_to_ct
    if days is not None and abs(days) > MAX_DAYS_APART:
        yield _make_finding(
            case.case_id,
            "dates-apart",
            f"blood sample and CT lie more than {MAX_DAYS_APART} days apart",
            "look whether both belong to one stay, or give a blood sample nearer to the CT",
        )


def _try_read(read: Callable[[], Any]) -> tuple[Any, list[Finding]]:
    try:
        return read(), []
    except InputRejectedError as error:
        return None, [_make_finding(error.case_id or "", error.code, error.what, error.fix)]


def _make_finding(case_id: str, code: str, message: str, fix: str) -> Finding:
    return Finding(case_id=case_id, code=code, severity=CHECKS[code].severity, message=message, fix=fix)
