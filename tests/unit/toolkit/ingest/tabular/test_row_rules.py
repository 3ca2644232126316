"""Rules of a mapping for the rows of a real table: mixed units, several faults, lost rows, dates, codes, headings."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import openpyxl
import pytest

from factories.table_workspace import Workspace
from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.errors import UsageError
from tmi.toolkit.ingest.tabular.mapping import read_mapping

COUNTS = """
schema: tmi-mapping/1
case_id: {column: id, prefix: K}
fields:
  platelets: {column: plt, unit: G/L, other_units: [{above: 1500, unit: /uL}]}
  wbc: {column: wbc, unit: /uL, other_units: [{below: 200, unit: 10^9/L}]}
  albumin: {column: alb, unit: g/L, outside: missing}
"""


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def counts(tmp_path) -> Workspace:
    space = Workspace(tmp_path)
    space.mapping.write_text(COUNTS)
    return space


def write_book(path: Path, rows: list[tuple[object, ...]], formats: dict[str, str] | None = None) -> None:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for cell, number_format in (formats or {}).items():
        book.active[cell].number_format = number_format
    book.save(path)


# Units and ranges


def test_numbers_beyond_a_bound_are_in_the_other_unit(counts):
    """A column of two units is split at the bound that the mapping names; the bound itself is in the column's unit."""
    counts.table.write_text("id,plt,wbc,alb\n1,250,5000,40\n2,250000,6.5,40\n3,1500,200,40\n")
    assert counts.run().counts["imported"] == 3
    assert [(counts.values(k)["platelets"], counts.values(k)["wbc"]) for k in ("K1", "K2", "K3")] == [
        (250.0, 5.0), (250.0, 6.5), (1500.0, 0.2)
    ]  # fmt: skip


def test_mixed_units_without_a_bound_are_named(counts):
    """Without a bound, a number that is plausible in another unit rejects its row and names other_units."""
    counts.mapping.write_text(COUNTS.replace(", other_units: [{above: 1500, unit: /uL}]", ""))
    counts.table.write_text("id,plt,wbc,alb\n1,250000,5000,40\n")
    (line,) = counts.run().lines
    assert line.code == "clinical-unit-suspect"
    assert "other_units" in str(line.why)


def test_number_outside_the_range_is_missing_if_the_mapping_says_so(counts):
    """Such a number is left out and counted in the report; a text that is no number still rejects its row."""
    counts.table.write_text("id,plt,wbc,alb\n1,250,5000,4\n2,250,5000,500\n3,250,5000,x\n4,4000000000,5000,40\n")
    report = counts.run()
    assert [line.outcome for line in report.lines] == ["imported", "imported", "refused", "refused"]
    assert report.document()["set_missing"] == {"albumin": 2}
    assert "albumin" not in counts.values("K1")
    assert any(line.startswith("2 values of albumin outside the plausible range") for line in report.summary())


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("platelets: {column: plt, unit: G/L, other_units: [{above: 5, below: 3, unit: /uL}]}", "both or neither"),
        ("platelets: {column: plt, unit: G/L, other_units: [{unit: /uL}]}", "both or neither"),
        ("platelets: {column: plt, unit: G/L, other_units: [{above: 5, unit: mg}]}", "does not accept the unit 'mg'"),
        ("sex: {column: plt, other_units: [{above: 5, unit: mg}]}", "a choice has no unit"),
        ("platelets: {column: plt, unit: G/L, outside: drop}", "'drop' is not 'rejected' or 'missing'"),
        ("sex: {column: plt, outside: missing}", "a choice has no unit"),
    ],
)
def test_mistake_in_a_rule_is_reported(tmp_path, field, message):
    """A rule that cannot apply is a usage error before a row is read."""
    (tmp_path / "m.yaml").write_text(f"schema: tmi-mapping/1\nfields:\n  {field}\n")
    with pytest.raises(UsageError, match=message):
        read_mapping(tmp_path / "m.yaml")


