"""Extract or import the radiomics tables of many cases in parallel.

A rejected case is reported and the others continue. Tables that are up to date are skipped.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.cases.case import MASK_FILE, RADIOMICS_FILE, Case, open_case, reading
from tmi.toolkit.compute.worker_process import initialize_worker
from tmi.toolkit.errors import InputRejectedError, TmiError, UnavailableError, UsageError
from tmi.toolkit.imaging.volume import read_ct, read_mask
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.qc.image_checks import check_ct, check_mask, raise_on_error
from tmi.toolkit.radiomics.cache import extract_cached, package_versions
from tmi.toolkit.radiomics.external_table import ExternalTable
from tmi.toolkit.radiomics.provenance import RadiomicsRecord, file_digest, read_record, staleness_reason, write_record
from tmi.toolkit.radiomics.settings import AXES, SETTINGS, SETTINGS_DIGEST
from tmi.toolkit.radiomics.table import missing_features, table_text
from tmi.toolkit.storage.atomic_files import write_text
from tmi.toolkit.storage.hashing import sha256_bytes
from tmi.toolkit.storage.outputs import output_lock


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions:
    """Options of an extraction, the same for all cases."""

    force: bool = False
    """Overwrite existing tables."""
    use_cache: bool = True
    """Read and fill the cache of extracted features."""
    external: ExternalTable | None = None
    """Table to import the values from; None extracts them from CT and mask."""


@dataclass(frozen=True, kw_only=True)
class ExtractionResult:
    """Result of one case."""

    case_id: str
    """The case."""
    state: Literal["written", "current", "rejected"]
    """`current`: the table existed and matches its files."""
    issues: tuple[Issue, ...] = ()
    """Reasons of the rejection, or warnings about the table that was written."""
    seconds: float = 0.0
    """Wall-clock time of the case."""


def make_tables(cases: Sequence[Case], options: ExtractionOptions, *, jobs: int) -> Iterator[ExtractionResult]:
    """Yield the results of the cases as they complete.

    Cases are distributed over processes; the remaining cores of each process work on the image types of its case.
    On an interrupt, cases in progress are finished and no new ones are started.

    Raises:
        UnavailableError: SimpleITK or PyWavelets is not installed, or a process was killed.
    """
    processes = min(jobs, len(cases))
    if processes <= 1 or options.external is not None:
        for case in cases:
            yield make_table(case, options, jobs=jobs)
        return
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=initialize_worker
    )
    try:
        futures = [pool.submit(make_table, case, options, jobs=jobs // processes) for case in cases]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise UnavailableError(
            "a process that extracted radiomics was killed, most likely because memory ran out",
            fix="use fewer processes with --jobs; completed cases are kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def make_table(case: Case, options: ExtractionOptions, *, jobs: int) -> ExtractionResult:
    """Write radiomics.csv and radiomics.json of one case; a rejected case is returned, not raised.

    Raises:
        UnavailableError: SimpleITK or PyWavelets is not installed.
    """
    start = perf_counter()
    try:
        open_case(case.folder)
        if not options.force and _is_current(case, options):
            return ExtractionResult(case_id=case.case_id, state="current", seconds=perf_counter() - start)
        with _locked_table(case):
            issues = (
                _import_external(case, options.external)
                if options.external is not None
                else _extract(case, options, jobs)
            )
    except InputRejectedError as error:
        return ExtractionResult(case_id=case.case_id, state="rejected", issues=error.for_case(case.case_id).issues)
    except OSError as error:  # of writing: `reading` converts those of reading
        message = error.strerror or "a file cannot be written"
        issue = Issue.of("case-files", message, "check the folder, its permissions and the free space")
        return ExtractionResult(case_id=case.case_id, state="rejected", issues=(issue.of_case(case.case_id),))
    return ExtractionResult(case_id=case.case_id, state="written", issues=issues, seconds=perf_counter() - start)


@contextmanager
def _locked_table(case: Case) -> Iterator[None]:
    """Lock the table before it is computed.

    Raises:
        InputRejectedError: case-files: another process writes it, or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(output_lock(case.radiomics, kind="table"))
        except TmiError as error:
            raise InputRejectedError(error.what, fix=error.fix, code="case-files", case_id=case.case_id) from error
        yield


def _is_current(case: Case, options: ExtractionOptions) -> bool:
    """Return whether the table exists and is up to date.

    Raises:
        InputRejectedError: the table exists, but it is stale or was not extracted here, so it is not overwritten.
    """
    if not case.radiomics.exists():
        return False
    code = "radiomics-exists"
    with reading(case.case_id):
        reason, record = staleness_reason(case), _read_record(case)
    if reason is not None:
        code = "radiomics-stale"
    else:
        if options.external is not None:
            reason = f"{RADIOMICS_FILE} exists"
        elif record is None or record.source != "extracted":
            reason = f"{RADIOMICS_FILE} exists and was not extracted here"
        elif record.mask_label != case.mask_label:
            reason = f"{RADIOMICS_FILE} was extracted from another label of {MASK_FILE}"
        else:
            return True
    raise InputRejectedError(reason, fix="keep it, or replace it with --force", code=code, case_id=case.case_id)


def _read_record(case: Case) -> RadiomicsRecord | None:
    try:
        return read_record(case)
    except UsageError:
        return None


def _extract(case: Case, options: ExtractionOptions, jobs: int) -> tuple[Issue, ...]:
    with reading(case.case_id):
        ct = read_ct(case)
        raise_on_error(check_ct(ct), case.case_id)
        mask = read_mask(case, ct)
        raise_on_error(check_mask(ct, mask), case.case_id)
        # digests before the extraction: if a file is replaced meanwhile, the next check finds the table stale
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
            axes=AXES,
        ),
    )
    return (*_undefined(case, extracted.values_F), *extracted.issues(case.case_id))


def _import_external(case: Case, table: ExternalTable) -> tuple[Issue, ...]:
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
    return _undefined(case, values_F)


def _write(case: Case, values_F: Float[NDArray[np.float64], "1781"], record: RadiomicsRecord) -> None:
    """Write the record before the table: if interrupted in between, there is no table and the next run writes both."""
    text = table_text(values_F)
    case.radiomics.unlink(missing_ok=True)
    write_record(case, replace(record, table_sha256=sha256_bytes(text.encode())))
    write_text(case.radiomics, text)


def _undefined(case: Case, values_F: Float[NDArray[np.float64], "1781"]) -> tuple[Issue, ...]:
    """Return a warning if features have no finite value."""
    missing = missing_features(values_F)
    if not missing:
        return ()
    message = f"{len(missing)} of {len(values_F)} features have no finite value"
    fix = "none needed: they are missing for training and prediction"
    return (Issue.of("radiomics-undefined", message, fix, case_id=case.case_id, count=len(missing)),)
