"""Readers of tables and of the journal of their import."""

from __future__ import annotations

import shutil
from pathlib import Path

from factories.fuzzing import mutators as m
from factories.fuzzing.registry import Prepare, Read, target


def _table(suffix: str, separator: str = ",") -> Prepare:
    def prepare(folder: Path) -> Read:
        from tmi.toolkit.ingest.tabular.mapping import TableSpec
        from tmi.toolkit.ingest.tabular.reader import read_cells

        path = folder / f"t.{suffix}"
        rows = [("id", "sex", "alb"), ("1", "f", "3.8"), ("2", "m", "4.1"), ("3", "", "NA")]
        path.write_text("\n".join(separator.join(row) for row in rows) + "\n")
        return lambda: read_cells(path, TableSpec(), wanted=("id", "sex", "alb"))

    return prepare


target("table in CSV", "t.csv", m.csv_table)(_table("csv"))
target("table in TSV", "t.tsv", m.csv_table)(_table("tsv", "\t"))


@target("table in Excel", "t.xlsx", m.workbook)
def _workbook(folder: Path) -> Read:
    import datetime

    import openpyxl

    from tmi.toolkit.ingest.tabular.mapping import TableSpec
    from tmi.toolkit.ingest.tabular.reader import read_cells

    book = openpyxl.Workbook()
    for row in (("id", "sex", "alb", "day"), (1, "f", 3.8, datetime.date(2020, 1, 2)), (2, "m", "=C2+1", True)):
        book.active.append(row)
    book.active["C2"].number_format = "0.0%"
    book.save(folder / "t.xlsx")
    return lambda: read_cells(folder / "t.xlsx", TableSpec(), wanted=("id", "sex", "alb"))


ROWS = "1,f,3.8,0.9,dead\n2,m,4.1,NA,alive\n3,f,41,1.1,lost\n"


@target("import of a table", "t.csv", m.csv_table)
def _imported_table(folder: Path) -> Read:
    from factories.table_workspace import HEADER, Workspace

    work = Workspace(folder)
    work.table.write_text(HEADER + ROWS)

    def read() -> None:
        shutil.rmtree(work.out, ignore_errors=True)
        work.run()

    return read


@target("journal of an import", "cohort/.import-journal", m.json_lines)
def _journal(folder: Path) -> Read:
    from factories.table_workspace import Workspace

    work = Workspace(folder)
    work.run(ROWS)
    return lambda: work.run(resume=True)


@target("table of features", "f.csv", m.csv_table)
def _external_table(folder: Path) -> Read:
    from tmi.toolkit.radiomics.external_table import read_external_table
    from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES

    rows = ["case_id," + ",".join(FEATURE_NAMES), "C," + ",".join(["1.5"] * 1781), "D," + ",".join(["2"] * 1781)]
    (folder / "f.csv").write_text("\n".join(rows) + "\n")
    return lambda: read_external_table(folder / "f.csv").values_of("C")