# Faults


def test_every_fault_of_a_row_is_reported_at_once(workspace):
    """Id, number, range, choice, date and label of one row are listed together, in text and JSON."""
    workspace.mapping.write_text(workspace.mapping.read_text() + "blood_date: {column: day}\n")
    workspace.table.write_text("id,sex,alb,bili,outcome,day\na/b,x,abc,9999,lost,31.12.2020\n")
    report = workspace.run()
    (line,) = report.lines
    assert sorted(f.code for f in line.faults) == [
        "clinical-range", "clinical-type", "date", "id", "no-label", "number"
    ]  # fmt: skip
    text = next(t for t in report.summary() if t.startswith("refused: row 2"))
    assert all(f"[{f.code}]" in text for f in line.faults)
    faults = report.document()["lines"][0]["faults"]
    assert len(faults) == 6
    assert all(f["severity"] == "error" and f["fix"] and f["message"] == f["why"] for f in faults)


def test_path_that_cannot_be_accessed_rejects_its_row_alone(counts, monkeypatch):
    """A CT in a folder without permission is case-unreadable, a name that no file system takes ct-missing."""
    (counts.table.parent / "ct.nii.gz").write_bytes(b"x")
    counts.mapping.write_text(COUNTS + "images: {ct: ct}\n")
    counts.table.write_text(f"id,plt,wbc,alb,ct\n1,250,5000,40,closed/ct.nii.gz\n2,250,5000,40,{'n' * 300}\n")
    stat = Path.stat

    def deny(self: Path, **options: bool) -> os.stat_result:
        if self.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", deny)
    assert [(line.outcome, line.code) for line in counts.run().lines] == [
        ("refused", "case-unreadable"), ("refused", "ct-missing")
    ]  # fmt: skip


def test_faulty_cells_do_not_hide_each_other(workspace, tmp_path):
    """Two formulas without a value and a wrong number are three faults of the row."""
    workspace.table = tmp_path / "t.xlsx"
    write_book(workspace.table, [("id", "sex", "alb", "bili", "outcome"), (1, "=1", "=2", "x", "dead")])
    (line,) = workspace.run().lines
    assert [f.code for f in line.faults] == ["row", "row", "number"]
    assert "column 'sex'" in str(line.why)
    assert "column 'alb'" in str(line.why)


def test_choice_without_a_meaning_names_the_choices(workspace):
    """The reason lists the choices and where other texts are named."""
    (line,) = workspace.run("1,w,4,1,dead\n").lines
    assert "one of female, male" in str(line.why)
    assert "in the mapping: values" in str(line.why)


def test_row_that_the_mapping_leaves_out_need_not_be_correct(workspace):
    """A stated exclusion comes before the faults of its row, and is no loss."""
    workspace.mapping.write_text(workspace.mapping.read_text().replace("alive: good", "alive: good, gone: exclude"))
    report = workspace.run("1,f,4,1,dead\n2,f,abc,1,gone\n", accept_losses=False)
    assert [(line.outcome, line.lost) for line in report.lines] == [("imported", False), ("excluded", False)]
    assert report.labelled


# Lost rows


def table_of(n_good: int, n_bad: int) -> str:
    return "".join(
        f"{i},f,{'4' if i < n_good else 'abc'},1,{'dead' if i % 2 else 'alive'}\n" for i in range(n_good + n_bad)
    )


