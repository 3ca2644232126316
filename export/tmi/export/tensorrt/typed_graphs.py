"""The graphs that plans are built from: strongly typed, audited against the float32 files, judged by emulation.

For every graph the artefact `onnx-typed` is the file whose types TensorRT follows: an FP16 file, or the float32 file
itself where the graph computes in float32 or TF32. `Manifest.extra["tensorrt"]["precision"]` says which and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.export.checks.onnx_summary import read_summary
from tmi.export.checks.validation_set import ValidationSet, validate_real_cases, write_engine_outputs
from tmi.export.tensorrt.fp16_conversion import FP16_MAX, save, to_fp16
from tmi.export.tensorrt.fp16_simulation import EmulationEngine, TensorExtreme
from tmi.export.tensorrt.mixed_precision_search import PrecisionPlan, ProbeInput, search_precision
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.graph_engine import available_cores
from tmi.runtime.engines.precision import FLOAT16, FLOAT32, TENSORRT, TF32, plan_precision
from tmi.runtime.inference.ensemble import fusion_inputs
from tmi.runtime.verification.golden_inputs import GoldenInputs
from tmi.runtime.verification.parity import BOUNDS, Outputs, check_engine
from tmi.toolkit.errors import UsageError

TYPED = "onnx-typed"
"""Artefact kind of the graphs that plans are built from."""
PRECISIONS: Mapping[str, str] = {"fp16": FLOAT16, "tf32": TF32, "fp32": FLOAT32, "auto": "by search"}
"""What `--precision` takes."""
SUFFIX = ".fp16.onnx"


def require_precision(requested: str) -> str:
    """The name, if it is one.

    Raises:
        UsageError: it is none; the text lists the known ones.
    """
    if requested not in PRECISIONS:
        raise UsageError(f"unknown precision {requested!r}", fix=f"choose one of {', '.join(PRECISIONS)}")
    return requested


def add_typed_graphs(
    folder: Path,
    manifest: Manifest,
    requested: str,
    validation_set: ValidationSet,
    *,
    progress: Callable[[str], None],
) -> tuple[Manifest, list[CheckResult]]:
    """Write, audit and judge the typed graphs of a bundle that has its float32 ONNX graphs.

    Args:
        folder: the bundle's folder.
        manifest: its manifest so far.
        requested: a key of `PRECISIONS`.
        validation_set: inputs and eager's answers; the real cases' `answers` get the emulation's.
        progress: told one line of what is being done.

    Returns:
        The manifest with the new artefacts and what is said of them, and the records of every gate.

    Raises:
        RuntimeError: a graph cannot be converted.
    """
    graphs, said, records = [], {}, []
    for spec in manifest.graphs:
        path = folder / spec.artefacts["onnx"]
        if requested == "auto":
            progress(f"searching the precision of {spec.name}")
        plan = _precision_plan(requested, path, spec, manifest, validation_set)
        typed = spec.artefacts["onnx"]
        about: dict[str, Any] = {"precision": plan.precision, "search": list(plan.steps)}
        if plan.precision == FLOAT16:
            typed = f"graphs/{spec.name}{SUFFIX}"
            progress(f"writing {typed}")
            half = to_fp16(path, keep=plan.keep)
            save(half.model, folder / typed)
            about |= {"nodes_in_half": half.half, "nodes_in_float": dict(half.kept)}
            records.append(audit_typed(folder / typed, path, spec))
        graphs.append(replace(spec, artefacts={**spec.artefacts, TYPED: typed}))
        said[spec.name] = about
    facts = {**manifest.extra.get(TENSORRT, {}), "precision": {"asked": requested, "graphs": said}}
    manifest = replace(manifest, graphs=tuple(graphs), extra={**manifest.extra, TENSORRT: facts})
    if plan_precision(manifest) == FLOAT32:
        return manifest, records  # the very files that were judged as float32
    progress("judging the typed graphs by emulation")
    judged, reached = _validate_emulation(folder, manifest, validation_set)
    facts["emulation"] = reached
    return manifest, records + judged


def audit_typed(half: Path, single: Path, spec: GraphSpec) -> CheckResult:
    """Every tensor of an FP16 file is the float32 file's own, or that rounded to nearest; likewise every epsilon."""
    mine, theirs = read_summary(half), read_summary(single)
    wrong = list(_differing(mine.tensors, theirs.tensors))
    if (mine.inputs, mine.outputs) != (theirs.inputs, theirs.outputs):
        wrong.append("inputs and outputs are not the float32 graph's")
    epsilons = {norm.module: norm.epsilon for norm in theirs.norms}
    for norm in mine.norms:
        if norm.epsilon != epsilons.get(norm.module):
            theirs_is = epsilons.get(norm.module)
            wrong.append(f"{norm.module} has epsilon {norm.epsilon:g}, the float32 graph's is {theirs_is}")
    if len(mine.norms) != len(theirs.norms):
        wrong.append(f"{len(mine.norms)} normalisations, the float32 graph has {len(theirs.norms)}")
    rounded = sum(t.dtype == np.float16 for t in mine.tensors.values())
    right = f"{rounded} of {len(mine.tensors)} tensors are the float32 graph's rounded to FP16, the others its own"
    return CheckResult(
        gate="weights",
        artefact=TYPED,
        graph=spec.name,
        passed=not wrong,
        measured=float(len(wrong)),
        bound=0.0,
        detail="; ".join(wrong[:3]) or right,
    )


