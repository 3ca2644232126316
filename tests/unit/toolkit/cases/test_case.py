"""Case and cohort formats: file names, cohort tables, and expansion of paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmi.toolkit.cases.case import SYSTEM_ENTRIES, Case, find_cases, is_cohort, open_case, open_cohort
from tmi.toolkit.errors import InputRejectedError, UsageError

HEADER = "case_id,patient_id,label\n"


def cohort(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cohort.csv").write_text(text, encoding="utf-8")
    return folder


def test_case_has_documented_file_names(tmp_path):
    """The paths of a case have the documented file names."""
    case = Case(folder=tmp_path / "P1", case_id="P1")
    names = [p.relative_to(tmp_path / "P1").as_posix() for p in (case.ct, case.mask, case.radiomics, case.clinical)]
    assert names == ["ct.nii.gz", "liver.nii.gz", "radiomics.csv", "clinical.json"]


def test_folder_name_is_the_case_id(tmp_path, monkeypatch):
    """The case id is the folder name, for relative paths and trailing slashes too."""
    (tmp_path / "P1").mkdir()
    monkeypatch.chdir(tmp_path / "P1")
    assert open_case(tmp_path / "P1" / "").case_id == "P1"
    assert open_case(Path(".")).case_id == "P1"
    assert open_case(Path("."), mask_label=5).mask_label == 5


def test_linked_case_has_the_name_of_the_link(tmp_path, monkeypatch):
    """The given name is the id: a link's target, the working folder's included, appears nowhere."""
    real = tmp_path / "archive" / "Real_Name_1950"
    (real / "more").mkdir(parents=True)
    (real / "clinical.json").write_text("{}")
    (tmp_path / "cases").mkdir()
    link = tmp_path / "cases" / "P001"
    link.symlink_to(real)
    for paths in ([link], [tmp_path / "cases"], [link / "more" / ".."]):
        assert [c.case_id for c in find_cases(paths)] == ["P001"], paths
    assert open_case(link).case_id == "P001"
    monkeypatch.chdir(link)
    monkeypatch.setenv("PWD", str(link))
    assert open_case(Path(".")).case_id == "P001"
    assert [c.case_id for c in find_cases([Path(".")])] == ["P001"]
    monkeypatch.chdir(link / "more")
    monkeypatch.setenv("PWD", str(link / "more"))
    assert open_case(Path("..")).case_id == "P001"
    monkeypatch.setenv("PWD", str(tmp_path / "gone"))
    assert open_case(Path("..")).case_id == "Real_Name_1950"


def test_missing_case_is_rejected(tmp_path):
    """A missing case folder is rejected with case-missing and the case id."""
    with pytest.raises(InputRejectedError, match="case P9: the case folder does not exist") as error:
        open_case(tmp_path / "P9")
    assert error.value.code == "case-missing"


def test_cohort_keeps_table_order(tmp_path):
    """Cases are returned in table order with patient, label and mask label."""
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
def test_spreadsheet_exports_are_read(tmp_path, text):
    """Byte order marks, other column orders, further columns and Windows line ends are accepted."""
    (case,) = open_cohort(cohort(tmp_path, text)).cases
    assert (case.case_id, case.patient_id, case.label) == ("A", "p1", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,label\nA,good\n", "column 'patient_id' is missing"),
        ("", "column 'case_id' is missing"),
        (HEADER, "lists no case"),
        (HEADER + "A,p1,good\nA,p2,bad\n", "line 3: case A is listed twice"),
        (HEADER + "A,p1,dead\n", "line 2: label 'dead'"),
        (HEADER + "A,p1,Bad\n", "line 2: label 'Bad'"),
        (HEADER + "A,p1\n", "line 2: label ''"),
        (HEADER + ",p1,good\n", "line 2: case_id or patient_id is empty or not a plain name"),
        (HEADER + "A,,good\n", "line 2: case_id or patient_id is empty or not a plain name"),
        (HEADER + "../A,p1,good\n", "not a plain name"),
        (HEADER + "..,p1,good\n", "not a plain name"),
        (HEADER + ".,p1,good\n", "not a plain name"),
        (HEADER + "C:\\A,p1,good\n", "not a plain name"),
        (HEADER + "A\x00B,p1,good\n", "not a plain name"),
        (HEADER + "A\x1b[2J,p1,good\n", "not a plain name"),
        (HEADER + "A,p1\x1b[2J,good\n", "not a plain name"),
    ],
)
def test_malformed_table_is_a_usage_error(tmp_path, text, message):
    """A malformed table is a usage error that names the line, with a fix."""
    with pytest.raises(UsageError) as error:
        open_cohort(cohort(tmp_path, text))
    assert message in str(error.value)
    assert error.value.fix


def test_table_in_other_encoding_is_a_usage_error(tmp_path):
    """A table that is not UTF-8 is a usage error."""
    (tmp_path / "cohort.csv").write_bytes(HEADER.encode() + "A,pä,good".encode("latin-1"))
    with pytest.raises(UsageError, match="cannot be read as CSV in UTF-8"):
        open_cohort(tmp_path)


def test_folder_without_table_is_not_a_cohort(tmp_path):
    """A folder without cohort.csv is a usage error as a cohort."""
    assert not is_cohort(tmp_path)
    with pytest.raises(UsageError, match=r"is not a cohort: cohort\.csv is missing") as error:
        open_cohort(tmp_path)
    assert "tmi synth" in error.value.fix


def test_cases_and_cohorts_can_be_mixed(tmp_path):
    """Case folders and cohorts are expanded in the given order."""
    folder = cohort(tmp_path / "c", HEADER + "B,p2,bad\nA,p1,good\n")
    cases = find_cases([tmp_path / "Z", folder, tmp_path / "Y"], mask_label=3)
    assert [c.case_id for c in cases] == ["Z", "B", "A", "Y"]
    assert [c.label for c in cases] == [None, 1, 0, None]
    assert {c.mask_label for c in cases} == {3}


def test_duplicate_or_no_case_is_a_usage_error(tmp_path):
    """Two cases with the same id, and an empty list, are usage errors."""
    folder = cohort(tmp_path / "c", HEADER + "A,p1,good\n")
    with pytest.raises(UsageError, match="case id A is given twice"):
        find_cases([folder, tmp_path / "A"])
    with pytest.raises(UsageError, match="no case given"):
        find_cases([])


def test_folder_of_cases_is_expanded(tmp_path):
    """A folder of cases is expanded to its visible sub-folders, sorted by name."""
    for name in ("B", "A", "empty", ".A-unfinished"):
        (tmp_path / "all" / name).mkdir(parents=True)
    for name in ("B", "A", ".A-unfinished"):
        (tmp_path / "all" / name / "clinical.json").write_text("{}")
    (tmp_path / "all" / "import-report.json").write_text("{}")
    cases = find_cases([tmp_path / "all"], mask_label=3)
    assert [c.case_id for c in cases] == ["A", "B", "empty"], (
        "a folder that is not a case is included, so that it is rejected"
    )
    assert {c.mask_label for c in cases} == {3}
    (tmp_path / "all" / "ct.nii.gz").touch()
    assert [c.case_id for c in find_cases([tmp_path / "all"])] == ["all"], "a case is not expanded as a folder of cases"


def test_inaccessible_path_is_returned_as_case(tmp_path):
    """A path that cannot be accessed is returned as a case; reading it reports the error."""
    (tmp_path / "good").mkdir()
    cases = find_cases([tmp_path / ("x" * 300), tmp_path / "good"])
    assert [c.case_id for c in cases] == ["x" * 300, "good"]


def test_folders_of_operating_systems_are_no_cases(tmp_path):
    """What file servers, archives and macOS put beside cases is left out; a folder that is no case is not."""
    for name in (*SYSTEM_ENTRIES, "__MACOSX", "@eaDir", "lost+found", "._P1", "P2", "P1", "notes"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "P1" / "clinical.json").write_text("{}")
    assert [c.case_id for c in find_cases([tmp_path])] == ["P1", "P2", "notes"]


@pytest.mark.parametrize("row", ['"C2,P2,good', 'C2,"P2,good', 'C2,P2,"good'])
def test_stray_quotation_mark_is_named(tmp_path, row):
    """A mark that swallows the following lines is reported with its line, not as a faulty id."""
    folder = cohort(tmp_path, f"{HEADER}C1,P1,bad\n{row}\nC3,P3,bad\n")
    with pytest.raises(UsageError, match="line 3: a quotation mark is not closed"):
        open_cohort(folder)
