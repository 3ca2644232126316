"""Check of a bundle's INT8 graphs: no fold is calibrated on a case that it holds out."""

from __future__ import annotations

from tmi.runtime.bundle.int8_records import untrained_cases
from tmi.runtime.bundle.manifest import Manifest
from tmi.toolkit.errors import UsageError
from tmi.toolkit.run_folder import RunFolder
from tmi.training.leakage_audit.run_checks import AuditResult


def audit_calibration(run: RunFolder, manifest: Manifest) -> AuditResult:
    """Compare the calibration cases of a bundle with the splits of its run.

    Raises:
        UsageError: the bundle is of another run, or has no INT8 graphs.
    """
    of_bundle = (manifest.run.name, manifest.run.started_at, manifest.run.cohort.fingerprint)
    of_run = (run.state["name"], run.state["started_at"], run.state["cohort"]["fingerprint"])
    if of_bundle != of_run or {fold.fold for fold in manifest.folds} != {split.fold for split in run.folds}:
        raise UsageError("the bundle is not an export of this run", fix="name the bundle of the run with --bundle")
    if manifest.int8 is None or not manifest.int8.graphs:
        raise UsageError("the bundle has no INT8 graphs, whose calibration could be checked", fix="omit --bundle")
    found = untrained_cases(manifest, run)
    if found:
        cases = "; ".join(f"{graph}: {', '.join(ids)}" for graph, ids in found.items())
        detail = f"INT8 is calibrated on cases that a fold holds out: {cases}"
        return AuditResult(check="int8-calibration", status="leak", detail=detail)
    count = len({case.case for graph in manifest.int8.graphs.values() for case in graph.calibration})
    return AuditResult(
        check="int8-calibration", status="holds", detail=f"INT8 is calibrated on {count} training cases of its folds"
    )