def test_cohort_that_lost_many_rows_waits_for_a_confirmation(workspace):
    """Above a tenth, no cohort.csv is written until the loss is accepted; the last lines say so and how."""
    report = workspace.run(table_of(17, 2), accept_losses=False)
    assert (report.withheld, report.labelled) == (True, False)
    assert not (workspace.out / "cohort.csv").exists()
    assert "2 of 19 rows (11%) were lost, so cohort.csv was NOT written" in report.summary()[-2]
    assert "--accept-losses" in report.summary()[-1]
    assert report.document()["lost"] == {"rows": 2, "accepted": False, "cohort_withheld": True}
    with pytest.raises(UsageError, match="`tmi import --table` wrote none") as caught:
        open_cohort(workspace.out)
    assert "--accept-losses" in caught.value.fix
    accepted = workspace.run(resume=True, accept_losses=True)
    assert (accepted.kept, accepted.labelled) == (17, True)
    assert "which --accept-losses accepts" in accepted.summary()[-1]
    assert len(open_cohort(workspace.out).cases) == 17


@pytest.mark.parametrize(("good", "bad", "withheld"), [(9, 1, False), (8, 1, True), (18, 2, False)])
def test_a_tenth_of_the_rows_may_be_lost(workspace, good, bad, withheld):
    """Exactly a tenth needs no confirmation; more does."""
    assert workspace.run(table_of(good, bad), accept_losses=False).withheld is withheld


def test_labels_that_the_mapping_does_not_name_are_losses(workspace):
    """An unnamed or empty label loses its row; one that the mapping excludes by name does not."""
    good = table_of(8, 0)
    assert workspace.run(good + "8,f,4,1,unknown\n", accept_losses=False).withheld
    assert workspace.run(good + "8,f,4,1,\n", accept_losses=False, force=True).withheld
    workspace.mapping.write_text(workspace.mapping.read_text().replace("alive: good", "alive: good, gone: exclude"))
    assert not workspace.run(good + "8,f,4,1,gone\n", accept_losses=False, force=True).withheld


def test_records_for_prediction_warn_of_losses_only(counts):
    """Without labels there is no cohort to bias: the loss is a warning."""
    counts.table.write_text("id,plt,wbc,alb\n1,250,5000,40\n2,x,5000,40\n")
    report = counts.run(accept_losses=False)
    assert not report.withheld
    assert report.summary()[-1].startswith("WARNING: 1 of 2 rows (50%) were lost")


# Findings of the written cases


def test_findings_of_written_cases_are_reported(workspace):
    """A blood sample far from the CT is a warning of its row, however the two dates are written."""
    workspace.mapping.write_text(
        workspace.mapping.read_text()
        + "blood_date: {column: day, format: day-month-year}\nct_date: {column: ct, format: day-month-year}\n"
    )
    workspace.table.write_text(
        "id,sex,alb,bili,outcome,day,ct\n1,f,4,1,dead,01.02.2010,24.05.2019\n2,f,4,2,dead,2010-02-01,2019-05-24\n"
        "3,f,4,3,alive,2019-05-20,24.05.2019\n"
    )
    report = workspace.run()
    found = {line.case_id: [f.code for f in line.findings if f.code == "dates-apart"] for line in report.lines}
    assert found == {"K1": ["dates-apart"], "K2": ["dates-apart"], "K3": []}
    assert report.warned == 3  # `clinical-incomplete`, too
    assert any(t.startswith("warning: row 2 (case K1)") and "[dates-apart]" in t for t in report.summary())
    assert "dates-apart" in (workspace.out / "import-report.csv").read_text()
    kept = workspace.run(resume=True)
    assert [line.findings for line in kept.lines] == [line.findings for line in report.lines]


# Dates


