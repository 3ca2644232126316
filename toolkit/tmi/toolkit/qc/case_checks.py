"""Run every check on cases and cohorts and collect all findings, not only the first one.

One case is in memory at a time. Only digests of the earlier cases are kept; they detect duplicates within a cohort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tmi.toolkit.cases.case import (
    CT_FILE,
    MASK_FILE,
    NAME_FAULT,
    RADIOMICS_FILE,
    Case,
    MaskLabel,
    given_name,
    is_folder,
    missing_case_error,
    reading,
)
from tmi.toolkit.cases.file_bytes import CaseBytes
from tmi.toolkit.cases.provenance import read_case_record
from tmi.toolkit.clinical.completeness import check_completeness
from tmi.toolkit.clinical.record import check_blood_date, read_all_clinical
from tmi.toolkit.clinical.schema import Schema, load_schema
from tmi.toolkit.clinical.units import check_units
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume, read_ct, read_mask
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.qc.hu_checks import NOT_HU
from tmi.toolkit.qc.image_checks import check_ct, check_mask, check_mask_name
from tmi.toolkit.qc.radiomics_comparison import RadiomicsComparison, compare_radiomics
from tmi.toolkit.qc.text_length import TextEncoderInput, check_text_length
from tmi.toolkit.radiomics.provenance import staleness_reason
from tmi.toolkit.radiomics.table import read_case_table
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_json
from tmi.toolkit.storage.terminal_text import is_unicode

MAX_DAYS_APART = 90
"""Largest number of days between blood sample and CT without a warning."""
MIN_SHARED_VALUES = 5
"""Records with fewer values are not compared: two patients may share them by chance."""


@dataclass(kw_only=True)
class _FirstOccurrences:
    """Digest of a case's content -> first case with that content."""

    ct: dict[str, Case] = field(default_factory=dict)
    radiomics: dict[str, Case] = field(default_factory=dict)
    record: dict[str, tuple[Case, str | None]] = field(default_factory=dict)


def check_case(
    case: Case | Path | str, *, schema: Schema | None = None, mask_label: MaskLabel | None = None
) -> list[Issue]:
    """Return all findings of one case; an empty list if it passes.

    Args:
        case: a case folder, a `Case`, or a loaded one, whose files are then not read again.
        schema: clinical schema of the record; None uses the packaged one.
        mask_label: label of the liver in the mask, or several that are joined; a `Case` has its own.
    """
    if not isinstance(case, Case):
        case = Case(folder=Path(case), case_id=given_name(Path(case)), mask_label=mask_label)
    return check_cases([case], schema=schema)


def check_cases(
    cases: list[Case],
    *,
    schema: Schema | None = None,
    progress: Callable[[Case], None] | None = None,
    radiomics_tolerance: float | None = None,
    on_comparison: Callable[[RadiomicsComparison], None] | None = None,
    encoder_input: TextEncoderInput | None = None,
    records_only: bool = False,
) -> list[Issue]:
    """Return the findings of all cases, including duplicates between cases.

    Args:
        cases: cases as returned by `find_cases`.
        schema: clinical schema of the records; None uses the packaged one.
        progress: called with each case once it is checked.
        radiomics_tolerance: relative tolerance for comparing radiomics.csv with features extracted from CT and mask;
            None skips the comparison.
        on_comparison: called with the result of each comparison.
        encoder_input: how a training turns a record into tokens; None: as the preset `paper`, tokens estimated.
        records_only: read `clinical.json` and `case.json` alone, whether or not there are images and features.

    Raises:
        UnavailableError: features must be extracted and SimpleITK or PyWavelets is not installed.
    """
    findings: list[Issue] = []
    first_occurrences = _FirstOccurrences()
    for case in cases:
        try:
            with reading(case.case_id):
                findings.extend(
                    _check_case(
                        case,
                        schema or load_schema(),
                        first_occurrences,
                        radiomics_tolerance,
                        on_comparison,
                        encoder_input or TextEncoderInput(),
                        records_only,
                    )
                )
        except InputRejectedError as error:
            findings.extend(error.for_case(case.case_id).issues)
        if progress is not None:
            progress(case)
    return findings


def _check_case(
    case: Case,
    schema: Schema,
    first_occurrences: _FirstOccurrences,
    radiomics_tolerance: float | None,
    on_comparison: Callable[[RadiomicsComparison], None] | None,
    encoder_input: TextEncoderInput,
    records_only: bool,
) -> Iterator[Issue]:
    if not isinstance(case, CaseBytes) and not is_folder(case.folder):
        raise missing_case_error(case.folder, case.case_id, fix="correct cohort.csv or the path, or add the folder")
    if not is_unicode(case.folder.name):
        yield Issue.of("case-name", *NAME_FAULT, case_id=case.case_id)
    if not records_only:
        yield from _check_images(case, first_occurrences, radiomics_tolerance, on_comparison)
    yield from _check_clinical(case, schema, first_occurrences, encoder_input)
    yield from _check_provenance(case)


