"""Journal of an import: entries of this and of earlier versions are read."""

from __future__ import annotations

import json

from tmi.toolkit.ingest.tabular.import_journal import JOURNAL_FILE, Journal, JournalEntry
from tmi.toolkit.issues.issue import Issue


def test_entries_are_read_as_they_were_written(tmp_path):
    """Findings and reasons of a rejection survive as issues, with their fix."""
    edge = Issue.of("mask-edge", "the mask touches a face", "give a CT of the whole liver", case_id="A")
    grid = Issue.of("mask-grid", "another grid", "resample it", case_id="B")
    entries = [
        JournalEntry(key="a", case_id="A", issues=(edge,)), JournalEntry(key="b", case_id="B", rejection=(grid,)),
    ]  # fmt: skip
    journal = Journal(tmp_path)
    for entry in entries:
        journal.add(entry)
    assert Journal(tmp_path).entries == {"A": entries[0], "B": entries[1]}


def test_entries_of_earlier_versions_are_read(tmp_path):
    """Triples of an earlier version become issues of the same code and severity."""
    old = [
        {"key": "a", "case_id": "A", "findings": [["mask-edge", "warning", "the mask touches a face"]]},
        {"key": "b", "case_id": "B", "flaw": None, "findings": [], "refusal": ["mask-grid", "another grid"]},
        {"key": "c", "case_id": "C", "flaw": ["mask-flipped", "mirrored"]},
    ]
    (tmp_path / JOURNAL_FILE).write_text("".join(f"{json.dumps(line)}\n" for line in old))
    read = Journal(tmp_path).entries
    (edge,), (grid,) = read["A"].issues, read["B"].rejection
    assert (edge.code, edge.severity, edge.message) == ("mask-edge", "warning", "the mask touches a face")
    assert (grid.code, grid.severity, grid.case_id) == ("mask-grid", "error", "B")
    assert edge.fix
    assert read["C"] == JournalEntry(key="c", case_id="C")
