"""A hospital's table becomes cases: what is converted, what is refused, and how an interrupted import goes on."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tmi.toolkit.cases.case import open_case, open_cohort
from tmi.toolkit.cases.provenance import read_case_record
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.ingest.tabular.cohort_importer import import_table
from tmi.toolkit.ingest.tabular.report import TableReport

MAPPING = """
schema: tmi-mapping/1
table: {missing: [NA, -9]}
case_id: {column: id, prefix: K}
fields:
  sex: {column: sex, values: {f: female, m: male}}
  albumin: {column: alb, unit: g/dL}
  total_bilirubin: {column: bili, unit: mg/dL, values: {"<0.1": 0.05}}
label: {column: outcome, values: {dead: bad, alive: good}, otherwise: outcome is not known}
"""
HEADER = "id,sex,alb,bili,outcome\n"


class World:
    """A table, its mapping and the place of the cohort."""

    def __init__(self, folder: Path) -> None:
        self.table, self.mapping, self.out = folder / "t.csv", folder / "m.yaml", folder / "cohort"
        self.mapping.write_text(MAPPING)

    def run(self, text: str | None = None, **options: object) -> TableReport:
        if text is not None:
            self.table.write_text(HEADER + text)
        return import_table(self.table, self.mapping, self.out, **options)

    def values(self, case_id: str) -> dict[str, object]:
        return json.loads((self.out / case_id / "clinical.json").read_text())["values"]


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def lines(report: TableReport) -> list[tuple[int, str | None, str, str | None]]:
    return [(n.row, n.case_id, n.outcome, n.code) for n in report.lines]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Rows


@pytest.mark.parametrize(
    ("row", "code", "told"),
    [
        ("1,f,abc,1,dead", "number", "column 'alb' holds no number with decimal mark '.'"),
        ('1,f,"3,5",1,dead', "number", "column 'alb' holds no number"),
        ("1,f,1e999,1,dead", "number", "column 'alb' holds no finite number"),
        ("1,f,nan,1,dead", "number", "column 'alb' holds no number"),
        ("1,f,41,1,dead", "clinical-unit-suspect", "albumin is implausible in g/dL and looks like g/L"),
        ("1,x,3.5,1,dead", "clinical-type", "sex is none of its choices"),
        ("1,f,3.5,<0.2,dead", "number", "column 'bili' holds no number"),
        ("1,f,3.5,1", "row", "the row has 4 cells, the header 5"),
        ("1,f,3.5,1,dead,more", "row", "the row has 6 cells, the header 5"),
        (",f,3.5,1,dead", "id", "column 'id' gives no case id"),
        ("NA,f,3.5,1,dead", "id", "column 'id' gives no case id"),
        ("a/b,f,3.5,1,dead", "id", "the case id in column 'id' is no plain name"),
    ],
)
def test_a_row_that_cannot_be_used_is_told_by_number_and_case_without_its_values(world, row, code, told):
    report = world.run(f"7,m,4.0,2,alive\n{row}\n")
    assert [n[2:] for n in lines(report)] == [("imported", None), ("refused", code)]
    said = report.summary()[0]
    assert told in said
    assert said.startswith("refused: row 3: " if code == "id" else "refused: row 3 (case K1): ")
    everything = "\n".join(report.summary()) + (world.out / "import-report.json").read_text()
    for cell in ("abc", "3,5", "1e999", "<0.2", "a/b", "more,"):
        assert cell not in everything
    assert [p.name for p in world.out.iterdir() if p.is_dir()] == ["K7"]
    assert [c.case_id for c in open_cohort(world.out).cases] == ["K7"]


def test_a_value_map_gives_meaning_to_text_and_missing_markers_to_cells(world):
    world.run("1,f,-9,<0.1,dead\n2,m,NA,NA,alive\n3, f ,, 1.5 ,alive\n")
    assert world.values("K1") == {"sex": "female", "total_bilirubin": pytest.approx(0.05 * 17.104)}
    assert world.values("K2") == {"sex": "male"}
    assert world.values("K3") == {"sex": "female", "total_bilirubin": pytest.approx(25.656)}


def test_no_row_is_taken_where_two_give_one_case(world):
    report = world.run("1,f,4,1,dead\n2,f,4,1,dead\n1,m,4,1,alive\n")
    assert lines(report)[0] == (2, "K1", "refused", "case-twice")
    assert lines(report)[2] == (4, "K1", "refused", "case-twice")
    assert [c.case_id for c in open_cohort(world.out).cases] == ["K2"]


def test_case_ids_that_some_file_systems_hold_for_one_are_refused(world):
    assert world.run("a,f,4,1,dead\nA,f,4,1,alive\n").counts["refused"] == 2


@pytest.mark.parametrize("outcome", ["", "NA", "lost"])
def test_a_row_without_a_label_is_excluded_and_no_record_of_it_is_written(world, outcome):
    report = world.run(f"1,f,4,1,{outcome}\n2,f,4,1,dead\n")
    assert lines(report)[0] == (2, "K1", "excluded", "no-label")
    assert not (world.out / "K1").exists()


@pytest.mark.parametrize(
    ("cells", "outcome"),
    [
        ("2,100", "bad"), ("2,730", "bad"), ("1,730", "bad"), ("2,731", "good"), ("0,731", "good"),
        ("0,730", "excluded"), ("0,10", "excluded"), (",800", "excluded"), ("2,", "excluded"), ("9,800", "entry error"),
        ("2,x", "refused"),
    ],
)  # fmt: skip
def test_label_rules_are_taken_in_order_and_a_missing_cell_decides_nothing(tmp_path, cells, outcome):
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


def test_dates_are_kept_only_as_their_distance_once_both_are_known(tmp_path):
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


def test_a_free_text_report_is_taken_as_it_is(tmp_path):
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


# Going on, starting anew, leaving alone


def test_the_originals_are_not_changed_and_the_same_table_gives_the_same_cohort(world, tmp_path):
    text = "1,f,4,1,dead\n2,m,4.1,2,alive\n"
    world.run(text)
    before = files(world.out)
    world.out = tmp_path / "again"
    world.run(text)
    assert files(world.out) == before
    assert (world.table.read_text(), world.mapping.read_text()) == (HEADER + text, MAPPING)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interrupted_import_is_no_cohort_and_goes_on_to_the_same_result(world, tmp_path, stop_after):
    text = "1,f,4,1,dead\n2,m,99,2,alive\n3,m,4.1,2,alive\n"
    whole = World(Path(shutil.copytree(tmp_path, tmp_path / "other")))
    whole.run(text)

    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.run(text, progress=stop)
    assert not [n for n in ("cohort.csv", "import-report.json", "import-report.csv") if (world.out / n).exists()]
    report = world.run(resume=True)
    assert report.kept == (1 if stop_after < 3 else 2)
    ours, theirs = files(world.out), files(whole.out)
    assert ours.pop("import-report.json") != theirs.pop("import-report.json")  # it tells how many were kept
    assert ours == theirs


def test_what_is_done_and_unchanged_is_left_as_it_is_and_what_changed_is_made_anew(world):
    world.run("1,f,4,1,dead\n2,m,4.1,2,alive\n3,m,4.1,2,alive\n4,m,4.1,2,alive\n")
    mended = world.out / "K1" / "clinical.json"
    mended.write_text(mended.read_text().replace("40.0", "40.5"))
    (world.out / "notes.txt").write_text("mine")
    shutil.rmtree(world.out / "K4")
    report = world.run("1,f,4,1,dead\n2,m,3.3,2,alive\n4,m,4.1,2,alive\n", resume=True)
    assert report.kept == 1
    assert world.values("K1")["albumin"] == 40.5
    assert world.values("K2")["albumin"] == 33.0
    assert world.values("K4")["albumin"] == 41.0
    assert not (world.out / "K3").exists()  # the table does not give it any more
    assert (world.out / "notes.txt").read_text() == "mine"
    assert [c.case_id for c in open_cohort(world.out).cases] == ["K1", "K2", "K4"]


def test_another_mapping_makes_every_row_anew(world):
    world.run("1,f,4,1,dead\n")
    world.mapping.write_text(MAPPING.replace("{column: alb, unit: g/dL}", "{column: alb, unit: g/L}"))
    report = world.run("1,f,40,1,dead\n", resume=True)
    assert (report.kept, world.values("K1")["albumin"]) == (0, 40.0)


def test_a_row_that_has_become_unusable_takes_its_case_with_it(world):
    world.run("1,f,4,1,dead\n2,f,4,1,dead\n")
    world.run("1,f,999,1,dead\n2,f,4,1,dead\n", resume=True)
    assert not (world.out / "K1").exists()


def test_a_journal_that_a_kill_cut_short_or_that_was_edited_removes_nothing_else(world, tmp_path):
    world.run("1,f,4,1,dead\n")
    (tmp_path / "precious").mkdir()
    with (world.out / ".import-journal").open("a") as stream:
        stream.write('{"case_id": "../precious", "key": "0"}\n{"case_id": "K9"}\nnull\n{"key": "0", "case_')
    report = world.run("1,f,4,1,dead\n2,f,4,1,dead\n", resume=True)
    assert (report.kept, report.counts["imported"]) == (1, 2)
    assert (tmp_path / "precious").is_dir()


def test_an_import_that_is_there_is_replaced_by_force_alone(world):
    world.run("1,f,4,1,dead\n")
    (world.out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        world.run("2,f,4,1,dead\n")
    assert (world.out / "K1").is_dir()
    world.run("2,f,4,1,dead\n", force=True)
    assert sorted(p.name for p in world.out.iterdir() if p.is_dir()) == ["K2"]
    assert (world.out / "notes.txt").is_file()


@pytest.mark.parametrize("options", [{"force": True}, {"resume": True}])
def test_a_folder_that_is_no_import_is_neither_replaced_nor_gone_on_with(world, options):
    world.out.mkdir()
    (world.out / "thesis.doc").write_text("mine")
    with pytest.raises(UsageError, match="is no import of a table"):
        world.run("1,f,4,1,dead\n", **options)
    assert (world.out / "thesis.doc").read_text() == "mine"


@pytest.mark.parametrize("options", [{"force": True}, {"resume": True}, {}])
def test_the_table_cannot_lie_in_the_folder_that_is_written(world, options):
    world.out = world.table.parent
    with pytest.raises(UsageError, match=r"holds t\.csv, which is only to be read"):
        world.run("1,f,4,1,dead\n", **options)
    assert world.table.is_file()


def test_a_mistake_in_table_or_mapping_is_told_before_anything_is_written(world):
    world.mapping.write_text(MAPPING.replace("column: alb", "column: Albumin"))
    with pytest.raises(UsageError, match="no column 'Albumin'"):
        world.run("1,f,4,1,dead\n")
    assert not world.out.exists()


def test_nothing_remains_beside_the_files_that_are_told_of(world):
    world.run("1,f,4,1,dead\n")
    assert sorted(files(world.out)) == [
        ".import-journal", "K1/clinical.json", "cohort.csv", "import-report.csv", "import-report.json"
    ]  # fmt: skip


def test_the_report_as_a_table_has_a_line_a_row(world):
    world.run("1,f,4,1,dead\n2,f,x,1,dead\n3,f,4,1,lost\n")
    with (world.out / "import-report.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["row"], r["case_id"], r["outcome"], r["code"]) for r in rows] == [
        ("2", "K1", "imported", ""), ("3", "K2", "refused", "number"), ("4", "K3", "excluded", "no-label")
    ]  # fmt: skip
    document = json.loads((world.out / "import-report.json").read_text())
    assert document["schema"] == "tmi-import-report/1"
    assert document["counts"] == {"imported": 1, "flawed": 0, "refused": 1, "excluded": 1}


# Images


@pytest.fixture
def images(world, monkeypatch) -> list[tuple[str, dict[str, object]]]:
    """A table with images; the import of one case is replaced by one that keeps what it was asked."""
    calls: list[tuple[str, dict[str, object]]] = []

    def import_case(out: Path, **asked: object) -> SimpleNamespace:
        calls.append((out.name, asked))
        ct = asked["ct"]
        assert isinstance(ct, Path)
        if ct.name == "mr":
            raise InputRejectedError("the series is MR", fix="give a CT", code="ct-modality", case_id=out.name)
        if ct.name == "two":
            raise UsageError("the folder holds 2 series", fix="choose one with --series")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "clinical.json").write_text(json.dumps(asked["clinical"]))
        flaw = SimpleNamespace(severity="error", code="mask-flipped", message="the mask is mirrored")
        return SimpleNamespace(findings=[flaw] if ct.name == "odd" else [])

    module = ModuleType("tmi.toolkit.ingest.case_importer")
    module.import_case = import_case  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tmi.toolkit.ingest.case_importer", module)
    for name in ("good", "mr", "two", "odd"):
        (world.table.parent / "dicom" / name).mkdir(parents=True)
        (world.table.parent / "dicom" / name / "1.dcm").write_text(name)
    (world.table.parent / "mask.nrrd").write_text("mask")
    world.mapping.write_text(
        MAPPING + "images: {ct: ct, mask: mask, series: series, mask_label: liver, fixes: [ct-tilt]}\n"
    )
    world.table.write_text(
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


def test_images_are_imported_beside_the_record_and_each_refusal_stops_one_row(world, images):
    report = world.run()
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
    asked = images[0][1]
    assert asked["ct"] == world.table.parent / "dicom" / "good"
    assert (asked["mask"], asked["radiomics"]) == (world.table.parent / "mask.nrrd", None)
    assert (asked["series"], asked["mask_label"], asked["fixes"]) == ("3", "liver", ("ct-tilt",))
    assert (asked["patient_id"], asked["clinical"]["values"]["albumin"]) == ("K1", 40.0)
    assert (images[1][1]["mask"], images[1][1]["mask_label"]) == (None, None)
    assert [c.case_id for c in open_cohort(world.out).cases] == ["K1", "K4"]


def test_going_on_imports_only_what_is_new_or_whose_files_changed(world, images):
    first = world.run()
    images.clear()
    second = world.run(resume=True)
    assert images == []
    assert (second.kept, lines(second)) == (2, lines(first))
    (world.table.parent / "dicom" / "mr" / "1.dcm").write_text("mended")
    world.run(resume=True)
    assert [name for name, _ in images] == ["K2"]


def test_cases_without_images_are_said_to_lack_them(world):
    report = world.run("1,f,4,1,dead\n")
    assert "still to be added to every case: ct.nii.gz, and liver.nii.gz or radiomics.csv" in report.summary()
    assert report.document()["images"] is False
