"""Append-only log of results, one JSON line for each case, so that a killed prediction can be resumed.

    {"schema": "tmi-prediction-lines/3", "bundle": ..., "engine": ..., ...}      must be the same in every run
    {"status": "predicted", "case_id": "P001", ..., "files": "<digest>", "chain": "<digest>"}    one line for each case

Rejected cases have a line too. A line is written in one call and synced to the disk before the next one. An incomplete
last line, left by a kill, is cut off at the next start, and its case is computed again. `files` is a digest of size,
modification time, first and last bytes of the case's files. If the files of a case have changed, the log cannot be
resumed. The bytes that are read cover a whole record and a whole feature table; the end of a `.nii.gz` holds the
checksum of all voxels.

`chain` is the SHA-256 of the line without it and of the chain of the line before; the header is the first line. An
edited, removed or exchanged line breaks the chain, and the log cannot be resumed, so an edit is never published. The
chain detects edits, not a forger, who can compute it again.

The header of a shard's log has two more keys: `shard`, which part of the cohort it is, and `machine`, the engine of the
machine that started it. Another machine may resume it, so `machine` is the only key that need not be the same.

The log is locked while it is open, so that only one process writes it. The operating system releases the lock when the
process ends, so a kill leaves no stale lock. Without lock support (Windows, some network file systems) nothing is
locked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from tmi.runtime.serving.results import CaseResult, result_from_json, result_to_json
from tmi.toolkit.cases.case import CASE_RECORD_FILE, Case
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.bounded_files import JOURNAL_BYTES, NotRegularFileError, open_regular
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.file_lock import closed_on_error, open_locked
from tmi.toolkit.storage.hashing import sha256_json

SCHEMA = "tmi-prediction-lines/3"
OLD_SCHEMAS = ("tmi-prediction-lines/1", "tmi-prediction-lines/2")
"""Schemas of logs that can be resumed too; those of the first lack severity and fix of warnings and the
issues of rejections, those of both the trust."""
SUFFIX = ".jsonl"
"""Suffix of an output file that is itself a result log."""
START_OVER_FIX = "start again with --force, or name another output file"
MACHINE = "machine"
"""Key of a header that need not be the same in a run that resumes the log."""
READ_BYTES = 64 * 2**10
"""Bytes that are read at the beginning and at the end of a file to detect changes."""


def result_log_path(out: Path) -> Path:
    """Path of the result log of an output file: the file itself if it is a `.jsonl`, else a file beside it."""
    return out if out.suffix.lower() == SUFFIX else out.with_name(out.name + ".unfinished" + SUFFIX)


def case_state(case: Case) -> str:
    """Digest of size, modification time, first and last bytes of a case's files; unreadable files count as missing."""
    states: list[list[int | str] | None] = []
    for path in (case.ct, case.mask, case.radiomics, case.clinical, case.folder / CASE_RECORD_FILE):
        try:
            with open_regular(path) as stream:
                status = os.fstat(stream.fileno())
                digest = hashlib.sha256(stream.read(READ_BYTES))
                # The tail starts after the head at the earliest: a small file is read once.
                stream.seek(max(stream.tell(), status.st_size - READ_BYTES))
                digest.update(stream.read(READ_BYTES))
        except OSError:
            states.append(None)
        else:
            states.append([status.st_size, status.st_mtime_ns, digest.hexdigest()])
    return sha256_json(states)


@dataclass(frozen=True, kw_only=True)
class StoredLog:
    """Contents of a result log."""

    header: Mapping[str, Any]
    """First line, without its chain."""
    results: Mapping[str, CaseResult]
    """Case id -> result, in the order in which they were computed."""
    states: Mapping[str, Any]
    """Case id -> `case_state` of its files when it was read."""
    chain: str
    """Chain of the last line."""
    size: int
    """Bytes of the complete lines; what follows was cut by a kill."""


