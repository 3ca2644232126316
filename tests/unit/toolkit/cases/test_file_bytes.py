"""Case of file bytes: the result of its folder, with no file on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories.cases import write_case
from tmi.toolkit.cases.case import open_case
from tmi.toolkit.cases.file_bytes import CaseBytes
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case
from tmi.toolkit.qc.case_checks import check_case


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_case(tmp_path / "P1", seed=1)


def in_memory(folder: Path, **changed: bytes | None) -> CaseBytes:
    """The files of a folder; `ct=b""` replaces the CT, `ct=None` removes it."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for stem, data in changed.items():
        (name,) = [name for name in files if name.startswith(f"{stem}.")]
        files.pop(name)
        files |= {} if data is None else {name: data}
    return CaseBytes(case_id=folder.name, files=files)


def values(prepared: PreparedCase) -> tuple[object, ...]:
    return prepared.ct_1DHW.tobytes(), prepared.radiomics_F.tobytes(), prepared.text, prepared.warnings


@pytest.mark.parametrize("without", [{}, {"liver": None}, {"radiomics": None}])
def test_bytes_give_the_arrays_of_their_folder(without, folder, micro_config):
    """Arrays, text, warnings and findings equal those of the folder to the last bit, with every set of files."""
    case, schema = in_memory(folder, **without), load_schema()
    for path in folder.iterdir():
        if path.name not in case.files:
            path.unlink()
    assert values(prepare_case(case, micro_config, schema)) == values(
        prepare_case(open_case(folder), micro_config, schema)
    )
    assert check_case(case) == check_case(open_case(folder))


@pytest.mark.parametrize(
    "changed",
    [
        {"ct": None},
        {"ct": b""},
        {"ct": b"no image"},
        {"ct": b"%PDF-1.7 a scan"},
        {"liver": b"PK\x03\x04 a zip"},
        {"radiomics": b"PK\x03\x04 a workbook"},
        {"radiomics": b"one,two\n1,2\n"},
        {"clinical": None},
        {"clinical": b"{}"},
        {"radiomics": None, "liver": None},
    ],
    ids=str,
)
def test_bytes_are_rejected_like_their_files(changed, folder, micro_config):
    """A missing or bad file gives the same error, code and fix as in a folder."""
    case = in_memory(folder, **changed)
    for path in folder.iterdir():
        path.unlink()
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    errors = []
    for given in (case, open_case(folder)):
        with pytest.raises(InputRejectedError) as caught:
            prepare_case(given, micro_config, load_schema())
        errors.append(caught.value.issues)
    assert errors[0] == errors[1]


def test_malformed_case_record_is_rejected(folder, micro_config):
    """`case.json` of a case of bytes is read like that of a folder."""
    case = in_memory(folder)
    bad = CaseBytes(case_id="P1", files={**case.files, "case.json": b"[]"})
    with pytest.raises(InputRejectedError, match="does not follow the schema") as caught:
        prepare_case(bad, micro_config, load_schema())
    assert caught.value.code == "case-record"


def test_nothing_is_written(folder, micro_config, tmp_path, monkeypatch):
    """Features that are extracted from the mask of a case of bytes are not cached on the disk."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    prepare_case(in_memory(folder, radiomics=None), micro_config, load_schema())
    assert not list(tmp_path.glob("cache/radiomics*/*"))
    (folder / "radiomics.csv").unlink()
    prepare_case(open_case(folder), micro_config, load_schema())
    assert list(tmp_path.glob("cache/radiomics*/*")), "a folder's are cached, so the assertion above can fail"
