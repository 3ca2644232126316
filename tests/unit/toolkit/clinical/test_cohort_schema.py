"""The clinical schema that a cohort keeps, and which schema a command uses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.clinical.schema import SCHEMA_FILE, find_schema, load_schema, store_schema
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.ingest.case_importer import import_case
from tmi.toolkit.qc.case_checks import check_cases

OWN = Path(__file__).parents[4] / "docs" / "examples" / "pbc-schema.json"


@pytest.fixture
def cohort(tmp_path) -> Path:
    """A cohort with a schema of its own and one case that has a field of it."""
    folder = tmp_path / "cohort"
    (folder / "P1").mkdir(parents=True)
    store_schema(folder, load_schema(OWN))
    (folder / "P1" / "clinical.json").write_text(json.dumps({"values": {"copper": 50, "albumin": 40}}))
    return folder


def test_schema_of_a_cohort_is_used(cohort, tmp_path):
    """The cohort, each of its cases, and a link to one are read with the schema that the cohort keeps."""
    (tmp_path / "link").symlink_to(cohort / "P1")
    for path in (cohort, cohort / "P1", tmp_path / "link"):
        schema, note = find_schema(None, None, [path])
        assert (schema.digest, note) == (load_schema(OWN).digest, None)


@pytest.mark.parametrize("path", [".", "../P1", "./"])
def test_schema_is_found_from_inside_the_case(cohort, monkeypatch, path):
    """A path without a name still lies in its cohort."""
    monkeypatch.chdir(cohort / "P1")
    assert find_schema(None, None, [Path(path)])[0].name == load_schema(OWN).name


def test_order_of_the_schemas(cohort, tmp_path):
    """--schema comes first, then the cohort's, then tmi.toml's with a note, then the packaged one."""
    other = tmp_path / "other.json"
    other.write_text('{"schema": "tmi-clinical-schema/1", "extends": "liver", "name": "other", "version": "1"}')
    assert find_schema(other, None, [cohort])[0].name == "other"
    schema, note = find_schema(None, other, [cohort])
    assert schema.name == load_schema(OWN).name
    assert "not that of tmi.toml" in str(note)
    assert find_schema(None, other, [tmp_path / "P9"])[0].name == "other"
    assert find_schema(None, None, [tmp_path / "P9"]) == (load_schema(), None)


def test_two_cohorts_of_different_schemas(cohort, tmp_path):
    """Cases of two schemas are not checked with one of them."""
    (tmp_path / "second").mkdir()
    store_schema(tmp_path / "second", load_schema())
    with pytest.raises(UsageError, match="different clinical schemas"):
        find_schema(None, None, [cohort, tmp_path / "second"])
    assert find_schema(None, None, [cohort, cohort / "P1"])[0].name == load_schema(OWN).name


@pytest.mark.parametrize(("content", "message"), [("{", "is not JSON"), (None, "not a regular file")])
def test_unusable_schema_is_not_left_out(cohort, content, message):
    """A damaged schema, or a pipe in its place, is an error, not the packaged schema."""
    (cohort / SCHEMA_FILE).unlink()
    if content is None:
        os.mkfifo(cohort / SCHEMA_FILE)
    else:
        (cohort / SCHEMA_FILE).write_text(content)
    with pytest.raises(UsageError, match=SCHEMA_FILE) as caught:
        find_schema(None, None, [cohort / "P1"])
    assert message in caught.value.what or "pipe" in caught.value.what


def test_schema_without_permission_is_not_faulty_json(cohort, monkeypatch):
    """A file that cannot be opened is named as such."""

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tmi.toolkit.clinical.schema.read_document", deny)
    with pytest.raises(UsageError, match=r"cannot be opened \(Permission denied\)"):
        load_schema(cohort / SCHEMA_FILE)


def test_case_that_joins_a_cohort_is_checked_with_its_schema(cohort, tmp_path):
    """A record with a field of the cohort's schema has no unknown field."""
    record = cohort / "P1" / "clinical.json"
    schema, _ = find_schema(None, None, [cohort / "P2"])
    codes = {f.code for f in import_case(cohort / "P2", ct=None, clinical=record, schema=schema).findings}
    assert "clinical-unknown-field" not in codes
    assert "clinical-unknown-field" in {f.code for f in import_case(tmp_path / "P3", ct=None, clinical=record).findings}


def test_case_folder_without_permission_is_not_missing(tmp_path, monkeypatch):
    """A folder inside one that cannot be entered is case-unreadable; a path that leads to nothing is case-missing."""
    path = tmp_path / "closed" / "P1"
    with pytest.raises(InputRejectedError) as caught:
        open_case(path)
    assert caught.value.code == "case-missing"

    def deny(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", deny)
    with pytest.raises(InputRejectedError) as caught:
        open_case(path)
    assert caught.value.code == "case-unreadable"
    (finding,) = check_cases([Case(folder=path, case_id="P1")], records_only=True)
    assert finding.code == "case-unreadable"
