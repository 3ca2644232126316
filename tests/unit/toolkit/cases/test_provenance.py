"""Provenance record of a case: what is read, and what `tmi check` and the preparation of a case reject alike."""

from __future__ import annotations

import os

import pytest

from factories.cases import write_case
from tmi.toolkit.cases.case import Case
from tmi.toolkit.cases.provenance import CaseRecord, read_case_record, write_case_record
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.qc.case_checks import check_case
from tmi.toolkit.storage.bounded_files import RECORD_BYTES

MALFORMED = {
    "no JSON": b"{",
    "no object": b"[]",
    "another schema": b'{"schema": "tmi-case/9"}',
    "an unknown key": b'{"schema": "tmi-case/1", "x": 1}',
    "deep nesting": b"[" * 100_000,
    "500 brackets": b'{"source": {"a": ' + b"[" * 500 + b"]" * 500 + b"}}",
    "4,000 digits": b'{"days_from_blood_to_ct": ' + b"9" * 4000 + b"}",
    "an infinite number": b'{"source": {"a": 1e400}}',
    "half a surrogate pair": b'{"schema": "\\ud800"}',
    "not UTF-8": b"\xff",
    "a large file": b" " * (RECORD_BYTES + 1),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    return Case(folder=write_case(tmp_path_factory.mktemp("case") / "P1", seed=1), case_id="P1")


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_record_is_rejected(tmp_path, content):
    """A malformed record is rejected with `case-record`; a missing one is None."""
    assert read_case_record(tmp_path, case_id="P1") is None
    (tmp_path / "case.json").write_bytes(content)
    with pytest.raises(InputRejectedError) as error:
        read_case_record(tmp_path, case_id="P1")
    assert (error.value.code, error.value.case_id) == ("case-record", "P1")


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda p: os.symlink("nowhere", p)], ids=["folder", "pipe", "link"]
)
def test_record_that_is_no_file_is_rejected(tmp_path, make):
    """A folder, a pipe or a dangling link in the record's place is rejected, and nothing waits for it."""
    make(tmp_path / "case.json")
    with pytest.raises(InputRejectedError, match=r"case\.json does not follow the schema"):
        read_case_record(tmp_path, case_id="P1")


def test_malformed_record_is_rejected_by_check_and_preparation(case):
    """What `tmi check` reports as an error, the preparation of every prediction and training rejects too."""
    record = case.folder / "case.json"
    record.write_text('{"schema": 1}')
    assert [(f.code, f.severity) for f in check_case(case) if f.code == "case-record"] == [("case-record", "error")]
    with pytest.raises(InputRejectedError) as error:
        prepare_case(case, tiny(), load_schema())
    assert error.value.code == "case-record"
    record.unlink()
    write_case_record(case.folder, CaseRecord(days_from_blood_to_ct=3))
    assert prepare_case(case, tiny(), load_schema()).case_id == "P1"
