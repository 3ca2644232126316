"""Checks of a case: those rows of the table of codes that a case can fail. A test compares `docs/checks.md` with it."""

from __future__ import annotations

from tmi.toolkit.issues.codes import CASE_CODES
from tmi.toolkit.issues.codes import Code as Check
from tmi.toolkit.issues.codes import Severity as Severity

__all__ = ["ALERTS", "CHECKS", "Check", "Severity"]

CHECKS = CASE_CODES
"""Code -> check."""
ALERTS = frozenset({"clinical-incomplete", "liver-place", "mask-name"})
"""Warnings that are shown before a prediction, because it must not be relied on."""
