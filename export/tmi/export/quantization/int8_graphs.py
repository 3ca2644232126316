"""INT8 graphs of a bundle: calibration, search, writing, audit, and the parity checks of the engines that run them.

Only CT encoders are quantised. The artefact `onnx-int8` of any other graph is its float32 file: text encoder and fusion
take a few hundredths of the time. The search first gets three quarters of the bound of the features. If the whole
pipeline then fails a check on every engine, it gets half of it, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from tmi.export.checks.acceptance import split_failed_optional, validate_engine
from tmi.export.checks.validation_set import ValidationSet, validate_real_cases, write_engine_outputs
from tmi.export.graphs.registry import EXPORTERS
from tmi.export.quantization.audit import ARTEFACT, MIN_CASES, audit_calibration, audit_quantised
from tmi.export.quantization.folding import folded_graph
from tmi.export.quantization.measuring import Inputs, largest_magnitudes
from tmi.export.quantization.search import Int8Plan, ProbeSet, search_layers
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.int8_records import Int8Graph, Int8Record
from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.precision import INT8
from tmi.runtime.engines.registry import Engine, installed, missing_requirement
from tmi.runtime.verification.golden_inputs import GoldenInputs
from tmi.runtime.verification.parity import BOUNDS
from tmi.toolkit.compute.cpu import available_cores

BUDGETS = (0.75, 0.375, 0.1875)
"""Shares of the bound of the features that the search gets, one after another."""
FEW_CASES = "no two cases are training cases of every fold that uses it"
NOT_CT = "only CT encoders are quantised"
Progress = Callable[[str], None]


def add_int8_graphs(
    folder: Path, manifest: Manifest, validation_set: ValidationSet, *, progress: Progress
) -> tuple[Manifest, list[CheckResult]]:
    """Write, audit and validate the INT8 graphs of a bundle that has float32 ONNX graphs.

    Args:
        folder: the bundle's folder.
        manifest: its manifest so far.
        validation_set: inputs and reference outputs, with calibration cases.
        progress: called with one line for each step.

    Returns:
        The manifest with the new artefacts, and the records of all checks; a failed one is among them if no engine
        passed.
    """
    records: list[CheckResult] = []
    for share in BUDGETS:
        budget = share * BOUNDS[INT8].relative
        manifest, audits = _write_graphs(folder, manifest, validation_set, budget, progress=progress)
        if any(not r.passed for r in audits):
            return manifest, audits
        checks = _validate(folder, manifest, validation_set, progress=progress)
        passed, rejected = split_failed_optional(checks)
        # Without any engine that passes, all records are kept, and the export ends with the failed ones.
        records = audits + (passed or checks)
        if passed:
            known = {**manifest.engines_rejected, **rejected}
            return replace(manifest, engines_rejected=known), records
        progress(f"no INT8 engine passed with an error of {budget:.2g} for each encoder")
    return manifest, records


def _write_graphs(
    folder: Path, manifest: Manifest, validation_set: ValidationSet, budget: float, *, progress: Progress
) -> tuple[Manifest, list[CheckResult]]:
    graphs, records = [], []
    quantised, in_float = dict[str, Int8Graph](), dict[str, str]()
    for spec in manifest.graphs:
        float32 = spec.artefacts["onnx"]
        cases = [c for c in validation_set.calibration if spec.name in c.graphs]
        file = float32
        if spec.role != "ct" or len(cases) < MIN_CASES:
            in_float[spec.name] = NOT_CT if spec.role != "ct" else FEW_CASES
        else:
            records.append(audit_calibration(spec, [c.case.inputs.ct_B1DHW for c in cases]))
            if not records[-1].passed:
                return manifest, records
            file = f"graphs/{spec.name}{EXPORTERS[ARTEFACT].suffix}"
            progress(f"quantising {spec.name} on {len(cases)} training cases")
            inputs = [ct_inputs(c.case.inputs) for c in cases]
            model = folded_graph(folder / float32, nonnegative=manifest.config.ct.scale_to[0] >= 0)
            plan, magnitudes = _search(model, spec, validation_set, inputs, budget)
            onnx.save(plan.model, folder / file)
            progress(f"auditing {file}")
            records.append(
                audit_quantised(folder / file, folder / float32, spec, inputs, magnitudes, threads=available_cores())
            )
            quantised[spec.name] = Int8Graph(
                calibration=tuple(sorted((c.record for c in cases), key=lambda r: r.case)),
                magnitudes=magnitudes,
                layers_in_int8=len(plan.layers),
                layers_in_float=plan.layers_in_float,
                error=plan.error,
                budget=budget,
                steps=plan.steps,
            )
        graphs.append(replace(spec, artefacts={**spec.artefacts, ARTEFACT: file}))
    records.append(_some_layer(quantised, in_float))
    record = Int8Record(graphs=quantised, graphs_in_float=in_float)
    return replace(manifest, graphs=tuple(graphs), int8=record), records


def ct_inputs(inputs: GoldenInputs) -> Inputs:
    """Inputs of a CT graph for one case."""
    return {"ct": inputs.ct_B1DHW}


def _search(
    model: ModelProto, spec: GraphSpec, validation_set: ValidationSet, calibration: Sequence[Inputs], budget: float
) -> tuple[Int8Plan, dict[str, float]]:
    threads = available_cores()
    magnitudes = largest_magnitudes(model, calibration, threads=threads)
    probes = probe_sets(spec, validation_set)
    return search_layers(model, magnitudes, probes, budget, threads=threads), magnitudes


def probe_sets(spec: GraphSpec, validation_set: ValidationSet) -> list[ProbeSet]:
    """Inputs on which the error of a CT graph is measured: golden inputs, real cases and its calibration cases."""
    golden = validation_set.golden
    probes = [
        ProbeSet(
            name="golden inputs",
            inputs=[ct_inputs(golden.rows([row])) for row in range(golden.count)],
            expected_BC=validation_set.reference.features[spec.name],
        )
    ]
    others = [*validation_set.real_cases, *(c.case for c in validation_set.calibration if spec.name in c.graphs)]
    if others:
        probes.append(
            ProbeSet(
                name="real and calibration cases",
                inputs=[ct_inputs(case.inputs) for case in others],
                expected_BC=np.concatenate([case.reference.features[spec.name] for case in others]),
            )
        )
    return probes


def _some_layer(quantised: dict[str, Int8Graph], in_float: dict[str, str]) -> CheckResult:
    layers = sum(graph.layers_in_int8 for graph in quantised.values())
    kept = sum(len(graph.layers_in_float) for graph in quantised.values())
    reasons = "; ".join(f"{name}: {why}" for name, why in in_float.items() if why != NOT_CT)
    return CheckResult(
        check="int8-layers",
        artefact=ARTEFACT,
        graph="pipeline",
        passed=layers > 0,
        measured=None if layers else 0.0,
        bound=None,
        detail=f"{layers} layers compute in INT8, {kept} that could stay in float32{f'; {reasons}' if reasons else ''}",
    )


def _validate(
    folder: Path, manifest: Manifest, validation_set: ValidationSet, *, progress: Progress
) -> list[CheckResult]:
    """Parity checks of every installed INT8 engine, on golden, real and calibration cases."""
    bundle = Bundle(folder=folder, manifest=manifest, digest="")
    calibration = [c.case for c in validation_set.calibration]

    def more(engine: Engine) -> list[CheckResult]:
        return validate_real_cases(engine, manifest, calibration, artefact=ARTEFACT, precision=INT8, kind="calibration")

    records: list[CheckResult] = []
    for name in EXPORTERS[ARTEFACT].engines:
        if installed(name) and missing_requirement(name) is None:
            progress(f"validating {ARTEFACT} on engine {name}")
            keep = partial(write_engine_outputs, folder, name)
            records += validate_engine(name, bundle, ARTEFACT, validation_set, keep, more=more)
    return records
