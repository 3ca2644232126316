"""TensorRT engines of a bundle: built from its typed graphs where that is possible, and put off where it is not.

What is put off is written down in `Manifest.extra["tensorrt"]["pending"]`, engine -> what was missing; `tmi build` on a
GPU machine finishes the work from the bundle alone, without torch (torch-trt needs it).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tmi.export.checks.validation_set import ValidationSet, validate_real_cases, write_engine_outputs
from tmi.export.graphs.registry import EXPORTERS, import_target
from tmi.export.tensorrt.builder import TARGETS, BuildOptions, Plan, build_plan
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.nvidia_driver import Gpu, driver_incompatibility, find_gpu
from tmi.runtime.engines.precision import FLOAT16, TENSORRT, TF32, plan_precision
from tmi.runtime.engines.registry import ENGINES, open_engine
from tmi.runtime.verification.parity import ENGINE_ERRORS, check_engine
from tmi.runtime.verification.verify import load_failure
from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.storage.hashing import sha256_bytes

TYPED = "onnx-typed"
PLANS = tuple(name for name, spec in EXPORTERS.items() if spec.plan is not None)
"""Engines that are built from typed graphs."""
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Which plans, and how."""

    kinds: tuple[str, ...]
    """Names among `PLANS`."""
    options: BuildOptions
    """How they are built."""


def build_blocker(kind: str, options: BuildOptions) -> str | None:
    """What keeps this machine from building engines of a kind; None where nothing does."""
    spec = EXPORTERS[kind]
    package = str(spec.builds_with)
    missing = []
    if importlib.util.find_spec(package) is None:
        missing.append(f"the package {package} is not installed")
    if kind != "trt-rtx" or options.target is None:  # with a target it is built ahead of time, without its GPU
        gpu = find_gpu()
        if gpu is None:
            missing.append("this machine has no NVIDIA GPU with its driver")
        elif (too_old := driver_incompatibility(ENGINES[kind].package, gpu)) is not None:
            missing.append(too_old)
    return " and ".join(missing) or None


def add_plans(
    folder: Path,
    manifest: Manifest,
    request: PlanRequest,
    validation_set: ValidationSet,
    *,
    progress: Progress,
) -> tuple[Manifest, list[CheckResult]]:
    """Build what can be built here, and judge what can run here; the rest is pending, or not judged, by name.

    Args:
        folder: the bundle's folder; plans are written into it.
        manifest: with typed graphs.
        request: which and how.
        validation_set: what each engine that can run here is asked.
        progress: told one line of what is being done.

    Returns:
        The manifest with the plans and their facts, and the records of every gate.

    Raises:
        UnavailableError: TensorRT refuses a graph.
    """
    records: list[CheckResult] = []
    gpu = find_gpu()
    for kind in request.kinds:
        missing = build_blocker(kind, request.options)
        if missing is not None:
            manifest = _with_tensorrt_fact(
                manifest, "pending", {**_tensorrt_facts(manifest).get("pending", {}), kind: missing}
            )
            continue
        manifest, audits = _build_kind(folder, manifest, kind, request.options, progress)
        records += audits
        manifest = _with_tensorrt_fact(
            manifest, "pending", _without(_tensorrt_facts(manifest).get("pending", {}), kind)
        )
        not_judged = _without(manifest.extra.get("engines_not_judged", {}), kind)
        why = _run_blocker(kind, request.options, gpu)
        if why is None:
            progress(f"judging {kind} on {gpu.name if gpu else 'this machine'}")
            records += _validate_engine(folder, manifest, kind, validation_set)
            manifest = _with_tensorrt_fact(
                manifest, "judged_on", {**_tensorrt_facts(manifest).get("judged_on", {}), kind: _gpu_document(gpu)}
            )
        else:
            not_judged = {**not_judged, kind: why}
        manifest = replace(manifest, extra={**manifest.extra, "engines_not_judged": not_judged})
    return manifest, records


def pending(manifest: Manifest) -> dict[str, str]:
    """Engine that is still to be built -> what was missing at the export."""
    return dict(_tensorrt_facts(manifest).get("pending", {}))


def require_complete(bundle: Bundle) -> None:
    """Say that engines that were asked for could not be built, and how to go on.

    Raises:
        UnavailableError: some are pending.
    """
    for kind, missing in pending(bundle.manifest).items():
        extra = EXPORTERS[kind].extra
        raise UnavailableError(
            f"no {kind} engine was built: {missing}; bundle {bundle.folder} was written with its checked "
            f"{plan_precision(bundle.manifest)} graphs",
            fix=f"on the GPU machine: pip install 'tmi-clnet[{extra}]' && tmi build {bundle.folder}",
        )


