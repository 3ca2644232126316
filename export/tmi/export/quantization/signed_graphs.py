"""Signed INT8 graphs, from which TensorRT plans are built: TensorRT has no unsigned 8-bit activations.

A signed graph has the layers, calibration and magnitudes of the INT8 graph of the CPU. An activation without negative
values gets a step of 1/127 instead of 1/255 of its largest magnitude, so that further layers may have to stay in
float32 for the same error budget. ONNX Runtime runs the graph as a simulation of the plan.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from tmi.export.checks.validation_set import ValidationSet
from tmi.export.quantization.audit import audit_signed
from tmi.export.quantization.folding import folded_graph
from tmi.export.quantization.int8_graphs import probe_sets
from tmi.export.quantization.qdq import quantisable
from tmi.export.quantization.search import search_layers
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.int8_records import Int8Graph
from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.tensorrt_records import GraphPrecision
from tmi.runtime.engines.precision import INT8
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.errors import DamagedError

SIGNED_SUFFIX = ".int8-signed.onnx"
"""Ending of the file of a signed graph."""


def write_signed_graph(
    folder: Path, file: str, spec: GraphSpec, manifest: Manifest, validation_set: ValidationSet, *, share: float
) -> tuple[GraphPrecision, CheckResult | None]:
    """Write and audit the signed graph of a CT encoder whose INT8 graph the bundle has.

    Args:
        folder: the bundle's folder.
        file: name of the new file in it.
        spec: the graph.
        manifest: the manifest, which records the INT8 graph.
        validation_set: inputs and reference outputs.
        share: part of the error budget of the INT8 graph that this one may use.

    Returns:
        The precision to record, and the record of the audit. If the budget allows no layer in INT8, the precision says
        so, no file is written, and there is no audit.
    """
    record = _int8_record(manifest, spec.name)
    path = folder / spec.artefacts["onnx"]
    model = folded_graph(path, nonnegative=has_nonnegative_volumes(manifest))
    plan = search_layers(
        model,
        record.magnitudes,
        probe_sets(spec, validation_set),
        share * record.budget,
        threads=available_cores(),
        candidates=[layer for layer in quantisable(model) if layer not in record.layers_in_float],
        signed=True,
    )
    precision = GraphPrecision(
        precision=INT8,
        search=plan.steps,
        nodes_in_int8=len(plan.layers),
        nodes_in_float={**record.layers_in_float, **plan.layers_in_float},
    )
    if not plan.layers:
        return precision, None
    onnx.save(plan.model, folder / file)
    return precision, audit_signed_graph(folder, file, spec, manifest)


def audit_signed_graph(folder: Path, file: str, spec: GraphSpec, manifest: Manifest) -> CheckResult:
    """Compare a signed file with its float32 file and the magnitudes of the manifest."""
    magnitudes = _int8_record(manifest, spec.name).magnitudes
    nonnegative = has_nonnegative_volumes(manifest)
    return audit_signed(folder / file, folder / spec.artefacts["onnx"], spec, magnitudes, nonnegative=nonnegative)


def has_nonnegative_volumes(manifest: Manifest) -> bool:
    """Whether no prepared volume has a negative value."""
    return manifest.config.ct.scale_to[0] >= 0


def _int8_record(manifest: Manifest, graph: str) -> Int8Graph:
    record = None if manifest.int8 is None else manifest.int8.graphs.get(graph)
    if record is None:
        raise DamagedError(f"bundle: it records no INT8 graph of {graph}", fix="export the run again")
    return record