@pytest.mark.parametrize(
    ("text", "form", "iso"),
    [
        ("2019-02-03", "iso", "2019-02-03"), ("20190203", "iso", "2019-02-03"),
        ("2019-02-03T10:30:00Z", "day-month-year", "2019-02-03"), ("3.2.2019", "day-month-year", "2019-02-03"),
        ("03/02/2019 10:30", "day-month-year", "2019-02-03"), ("2/3/2019", "month-day-year", "2019-02-03"),
    ],
)  # fmt: skip
def test_date_is_read_with_or_without_a_time(workspace, text, form, iso):
    """ISO dates with and without hyphens, and dates in the order of the mapping, are read; a time is left out."""
    workspace.mapping.write_text(workspace.mapping.read_text() + f"blood_date: {{column: day, format: {form}}}\n")
    workspace.table.write_text(f"id,sex,alb,bili,outcome,day\n1,f,4,1,dead,{text}\n")
    workspace.run()
    assert json.loads((workspace.out / "K1" / "clinical.json").read_text())["blood_date"] == iso


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3.2.19", "year of two digits"),
        ("43497", "number that is not formatted as a date"),
        ("2019.31.12", "column 'day' holds no date of format day-month-year"),
    ],
)
def test_date_that_is_not_read_has_its_reason(workspace, text, reason):
    """A year of two digits and the day number of a workbook are named as such."""
    workspace.mapping.write_text(workspace.mapping.read_text() + "blood_date: {column: day, format: day-month-year}\n")
    workspace.table.write_text(f"id,sex,alb,bili,outcome,day\n1,f,4,1,dead,{text}\n")
    (line,) = workspace.run().lines
    assert (line.code, reason in str(line.why)) == ("date", True)


@pytest.mark.parametrize(
    "number_format", ["dd.mm.yyyy", "mm/dd/yy", "[$-F800]dddd\\, mmmm dd\\, yyyy", "d-mmm-yy h:mm"]
)
def test_date_cell_of_any_format_is_its_date(workspace, tmp_path, number_format):
    """A workbook date is the same whatever its cell shows, with a time or without."""
    workspace.mapping.write_text(workspace.mapping.read_text() + "blood_date: {column: day}\nct_date: {column: ct}\n")
    workspace.table = tmp_path / "t.xlsx"
    rows = [
        ("id", "sex", "alb", "bili", "outcome", "day", "ct"),
        (1, "f", 4, 1, "dead", datetime.datetime(2019, 2, 1, 10, 30), datetime.date(2019, 2, 3)),
    ]
    write_book(workspace.table, rows, {"F2": number_format})
    workspace.run()
    assert json.loads((workspace.out / "K1" / "case.json").read_text())["days_from_blood_to_ct"] == 2


# Codes, ids and headings


def test_yes_and_no_are_texts_and_booleans_are_codes(workspace, tmp_path):
    """`yes` and `no` are texts as keys and values; unquoted `true` and `false` stand for a workbook's booleans."""
    workspace.mapping.write_text(
        "schema: tmi-mapping/1\ncase_id: {column: id, prefix: K}\ntable: {missing: [no answer, off]}\n"
        "fields:\n  ascites: {column: asc, values: {true: yes, false: no, no: no, yes: yes}}\n"
        "label: {rules: [{label: bad, when: [{column: died, one_of: [true, yes]}]},"
        " {label: good, when: [{column: died, one_of: [false, no]}]}]}\n"
    )
    workspace.table = tmp_path / "t.xlsx"
    rows = [
        ("id", "asc", "died"),
        (1, True, False),
        (2, False, True),
        (3, "yes", "no"),
        (4, "no", "yes"),
        (5, "off", True),
    ]
    write_book(workspace.table, rows)
    workspace.run()
    assert [workspace.values(f"K{i}").get("ascites") for i in range(1, 6)] == ["yes", "no", "yes", "no", None]
    assert [c.label for c in open_cohort(workspace.out).cases] == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("mapping", "fix"),
    [
        ("case_id: {column: 2020}", 'put it into quotes: "2020"'), ("case_id: {column: true}", 'quotes: "true"'),
        ("case_id:", "keys column, prefix, or omit the key"), ("table:", "or omit the key"),
    ],
)  # fmt: skip
def test_value_of_another_type_has_a_fix(tmp_path, mapping, fix):
    """What YAML reads as a number, truth value or null is named with what to write instead."""
    (tmp_path / "m.yaml").write_text(
        f"schema: tmi-mapping/1\n{mapping}\nfields:\n  albumin: {{column: alb, unit: g/L}}\n"
    )
    with pytest.raises(UsageError) as caught:
        read_mapping(tmp_path / "m.yaml")
    assert fix in caught.value.fix


