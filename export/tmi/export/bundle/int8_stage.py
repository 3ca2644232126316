"""Stage of an export that quantises the encoders to INT8."""

from __future__ import annotations

from tmi.export.bundle.context import ExportContext
from tmi.export.graphs.registry import INT8
from tmi.runtime.bundle.check_result import CheckResult, require_passed
from tmi.runtime.bundle.int8_records import untrained_cases

INT8_FIX = (
    "predict in float32, which the bundle without INT8 does; or export again with a cohort whose training cases cover "
    "what the models see (see docs/int8.md)"
)


def int8(context: ExportContext) -> None:
    """Write, audit and validate the INT8 graphs, if they were requested.

    Raises:
        ParityError: a check failed on every INT8 engine.
    """
    if INT8 not in context.artefacts:
        return
    from tmi.export.quantization.int8_graphs import add_int8_graphs

    context.manifest, records = add_int8_graphs(
        context.folder, context.manifest, context.validation_set, progress=context.progress
    )
    context.records += [*records, _audit_cases(context)]
    require_passed(context.records, consequence=context.consequence, fix=INT8_FIX)


def _audit_cases(context: ExportContext) -> CheckResult:
    """Check by the splits of the run that every fold of a graph was trained on the graph's calibration cases."""
    found = untrained_cases(context.manifest, context.run)
    mismatches = [f"{graph}: {', '.join(cases)}" for graph, cases in found.items()]
    return CheckResult(
        check="calibration-cases",
        artefact=INT8,
        graph="pipeline",
        passed=not mismatches,
        measured=float(len(mismatches)),
        bound=0.0,
        detail=f"calibrated on cases that a fold was not trained on: {'; '.join(mismatches)}"
        if mismatches
        else "every fold of a graph was trained on its calibration cases",
    )