def _differing(mine: Mapping[str, NDArray[np.floating]], theirs: Mapping[str, NDArray[np.floating]]) -> Iterator[str]:
    for name in sorted(set(mine) ^ set(theirs)):
        yield f"{name} is in one of the two graphs only"
    for name in sorted(set(mine) & set(theirs)):
        if theirs[name].astype(mine[name].dtype).tobytes() != mine[name].tobytes():
            yield f"{name} is not the float32 graph's rounded to {mine[name].dtype}"


def _precision_plan(
    requested: str, path: Path, spec: GraphSpec, manifest: Manifest, validation_set: ValidationSet
) -> PrecisionPlan:
    if requested != "auto":
        return PrecisionPlan(precision=PRECISIONS[requested], error=float("nan"))
    asking = [
        (validation_set.golden, validation_set.reference),
        *((case.inputs, case.reference) for case in validation_set.real_cases),
    ]
    questions = [q for inputs, reference in asking for q in graph_probe_inputs(spec, manifest, inputs, reference)]
    return search_precision(path, questions, BOUNDS[FLOAT16].relative, threads=available_cores())


def graph_probe_inputs(
    spec: GraphSpec, manifest: Manifest, inputs: GoldenInputs, reference: Outputs
) -> list[ProbeInput]:
    """Inputs of the whole pipeline as questions to one graph, each with what eager answers there."""
    if spec.role == "ct":
        # One case at a time: a batch of volumes may not fit.
        answers, rows = reference.features[spec.name], [slice(i, i + 1) for i in range(inputs.count)]
        return [ProbeInput(inputs={"ct": inputs.ct_B1DHW[row]}, expected=answers[row]) for row in rows]
    if spec.role == "text":
        text = inputs.texts[spec.name]
        feed = {"input_ids": text.input_ids_BT, "attention_mask": text.attention_mask_BT}
        return [ProbeInput(inputs=feed, expected=reference.features[spec.name])]
    stacked = fusion_inputs(manifest, reference.features, reference.features, inputs.radiomics_BFR)
    return [ProbeInput(inputs=stacked, expected=reference.logits_BFK)]


def _validate_emulation(
    folder: Path, manifest: Manifest, validation_set: ValidationSet
) -> tuple[list[CheckResult], dict[str, dict[str, Any]]]:
    """All gates of an engine, and every intermediate finite on the golden inputs and on each real case.

    The inputs that are absurd on purpose, beside which a case must answer as ever, may overflow and are not watched.
    """
    precision = plan_precision(manifest)
    reached: dict[str, dict[str, TensorExtreme]] = {}
    with EmulationEngine() as judge:
        engine: Any = judge
        engine.open(Bundle(folder=folder, manifest=manifest, digest=""), threads=None)
        with engine.recording_extremes() as seen:

            def keep(outputs: Outputs) -> None:
                """Called when the golden inputs are through, before any other question."""
                write_engine_outputs(folder, EmulationEngine.name, outputs)
                _merge_extremes(reached, seen)

            records = check_engine(
                engine,
                manifest,
                validation_set.golden,
                validation_set.reference,
                artefact=TYPED,
                precision=precision,
                reference_float64=validation_set.reference_float64,
                keep=keep,
            )
        inside = [_check_intermediates(graph, extremes, "the golden inputs") for graph, extremes in reached.items()]
        with engine.recording_extremes() as seen:
            real = validate_real_cases(engine, manifest, validation_set.real_cases, artefact=TYPED, precision=precision)
        what = f"{len(validation_set.real_cases)} real cases"
        inside += [_check_intermediates(graph, extremes, what, real=True) for graph, extremes in seen.items()]
        _merge_extremes(reached, seen)
    return [*inside, *records, *real], {graph: _summary(extremes) for graph, extremes in reached.items()}


def _merge_extremes(into: dict[str, dict[str, TensorExtreme]], more: Mapping[str, Mapping[str, TensorExtreme]]) -> None:
    for graph, extremes in more.items():
        known = into.setdefault(graph, {})
        for name, extreme in extremes.items():
            if name not in known or extreme.largest > known[name].largest:
                known[name] = extreme


def _check_intermediates(
    graph: str, extremes: Mapping[str, TensorExtreme], where: str, *, real: bool = False
) -> CheckResult:
    bad = [e for e in extremes.values() if not e.finite]
    first = f": first {bad[0].tensor} of {bad[0].node} ({bad[0].operator})" if bad else ""
    return CheckResult(
        gate="real-finite-inside" if real else "finite-inside",
        artefact=TYPED,
        graph=graph,
        passed=not bad,
        measured=float(len(bad)),
        bound=0.0,
        detail=f"{len(bad)} of {len(extremes)} FP16 tensors overflow on {where}{first}",
        engine=EmulationEngine.name,
    )


def _summary(extremes: Mapping[str, TensorExtreme]) -> dict[str, Any]:
    if not extremes:
        return {"tensors": 0}
    top = max(extremes.values(), key=lambda e: e.largest)
    return {
        "tensors": len(extremes),
        "largest": top.largest,
        "at": {"tensor": top.tensor, "node": top.node, "operator": top.operator},
        "share_of_fp16_range": top.largest / FP16_MAX,
    }
