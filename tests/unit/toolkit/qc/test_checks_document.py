"""docs/checks.md matches the table of checks and the table of repairs."""

from __future__ import annotations

import re

from factories.paths import ROOT
from tmi.toolkit.issues.codes import CODES, RETIRED_CODES
from tmi.toolkit.qc.check_registry import CHECKS
from tmi.toolkit.qc.repairs import REPAIRS

TEXT, _, OTHERS = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8").partition("## All other codes")
OTHERS, _, REST = OTHERS.partition("## Where")
ROW = re.compile(r"^\| `([a-z0-9-]+)` \| (error|warning) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def test_documented_checks_equal_the_registry():
    """The page lists the checks in the order of the registry, each with a fix."""
    rows = [(code, severity, about) for code, severity, about, fix in ROW.findall(TEXT) if fix.strip()]
    assert rows == [(code, check.severity, check.about) for code, check in CHECKS.items()]


def test_documented_other_codes_equal_the_registry():
    """The page lists every code that is no check of a case, in the order of the registry, each with a fix."""
    row = re.compile(r"^\| `([a-z0-9-]+)` \| (error|warning|note) \| [^|]+ \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)
    expected = [(code, row.severity, row.about) for code, row in CODES.items() if code not in CHECKS]
    assert row.findall(OTHERS) == expected
    assert all(f"`{code}`" in OTHERS for code in RETIRED_CODES)


def test_documented_repairs_equal_the_registry():
    """The page lists every repair and no other."""
    part = REST.partition("## Repairs")[2].partition("## Recomputing")[0]
    codes = [
        code for row in re.findall(r"^\| (`.+?) \|", part, re.MULTILINE) for code in re.findall(r"`([a-z-]+)`", row)
    ]
    assert sorted(codes) == sorted(REPAIRS)
