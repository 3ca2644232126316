"""docs/systems.md and docs/compare.md match the tables in the code."""

from __future__ import annotations

import re

import tmi.toolkit.cli.main as cli
from factories.nano import nano
from factories.paths import ROOT
from tmi.toolkit.config.overrides import override
from tmi.toolkit.model_registry import MODELS
from tmi.training.comparison.paper_tables import OWN_TABLES, TABLES
from tmi.training.comparison.plan import make_plan, select_tables

DOCS = ROOT / "docs"
SYSTEMS_PAGE = (DOCS / "systems.md").read_text(encoding="utf-8")
COMPARE_PAGE = (DOCS / "compare.md").read_text(encoding="utf-8")


def rows(page: str, header: str) -> list[list[str]]:
    table = page.split(header)[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def test_documented_models_match_registry():
    """The table of docs/systems.md has one row for each row of the registry, with the same content."""
    assert rows(SYSTEMS_PAGE, "| `--model` | uses") == [
        [f"`{name}`", ", ".join(spec.modalities), spec.trainer, spec.description, spec.source]
        for name, spec in MODELS.items()
    ]


def test_documented_ablation_settings_are_valid():
    """Every setting in the table of ablations changes the config."""
    settings = [cells[0].strip("`") for cells in rows(SYSTEMS_PAGE, "| setting | what | table")]
    assert len(settings) == 6
    for setting in settings:
        assert override(nano(), [setting]) != nano()


def test_documented_rows_match_paper_tables():
    """docs/compare.md lists the rows of every table and the number of runs that they need."""
    assert rows(COMPARE_PAGE, "| table | rows |") == [
        [f"`{t.number}`", ", ".join(f"`{row.key}`" for row in t.rows)] for t in (*TABLES.values(), *OWN_TABLES.values())
    ]
    assert f"need {len(make_plan(nano(), select_tables('all')).runs)} runs" in COMPARE_PAGE


def test_documented_options_match_command():
    """docs/compare.md documents exactly the options of `tmi compare`."""
    command = cli.LazyGroup(name="tmi").get_command(None, "compare")
    known = {o for p in command.params for o in p.opts if o.startswith("--")} - {"--help"}
    assert known == {
        o for cells in rows(COMPARE_PAGE, "| option | meaning |") for o in re.findall(r"`(--[a-z-]+)", cells[0])
    }