def _build_kind(
    folder: Path, manifest: Manifest, kind: str, options: BuildOptions, progress: Progress
) -> tuple[Manifest, list[CheckResult]]:
    exporter = EXPORTERS[kind]
    if kind == "torch-trt":
        return import_target(exporter.plan)(folder, manifest, options, progress), []
    trt = importlib.import_module(str(exporter.builds_with))
    said = _tensorrt_facts(manifest)["precision"]["graphs"]
    gpu = find_gpu()
    graphs, records = [], []
    facts: dict[str, dict[str, Any]] = {}
    shared: dict[str, tuple[str, Plan]] = {}
    for spec in manifest.graphs:
        about = said[spec.name]
        structure = structure_digest(folder / spec.artefacts[TYPED]) if options.weights == "strip" else spec.name
        if structure in shared:
            file, plan = shared[structure]
            facts[spec.name] = {**facts[Path(file).name.partition(".")[0]], "shared": file}
            graphs.append(replace(spec, artefacts={**spec.artefacts, exporter.artefact: file}))
            continue
        file = f"graphs/{spec.name}{exporter.suffix}"
        progress(f"building {file}")
        plan = build_plan(
            trt,
            folder / spec.artefacts[TYPED],
            spec,
            replace(options, tf32=about["precision"] == TF32),
            kept=about["nodes_in_float"] if about["precision"] == FLOAT16 else None,
        )
        records += _audit(plan, spec, kind, about["precision"])
        shared[structure] = file, plan
        (folder / file).write_bytes(plan.data)
        built_on = gpu.target if gpu is not None and options.target is None else None
        facts[spec.name] = {**plan.facts, "built_on": built_on}
        graphs.append(replace(spec, artefacts={**spec.artefacts, exporter.artefact: file}))
    manifest = replace(manifest, graphs=tuple(graphs))
    chosen = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items() if k != "timing_cache"}
    plans = {**_tensorrt_facts(manifest).get("plans", {}), kind: {"options": chosen, "graphs": facts}}
    return _with_tensorrt_fact(manifest, "plans", plans), records


def structure_digest(path: Path) -> str:
    """SHA-256 of an ONNX file without the values of its weights: graphs that share it can share a stripped plan."""
    import onnx

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            tensor.ClearField("raw_data")
    return sha256_bytes(model.SerializeToString(deterministic=True))


def _audit(plan: Plan, spec: GraphSpec, kind: str, precision: str) -> list[CheckResult]:
    """No layer computes in a type that the typed graph does not give it."""
    half, single = plan.audit.count("HALF"), plan.audit.count("FLOAT")
    wrong = list(plan.audit.unexplained)
    if precision != FLOAT16 and half:
        wrong.append(f"{half} layers compute in HALF although the graph is {precision}")
    if precision == FLOAT16 and not half:
        wrong.append("no layer computes in HALF")
    detail = "; ".join(wrong[:3]) or f"{half} layers compute in HALF and {single} in FLOAT, each as its node says"
    return [
        CheckResult(
            gate="dtypes",
            artefact=kind,
            graph=spec.name,
            passed=not wrong,
            measured=float(len(wrong)),
            bound=0.0,
            detail=detail,
        )
    ]


def _run_blocker(kind: str, options: BuildOptions, gpu: Gpu | None) -> str | None:
    if gpu is None:
        return "no NVIDIA GPU at the export; the graph it was built from was judged by emulation"
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
            keep=partial(write_engine_outputs, folder, kind),
        )
        return records + validate_real_cases(
            engine, manifest, validation_set.real_cases, artefact=artefact, precision=precision
        )


def _gpu_document(gpu: Gpu | None) -> dict[str, Any]:
    assert gpu is not None
    return {"gpu": gpu.name, "compute_capability": gpu.target, "driver_cuda": "{}.{}".format(*gpu.cuda)}


def _tensorrt_facts(manifest: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = manifest.extra.get(TENSORRT, {})
    return facts


def _with_tensorrt_fact(manifest: Manifest, key: str, value: Any) -> Manifest:
    return replace(manifest, extra={**manifest.extra, TENSORRT: {**_tensorrt_facts(manifest), key: value}})


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in mapping.items() if k != key}


def require_target(kinds: Sequence[str], target: str | None) -> None:
    """`--target` belongs to TensorRT-RTX alone.

    Raises:
        UsageError: an unknown target, or none of the engines is built for one.
    """
    if target is None:
        return
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}", fix=f"choose one of {', '.join(TARGETS)}")
    if "trt-rtx" not in kinds:
        raise UsageError(
            "--target is for --engine trt-rtx; plans of trt and torch-trt are for the GPU that builds them",
            fix="leave --target out, or name --engine trt-rtx",
        )
