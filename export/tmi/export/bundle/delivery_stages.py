"""Stages of an export that need no network: int8, tensorrt, document, publish. Only torch-trt needs torch."""

from __future__ import annotations

from dataclasses import replace

from tmi.export.bundle.additions import (
    addition_record,
    evidence_of_others,
    real_cases_of_others,
)
from tmi.export.bundle.context import DEFAULT_PRECISION, INT8_PRECISION, ExportContext
from tmi.export.bundle.model_card import model_card
from tmi.export.bundle.sbom import sbom
from tmi.export.checks.validation_set import write_real_cases
from tmi.export.graphs.registry import EXPORTERS, INT8, TYPED
from tmi.export.tensorrt.engines import PlanRequest, add_plans
from tmi.runtime.bundle.check_result import CheckResult, require_passed
from tmi.runtime.bundle.int8_records import untrained_cases
from tmi.runtime.bundle.manifest import (
    EVIDENCE_FOLDER,
    MODEL_CARD_FILE,
    REAL_CASES_FILE,
    SBOM_FILE,
    SIGNATURE_FILE,
    Manifest,
)
from tmi.runtime.bundle.reader import fingerprint, write_manifest
from tmi.runtime.verification.verify import failure_summary
from tmi.toolkit.storage.atomic_files import read_json, write_json, write_text

SEARCH = "--precision auto"
"""Option of `tmi export` that keeps nodes which overflow FP16 in float32."""
INT8_FIX = (
    "export without --precision int8: the bundle then predicts in float32 and, where it passes, in bfloat16 "
    "(see docs/parity.md)"
)


def int8(context: ExportContext) -> None:
    """Write, audit and validate the INT8 graphs, if they were requested. Optional ones that fail are left out.

    Raises:
        ParityError: a check failed on every INT8 engine.
    """
    if INT8 not in context.artefacts:
        return
    if context.int8_reason is not None:
        _leave_out(context, context.manifest, context.int8_reason)
        return
    from tmi.export.quantization.int8_graphs import add_int8_graphs

    before = context.manifest
    context.manifest, records = add_int8_graphs(
        context.folder, context.manifest, context.validation_set, progress=context.progress
    )
    records.append(_audit_cases(context))
    reason = failure_summary(records)
    if reason is not None and context.settings.int8_optional:
        _leave_out(context, before, reason)
        return
    context.records += records
    require_passed(context.records, consequence=context.consequence, fix=INT8_FIX)


def _leave_out(context: ExportContext, before: Manifest, reason: str) -> None:
    """Continue without INT8 graphs; the manifest keeps the reason."""
    engines = EXPORTERS[INT8].engines
    for graph in context.manifest.graphs:
        if (file := graph.artefacts.get(INT8)) is not None and file not in {
            other for g in before.graphs for other in g.artefacts.values()
        }:
            (context.folder / file).unlink(missing_ok=True)
    for name in engines:
        (context.folder / EVIDENCE_FOLDER / f"{name}.safetensors").unlink(missing_ok=True)
        for case in context.validation_set.real_cases:
            case.outputs.pop(name, None)
    rejected = dict.fromkeys(engines, reason)
    context.manifest = replace(before, engines_rejected={**before.engines_rejected, **rejected})
    context.artefacts = tuple(name for name in context.artefacts if name != INT8)


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


def tensorrt(context: ExportContext) -> None:
    """Write typed graphs where the bundle has none, and build the TensorRT engines as far as this machine can.

    Raises:
        ParityError: a check failed.
        UnavailableError: TensorRT rejects a graph.
    """
    if not context.plans:
        return
    if not context.staged().has(TYPED):
        from tmi.export.tensorrt.typed_graphs import add_typed_graphs  # packages that `tmi build` does not need

        context.manifest, records = add_typed_graphs(
            context.folder,
            context.manifest,
            context.settings.precision or DEFAULT_PRECISION,
            context.validation_set,
            progress=context.progress,
        )
        context.records += records
        # Before a build, which may take minutes.
        if context.settings.precision == INT8_PRECISION:
            require_passed(context.records, consequence=context.consequence, fix=plan_fix(context))
        context.require_passed()
    longest = context.manifest.config.clinical.max_length
    request = PlanRequest(kinds=context.plans, options=replace(context.settings.options, max_length=longest))
    context.manifest, records = add_plans(
        context.folder, context.manifest, request, context.validation_set, progress=context.progress
    )
    context.records += records
    require_passed(context.records, consequence=context.consequence, fix=plan_fix(context))


def plan_fix(context: ExportContext) -> str:
    """What to do about a TensorRT engine that fails a parity check."""
    record = context.manifest.tensorrt
    if record is not None and record.precision is not None and record.precision.requested == "auto":
        return "use another engine, or --engine trt-rtx; see docs/tensorrt.md"
    if record is not None and record.precision is not None and record.precision.requested == INT8_PRECISION:
        return "use --precision fp16 or auto; see docs/tensorrt.md"
    tried = f"{SEARCH}, which keeps nodes that overflow FP16 in float32; see docs/tensorrt.md"
    if not context.build:
        return f"try {tried}"
    engines = ",".join(context.plans)
    return f"export again: tmi export RUN --add --engine {engines} --force --out {context.out} with {tried}"


def document(context: ExportContext) -> None:
    """Record the checks and the addition in the manifest, and write evidence of real cases, model card and SBOM."""
    base, manifest = context.base, context.manifest
    earlier = None
    kept = () if base is None else base.manifest.parity
    cases = context.validation_set.real_cases
    new = {r.engine for r in context.records if r.engine}
    if base is not None and not cases and (rows := real_cases_of_others(base, new)):  # a build, which has no cases
        write_json(context.folder / REAL_CASES_FILE, {"cases": rows})
    if cases:  # by now every engine's outputs are stored in them
        others = [{} if base is None else evidence_of_others(base, case, new) for case in cases]
        write_real_cases(context.folder / REAL_CASES_FILE, cases, others)
    manifest = replace(manifest, parity=(*kept, *context.records))
    if base is not None:
        manifest = replace(manifest, additions=(*manifest.additions, addition_record(context)))
        earlier = read_json(context.folder / SBOM_FILE, kind="bundle")
        (context.folder / SIGNATURE_FILE).unlink(missing_ok=True)  # the signature covers the old files
    write_text(context.folder / MODEL_CARD_FILE, model_card(manifest))
    write_text(context.folder / SBOM_FILE, sbom(manifest, earlier=earlier))
    context.manifest = manifest


def publish(context: ExportContext) -> None:
    """Record the digest of every file and write the manifest. The staged folder can now take its place."""
    context.progress("hashing the files")
    context.manifest = replace(context.manifest, files=fingerprint(context.folder))
    write_manifest(context.folder, context.manifest)
