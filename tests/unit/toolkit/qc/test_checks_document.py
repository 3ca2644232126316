"""docs/checks.md tells what the table of checks and the table of repairs hold."""

from __future__ import annotations

import re

from factories.paths import ROOT
from tmi.toolkit.qc.check_registry import CHECKS
from tmi.toolkit.qc.repairs import REPAIRS

TEXT = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z0-9-]+)` \| (error|warning) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def test_the_documented_checks_are_the_table_row_by_row_and_each_has_a_mend():
    rows = [(code, severity, about) for code, severity, about, mend in ROW.findall(TEXT) if mend.strip()]
    assert rows == [(code, check.severity, check.about) for code, check in CHECKS.items()]


def test_the_documented_repairs_are_those_there_are():
    part = TEXT.partition("## Repairs")[2].partition("## Recomputing")[0]
    codes = [
        code for row in re.findall(r"^\| (`.+?) \|", part, re.MULTILINE) for code in re.findall(r"`([a-z-]+)`", row)
    ]
    assert sorted(codes) == sorted(REPAIRS)
