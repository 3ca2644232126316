"""Radiomics tables for many cases: one bad case is told and the others go on; what is up to date is passed over."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.cases.case import MASK_FILE, RADIOMICS_FILE, Case, open_case
from tmi.toolkit.errors import InputRejectedError, UnavailableError, UsageError
from tmi.toolkit.imaging.volume import read_ct, read_mask
from tmi.toolkit.qc.image_checks import check_ct, check_mask, raise_on_error
from tmi.toolkit.radiomics.cache import extract_cached, package_versions
from tmi.toolkit.radiomics.external_table import ExternalTable
from tmi.toolkit.radiomics.provenance import RadiomicsRecord, file_digest, read_record, staleness_reason, write_record
from tmi.toolkit.radiomics.settings import SETTINGS, SETTINGS_DIGEST
from tmi.toolkit.radiomics.table import missing_features, table_text
from tmi.toolkit.storage.atomic_files import write_text
from tmi.toolkit.storage.hashing import sha256_bytes


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions:
    """What is asked of every case."""

    force: bool = False
    """Write over a table that is there."""
    use_cache: bool = True
    """Read and fill the cache of extracted features."""
    external: ExternalTable | None = None
    """Take the values from this table; None extracts them from the mask."""


@dataclass(frozen=True, kw_only=True)
class ExtractionResult:
    """What came of one case."""

    case_id: str
    """The case."""
    state: Literal["written", "current", "refused"]
    """`current`: the table was there, and fits its files."""
    message: str = ""
    """Why it was refused, or what a user should know of."""
    fix: str = ""
    """How to mend a refusal."""
    code: str = ""
    """Check that refused it."""
    seconds: float = 0.0
    """Time it took."""


def make_tables(cases: Sequence[Case], options: ExtractionOptions, *, jobs: int) -> Iterator[ExtractionResult]:
    """The cases' outcomes as they are done. A stop waits for the cases at work and starts no other.

    Several cases are spread over processes, and the cores that remain to each over its image types.

    Raises:
        UnavailableError: pyradiomics is not installed, or a process was killed.
    """
    processes = min(jobs, len(cases))
    if processes <= 1 or options.external is not None:
        for case in cases:
            yield make_table(case, options, jobs=jobs)
        return
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
    )
    try:
        futures = [pool.submit(make_table, case, options, jobs=jobs // processes) for case in cases]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise UnavailableError(
            "a process that extracted radiomics was killed, most likely for want of memory",
            fix="use fewer at once with --jobs; the cases that are done are kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"


def make_table(case: Case, options: ExtractionOptions, *, jobs: int) -> ExtractionResult:
    """Write a case's radiomics.csv and radiomics.json, or say why not.

    Raises:
        UnavailableError: pyradiomics is not installed.
    """
    start = perf_counter()
    try:
        open_case(case.folder)
        if not options.force and _is_current(case, options):
            return ExtractionResult(case_id=case.case_id, state="current", seconds=perf_counter() - start)
        note = (
            _import_external(case, options.external) if options.external is not None else _extract(case, options, jobs)
        )
    except InputRejectedError as error:
        return ExtractionResult(
            case_id=case.case_id, state="refused", message=error.what, fix=error.fix, code=error.code
        )
    except OSError as error:
        return ExtractionResult(
            case_id=case.case_id,
            state="refused",
            message=f"{error.strerror or 'a file cannot be read or written'}",
            fix="check the folder, its permissions and the free space",
            code="case-files",
        )
    return ExtractionResult(case_id=case.case_id, state="written", message=note, seconds=perf_counter() - start)


def _is_current(case: Case, options: ExtractionOptions) -> bool:
    """Whether the table is there and fits; refuses to touch one of which that is not known."""
    if not case.radiomics.is_file():
        return False
    why = staleness_reason(case)
    if why is None:
        record = _record(case)
        if options.external is not None:
            why = f"{RADIOMICS_FILE} is there already"
        elif record is None or record.source != "extracted":
            why = f"{RADIOMICS_FILE} is there already and was not extracted here"
        elif record.mask_label != case.mask_label:
            why = f"{RADIOMICS_FILE} was extracted from another label of {MASK_FILE}"
        else:
            return True
    raise InputRejectedError(
        why, fix="keep it, or replace it with --force", code="radiomics-exists", case_id=case.case_id
    )


def _record(case: Case) -> RadiomicsRecord | None:
    try:
        return read_record(case)
    except UsageError:
        return None


def _extract(case: Case, options: ExtractionOptions, jobs: int) -> str:
    ct = read_ct(case)
    raise_on_error(check_ct(ct), case.case_id)
    mask = read_mask(case, ct)
    raise_on_error(check_mask(ct, mask), case.case_id)
    # the digests first: files that are exchanged meanwhile are noticed by the next check
    ct_sha256, mask_sha256 = file_digest(case.ct), file_digest(case.mask)
    extracted = extract_cached(ct, mask, jobs=jobs, use_cache=options.use_cache)
    _write(
        case,
        extracted.values_F,
        RadiomicsRecord(
            source="extracted",
            table_sha256="",
            ct_sha256=ct_sha256,
            mask_sha256=mask_sha256,
            mask_label=case.mask_label,
            settings_digest=SETTINGS_DIGEST,
            settings=dict(SETTINGS),
            versions=package_versions(),
            note=extracted.note,
        ),
    )
    return _result_message(extracted.values_F, extracted.note)


def _import_external(case: Case, table: ExternalTable) -> str:
    values_F = table.values_of(case.case_id)
    _write(
        case,
        values_F,
        RadiomicsRecord(
            source="table",
            table_sha256="",
            ct_sha256=file_digest(case.ct),
            mask_sha256=file_digest(case.mask),
            mask_label=case.mask_label,
            mapping=dict(table.renamed),
        ),
    )
    return _result_message(values_F, None)


def _write(case: Case, values_F: Float[NDArray[np.float64], "1781"], record: RadiomicsRecord) -> None:
    """The record first: a stop in between leaves no table, and the next run makes both."""
    text = table_text(values_F)
    case.radiomics.unlink(missing_ok=True)
    write_record(case, replace(record, table_sha256=sha256_bytes(text.encode())))
    write_text(case.radiomics, text)


def _result_message(values_F: Float[NDArray[np.float64], "1781"], note: str | None) -> str:
    missing = len(missing_features(values_F))
    parts = [f"{missing} of {len(values_F)} features have no finite value"] if missing else []
    return "; ".join([*parts, *([note] if note else [])])
