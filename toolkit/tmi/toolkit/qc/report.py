"""JSON document of `tmi check --json`, schema `tmi-check/2`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from tmi.toolkit.cases.case import Case
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.qc.radiomics_comparison import RadiomicsComparison
from tmi.toolkit.qc.repairs import AppliedRepair

SCHEMA = "tmi-check/2"


def status_of(cases: Sequence[Case], findings: Sequence[Issue]) -> dict[str, str]:
    """Return case id -> `good`, `warned` or `refused`."""
    status = {c.case_id: "good" for c in cases}
    for finding in findings:
        assert finding.case_id is not None  # each is of a case
        if status[finding.case_id] != "refused":
            status[finding.case_id] = "refused" if finding.severity == "error" else "warned"
    return status


def document(
    cases: Sequence[Case],
    findings: Sequence[Issue],
    *,
    repairs: Sequence[AppliedRepair] = (),
    comparisons: Sequence[RadiomicsComparison] = (),
) -> dict[str, Any]:
    """Return findings, repairs and radiomics comparisons as JSON values."""
    status = status_of(cases, findings)
    return {
        "schema": SCHEMA,
        "counts": {"cases": len(cases)} | {s: list(status.values()).count(s) for s in ("good", "warned", "refused")},
        "cases": [{"case_id": c.case_id, "status": status[c.case_id]} for c in cases],
        "findings": [f.to_dict() for f in findings],
        "repairs": [asdict(r) for r in repairs],
        "recomputed": [
            asdict(c) | {"largest": [{"feature": name, "relative": relative} for name, relative in c.largest]}
            for c in comparisons
        ],
    }


def document_schema() -> dict[str, Any]:
    """Return the JSON Schema of the documents."""
    file = resources.files("tmi.toolkit.qc") / "data" / "tmi-check-2.schema.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema
