"""Import of a table as a cohort: conversion, rejected rows, and resumed imports."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from factories.table_workspace import HEADER, MAPPING, Workspace
from tmi.toolkit.cases.case import open_case, open_cohort
from tmi.toolkit.cases.provenance import read_case_record
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.ingest.tabular.cohort_importer import import_table
from tmi.toolkit.ingest.tabular.report import TableReport
from tmi.toolkit.issues.issue import Issue


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path)


def lines(report: TableReport) -> list[tuple[int, str | None, str, str | None]]:
    return [(n.row, n.case_id, n.outcome, n.code) for n in report.lines]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Rows


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ("1,f,abc,1,dead", "number", "column 'alb' holds no number with decimal mark '.'"),
        ('1,f,"3,5",1,dead', "number", "column 'alb' holds no number"),
        ("1,f,1e999,1,dead", "number", "column 'alb' holds no finite number"),
        ("1,f,nan,1,dead", "number", "column 'alb' holds no number"),
        ("1,f,41,1,dead", "clinical-unit-suspect", "albumin is implausible in g/dL and looks like g/L"),
        ("1,x,3.5,1,dead", "clinical-type", "sex is not one of its choices"),
        ("1,f,3.5,<0.2,dead", "number", "column 'bili' holds no number"),
        ("1,f,3.5,1", "row", "the row has 4 cells, the header has 5"),
        ("1,f,3.5,1,dead,more", "row", "the row has 6 cells, the header has 5"),
        (",f,3.5,1,dead", "id", "column 'id' holds no case id"),
        ("NA,f,3.5,1,dead", "id", "column 'id' holds no case id"),
        ("a/b,f,3.5,1,dead", "id", "the case id in column 'id' is not a plain name"),
    ],
)
def test_rejected_row_is_reported_without_its_values(workspace, row, code, message):
    """The report names row, case and reason of a rejected row, and no cell value."""
    report = workspace.run(f"7,m,4.0,2,alive\n{row}\n")
    assert [n[2:] for n in lines(report)] == [("imported", None), ("refused", code)]
    line = next(line for line in report.summary() if line.startswith("refused"))
    assert message in line
    assert line.startswith("refused: row 3: " if code == "id" else "refused: row 3 (case K1): ")
    output = "\n".join(report.summary()) + (workspace.out / "import-report.json").read_text()
    for cell in ("abc", "3,5", "1e999", "<0.2", "a/b", "more,"):
        assert cell not in output
    assert [p.name for p in workspace.out.iterdir() if p.is_dir()] == ["K7"]
    assert [c.case_id for c in open_cohort(workspace.out).cases] == ["K7"]


def test_value_map_and_missing_markers_are_applied(workspace):
    """Texts of the value map are converted, and missing markers leave the value out."""
    workspace.run("1,f,-9,<0.1,dead\n2,m,NA,NA,alive\n3, f ,, 1.5 ,alive\n")
    assert workspace.values("K1") == {"sex": "female", "total_bilirubin": pytest.approx(0.05 * 17.104)}
    assert workspace.values("K2") == {"sex": "male"}
    assert workspace.values("K3") == {"sex": "female", "total_bilirubin": pytest.approx(25.656)}


def test_rows_with_duplicate_case_id_are_rejected(workspace):
    """If several rows have one case id, all of them are rejected."""
    report = workspace.run("1,f,4,1,dead\n2,f,4,1,dead\n1,m,4,1,alive\n")
    assert lines(report)[0] == (2, "K1", "refused", "case-twice")
    assert lines(report)[2] == (4, "K1", "refused", "case-twice")
    assert [c.case_id for c in open_cohort(workspace.out).cases] == ["K2"]


@pytest.mark.parametrize(("first", "second"), [("a", "A"), ("\u00e9", "e\u0301"), ("x", "x."), ("\u00c9", "e\u0301")])
def test_case_ids_of_one_folder_are_rejected(workspace, first, second):
    """Ids that are one folder on some system count as duplicates: case, composed accents, dots at the end."""
    assert workspace.run(f"{first},f,4,1,dead\n{second},f,4,1,alive\n").counts["refused"] == 2


def test_case_named_like_a_file_of_the_folder_is_rejected(workspace):
    """No case folder takes the name of the settings, which every command in the folder reads."""
    workspace.mapping.write_text(workspace.mapping.read_text().replace(", prefix: K", ""))
    assert workspace.run("tmi.toml,f,4,1,dead\n").counts["refused"] == 1


@pytest.mark.parametrize("outcome", ["", "NA", "lost"])
def test_row_without_label_is_excluded(workspace, outcome):
    """A row without a label is excluded, and no case is written."""
    report = workspace.run(f"1,f,4,1,{outcome}\n2,f,4,1,dead\n")
    assert lines(report)[0] == (2, "K1", "excluded", "no-label")
    assert not (workspace.out / "K1").exists()


@pytest.mark.parametrize(
    "label",
    [
        "{column: outcome, values: {dead: bad, alive: good, lost: exclude}, otherwise: outcome is not known}",
        "{rules: [{label: bad, when: [{column: outcome, one_of: [dead]}]},"
        " {label: good, when: [{column: outcome, one_of: [alive]}]},"
        " {exclude: outcome is not known, when: [{column: outcome, one_of: [lost]}]}]}",
    ],
    ids=["values", "rules"],
)
def test_label_text_that_the_mapping_does_not_name_is_reported(workspace, label):
    """A text without a rule is reported as such, one that stands for no label with the reason of the mapping."""
    head, _, _ = MAPPING.partition("label:")
    workspace.mapping.write_text(f"{head}label: {label}\n")
    report = workspace.run("1,f,4,1,lost\n2,f,4,1,daed\n3,f,4,1,dead\n4,f,4,1,alive\n")
    assert [line.why for line in report.lines[:2]] == [
        "outcome is not known", "column 'outcome' holds a text that the mapping's label does not name",
    ]  # fmt: skip
    assert report.counts == {"imported": 2, "flawed": 0, "refused": 0, "excluded": 2}


@pytest.mark.parametrize(
    ("cells", "outcome"),
    [
        ("2,100", "bad"), ("2,730", "bad"), ("1,730", "bad"), ("2,731", "good"), ("0,731", "good"),
        ("0,730", "excluded"), ("0,10", "excluded"), (",800", "excluded"), ("2,", "excluded"), ("9,800", "entry error"),
        ("2,x", "refused"),
    ],
)  # fmt: skip
def test_label_rules_apply_in_order(tmp_path, cells, outcome):
    """The first rule that holds applies; a missing cell excludes the row."""
    (tmp_path / "t.csv").write_text(f"id,status,time,sex\n1,{cells},f\n")
    (tmp_path / "m.yaml").write_text(
        "schema: tmi-mapping/1\ncase_id: {column: id}\nfields: {sex: {column: sex, values: {f: female}}}\n"
        "label:\n  rules:\n"
        "    - {exclude: entry error, when: [{column: status, not_one_of: [0, 1, 2]}]}\n"
        "    - {label: bad, when: [{column: status, one_of: ['1', 2]}, {column: time, at_most: 730}]}\n"
        "    - {label: good, when: [{column: time, above: 730}]}\n"
    )
    report = import_table(tmp_path / "t.csv", tmp_path / "m.yaml", tmp_path / "out")
    (line,) = report.lines
    if outcome in ("good", "bad"):
        assert (tmp_path / "out" / "cohort.csv").read_text().endswith(f"1,1,{outcome}\n")
    elif outcome == "refused":
        assert (line.outcome, line.code) == ("refused", "number")
    else:
        assert line.outcome == "excluded"
        assert outcome in (line.outcome, line.why)


def test_dates_are_stored_as_distance_in_days(tmp_path):
    """If both dates are known, only their distance is stored; a blood date alone stays."""
    (tmp_path / "t.csv").write_text(
        "id,sex,blood,ct\n1,f,31.12.2020,2021-01-05\n2,f,05.01.2021,\n3,f,5.1.21,2021-01-05\n4,f,31.02.2021,2021-01-05\n"
    )
    (tmp_path / "m.yaml").write_text(
        "schema: tmi-mapping/1\ncase_id: {column: id}\nfields: {sex: {column: sex, values: {f: female}}}\n"
        "blood_date: {column: blood, format: day-month-year}\nct_date: {column: ct}\n"
    )
    report = import_table(tmp_path / "t.csv", tmp_path / "m.yaml", tmp_path / "out")
    assert [n.code for n in report.lines] == [None, None, "date", "date"]
    record = read_case_record(tmp_path / "out" / "1", case_id="1")
    assert record is not None
    assert record.days_from_blood_to_ct == 5
    assert "2020" not in (tmp_path / "out" / "1" / "clinical.json").read_text()
    assert read_clinical(open_case(tmp_path / "out" / "2"), load_schema()).blood_date == "2021-01-05"


def test_free_text_report_is_copied_unchanged(tmp_path):
    """The report text is copied with quotes, newlines and umlauts."""
    report = 'Known cirrhosis; "ascites",\nno varices. Größe 5 cm'
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=";").writerows([("id", "note", "sex"), (1, report, "f"), (2, "", "f")])
    (tmp_path / "m.yaml").write_text(
        "schema: tmi-mapping/1\ncase_id: {column: id}\nreport: {column: note}\n"
        "fields: {sex: {column: sex, values: {f: female}}}\n"
    )
    import_table(tmp_path / "t.csv", tmp_path / "m.yaml", tmp_path / "out")
    records = [read_clinical(open_case(tmp_path / "out" / i), load_schema()) for i in "12"]
    assert [r.report for r in records] == [report, None]


# Resuming, replacing, other folders


def test_import_is_reproducible_and_leaves_sources(workspace, tmp_path):
    """Sources stay unchanged, and a second import gives identical files."""
    text = "1,f,4,1,dead\n2,m,4.1,2,alive\n"
    workspace.run(text)
    before = files(workspace.out)
    workspace.out = tmp_path / "again"
    workspace.run(text)
    assert files(workspace.out) == before
    assert (workspace.table.read_text(), workspace.mapping.read_text()) == (HEADER + text, MAPPING)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_interrupted_import_resumes_to_same_cohort(workspace, tmp_path, stop_after):
    """An interrupted import has no cohort.csv; resuming gives the result of an uninterrupted one."""
    text = "1,f,4,1,dead\n2,m,99,2,alive\n3,m,4.1,2,alive\n"
    reference = Workspace(Path(shutil.copytree(tmp_path, tmp_path / "other")))
    reference.run(text)

    def stop(finished: int, total: int) -> None:
        assert total == 3
        if finished == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.run(text, progress=stop)
    assert not [n for n in ("cohort.csv", "import-report.json", "import-report.csv") if (workspace.out / n).exists()]
    report = workspace.run(resume=True)
    assert report.kept == (1 if stop_after < 3 else 2)
    resumed, expected = files(workspace.out), files(reference.out)
    # The report holds the number of unchanged cases.
    assert resumed.pop("import-report.json") != expected.pop("import-report.json")
    assert resumed == expected


def test_resume_imports_only_changed_rows(workspace):
    """Unchanged rows and other files stay, changed rows are imported again, removed rows are deleted."""
    workspace.run("1,f,4,1,dead\n2,m,4.1,2,alive\n3,m,4.1,2,alive\n4,m,4.1,2,alive\n")
    edited = workspace.out / "K1" / "clinical.json"
    edited.write_text(edited.read_text().replace("40.0", "40.5"))
    (workspace.out / "notes.txt").write_text("mine")
    shutil.rmtree(workspace.out / "K4")
    report = workspace.run("1,f,4,1,dead\n2,m,3.3,2,alive\n4,m,4.1,2,alive\n", resume=True)
    assert report.kept == 1
    assert workspace.values("K1")["albumin"] == 40.5
    assert workspace.values("K2")["albumin"] == 33.0
    assert workspace.values("K4")["albumin"] == 41.0
    assert not (workspace.out / "K3").exists()  # the table no longer contains it
    assert (workspace.out / "notes.txt").read_text() == "mine"
    assert [c.case_id for c in open_cohort(workspace.out).cases] == ["K1", "K2", "K4"]


def test_changed_mapping_imports_every_row_again(workspace):
    """A changed mapping invalidates every row."""
    workspace.run("1,f,4,1,dead\n")
    workspace.mapping.write_text(MAPPING.replace("{column: alb, unit: g/dL}", "{column: alb, unit: g/L}"))
    report = workspace.run("1,f,40,1,dead\n", resume=True)
    assert (report.kept, workspace.values("K1")["albumin"]) == (0, 40.0)


def test_case_of_newly_rejected_row_is_removed(workspace):
    """If a row is rejected on resume, its earlier case is removed."""
    workspace.run("1,f,4,1,dead\n2,f,4,1,dead\n")
    workspace.run("1,f,999,1,dead\n2,f,4,1,dead\n", resume=True)
    assert not (workspace.out / "K1").exists()


def test_damaged_journal_removes_no_other_folder(workspace, tmp_path):
    """A truncated or edited journal line never deletes a folder outside the cohort."""
    workspace.run("1,f,4,1,dead\n")
    (tmp_path / "precious").mkdir()
    with (workspace.out / ".import-journal").open("a") as stream:
        stream.write('{"case_id": "../precious", "key": "0"}\n{"case_id": "K9"}\nnull\n{"key": "0", "case_')
    report = workspace.run("1,f,4,1,dead\n2,f,4,1,dead\n", resume=True)
    assert (report.kept, report.counts["imported"]) == (1, 2)
    assert (tmp_path / "precious").is_dir()


def test_existing_import_is_replaced_only_with_force(workspace):
    """An existing import is replaced only with `force`; other files stay."""
    workspace.run("1,f,4,1,dead\n")
    (workspace.out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        workspace.run("2,f,4,1,dead\n")
    assert (workspace.out / "K1").is_dir()
    workspace.run("2,f,4,1,dead\n", force=True)
    assert sorted(p.name for p in workspace.out.iterdir() if p.is_dir()) == ["K2"]
    assert (workspace.out / "notes.txt").is_file()


@pytest.mark.parametrize("options", [{"force": True}, {"resume": True}])
def test_other_folder_is_never_replaced_or_resumed(workspace, options):
    """A folder without an import journal is a usage error."""
    workspace.out.mkdir()
    (workspace.out / "thesis.doc").write_text("mine")
    with pytest.raises(UsageError, match="is not an import of a table"):
        workspace.run("1,f,4,1,dead\n", **options)
    assert (workspace.out / "thesis.doc").read_text() == "mine"


@pytest.mark.parametrize("options", [{"force": True}, {"resume": True}, {}])
def test_output_folder_must_not_contain_the_table(workspace, options):
    """An output folder that contains the table is a usage error."""
    workspace.out = workspace.table.parent
    with pytest.raises(UsageError, match=r"holds t\.csv, which must not be overwritten"):
        workspace.run("1,f,4,1,dead\n", **options)
    assert workspace.table.is_file()


def test_invalid_mapping_writes_nothing(workspace):
    """An invalid mapping is reported before anything is written."""
    workspace.mapping.write_text(MAPPING.replace("column: alb", "column: Albumin"))
    with pytest.raises(UsageError, match="no column 'Albumin'"):
        workspace.run("1,f,4,1,dead\n")
    assert not workspace.out.exists()


def test_cohort_folder_has_documented_files_only(workspace):
    """The cohort folder holds exactly the documented files."""
    workspace.run("1,f,4,1,dead\n")
    assert sorted(files(workspace.out)) == [
        ".import-journal", "K1/clinical.json", "clinical_schema.json", "cohort.csv", "import-report.csv",
        "import-report.json"
    ]  # fmt: skip


def test_report_has_one_line_per_row(workspace):
    """The CSV report has one line per row; the JSON report counts the outcomes."""
    workspace.run("1,f,4,1,dead\n2,f,x,1,dead\n3,f,4,1,lost\n")
    with (workspace.out / "import-report.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["row"], r["case_id"], r["outcome"], r["code"]) for r in rows] == [
        ("2", "K1", "imported", ""), ("3", "K2", "refused", "number"), ("4", "K3", "excluded", "no-label")
    ]  # fmt: skip
    document = json.loads((workspace.out / "import-report.json").read_text())
    assert document["schema"] == "tmi-import-report/2"
    assert document["counts"] == {"imported": 1, "flawed": 0, "refused": 1, "excluded": 1}


# Images


@pytest.fixture
def images(workspace, monkeypatch) -> list[tuple[str, dict[str, object]]]:
    """A table with images; `import_case` is replaced by a recorder of its arguments."""
    calls: list[tuple[str, dict[str, object]]] = []

    def import_case(out: Path, **arguments: object) -> SimpleNamespace:
        calls.append((out.name, arguments))
        ct = arguments["ct"]
        assert isinstance(ct, Path)
        if ct.name == "mr":
            raise InputRejectedError("the series is MR", fix="give a CT", code="ct-modality", case_id=out.name)
        if ct.name == "two":
            raise UsageError("the folder holds 2 series", fix="choose one with --series")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "clinical.json").write_text(json.dumps(arguments["clinical"]))
        flaw = Issue.of("mask-flipped", "the mask is mirrored", "export it again", case_id=out.name)
        return SimpleNamespace(findings=[flaw] if ct.name == "odd" else [])

    module = ModuleType("tmi.toolkit.ingest.case_importer")
    module.import_case = import_case  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tmi.toolkit.ingest.case_importer", module)
    for name in ("good", "mr", "two", "odd"):
        (workspace.table.parent / "dicom" / name).mkdir(parents=True)
        (workspace.table.parent / "dicom" / name / "1.dcm").write_text(name)
    (workspace.table.parent / "mask.nrrd").write_text("mask")
    workspace.mapping.write_text(
        MAPPING + "images: {ct: ct, mask: mask, series: series, mask_label: liver, fixes: [ct-tilt]}\n"
    )
    workspace.table.write_text(
        "id,sex,alb,bili,outcome,ct,mask,series\n"
        "1,f,4,1,dead,dicom/good,mask.nrrd,3\n"
        "2,f,4,1,dead,dicom/mr,,\n"
        "3,f,4,1,dead,dicom/two,,\n"
        "4,f,4,1,alive,dicom/odd,mask.nrrd,\n"
        "5,f,4,1,alive,dicom/absent,,\n"
        "6,f,4,1,alive,,,\n"
        "7,f,99,1,alive,dicom/good,,\n"
    )
    return calls


def test_rejected_images_affect_only_their_row(workspace, images):
    """Images are imported with the arguments of the mapping, and a rejection affects its row only."""
    report = workspace.run()
    assert lines(report) == [
        (2, "K1", "imported", None),
        (3, "K2", "refused", "ct-modality"),
        (4, "K3", "refused", "import"),
        (5, "K4", "flawed", "mask-flipped"),
        (6, "K5", "refused", "ct-missing"),
        (7, "K6", "refused", "ct-missing"),
        (8, "K7", "refused", "clinical-range"),
    ]
    assert [name for name, _ in images] == ["K1", "K2", "K3", "K4"]
    arguments = images[0][1]
    assert arguments["ct"] == workspace.table.parent / "dicom" / "good"
    assert (arguments["mask"], arguments["radiomics"]) == (workspace.table.parent / "mask.nrrd", None)
    assert (arguments["series"], arguments["mask_label"], arguments["fixes"]) == ("3", "liver", ("ct-tilt",))
    assert (arguments["patient_id"], arguments["clinical"]["values"]["albumin"]) == ("K1", 40.0)
    assert (images[1][1]["mask"], images[1][1]["mask_label"]) == (None, None)
    assert [c.case_id for c in open_cohort(workspace.out).cases] == ["K1", "K4"]


def test_resume_imports_only_changed_images(workspace, images):
    """Resuming imports only rows whose image files changed, rejected rows included."""
    first = workspace.run()
    images.clear()
    second = workspace.run(resume=True)
    assert images == []
    assert (second.kept, lines(second)) == (2, lines(first))
    (workspace.table.parent / "dicom" / "mr" / "1.dcm").write_text("changed")
    workspace.run(resume=True)
    assert [name for name, _ in images] == ["K2"]


def test_cases_without_images_are_reported(workspace):
    """Without images, the summary lists the files that are still to be added."""
    report = workspace.run("1,f,4,1,dead\n")
    assert "still to be added to every case: ct.nii.gz, and liver.nii.gz or radiomics.csv" in report.summary()
    assert report.document()["images"] is False
