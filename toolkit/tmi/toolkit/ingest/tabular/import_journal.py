"""Journal of the import of a table: the rows that are finished, for `--resume`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tmi.toolkit.cases.case import is_portable_name
from tmi.toolkit.errors import UsageError
from tmi.toolkit.issues.codes import Severity
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.atomic_files import write_text
from tmi.toolkit.storage.bounded_files import JOURNAL_BYTES, read_bytes
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.serialization import from_json, to_json

JOURNAL_FILE = ".import-journal"
OLD_FIX = "see the table of codes (docs/checks.md)"
"""Fix of an issue of an earlier version, which had none."""
MAX_TORN_LINES = 1000
"""Lines of a journal that may be incomplete; each kill leaves one."""


@dataclass(frozen=True, kw_only=True)
class JournalEntry:
    """Journal entry of one finished row."""

    key: str
    """Digest of the row's inputs."""
    case_id: str
    """Case id."""
    flaw: tuple[str, str] | None = None
    """Written by earlier versions."""
    findings: tuple[tuple[str, Severity, str], ...] = ()
    """Written by earlier versions instead of `issues`: code, severity and message."""
    refusal: tuple[str, str] | None = None
    """Written by earlier versions instead of `rejection`: code and message."""
    issues: tuple[Issue, ...] = ()
    """Findings of the import of the images."""
    rejection: tuple[Issue, ...] = ()
    """Reasons why the row's images were rejected; none: they were not."""

    def current(self) -> JournalEntry:
        """Return the entry with the fields that this version writes."""
        old = [(code, severity, message) for code, severity, message in self.findings]
        issues = self.issues or tuple(_old_issue(*finding, self.case_id) for finding in old)
        rejection = self.rejection
        if self.refusal is not None:
            rejection = (_old_issue(self.refusal[0], "error", self.refusal[1], self.case_id),)
        return JournalEntry(key=self.key, case_id=self.case_id, issues=issues, rejection=rejection)


def _old_issue(code: str, severity: Severity, message: str, case_id: str) -> Issue:
    """Return an issue of an earlier version, which had no fix."""
    return Issue(code=code, severity=severity, message=message, fix=OLD_FIX, case_id=case_id)


class Journal:
    """Append-only log of finished cases: one JSON line per case, synced to disk after the case is written."""

    def __init__(self, out: Path) -> None:
        self._path = out / JOURNAL_FILE
        self.entries: dict[str, JournalEntry] = {}
        if self._path.exists():
            torn = 0
            for line in _journal_lines(self._path):
                try:
                    entry = from_json(JournalEntry, parse_json(line), where=JOURNAL_FILE).current()
                except (DocumentError, UsageError):
                    torn += bool(line.strip())  # a line truncated by a kill: its row is imported again
                    if torn > MAX_TORN_LINES:
                        raise _damaged_journal(self._path, "most of its lines are no entries") from None
                    continue
                # Entries are deleted as folders, so an edited journal must not name a path outside.
                if is_portable_name(entry.case_id):
                    self.entries[entry.case_id] = entry
        self._path.touch()

    def add(self, entry: JournalEntry) -> None:
        """Append an entry and sync it to disk."""
        self.entries[entry.case_id] = entry
        with self._path.open("a", encoding="utf-8") as stream:
            # The newline comes first: it terminates a line that a kill truncated.
            stream.write("\n" + json.dumps(to_json(entry)))
            stream.flush()
            os.fsync(stream.fileno())

    def retain_only(self, case_ids: set[str]) -> list[str]:
        """Drop all entries except those of `case_ids`; return the case ids that were dropped."""
        dropped = [c for c in self.entries if c not in case_ids]
        self.entries = {c: entry for c, entry in self.entries.items() if c in case_ids}
        write_text(self._path, "".join(json.dumps(to_json(entry)) + "\n" for entry in self.entries.values()))
        return dropped


def _journal_lines(path: Path) -> list[bytes]:
    try:
        return read_bytes(path, max_bytes=JOURNAL_BYTES).splitlines()
    except OSError as error:
        raise _damaged_journal(path, error.strerror or type(error).__name__) from error


def _damaged_journal(path: Path, reason: str) -> UsageError:
    return UsageError(f"the journal {path} of an earlier import cannot be read: {reason}", fix="remove this file")