def test_table_without_an_id_column_numbers_its_cases(tmp_path):
    """Without case_id, a case is named after its row."""
    space = Workspace(tmp_path)
    space.mapping.write_text("schema: tmi-mapping/1\nfields:\n  albumin: {column: alb, unit: g/L}\n")
    space.table.write_text("alb\n40\n\n41\n")
    assert [line.case_id for line in space.run().lines] == ["row-2", "row-4"]


HEADINGS = {
    "tab": ('id,"Albumin\tg/L"\n1,40\n', "Albumin g/L"),
    "line break": ('id,"Albumin\r\n(g/L)"\n1,40\n', "Albumin (g/L)"),
    "no-break space": ("id,Albumin\u00a0g/L\n1,40\n", "Albumin g/L"),
    "decomposed": ("id,A\u0308lbumin\n1,40\n", "\u00c4lbumin"),
    "byte order mark": ("\ufeffid,alb\n1,40\n", "alb"),
    "semicolon": ("id;alb\n1;40\n", "alb"),
    "separator line": ("sep=;\nid;alb\n1;40\n", "alb"),
    "empty heading": ("id,,alb\n1,x,40\n", "alb"),
    "empty last heading": ("id,alb,\n1,40,note\n", "alb"),
    "repeated heading of others": ("id,x,x,alb\n1,2,3,40\n", "alb"),
}


@pytest.mark.parametrize("name", HEADINGS)
def test_heading_is_found_however_it_is_written(tmp_path, name):
    """Tabs, line breaks, no-break spaces, decomposed letters, marks and unnamed columns do not hide a heading."""
    text, column = HEADINGS[name]
    space = Workspace(tmp_path)
    space.mapping.write_text(
        "schema: tmi-mapping/1\ncase_id: {column: id, prefix: K}\n"
        f"fields:\n  albumin: {{column: '{column}', unit: g/L}}\n"
    )
    space.table.write_bytes(text.encode())
    assert [(line.row, line.outcome) for line in space.run().lines] == [(2, "imported")]
    assert space.values("K1") == {"albumin": 40.0}


def test_headings_that_are_equal_as_text_are_ambiguous(tmp_path):
    """Two headings that differ in a no-break space alone are one column twice."""
    space = Workspace(tmp_path)
    space.mapping.write_text("schema: tmi-mapping/1\nfields:\n  albumin: {column: alb g, unit: g/L}\n")
    space.table.write_text("alb g,alb\u00a0g\n40,41\n")
    with pytest.raises(UsageError, match="has the column 'alb g' twice"):
        space.run()


def test_notes_beside_a_sheet_are_left_out(workspace, tmp_path):
    """Cells right of the last heading belong to no column; a row of nothing else is no row."""
    workspace.table = tmp_path / "t.xlsx"
    rows = [("id", "sex", "alb", "bili", "outcome"), (1, "f", 4, 1, "dead", "note"), (None,) * 5 + ("legend",)]
    write_book(workspace.table, rows)
    assert [line.outcome for line in workspace.run().lines] == ["imported"]


def test_text_with_null_characters_is_another_encoding(workspace):
    """UTF-16 without a byte order mark is named as another encoding, not as a table without columns."""
    workspace.table.write_bytes("id;sex;alb;bili;outcome\n".encode("utf-16-le"))
    with pytest.raises(UsageError, match="is not text in utf-8"):
        workspace.run()


def test_import_keeps_the_schema(tmp_path):
    """The resolved schema of the mapping lies in the cohort."""
    space = Workspace(tmp_path)
    space.run("1,f,4,1,dead\n")
    assert json.loads((space.out / "clinical_schema.json").read_text())["name"] == "liver"
