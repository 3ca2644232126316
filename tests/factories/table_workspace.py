"""A small table with its mapping, and the cohort that is imported from it."""

from __future__ import annotations

import json
from pathlib import Path

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


class Workspace:
    """A table, its mapping and the output folder of the cohort."""

    def __init__(self, folder: Path) -> None:
        self.table, self.mapping, self.out = folder / "t.csv", folder / "m.yaml", folder / "cohort"
        self.mapping.write_text(MAPPING)

    def run(self, text: str | None = None, **options: object) -> TableReport:
        if text is not None:
            self.table.write_text(HEADER + text)
        options.setdefault("accept_losses", True)  # tables of a few rows lose more than a tenth of them at once
        return import_table(self.table, self.mapping, self.out, **options)

    def values(self, case_id: str) -> dict[str, object]:
        return json.loads((self.out / case_id / "clinical.json").read_text())["values"]
