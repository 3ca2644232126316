"""Strongly typed graphs that TensorRT engines are built from: writing, audit against float32, validation by emulation.

The artefact `onnx-typed` of a graph is the file whose types TensorRT uses: an FP16 file, a signed INT8 file, or the
float32 file itself if the graph computes in float32 or TF32. `Manifest.tensorrt.precision` records the precision and
the reasons.
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
from tmi.export.graphs.registry import TYPED
from tmi.export.quantization.signed_graphs import SIGNED_SUFFIX, audit_signed_graph, write_signed_graph
from tmi.export.tensorrt.fp16_conversion import FP16_MAX, save, to_fp16
from tmi.export.tensorrt.fp16_simulation import EmulationEngine, TensorExtreme
from tmi.export.tensorrt.mixed_precision_search import PrecisionPlan, ProbeInput, search_precision
from tmi.export.tensorrt.precision_choice import BY_SEARCH, PRECISIONS
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.tensorrt_records import (
    EmulationRecord,
    GraphPrecision,
    PrecisionRecord,
    TensorPosition,
    TensorRtRecord,
)
from tmi.runtime.engines.precision import FLOAT16, FLOAT32, INT8, graph_precisions, plan_precision
from tmi.runtime.inference.ensemble import fusion_inputs
from tmi.runtime.verification.golden_inputs import GoldenInputs
from tmi.runtime.verification.outputs import Outputs
from tmi.runtime.verification.parity import BOUNDS, check_engine
from tmi.toolkit.compute.cpu import available_cores

SUFFIX = ".fp16.onnx"
INT8_LAYERS = "int8-layers"
"""Check that INT8 graphs have any layer in INT8."""
INT8_SHARES = (1.0, 0.75, 0.5, 0.25)
"""Parts of the error budget of the INT8 graphs that signed graphs get, one after another, until every check holds."""


def add_typed_graphs(
    folder: Path,
    manifest: Manifest,
    requested: str,
    validation_set: ValidationSet,
    *,
    progress: Callable[[str], None],
) -> tuple[Manifest, list[CheckResult]]:
    """Write, audit and validate the typed graphs of a bundle that has float32 ONNX graphs.

    Args:
        folder: the bundle's folder.
        manifest: its manifest so far; for INT8 it records the INT8 graphs of the CPU.
        requested: a key of `PRECISIONS`.
        validation_set: inputs and reference outputs. The emulation's outputs are added to the real cases' `outputs`.
        progress: called with one line for each step.

    Returns:
        The manifest with the new artefacts and their precisions, and the records of all checks.

    Raises:
        RuntimeError: a graph cannot be converted.
    """
    shares = INT8_SHARES if requested == INT8 else INT8_SHARES[:1]
    for share in shares:
        typed, records = _add_once(folder, manifest, requested, validation_set, share=share, progress=progress)
        unquantised = any(r.check == INT8_LAYERS and not r.passed for r in records)  # less of the budget has no more
        if share == shares[-1] or unquantised or all(r.passed for r in records):
            break
        progress(f"the typed graphs failed with {share:.0%} of the error budget of INT8")
    return typed, records


def audit_typed_file(folder: Path, spec: GraphSpec, manifest: Manifest) -> CheckResult:
    """Compare a typed file that is not the float32 file with it, as its precision requires."""
    file = spec.artefacts[TYPED]
    if graph_precisions(manifest)[spec.name] == INT8:
        return audit_signed_graph(folder, file, spec, manifest)
    return audit_typed(folder / file, folder / spec.artefacts["onnx"], spec)


def _add_once(
    folder: Path,
    manifest: Manifest,
    requested: str,
    validation_set: ValidationSet,
    *,
    share: float,
    progress: Callable[[str], None],
) -> tuple[Manifest, list[CheckResult]]:
    """As `add_typed_graphs`, with a part of the error budget of INT8."""
    graphs, precisions, records = [], dict[str, GraphPrecision](), list[CheckResult]()
    for spec in manifest.graphs:
        path, search = folder / spec.artefacts["onnx"], tuple[str, ...]()
        if requested == INT8 and manifest.int8 is not None and spec.name in manifest.int8.graphs:
            typed_file = f"graphs/{spec.name}{SIGNED_SUFFIX}"
            progress(f"writing {typed_file}")
            signed, audited = write_signed_graph(folder, typed_file, spec, manifest, validation_set, share=share)
            search = signed.search
            if audited is not None:
                records.append(audited)
                precisions[spec.name] = signed
                graphs.append(replace(spec, artefacts={**spec.artefacts, TYPED: typed_file}))
                continue
        if requested == "auto":
            progress(f"searching the precision of {spec.name}")
        plan = _precision_plan(requested, path, spec, manifest, validation_set)
        typed_file = spec.artefacts["onnx"]
        recorded = GraphPrecision(precision=plan.precision, search=(*search, *plan.steps))
        if plan.precision == FLOAT16:
            typed_file = f"graphs/{spec.name}{SUFFIX}"
            progress(f"writing {typed_file}")
            graph = to_fp16(path, float32_nodes=plan.float32_nodes)
            save(graph.model, folder / typed_file)
            recorded = replace(recorded, nodes_in_half=graph.fp16_count, nodes_in_float=graph.float32_nodes)
            records.append(audit_typed(folder / typed_file, path, spec))
        graphs.append(replace(spec, artefacts={**spec.artefacts, TYPED: typed_file}))
        precisions[spec.name] = recorded
    tensorrt = replace(
        manifest.tensorrt or TensorRtRecord(), precision=PrecisionRecord(requested=requested, graphs=precisions)
    )
    manifest = replace(manifest, graphs=tuple(graphs), tensorrt=tensorrt)
    if requested == INT8:
        records.append(_check_some_layer(precisions))
        if not records[-1].passed:
            return manifest, records
    if plan_precision(manifest) == FLOAT32:
        return manifest, records  # the same files were already validated as float32
    progress("validating the typed graphs by emulation")
    emulation_records, emulation = _validate_emulation(folder, manifest, validation_set)
    return replace(manifest, tensorrt=replace(tensorrt, emulation=emulation)), records + emulation_records


def _check_some_layer(precisions: Mapping[str, GraphPrecision]) -> CheckResult:
    layers = sum(graph.nodes_in_int8 or 0 for graph in precisions.values())
    return CheckResult(
        check=INT8_LAYERS,
        artefact=TYPED,
        graph="pipeline",
        passed=layers > 0,
        measured=None if layers else 0.0,
        bound=None,
        detail=f"{layers} layers of the typed graphs compute in INT8",
    )


def audit_typed(fp16_file: Path, float32_file: Path, spec: GraphSpec) -> CheckResult:
    """Compare an FP16 file with its float32 file.

    Each tensor must equal the float32 tensor, or that tensor rounded to nearest. Epsilons, inputs and outputs must be
    equal.
    """
    fp16, float32 = read_summary(fp16_file), read_summary(float32_file)
    mismatches = list(_tensor_mismatches(fp16.tensors, float32.tensors))
    if (fp16.inputs, fp16.outputs) != (float32.inputs, float32.outputs):
        mismatches.append("inputs and outputs are not the float32 graph's")
    epsilons = {norm.module: norm.epsilon for norm in float32.norms}
    for norm in fp16.norms:
        expected = epsilons.get(norm.module)
        if norm.epsilon != expected:
            mismatches.append(f"{norm.module} has epsilon {norm.epsilon:g}, the float32 graph's is {expected}")
    if len(fp16.norms) != len(float32.norms):
        mismatches.append(f"{len(fp16.norms)} normalisations, the float32 graph has {len(float32.norms)}")
    rounded = sum(t.dtype == np.float16 for t in fp16.tensors.values())
    summary = f"{rounded} of {len(fp16.tensors)} tensors are rounded to FP16, the others equal the float32 graph's"
    return CheckResult(
        check="weights",
        artefact=TYPED,
        graph=spec.name,
        passed=not mismatches,
        measured=float(len(mismatches)),
        bound=0.0,
        detail="; ".join(mismatches[:3]) or summary,
    )


def _tensor_mismatches(
    fp16: Mapping[str, NDArray[np.floating]], float32: Mapping[str, NDArray[np.floating]]
) -> Iterator[str]:
    for name in sorted(set(fp16) ^ set(float32)):
        yield f"{name} is in one of the two graphs only"
    for name in sorted(set(fp16) & set(float32)):
        # numpy rounds to nearest even, as the conversion does; a float32 tensor is compared as it is.
        if float32[name].astype(fp16[name].dtype).tobytes() != fp16[name].tobytes():
            yield f"{name} is not the float32 graph's rounded to {fp16[name].dtype}"


def _precision_plan(
    requested: str, path: Path, spec: GraphSpec, manifest: Manifest, validation_set: ValidationSet
) -> PrecisionPlan:
    precision = FLOAT16 if requested == INT8 else PRECISIONS[requested]  # of a graph that is not quantised
    if precision != BY_SEARCH:
        return PrecisionPlan(precision=precision, error=float("nan"))
    pairs = [
        (validation_set.golden, validation_set.reference),
        *((case.inputs, case.reference) for case in validation_set.real_cases),
    ]
    probe_inputs = [p for inputs, reference in pairs for p in graph_probe_inputs(spec, manifest, inputs, reference)]
    return search_precision(path, probe_inputs, BOUNDS[FLOAT16].relative, threads=available_cores())


def graph_probe_inputs(
    spec: GraphSpec, manifest: Manifest, inputs: GoldenInputs, reference: Outputs
) -> list[ProbeInput]:
    """Inputs of one graph, with the eager outputs of that graph.

    The fusion graph gets the eager features, so that each graph is measured independently of the others.
    """
    if spec.role == "ct":
        # One case at a time: a batch of volumes may not fit into memory.
        features, rows = reference.features[spec.name], [slice(i, i + 1) for i in range(inputs.count)]
        return [ProbeInput(inputs={"ct": inputs.ct_B1DHW[row]}, expected=features[row]) for row in rows]
    if spec.role == "text":
        text = inputs.texts[spec.name]
        tokens = {"input_ids": text.input_ids_BT, "attention_mask": text.attention_mask_BT}
        return [ProbeInput(inputs=tokens, expected=reference.features[spec.name])]
    features_and_radiomics = fusion_inputs(manifest, reference.features, reference.features, inputs.radiomics_BFR)
    return [ProbeInput(inputs=features_and_radiomics, expected=reference.logits_BFK)]


def _validate_emulation(
    folder: Path, manifest: Manifest, validation_set: ValidationSet
) -> tuple[list[CheckResult], dict[str, EmulationRecord]]:
    """Run all parity checks of an engine on the emulation, and check that every FP16 tensor is finite.

    Tensors are checked on the golden inputs and on each real case. The extreme inputs of the check `neighbours` may
    overflow and are not included.

    Returns:
        The records of all checks, and a summary of the tensor extremes for each graph.
    """
    precision = plan_precision(manifest)
    extremes_by_graph: dict[str, dict[str, TensorExtreme]] = {}
    with EmulationEngine() as emulation:
        engine: Any = emulation
        engine.open(Bundle(folder=folder, manifest=manifest, digest=""), threads=None)
        with engine.recording_extremes() as recorded:

            def on_golden_outputs(outputs: Outputs) -> None:
                # Called after the golden batch and before all other inputs, so the extremes are the golden batch's.
                write_engine_outputs(folder, EmulationEngine.name, outputs)
                _merge_extremes(extremes_by_graph, recorded)

            records = check_engine(
                engine,
                manifest,
                validation_set.golden,
                validation_set.reference,
                artefact=TYPED,
                precision=precision,
                reference_float64=validation_set.reference_float64,
                keep=on_golden_outputs,
            )
        finite = [_check_finite(graph, e, "the golden inputs") for graph, e in extremes_by_graph.items()]
        with engine.recording_extremes() as recorded:
            real = validate_real_cases(engine, manifest, validation_set.real_cases, artefact=TYPED, precision=precision)
        inputs = f"{len(validation_set.real_cases)} real cases"
        finite += [_check_finite(graph, extremes, inputs, real=True) for graph, extremes in recorded.items()]
        _merge_extremes(extremes_by_graph, recorded)
    return [*finite, *records, *real], {graph: _summary(extremes) for graph, extremes in extremes_by_graph.items()}


def _merge_extremes(into: dict[str, dict[str, TensorExtreme]], more: Mapping[str, Mapping[str, TensorExtreme]]) -> None:
    for graph, extremes in more.items():
        merged = into.setdefault(graph, {})
        for name, extreme in extremes.items():
            if name not in merged or extreme.largest > merged[name].largest:
                merged[name] = extreme


def _check_finite(graph: str, extremes: Mapping[str, TensorExtreme], inputs: str, *, real: bool = False) -> CheckResult:
    overflows = [e for e in extremes.values() if not e.finite]
    first = f": first {overflows[0].tensor} of {overflows[0].node} ({overflows[0].operator})" if overflows else ""
    return CheckResult(
        check="real-finite-inside" if real else "finite-inside",
        artefact=TYPED,
        graph=graph,
        passed=not overflows,
        measured=float(len(overflows)),
        bound=0.0,
        detail=f"{len(overflows)} of {len(extremes)} FP16 tensors overflow on {inputs}{first}",
        engine=EmulationEngine.name,
    )


def _summary(extremes: Mapping[str, TensorExtreme]) -> EmulationRecord:
    if not extremes:
        return EmulationRecord(tensors=0)
    largest = max(extremes.values(), key=lambda e: e.largest)
    return EmulationRecord(
        tensors=len(extremes),
        largest=largest.largest,
        at=TensorPosition(tensor=largest.tensor, node=largest.node, operator=largest.operator),
        share_of_fp16_range=largest.largest / FP16_MAX,
    )