def _check_images(
    case: Case,
    first_occurrences: _FirstOccurrences,
    radiomics_tolerance: float | None,
    on_comparison: Callable[[RadiomicsComparison], None] | None,
) -> Iterator[Issue]:
    """Check CT, mask and radiomics."""
    ct, findings = _try_read(lambda: read_ct(case))
    yield from findings
    in_hu = False
    if ct is not None:
        ct_findings = list(check_ct(ct))
        in_hu = not any(issue.code in NOT_HU for issue in ct_findings)
        yield from (issue.of_case(case.case_id) for issue in ct_findings)
        yield from _check_duplicate_ct(case, ct, first_occurrences)
    mask = None
    if case.has_mask:
        # without a readable CT there is no grid to compare the mask with
        if ct is not None:
            mask, findings = _try_read(lambda: read_mask(case, ct))
            yield from findings
            if mask is not None:
                yield from (issue.of_case(case.case_id) for issue in check_mask(ct, mask, in_hu=in_hu))
    elif not case.has_radiomics:
        yield Issue.of(
            "radiomics-missing",
            f"neither {RADIOMICS_FILE} nor {MASK_FILE} exists",
            f"give {RADIOMICS_FILE}, or a liver mask to extract the features from",
            case_id=case.case_id,
        )
    if case.has_radiomics:
        yield from _check_radiomics(case, ct, mask, first_occurrences, radiomics_tolerance, on_comparison)


def _check_duplicate_ct(case: Case, ct: Volume, first_occurrences: _FirstOccurrences) -> Iterator[Issue]:
    digest = sha256_bytes(np.ascontiguousarray(ct.array_DHW).view(np.uint8).data)
    first = first_occurrences.ct.setdefault(digest, case)
    if first is not case:
        patients = {first.patient_id, case.patient_id}
        suffix = " of another patient" if len(patients) == 2 and None not in patients else ""
        yield Issue.of(
            "duplicate-ct",
            f"{CT_FILE} has the same voxels as case {first.case_id}{suffix}",
            "give each case its own CT, or remove one of the two cases",
            case_id=case.case_id,
        )


def _check_radiomics(
    case: Case,
    ct: Volume | None,
    mask: Volume | None,
    first_occurrences: _FirstOccurrences,
    radiomics_tolerance: float | None,
    on_comparison: Callable[[RadiomicsComparison], None] | None,
) -> Iterator[Issue]:
    values_F, findings = _try_read(lambda: read_case_table(case))
    yield from findings
    if values_F is None:
        return
    if (reason := staleness_reason(case)) is not None:
        fix = "extract them again: tmi radiomics CASE --force"
        yield Issue.of("radiomics-stale", reason, fix, case_id=case.case_id)
    first = first_occurrences.radiomics.setdefault(sha256_bytes(values_F.tobytes()), case)
    if first is not case:
        yield Issue.of(
            "duplicate-radiomics",
            f"{RADIOMICS_FILE} has the same features as case {first.case_id}",
            "extract the features of each case from its own CT and mask with `tmi radiomics --force`",
            case_id=case.case_id,
        )
    if radiomics_tolerance is not None and ct is not None and mask is not None:
        comparison, findings = _try_read(
            lambda: compare_radiomics(case, values_F, ct, mask, tolerance=radiomics_tolerance)
        )
        yield from findings
        if comparison is not None:
            if on_comparison is not None:
                on_comparison(comparison)
            if comparison.differ:
                yield Issue.of("radiomics-differ", *comparison.to_message(), case_id=case.case_id)


def _check_clinical(
    case: Case, schema: Schema, first_occurrences: _FirstOccurrences, encoder_input: TextEncoderInput
) -> Iterator[Issue]:
    read, findings = _try_read(lambda: read_all_clinical(case, schema))
    yield from findings
    if read is None:
        return
    record, faults = read
    yield from (issue for fault in faults for issue in fault.issues)
    yield from (issue.of_case(case.case_id) for issue in check_blood_date(record))
    if faults:
        return  # the record is rejected as it is; the checks below need all its values
    yield from (issue.of_case(case.case_id) for issue in check_units(record.values, schema))
    yield from (issue.of_case(case.case_id) for issue in check_completeness(record, schema))
    yield from (issue.of_case(case.case_id) for issue in check_text_length(record, schema, encoder_input))
    if sum(v is not None for v in record.values.values()) < MIN_SHARED_VALUES:
        return
    patient = case.patient_id or record.patient_id
    digest = sha256_json(dict(record.values))
    first, first_patient = first_occurrences.record.setdefault(digest, (case, patient))
    if first is not case and patient != first_patient:
        yield Issue.of(
            "duplicate-record",
            f"the clinical values equal those of case {first.case_id}, which belongs to another patient",
            "check whether one of the two records is in the wrong case, or whether one patient has two ids",
            case_id=case.case_id,
        )


def _check_provenance(case: Case) -> Iterator[Issue]:
    record, findings = _try_read(lambda: read_case_record(case, case_id=case.case_id))
    yield from findings
    yield from (issue.of_case(case.case_id) for issue in check_mask_name(record))
    days = None if record is None else record.days_from_blood_to_ct
    if days is not None and abs(days) > MAX_DAYS_APART:
        yield Issue.of(
            "dates-apart",
            f"blood sample and CT are more than {MAX_DAYS_APART} days apart",
            "check whether both belong to one hospital stay, or give a blood sample closer to the CT",
            case_id=case.case_id,
        )


def _try_read(read: Callable[[], Any]) -> tuple[Any, list[Issue]]:
    """Return what `read` returns, or None and a finding if it rejects its input."""
    try:
        return read(), []
    except InputRejectedError as error:
        return None, list(error.issues)
