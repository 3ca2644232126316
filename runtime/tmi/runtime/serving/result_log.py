"""Answers in a file as they are ready, one JSON line each, so that a kill loses none and `--resume` goes on.

    {"schema": "tmi-prediction-lines/1", "bundle": ..., "engine": ..., ...}      what must not change between runs
    {"status": "predicted", "case_id": "P001", ..., "files": "<digest>"}         one line a case, refused ones included

A line is written in one call and synced to the disk before the next case is begun. A last line that a kill tore is cut
off at the next start and its case computed again. `files` is a digest of size, time of change, begin and end of the
case's files: a case whose files changed since is no longer what was answered, and then nothing is continued. A record
and a feature table are shorter than what is read of them; of a `.nii.gz` the end holds the checksum of all voxels.

One process at a time: the journal is locked while it is open. The system gives the lock up with the process, however it
ends, so that a kill leaves nothing to clear away. Where it has no such locks (Windows, some network file systems)
nothing is locked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from tmi.runtime.serving.file_lock import closed_on_error, open_locked
from tmi.runtime.serving.results import CaseResult, result_from_json, result_to_json
from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.hashing import sha256_json

SCHEMA = "tmi-prediction-lines/1"
SUFFIX = ".jsonl"
"""Ending of an output file that is itself such a journal."""
START_OVER_FIX = "begin anew with --force, or name another output file"
READ_BYTES = 64 * 2**10
"""What is read of a file, at its begin and at its end, to see whether it has changed."""


def result_log_path(out: Path) -> Path:
    """Where the answers of an output file stand until they are all there: beside it, or in it."""
    return out if out.suffix == SUFFIX else out.with_name(out.name + ".unfinished" + SUFFIX)


def case_state(case: Case) -> str:
    """Digest of size, time of change, begin and end of a case's files; those that cannot be read count as absent."""
    states: list[list[int | str] | None] = []
    for path in (case.ct, case.mask, case.radiomics, case.clinical):
        try:
            with path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                read = hashlib.sha256(stream.read(READ_BYTES))
                stream.seek(max(stream.tell(), status.st_size - READ_BYTES))
                read.update(stream.read(READ_BYTES))
        except OSError:
            states.append(None)
        else:
            states.append([status.st_size, status.st_mtime_ns, read.hexdigest()])
    return sha256_json(states)


class ResultLog:
    """An open journal. Use as a context manager; `answers` are those that stood there already."""

    def __init__(self, stream: BinaryIO, answers: Mapping[str, CaseResult], states: Mapping[str, str]) -> None:
        self._stream = stream
        self._states = states
        self.results = dict(answers)
        """Case id -> its answer, those of earlier runs first."""

    @classmethod
    def begin(cls, path: Path, identity: Mapping[str, Any], cases: Sequence[Case]) -> Self:
        """A new journal; one that stands there is replaced.

        Args:
            path: the file.
            identity: what must be the same in every run that goes on with it; plain JSON values.
            cases: all that will be answered.

        Raises:
            UsageError: another process has it open.
        """
        stream = open_locked(path)
        with closed_on_error(stream):
            return cls._begin(stream, path, identity, cases)

    @classmethod
    def _begin(cls, stream: BinaryIO, path: Path, identity: Mapping[str, Any], cases: Sequence[Case]) -> Self:
        stream.seek(0)
        stream.truncate()
        _write(stream, {"schema": SCHEMA, **identity})
        _sync_folder(path.parent)
        return cls(stream, {}, {case.case_id: case_state(case) for case in cases})

    @classmethod
    def resume(cls, path: Path, identity: Mapping[str, Any], cases: Sequence[Case]) -> Self:
        """Go on with a journal; where none stands there, begin one.

        Raises:
            UsageError: it is of another bundle, engine, option or set of cases, or of files that
                have changed since; or another process has it open.
            DamagedError: a line other than the last is no answer.
        """
        stream = open_locked(path)
        with closed_on_error(stream):
            return cls._resume(stream, path, identity, cases)

    @classmethod
    def _resume(cls, stream: BinaryIO, path: Path, identity: Mapping[str, Any], cases: Sequence[Case]) -> Self:
        data = stream.read()
        *lines, torn = data.split(b"\n")
        if not lines:
            return cls._begin(stream, path, identity, cases)  # killed before its first line was whole
        _require_same(path, _parsed(path, lines[0], 1), {"schema": SCHEMA, **identity})
        states = {case.case_id: case_state(case) for case in cases}
        answers: dict[str, CaseResult] = {}
        for number, line in enumerate(lines[1:], start=2):
            fields = _parsed(path, line, number)
            state = fields.pop("files", None)
            try:
                answer = result_from_json(fields)
            except UsageError as error:
                raise _damaged(path, number) from error
            if answer.case_id in answers:
                raise _damaged(path, number)
            _require_case(path, answer.case_id, state, states)
            answers[answer.case_id] = answer
        stream.truncate(len(data) - len(torn))
        stream.seek(0, os.SEEK_END)
        return cls(stream, answers, states)

    def append(self, answer: CaseResult) -> None:
        """Write one answer; it is on the disk when this returns."""
        _write(self._stream, {**result_to_json(answer), "files": self._states[answer.case_id]})
        self.results[answer.case_id] = answer

    def close(self) -> None:
        """Close the file, which gives up its lock; may be called twice."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _write(stream: BinaryIO, value: Mapping[str, Any]) -> None:
    stream.write(json.dumps(value, allow_nan=False).encode() + b"\n")
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a new file's name as lasting as its lines, where the system lets a folder be synced."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _parsed(path: Path, line: bytes, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise _damaged(path, number) from error
    if not isinstance(value, dict):
        raise _damaged(path, number)
    return value


def _damaged(path: Path, number: int) -> DamagedError:
    return DamagedError(f"unfinished prediction {path}: line {number} is damaged", fix=START_OVER_FIX)


def _require_same(path: Path, have: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    for name in sorted({*have, *want}):
        if have.get(name) != want.get(name):
            raise UsageError(
                f"unfinished prediction {path} is of another {name} ({have.get(name)}, not {want.get(name)})",
                fix=f"give what it was begun with, {START_OVER_FIX}",
            )


def _require_case(path: Path, case_id: str, state: object, states: Mapping[str, str]) -> None:
    if case_id not in states:
        raise UsageError(
            f"unfinished prediction {path} answers case {case_id}, which is not asked for",
            fix=f"give the cases it was begun with, {START_OVER_FIX}",
        )
    if states[case_id] != state:
        raise UsageError(
            f"unfinished prediction {path}: the files of case {case_id} have changed since it was answered",
            fix=START_OVER_FIX,
        )
