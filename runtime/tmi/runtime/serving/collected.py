"""Joining the result logs of a cohort's shards into the results of one prediction.

The joined results equal those of a single `tmi predict` of the cohort, because the logs are compared before: every
shard is there once, all have the same bundle, engine, precision, version and options, every case of the cohort has one
result, and no case has changed since its prediction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.result_log import MACHINE, SCHEMA, StoredLog, case_state, read_log
from tmi.runtime.serving.results import CaseResult
from tmi.toolkit.cases.case import Case
from tmi.toolkit.cases.shard import Shard, shard_number
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.serialization import from_json

NAMED = 5
"""Cases or shards that an error message names."""
AGAIN = "predict this shard again with the options of the others; --engine names the engine"


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Results of all shards of a cohort."""

    results: Sequence[CaseResult]
    """Results in the order of the cohort."""
    bundle: str
    """SHA-256 of the bundle's manifest."""
    engine: EngineRecord
    """Engine of all shards; threads and reason are those of the first shard, and it counts as checked if it was checked
    on every machine."""
    batch: int
    """Number of cases computed together."""


def collect(cases: Sequence[Case], logs: Sequence[Path], *, check_files: bool = True) -> Collected:
    """Join result logs.

    Args:
        cases: all cases of the cohort.
        logs: one log for each shard.
        check_files: whether the cases' files are compared with the digests in the logs.

    Raises:
        UsageError: a shard is missing, is given twice, or differs in bundle, engine or options; a case has no result,
            is not in the cohort, or has changed.
        DamagedError: a log was edited.
    """
    twice = [path for path, count in Counter(logs).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]} is given twice", fix="give the log of each shard once")
    parts = {path: read_log(path) for path in logs}
    shards = {path: _shard(path, part) for path, part in parts.items()}
    first = next(iter(parts))
    _require_complete(shards)
    for path, part in parts.items():
        _require_same_prediction(path, part.header, first, parts[first].header)
        _require_own_cases(path, part, shards[path])
    owners = {case_id: path for path, part in parts.items() for case_id in part.results}
    _require_cohort(owners, cases, shards)
    if check_files:
        for case in cases:
            if parts[owners[case.case_id]].states[case.case_id] != case_state(case):
                raise UsageError(
                    f"the files of case {case.case_id} have changed since its prediction",
                    fix=f"predict its shard again with --force ({owners[case.case_id]})",
                )
    header, records = parts[first].header, [_engine(path, part.header) for path, part in parts.items()]
    unchecked = any(record.verified == "no" for record in records)
    engine = replace(
        records[0], reason=f"{len(parts)} shards; {records[0].reason}", verified="no" if unchecked else "before"
    )
    results = [parts[owners[case.case_id]].results[case.case_id] for case in cases]
    batch = header.get("batch")
    if not isinstance(batch, int):
        raise _header_error(first)
    return Collected(results=results, bundle=str(header.get("bundle")), engine=engine, batch=batch)


def _shard(path: Path, part: StoredLog) -> Shard:
    if "shard" not in part.header:
        raise UsageError(
            f"{path} is not the log of a shard: it holds a whole prediction", fix="give files of `tmi predict --shard`"
        )
    if part.header.get("schema") != SCHEMA or not isinstance(part.header["shard"], str):
        raise _header_error(path)
    return Shard.parse(part.header["shard"])


def _engine(path: Path, header: Mapping[str, Any]) -> EngineRecord:
    fields = header.get(MACHINE)
    if not isinstance(fields, dict):
        raise _header_error(path)
    try:
        return from_json(EngineRecord, fields, where="engine")
    except UsageError as error:
        raise _header_error(path) from error


def _header_error(path: Path) -> DamagedError:
    return DamagedError(f"result log {path}: line 1 is damaged or was edited", fix="predict this shard again")


def _require_complete(shards: Mapping[Path, Shard]) -> None:
    """Raise unless every shard of one division is there once."""
    owners: dict[Shard, Path] = {}
    first_path, first = next(iter(shards.items()))
    for path, shard in shards.items():
        if shard.count != first.count:
            raise UsageError(
                f"{path} is shard {shard}, but {first_path} is shard {first}", fix="give the shards of one division"
            )
        if shard in owners:
            raise UsageError(f"shard {shard} is given twice: {owners[shard]} and {path}", fix="give one of the two")
        owners[shard] = path
    missing = [str(s) for n in range(1, first.count + 1) if (s := Shard(number=n, count=first.count)) not in owners]
    if missing:
        raise UsageError(
            f"{len(missing)} of {first.count} shards are missing: {_names(missing)}",
            fix=f"predict them: tmi predict COHORT --shard {missing[0]} --resume -o FILE.jsonl",
        )


def _require_same_prediction(path: Path, header: Mapping[str, Any], first: Path, expected: Mapping[str, Any]) -> None:
    for name in sorted({*header, *expected} - {MACHINE, "shard"}):
        if header.get(name) != expected.get(name):
            raise UsageError(
                f"{path} has another {name} ({header.get(name)}, not {expected.get(name)} as in {first})", fix=AGAIN
            )


def _require_own_cases(path: Path, part: StoredLog, shard: Shard) -> None:
    foreign = [case_id for case_id in part.results if not shard.holds(case_id)]
    if foreign:
        raise DamagedError(
            f"{path} holds cases that are not in shard {shard}: {_names(foreign)}", fix="predict this shard again"
        )


def _require_cohort(owners: Mapping[str, Path], cases: Sequence[Case], shards: Mapping[Path, Shard]) -> None:
    """Raise unless the logs hold exactly the cases of the cohort."""
    case_ids = {case.case_id for case in cases}
    missing = [case.case_id for case in cases if case.case_id not in owners]
    if missing:
        count = next(iter(shards.values())).count
        unfinished = sorted({shard_number(case_id, count) for case_id in missing})
        raise UsageError(
            f"{len(missing)} of {len(cases)} cases have no result: {_names(missing)}",
            fix=f"continue with --resume: shard {_names([f'{number}/{count}' for number in unfinished])}",
        )
    unknown = [case_id for case_id in owners if case_id not in case_ids]
    if unknown:
        raise UsageError(
            f"{len(unknown)} results belong to no case of the cohort: {_names(unknown)} ({owners[unknown[0]]})",
            fix="give the cohort that was predicted",
        )


def _names(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