def read_log(path: Path) -> StoredLog:
    """Read a result log that nobody resumes.

    Raises:
        UsageError: it is no file, or not a result log.
        DamagedError: a line was edited, or the file is larger than `JOURNAL_BYTES`.
    """
    try:
        with open_regular(path) as stream:
            stored = _stored_log(path, stream, None)
    except OSError as error:
        raise UsageError(
            f"result log {path} cannot be read ({error.strerror or type(error).__name__})",
            fix="give a file of `tmi predict -o FILE.jsonl`",
        ) from error
    if stored is None:
        raise UsageError(f"result log {path} is empty", fix="predict its cases again with --resume")
    return stored


def _stored_log(path: Path, stream: BinaryIO, expected: Mapping[str, Any] | None) -> StoredLog | None:
    """Read all complete lines; None: there is none.

    Args:
        path: path of the file, for messages.
        stream: the file, at its start.
        expected: header that the log must have; None: any.
    """
    if os.fstat(stream.fileno()).st_size > JOURNAL_BYTES:
        raise DamagedError(f"unfinished prediction {path} is larger than {JOURNAL_BYTES >> 20} MiB", fix=START_OVER_FIX)
    data = stream.read()
    *lines, incomplete = data.split(b"\n")  # a complete line ends in a newline, so the rest is empty or torn
    if not lines:
        return None
    header = _parsed(path, lines[0], 1)
    chain = header.pop("chain", None)
    if expected is None:
        if header.get("schema") not in (SCHEMA, *OLD_SCHEMAS):
            raise UsageError(f"{path} is not a result log", fix="give a file of `tmi predict -o FILE.jsonl`")
    else:
        schema = header["schema"] if header.get("schema") in OLD_SCHEMAS else SCHEMA
        _require_same(path, header, {"schema": schema, **expected})
    if chain != _next_chain(header, ""):  # written before logs had a chain, or edited
        raise _damaged(path, 1)
    results: dict[str, CaseResult] = {}
    states: dict[str, Any] = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = _parsed(path, line, number)
        chained, chain = fields.pop("chain", None), _next_chain(fields, chain)
        if chained != chain:
            raise _damaged(path, number)
        state = fields.pop("files", None)
        try:
            result = result_from_json(fields)
        except UsageError as error:
            raise _damaged(path, number) from error
        if result.case_id in results:
            raise _damaged(path, number)
        results[result.case_id], states[result.case_id] = result, state
    return StoredLog(header=header, results=results, states=states, chain=chain, size=len(data) - len(incomplete))


