"""Cases and cohorts: which files, under which names, and which tables are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmi.toolkit.cases.case import Case, find_cases, is_cohort, open_case, open_cohort
from tmi.toolkit.errors import InputRejectedError, UsageError

HEADER = "case_id,patient_id,label\n"


def cohort(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cohort.csv").write_text(text, encoding="utf-8")
    return folder


def test_a_case_knows_its_files_by_their_documented_names(tmp_path):
    case = Case(folder=tmp_path / "P1", case_id="P1")
    names = [p.relative_to(tmp_path / "P1").as_posix() for p in (case.ct, case.mask, case.radiomics, case.clinical)]
    assert names == ["ct.nii.gz", "liver.nii.gz", "radiomics.csv", "clinical.json"]


def test_the_folders_name_is_the_case_id_however_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "P1").mkdir()
    monkeypatch.chdir(tmp_path / "P1")
    assert open_case(tmp_path / "P1" / "").case_id == "P1"
    assert open_case(Path(".")).case_id == "P1"
    assert open_case(Path("."), mask_label=5).mask_label == 5


def test_a_case_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(InputRejectedError, match="case P9: the case folder is not there") as error:
        open_case(tmp_path / "P9")
    assert error.value.code == "case-missing"


def test_a_cohort_gives_its_cases_in_the_order_of_the_table(tmp_path):
    folder = cohort(tmp_path, HEADER + "B,p2,bad\nA,p1,good\n")
    assert is_cohort(folder)
    assert open_cohort(folder, mask_label=5).cases == (
        Case(folder=folder / "B", case_id="B", patient_id="p2", label=1, mask_label=5),
        Case(folder=folder / "A", case_id="A", patient_id="p1", label=0, mask_label=5),
    )


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEADER + "A,p1,good\n",
        "label,extra,case_id,patient_id\ngood,x,A,p1\n",
        HEADER.replace("\n", "\r\n") + "A , p1, good\r\n\r\n",
    ],
    ids=["byte order mark", "other order and a further column", "Windows lines and spaces"],
)
def test_tables_as_spreadsheets_write_them_are_read(tmp_path, text):
    (case,) = open_cohort(cohort(tmp_path, text)).cases
    assert (case.case_id, case.patient_id, case.label) == ("A", "p1", 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("case_id,label\nA,good\n", "column 'patient_id' is missing"),
        ("", "column 'case_id' is missing"),
        (HEADER, "lists no case"),
        (HEADER + "A,p1,good\nA,p2,bad\n", "line 3: case A is listed twice"),
        (HEADER + "A,p1,dead\n", "line 2: label 'dead'"),
        (HEADER + "A,p1,Bad\n", "line 2: label 'Bad'"),
        (HEADER + "A,p1\n", "line 2: label ''"),
        (HEADER + ",p1,good\n", "line 2: case_id or patient_id is empty or no plain name"),
        (HEADER + "A,,good\n", "line 2: case_id or patient_id is empty or no plain name"),
        (HEADER + "../A,p1,good\n", "no plain name"),
        (HEADER + "..,p1,good\n", "no plain name"),
        (HEADER + ".,p1,good\n", "no plain name"),
        (HEADER + "C:\\A,p1,good\n", "no plain name"),
        (HEADER + "A\x00B,p1,good\n", "no plain name"),
        (HEADER + "A\x1b[2J,p1,good\n", "no plain name"),
        (HEADER + "A,p1\x1b[2J,good\n", "no plain name"),
    ],
)
def test_a_malformed_table_is_refused_with_its_line(tmp_path, text, told):
    with pytest.raises(UsageError) as error:
        open_cohort(cohort(tmp_path, text))
    assert told in str(error.value)
    assert error.value.fix


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "cohort.csv").write_bytes(HEADER.encode() + "A,pä,good".encode("latin-1"))
    with pytest.raises(UsageError, match="cannot be read as CSV in UTF-8"):
        open_cohort(tmp_path)


def test_a_folder_without_a_table_is_no_cohort(tmp_path):
    assert not is_cohort(tmp_path)
    with pytest.raises(UsageError, match=r"is no cohort: cohort\.csv is missing") as error:
        open_cohort(tmp_path)
    assert "tmi synth" in error.value.fix


def test_cases_and_cohorts_may_be_mixed_and_keep_their_order(tmp_path):
    folder = cohort(tmp_path / "c", HEADER + "B,p2,bad\nA,p1,good\n")
    found = find_cases([tmp_path / "Z", folder, tmp_path / "Y"], mask_label=3)
    assert [c.case_id for c in found] == ["Z", "B", "A", "Y"]
    assert [c.label for c in found] == [None, 1, 0, None]
    assert {c.mask_label for c in found} == {3}


def test_two_cases_of_one_name_or_none_at_all_are_refused(tmp_path):
    folder = cohort(tmp_path / "c", HEADER + "A,p1,good\n")
    with pytest.raises(UsageError, match="case id A is given twice"):
        find_cases([folder, tmp_path / "A"])
    with pytest.raises(UsageError, match="no case given"):
        find_cases([])


def test_a_folder_of_cases_without_a_table_stands_for_every_folder_in_it(tmp_path):
    for name in ("B", "A", "empty", ".A-unfinished"):
        (tmp_path / "all" / name).mkdir(parents=True)
    for name in ("B", "A", ".A-unfinished"):
        (tmp_path / "all" / name / "clinical.json").write_text("{}")
    (tmp_path / "all" / "import-report.json").write_text("{}")
    found = find_cases([tmp_path / "all"], mask_label=3)
    assert [c.case_id for c in found] == ["A", "B", "empty"], "what is no case is refused as one, not passed over"
    assert {c.mask_label for c in found} == {3}
    (tmp_path / "all" / "ct.nii.gz").touch()
    assert [c.case_id for c in find_cases([tmp_path / "all"])] == ["all"], "a case is never taken for a folder of cases"


def test_a_path_that_cannot_be_looked_at_is_a_case_that_is_refused_when_it_is_read(tmp_path):
    (tmp_path / "good").mkdir()
    found = find_cases([tmp_path / ("x" * 300), tmp_path / "good"])
    assert [c.case_id for c in found] == ["x" * 300, "good"]
