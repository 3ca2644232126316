"""TensorRT engines of a bundle: build from the typed graphs, validation on the GPU, and the list of pending engines.

An engine that cannot be built on this machine is recorded in `Manifest.tensorrt.pending` with the reason.
`tmi build` on a GPU machine builds it later from the bundle alone; only torch-trt needs torch for that.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from tmi.export.checks.validation_set import ValidationSet, validate_real_cases, write_engine_outputs
from tmi.export.graphs.registry import EXPORTERS, TORCH_TRT, TYPED
from tmi.export.tensorrt.builder import TARGETS, BuildOptions, Plan, build_plan
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.contents import bundled_trust
from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.tensorrt_records import (
    EnginePlans,
    GpuRecord,
    GraphPrecision,
    PlanOptions,
    PlanRecord,
    TensorRtRecord,
)
from tmi.runtime.engines.nvidia_driver import Gpu, driver_incompatibility, find_gpu
from tmi.runtime.engines.precision import FLOAT16, INT8, TF32, graph_precision_records, plan_precision
from tmi.runtime.engines.registry import ENGINES, open_engine
from tmi.runtime.verification.parity import ENGINE_ERRORS, check_engine
from tmi.runtime.verification.verify import load_failure
from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.storage.hashing import sha256_bytes

PLANS = tuple(name for name, spec in EXPORTERS.items() if spec.plan is not None)
"""Names of the TensorRT engines."""
Progress = Callable[[str], None]
"""Called with one line that describes the current step."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """TensorRT engines to build, and their options."""

    kinds: tuple[str, ...]
    """Names in `PLANS`."""
    options: BuildOptions
    """Build options."""


def build_blocker(kind: str, options: BuildOptions) -> str | None:
    """The reason why this machine cannot build engines of a kind; None if it can."""
    spec = EXPORTERS[kind]
    package = str(spec.builds_with)
    reasons = []
    if importlib.util.find_spec(package) is None:
        reasons.append(missing_package(kind))
    if kind != "trt-rtx" or options.target is None:  # TensorRT-RTX builds for a named target without its GPU
        gpu = find_gpu()
        if gpu is None:
            reasons.append("this machine has no NVIDIA GPU with its driver")
        elif (incompatibility := driver_incompatibility(ENGINES[kind].package, gpu)) is not None:
            reasons.append(incompatibility)
    return " and ".join(reasons) or None


def add_plans(
    folder: Path,
    manifest: Manifest,
    request: PlanRequest,
    validation_set: ValidationSet,
    *,
    progress: Progress,
) -> tuple[Manifest, list[CheckResult]]:
    """Build the requested engines and validate them, as far as this machine can.

    An engine that cannot be built here is recorded as pending. An engine that is built but cannot run here is recorded
    as not validated.

    Args:
        folder: the bundle's folder. Plans are written into it.
        manifest: manifest with typed graphs.
        request: engines to build, and their options.
        validation_set: inputs and reference outputs for the validation.
        progress: called with one line for each step.

    Returns:
        The manifest with the plans and their facts, and the records of all checks.

    Raises:
        UsageError: torch-trt of graphs in INT8.
        UnavailableError: TensorRT rejects a graph.
    """
    records: list[CheckResult] = []
    gpu = find_gpu()
    if TORCH_TRT in request.kinds and plan_precision(manifest) == INT8:
        raise UsageError(
            f"{TORCH_TRT} compiles modules, and the bundle's typed graphs are in INT8", fix="build trt or trt-rtx"
        )
    for kind in request.kinds:
        blocker = build_blocker(kind, request.options)
        pending = pending_engines(manifest)
        if blocker is not None:
            manifest = _with_tensorrt(manifest, pending={**pending, kind: blocker})
            continue
        manifest, audit_records = _build_kind(folder, manifest, kind, request.options, progress)
        records += audit_records
        manifest = _with_tensorrt(manifest, pending=_without(pending, kind))
        not_validated = _without(manifest.engines_not_validated, kind)
        run_blocker = _run_blocker(kind, request.options, gpu)
        if run_blocker is None:
            progress(f"validating {kind} on {gpu.name if gpu else 'this machine'}")
            records += _validate_engine(folder, manifest, kind, validation_set)
            validated_on = {**_tensorrt(manifest).validated_on, kind: _gpu_record(gpu)}
            manifest = _with_tensorrt(manifest, validated_on=validated_on)
        else:
            not_validated = {**not_validated, kind: run_blocker}
        manifest = replace(manifest, engines_not_validated=not_validated)
    return manifest, records


def pending_engines(manifest: Manifest) -> dict[str, str]:
    """Engine that is not built yet -> why the export could not build it."""
    return dict(_tensorrt(manifest).pending)


def without_plans(manifest: Manifest, kinds: Collection[str], *, typed: bool) -> Manifest:
    """Remove what a manifest records of some TensorRT engines, and with `typed` of the typed graphs."""
    record = manifest.tensorrt
    if record is None:
        return manifest
    record = replace(
        record,
        plans={k: v for k, v in record.plans.items() if k not in kinds},
        pending={k: v for k, v in record.pending.items() if k not in kinds},
        validated_on={k: v for k, v in record.validated_on.items() if k not in kinds},
        precision=None if typed else record.precision,
        emulation={} if typed else record.emulation,
    )
    return replace(manifest, tensorrt=None if record == TensorRtRecord() else record)


def missing_package(kind: str) -> str:
    """The reason of `build_blocker` for an engine whose package is not installed."""
    return f"the package {EXPORTERS[kind].builds_with} is not installed"


def require_complete(bundle: Bundle, kinds: Collection[str]) -> None:
    """Check that no requested engine of a bundle is pending; one that an earlier export left pending stays so.

    Args:
        bundle: the bundle that was written.
        kinds: the engines that were requested.

    Raises:
        UnavailableError: an engine is pending; the fix is the command that builds it.
    """
    for kind, blocker in pending_engines(bundle.manifest).items():
        if kind not in kinds:
            continue
        extra = EXPORTERS[kind].extra
        machine = "" if blocker == missing_package(kind) else "on the GPU machine: "
        raise UnavailableError(
            f"no {kind} engine was built: {blocker}; bundle {bundle.folder} was written with its checked "
            f"{plan_precision(bundle.manifest)} graphs",
            fix=f"{machine}pip install 'tmi-clnet[{extra}]' && tmi build {bundle.folder}",
        )


def _build_kind(
    folder: Path, manifest: Manifest, kind: str, options: BuildOptions, progress: Progress
) -> tuple[Manifest, list[CheckResult]]:
    """Build the plan of every graph, and audit the data types of its layers."""
    exporter = EXPORTERS[kind]
    if kind == TORCH_TRT:
        return exporter.function("plan")(folder, manifest, options, progress), []
    trt = importlib.import_module(str(exporter.builds_with))
    precisions = graph_precision_records(manifest)
    gpu = find_gpu()
    graphs, records = [], []
    plans: dict[str, PlanRecord] = {}
    shared: dict[str, str] = {}
    for spec in manifest.graphs:
        graph_precision = precisions[spec.name]
        # Stripped plans hold no weights, so graphs with the same structure share one plan.
        structure = structure_digest(folder / spec.artefacts[TYPED]) if options.weights == "strip" else spec.name
        if structure in shared:
            file = shared[structure]
            plans[spec.name] = replace(plans[Path(file).name.partition(".")[0]], shared=file)
            graphs.append(replace(spec, artefacts={**spec.artefacts, exporter.artefact: file}))
            continue
        file = f"graphs/{spec.name}{exporter.suffix}"
        progress(f"building {file}")
        plan = build_plan(
            trt,
            folder / spec.artefacts[TYPED],
            spec,
            replace(options, tf32=graph_precision.precision == TF32),
            float32_nodes=graph_precision.nodes_in_float if graph_precision.precision == FLOAT16 else None,
        )
        records.append(_audit_layer_types(plan, spec, kind, graph_precision))
        shared[structure] = file
        (folder / file).write_bytes(plan.data)
        built_on = gpu.target if gpu is not None and options.target is None else None
        plans[spec.name] = replace(plan.record, built_on=built_on)
        graphs.append(replace(spec, artefacts={**spec.artefacts, exporter.artefact: file}))
    manifest = replace(manifest, graphs=tuple(graphs))
    # The timing cache is a local path and stays out of the manifest.
    recorded = PlanOptions(**{f.name: getattr(options, f.name) for f in fields(PlanOptions)})
    engine_plans = {**_tensorrt(manifest).plans, kind: EnginePlans(options=recorded, graphs=plans)}
    return _with_tensorrt(manifest, plans=engine_plans), records


def structure_digest(path: Path) -> str:
    """SHA-256 of an ONNX file without its weights. Graphs with equal digests can share a stripped plan."""
    import onnx

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            tensor.ClearField("raw_data")
    return sha256_bytes(model.SerializeToString(deterministic=True))


def _audit_layer_types(plan: Plan, spec: GraphSpec, kind: str, graph_precision: GraphPrecision) -> CheckResult:
    """Check that every layer computes in the type that the typed graph gives its node."""
    precision, nodes = graph_precision.precision, graph_precision.nodes_in_int8 or 0
    eight, half, single = (plan.audit.count(dtype) for dtype in ("INT8", "HALF", "FLOAT"))
    mismatches = list(plan.audit.unexplained)
    if precision == INT8 and not eight:
        mismatches.append("no layer computes in INT8")
    elif len(plan.audit.int8_nodes) != nodes:
        mismatches.append(f"{len(plan.audit.int8_nodes)} nodes compute in INT8, the typed graph has {nodes}")
    if precision != FLOAT16 and half:
        mismatches.append(f"{half} layers compute in HALF although the graph is {precision}")
    if precision == FLOAT16 and not half:
        mismatches.append("no layer computes in HALF")
    counts = f"{f'{eight} layers compute in INT8, {half}' if eight else f'{half} layers compute'} in HALF and {single}"
    summary = f"{counts} in FLOAT, as the types of their nodes require"
    return CheckResult(
        check="dtypes",
        artefact=kind,
        graph=spec.name,
        passed=not mismatches,
        measured=float(len(mismatches)),
        bound=0.0,
        detail="; ".join(mismatches[:3]) or summary,
    )


def _run_blocker(kind: str, options: BuildOptions, gpu: Gpu | None) -> str | None:
    """The reason why an engine cannot be validated on this machine; None if it can."""
    if gpu is None:
        return "no NVIDIA GPU at the export; the typed graph was validated by emulation"
    if kind == "trt-rtx" and options.target is not None and options.target != gpu.target:
        return f"built for {options.target}, the GPU at the export was {gpu.target}"
    return None


def _validate_engine(folder: Path, manifest: Manifest, kind: str, validation_set: ValidationSet) -> list[CheckResult]:
    bundle = Bundle(folder=folder, manifest=manifest, digest="")
    artefact, precision = ENGINES[kind].artefact, plan_precision(manifest)
    try:
        engine = open_engine(kind, bundle)
    except ENGINE_ERRORS as error:
        return [load_failure(kind, artefact, error)]
    with engine:
        records = check_engine(
            engine,
            manifest,
            validation_set.golden,
            validation_set.reference,
            artefact=artefact,
            precision=precision,
            reference_float64=validation_set.reference_float64,
            trust=bundled_trust(bundle),
            keep=partial(write_engine_outputs, folder, kind),
        )
        return records + validate_real_cases(
            engine, manifest, validation_set.real_cases, artefact=artefact, precision=precision
        )


def _gpu_record(gpu: Gpu | None) -> GpuRecord:
    assert gpu is not None
    return GpuRecord(gpu=gpu.name, compute_capability=gpu.target, driver_cuda="{}.{}".format(*gpu.cuda))


def _tensorrt(manifest: Manifest) -> TensorRtRecord:
    return manifest.tensorrt or TensorRtRecord()


def _with_tensorrt(manifest: Manifest, **changes: Any) -> Manifest:
    return replace(manifest, tensorrt=replace(_tensorrt(manifest), **changes))


def _without(mapping: Mapping[str, str], key: str) -> dict[str, str]:
    return {k: v for k, v in mapping.items() if k != key}


def require_target(kinds: Sequence[str], target: str | None) -> None:
    """Check the value of `--target`, which only TensorRT-RTX has.

    Raises:
        UsageError: unknown target, or no engine in `kinds` has targets.
    """
    if target is None:
        return
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}", fix=f"choose one of {', '.join(TARGETS)}")
    if "trt-rtx" not in kinds:
        raise UsageError(
            "--target is for --engine trt-rtx; plans of trt and torch-trt are for the GPU that builds them",
            fix="omit --target, or add --engine trt-rtx",
        )