class ResultLog:
    """An open result log. Use it as a context manager.

    Args:
        stream: the locked file, positioned at its end.
        results: case id -> result of an earlier run.
        states: case id -> `case_state` of every requested case.
        chain: chain of the last line.
    """

    def __init__(
        self, stream: BinaryIO, results: Mapping[str, CaseResult], states: Mapping[str, str], *, chain: str
    ) -> None:
        self._chain = chain
        self._stream = stream
        self._states = states
        self.results = dict(results)
        """Case id -> result; those of earlier runs come first."""

    @classmethod
    def begin(cls, path: Path, identity: Mapping[str, Any], cases: Sequence[Case]) -> Self:
        """Start a new log; an existing one is replaced.

        Args:
            path: the file.
            identity: plain JSON values that must be the same in every run that resumes the log, but `machine`.
            cases: all cases that will be predicted.

        Raises:
            UsageError: another process has the log open.
        """
        stream = _open(path)
        with closed_on_error(stream):
            return cls._begin(stream, path, identity, cases)

    @classmethod
    def _begin(cls, stream: BinaryIO, path: Path, identity: Mapping[str, Any], cases: Sequence[Case]) -> Self:
        stream.seek(0)
        stream.truncate()
        chain = _write(stream, {"schema": SCHEMA, **identity}, "")
        # Without this a crash may lose the directory entry of a file whose contents are on the disk.
        _sync_folder(path.parent)
        return cls(stream, {}, {case.case_id: case_state(case) for case in cases}, chain=chain)

    @classmethod
    def resume(cls, path: Path, identity: Mapping[str, Any], cases: Sequence[Case]) -> Self:
        """Resume a log; if none exists, start one.

        Args:
            path: the file.
            identity: as in `begin`.
            cases: as in `begin`.

        Raises:
            UsageError: the log was written with another bundle, engine, option or set of cases, the files of a case
                have changed, or another process has it open.
            DamagedError: a line other than the last is not a result.
        """
        stream = _open(path)
        with closed_on_error(stream):
            return cls._resume(stream, path, identity, cases)

    @classmethod
    def _resume(cls, stream: BinaryIO, path: Path, identity: Mapping[str, Any], cases: Sequence[Case]) -> Self:
        stored = _stored_log(path, stream, identity)
        if stored is None:
            return cls._begin(stream, path, identity, cases)  # killed while the first line was written
        states = {case.case_id: case_state(case) for case in cases}
        for case_id, state in stored.states.items():
            _require_case(path, case_id, state, states)
        stream.truncate(stored.size)
        stream.seek(0, os.SEEK_END)
        return cls(stream, stored.results, states, chain=stored.chain)

    def append(self, result: CaseResult) -> None:
        """Write one result; it is on the disk when this returns."""
        fields = {**result_to_json(result), "files": self._states[result.case_id]}
        self._chain = _write(self._stream, fields, self._chain)
        self.results[result.case_id] = result

    def close(self) -> None:
        """Close the file, which releases its lock; may be called twice."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path) -> BinaryIO:
    """Open and lock a log.

    Raises:
        UsageError: another process has it open, or it is no regular file.
    """
    try:
        return open_locked(
            path,
            busy=lambda: UsageError(
                f"unfinished prediction {path} is being written by another tmi predict",
                fix="wait until it ends, or name another output file",
            ),
        )
    except NotRegularFileError as error:
        raise UsageError(f"unfinished prediction {path}: {error.strerror}", fix="name another output file") from error


def _next_chain(fields: Mapping[str, Any], chain: str) -> str:
    """Chain of a line with these fields after a line with `chain`."""
    return sha256_json([chain, fields])


def _write(stream: BinaryIO, fields: Mapping[str, Any], chain: str) -> str:
    """Write a line after a line with `chain`; returns the chain of the new line."""
    fields = json.loads(json.dumps(fields, allow_nan=False))  # as a reader parses it
    following = _next_chain(fields, chain)
    stream.write(json.dumps({**fields, "chain": following}, allow_nan=False).encode() + b"\n")
    stream.flush()
    os.fsync(stream.fileno())
    return following


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk, on systems that support it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _parsed(path: Path, line: bytes, number: int) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except DocumentError as error:
        raise _damaged(path, number) from error
    if not isinstance(value, dict):
        raise _damaged(path, number)
    return value


def _damaged(path: Path, number: int) -> DamagedError:
    return DamagedError(f"unfinished prediction {path}: line {number} is damaged or was edited", fix=START_OVER_FIX)


def _require_same(path: Path, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in sorted({*stored, *expected} - {MACHINE}):
        if stored.get(name) != expected.get(name):
            raise UsageError(
                f"unfinished prediction {path} has another {name} ({stored.get(name)}, not {expected.get(name)})",
                fix=f"use the {name} it was started with, {START_OVER_FIX}",
            )


def _require_case(path: Path, case_id: str, state: object, states: Mapping[str, str]) -> None:
    if case_id not in states:
        raise UsageError(
            f"unfinished prediction {path} holds case {case_id}, which was not requested",
            fix=f"give the cases it was started with, {START_OVER_FIX}",
        )
    if states[case_id] != state:
        raise UsageError(
            f"unfinished prediction {path}: the files of case {case_id} have changed since its prediction",
            fix=START_OVER_FIX,
        )
