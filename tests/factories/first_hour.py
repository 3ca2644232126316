"""Folder of a new user: a cohort, cases, a run, a bundle, a table, and files and folders that are in the way."""

from __future__ import annotations

import shutil
from pathlib import Path

from factories.cases import write_case, write_cohort
from factories.paths import ROOT
from factories.table_workspace import HEADER, MAPPING

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"


def write_first_hour(folder: Path, run: Path) -> Path:
    """Fill an empty folder; `run` is a finished run that is copied to `runs/first`."""
    write_cohort(folder / "cohort", cases=8)
    for seed, name in enumerate(("P1", "P2")):
        write_case(folder / "held-out" / name, seed=seed)
    for name in ("bundle", "case"):
        shutil.copytree(PUBLISHED / name, folder / name)
    shutil.copytree(run, folder / "runs" / "first")
    (folder / "t.csv").write_text(f"{HEADER}1,f,40,1.0,dead\n")
    (folder / "m.yaml").write_text(MAPPING)
    (folder / "old.json").write_text("{}")
    for name in ("full/x", "done/case/x"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("")
    return folder
