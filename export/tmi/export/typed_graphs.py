"""The graphs that plans are built from: strongly typed, audited against the float32 files, judged by emulation.

For every graph the artefact `onnx-typed` is the file whose types TensorRT follows: an FP16 file, or the float32 file
itself where the graph computes in float32 or TF32. `Manifest.extra["tensorrt"]["precision"]` says which and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.export.fp16_emulation import EmulationEngine, Extreme
from tmi.export.fp16_onnx import LARGEST, save, to_fp16
from tmi.export.onnx_facts import read_facts
from tmi.export.precision_search import Choice, Trial, search
from tmi.runtime.engine import Engine
from tmi.runtime.graph_engine import available_cores
from tmi.runtime.parity import BOUNDS, PIPELINE, Outputs, check_engine, evaluate, relative_error
from tmi.runtime.precision import FLOAT16, FLOAT32, TENSORRT, TF32, plan_precision
from tmi.toolkit.bundle import Bundle
from tmi.toolkit.errors import UsageError
from tmi.toolkit.golden import GoldenInputs
from tmi.toolkit.manifest import GateRecord, GraphSpec, Manifest

TYPED = "onnx-typed"
"""Artefact kind of the graphs that plans are built from."""
PRECISIONS: Mapping[str, str] = {"fp16": FLOAT16, "tf32": TF32, "fp32": FLOAT32, "auto": "by search"}
"""What `--precision` takes."""
SUFFIX = ".fp16.onnx"


@dataclass(frozen=True, kw_only=True)
class Question:
    """Inputs of the whole pipeline and eager float32's answers."""

    name: str
    """What the records call it: `golden`, or `real case 1`."""
    inputs: GoldenInputs
    """One row a case."""
    reference: Outputs
    """What eager float32 answers to them."""


def require_precision(asked: str) -> str:
    """The name, if it is one.

    Raises:
        UsageError: it is none; the text lists the known ones.
    """
    if asked not in PRECISIONS:
        raise UsageError(f"unknown precision {asked!r}", fix=f"choose one of {', '.join(PRECISIONS)}")
    return asked


def add_typed_graphs(
    folder: Path,
    manifest: Manifest,
    asked: str,
    questions: Sequence[Question],
    *,
    progress: Callable[[str], None],
) -> tuple[Manifest, list[GateRecord]]:
    """Write, audit and judge the typed graphs of a bundle that has its float32 ONNX graphs.

    Args:
        folder: the bundle's folder.
        manifest: its manifest so far.
        asked: a key of `PRECISIONS`.
        questions: the golden inputs first; then real cases, where there are some.
        progress: told one line of what is being done.

    Returns:
        The manifest with the new artefacts and what is said of them, and the records of every gate.

    Raises:
        RuntimeError: a graph cannot be converted.
    """
    graphs, said, records = [], {}, []
    for spec in manifest.graphs:
        path = folder / spec.artefacts["onnx"]
        if asked == "auto":
            progress(f"searching the precision of {spec.name}")
        choice = _choice(asked, path, spec, manifest, questions)
        typed = spec.artefacts["onnx"]
        about: dict[str, Any] = {"precision": choice.precision, "search": list(choice.steps)}
        if choice.precision == FLOAT16:
            typed = f"graphs/{spec.name}{SUFFIX}"
            progress(f"writing {typed}")
            half = to_fp16(path, keep=choice.keep)
            save(half.model, folder / typed)
            about |= {"nodes_in_half": half.half, "nodes_in_float": dict(half.kept)}
            records.append(audit_typed(folder / typed, path, spec))
        graphs.append(replace(spec, artefacts={**spec.artefacts, TYPED: typed}))
        said[spec.name] = about
    facts = {**manifest.extra.get(TENSORRT, {}), "precision": {"asked": asked, "graphs": said}}
    manifest = replace(manifest, graphs=tuple(graphs), extra={**manifest.extra, TENSORRT: facts})
    if plan_precision(manifest) == FLOAT32:
        return manifest, records  # the very files that were judged as float32
    progress("judging the typed graphs by emulation")
    judged, reached = _judge(folder, manifest, questions)
    facts["emulation"] = reached
    return manifest, records + judged


def audit_typed(half: Path, single: Path, spec: GraphSpec) -> GateRecord:
    """Every tensor of an FP16 file is the float32 file's own, or that rounded to nearest; likewise every epsilon."""
    mine, theirs = read_facts(half), read_facts(single)
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
    return GateRecord(
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


def _choice(asked: str, path: Path, spec: GraphSpec, manifest: Manifest, questions: Sequence[Question]) -> Choice:
    if asked != "auto":
        return Choice(precision=PRECISIONS[asked], error=float("nan"))
    trials = [trial for q in questions for trial in graph_trials(spec, manifest, q)]
    return search(path, trials, BOUNDS[FLOAT16].relative, threads=available_cores())


def graph_trials(spec: GraphSpec, manifest: Manifest, question: Question) -> list[Trial]:
    """One question to the pipeline as questions to one graph, each with what eager answers there."""
    inputs, reference = question.inputs, question.reference
    if spec.role == "ct":
        # One case at a time: a batch of volumes may not fit.
        answers, rows = reference.features[spec.name], [slice(i, i + 1) for i in range(inputs.count)]
        return [Trial(inputs={"ct": inputs.ct_B1DHW[row]}, answer=answers[row]) for row in rows]
    if spec.role == "text":
        text = inputs.texts[spec.name]
        feed = {"input_ids": text.input_ids_BT, "attention_mask": text.attention_mask_BT}
        return [Trial(inputs=feed, answer=reference.features[spec.name])]
    stacked = {
        "ct_features": np.stack([reference.features[f.ct] for f in manifest.folds], axis=1),
        "text_features": np.stack([reference.features[f.text] for f in manifest.folds], axis=1),
        "radiomics": inputs.radiomics_BFR,
    }
    return [Trial(inputs=stacked, answer=reference.logits_BFK)]


def _judge(
    folder: Path, manifest: Manifest, questions: Sequence[Question]
) -> tuple[list[GateRecord], dict[str, dict[str, Any]]]:
    """Every intermediate finite on every question, then all gates of an engine on the golden inputs."""
    precision = plan_precision(manifest)
    records: list[GateRecord] = []
    worst: dict[str, dict[str, Extreme]] = {}
    with EmulationEngine() as judge:
        engine: Any = judge
        engine.open(Bundle(folder=folder, manifest=manifest, digest=""), threads=None)
        for question in questions:
            with engine.watching() as seen:
                evaluate(engine, manifest, question.inputs)
            for graph, extremes in seen.items():
                records.append(_finite_inside(graph, extremes, question.name))
                for name, extreme in extremes.items():
                    known = worst.setdefault(graph, {}).get(name)
                    if known is None or extreme.largest > known.largest:
                        worst[graph][name] = extreme
        golden = questions[0]
        records += check_engine(engine, manifest, golden.inputs, golden.reference, artefact=TYPED, precision=precision)
        for question in questions[1:]:
            records += _real(engine, manifest, question, BOUNDS[precision].relative)
    return records, {graph: _summary(extremes) for graph, extremes in worst.items()}


def _real(engine: Engine, manifest: Manifest, question: Question, bound: float) -> Iterator[GateRecord]:
    answers = evaluate(engine, manifest, question.inputs).by_graph()
    for graph, reference in question.reference.by_graph().items():
        error = relative_error(answers[graph], reference)
        gate = "logits" if graph == PIPELINE else "features"
        yield GateRecord(
            gate=f"real-{gate}",
            artefact=TYPED,
            graph=graph,
            passed=error <= bound,
            measured=error,
            bound=bound,
            detail=f"{question.name}, relative to eager float32",
            engine=engine.name,
        )


def _finite_inside(graph: str, extremes: Mapping[str, Extreme], where: str) -> GateRecord:
    bad = [e for e in extremes.values() if not e.finite]
    first = f": first {bad[0].tensor} of {bad[0].node} ({bad[0].operator})" if bad else ""
    return GateRecord(
        gate="finite-inside",
        artefact=TYPED,
        graph=graph,
        passed=not bad,
        measured=float(len(bad)),
        bound=0.0,
        detail=f"{len(bad)} of {len(extremes)} FP16 tensors overflow on {where}{first}",
        engine=EmulationEngine.name,
    )


def _summary(extremes: Mapping[str, Extreme]) -> dict[str, Any]:
    if not extremes:
        return {"tensors": 0}
    top = max(extremes.values(), key=lambda e: e.largest)
    return {
        "tensors": len(extremes),
        "largest": top.largest,
        "at": {"tensor": top.tensor, "node": top.node, "operator": top.operator},
        "share_of_fp16_range": top.largest / LARGEST,
    }
