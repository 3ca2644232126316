"""Tests of `tmi export` and `tmi build` with TensorRT engines on a machine without a GPU."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

from factories.faulty_exporter import plant
from factories.paths import file_digests
from factories.planted_faults import reseal
from factories.tmi_command import tmi
from tmi.export.bundle.writer import add_to_bundle, export_run
from tmi.export.checks.validation_set import ValidationSet
from tmi.export.tensorrt import engines as plans
from tmi.export.tensorrt.builder import BuildOptions, Plan, TypeAudit, build_plan
from tmi.export.tensorrt.engines import PlanRequest, add_plans
from tmi.export.tensorrt.typed_graphs import TYPED, add_typed_graphs, audit_typed
from tmi.runtime.bundle.check_result import CheckResult, ParityError, require_passed
from tmi.runtime.bundle.manifest import GOLDEN_FILE, GraphSpec, Manifest, manifest_to_json
from tmi.runtime.bundle.manifest_records import FileSpec
from tmi.runtime.bundle.reader import open_bundle, write_manifest
from tmi.runtime.bundle.tensorrt_records import PlanFeatures, PlanRecord, TensorRtRecord
from tmi.runtime.engines.precision import graph_precision_records, plan_precision
from tmi.runtime.engines.selection import choose_engine
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.outputs import Outputs
from tmi.toolkit.errors import DamagedError

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this platform")


@pytest.fixture(scope="module", autouse=True)
def without_a_gpu() -> Iterator[None]:
    """Simulate a machine without a GPU; tests/gpu tests machines with one."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (
            "tmi.export.tensorrt.engines",
            "tmi.runtime.engines.nvidia_driver",
            "tmi.runtime.engines.registry",
        ):
            patch.setattr(f"{module}.find_gpu", lambda: None)
        yield


@pytest.fixture(scope="module")
def export(tmp_path_factory, nano_run, nano_bundle):
    """Outcome of adding SM80 plans and pending `trt` plans to a bundle with ONNX graphs, and the bundle; read only."""
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, "onnx", graph="none", valid_bundle=nano_bundle)  # these tests start after the ONNX export
        export_run(nano_run, folder)
    return tmi("export", nano_run, "--add", "--engine", "trt-rtx,trt", "--precision", "fp16", "--out", folder), folder


@pytest.fixture(scope="module")
def folder(export) -> Path:
    return export[1]


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "bundle", copy_function=os.link))


def tensorrt_of(manifest: Manifest) -> TensorRtRecord:
    assert manifest.tensorrt is not None
    return manifest.tensorrt


def plan_of(data: bytes, audit: TypeAudit, *, weights: str = "inside") -> Plan:
    """A plan that was not built."""
    file = FileSpec(sha256="00", bytes=len(data))
    record = PlanRecord(builder="none", features=PlanFeatures(weights=weights), profiles=(), plan=file)
    return Plan(data=data, audit=audit, record=record)


def test_rtx_plans_for_sm80_are_built_without_gpu(export):
    """TensorRT-RTX plans for SM80 are built without a GPU, and the manifest records files, types and profiles."""
    outcome, folder = export
    assert "target sm80 (no GPU here: A100)" in outcome.err
    assert "trt-rtx      5 plans for sm80 by tensorrt_rtx" in outcome.out
    bundle = open_bundle(folder)
    record = tensorrt_of(bundle.manifest)
    assert record.precision is not None
    for graph in bundle.manifest.graphs:
        plan = record.plans["trt-rtx"].graphs[graph.name]
        path = bundle.artefact(graph, "trt-rtx")
        assert path is not None
        assert plan.plan == bundle.manifest.files[graph.artefacts["trt-rtx"]]
        assert plan.plan.bytes == path.stat().st_size
        assert plan.source is not None
        assert plan.source.sha256 == bundle.manifest.files[graph.artefacts[TYPED]].sha256
        assert (plan.layers_in_half or 0) > (plan.layers_in_float or 0) > 0
        assert plan.tf32 is False
        assert set(plan.float_nodes) <= set(record.precision.graphs[graph.name].nodes_in_float)
        assert all(node.why for node in plan.float_nodes.values())
        assert sum(sum(by.values()) for by in plan.layers.values()) > 10
    text = record.plans["trt-rtx"].graphs["text-0"]
    assert text.profiles[1]["input_ids"] == ((1, 1), (4, 40), (4, 40))
    assert set(text.float_nodes) >= {"node_softmax", "node_layer_norm"}


def test_engine_without_gpu_is_validated_by_emulation(folder):
    """Without a GPU the plan is recorded as not validated, and the emulation runs all checks instead."""
    manifest = open_bundle(folder).manifest
    assert manifest.engines_not_validated["trt-rtx"].startswith("no NVIDIA GPU at the export")
    checks = {r.check for r in manifest.parity if r.engine == "fp16-emulation"}
    assert checks >= {"finite-inside", "features", "logits", "decisions", "batch-of-1", "neighbours", "fold-order"}
    assert {r.check for r in manifest.parity if r.artefact == "trt-rtx"} == {"dtypes"}
    emulation = tensorrt_of(manifest).emulation["ct-0"]
    assert 0 < (emulation.share_of_fp16_range or 0) < 1
    assert emulation.tensors > 10


def test_auto_uses_cpu_engine_without_gpu(folder):
    """Without a GPU `auto` uses a CPU engine and reports why not TensorRT."""
    name, reason = choose_engine("auto", open_bundle(folder))
    assert name in ("openvino-bf16", "openvino")
    assert "trt-rtx: no NVIDIA GPU with its driver" in reason


def test_export_trt_without_gpu_leaves_pending_engine(export):
    """Without package and GPU, `--engine trt` exits with 5; the bundle has typed graphs and a pending engine."""
    outcome, folder = export
    assert outcome.code == 5
    assert "error: no trt engine was built: the package tensorrt is not installed" in outcome.err
    assert "this machine has no NVIDIA GPU with its driver" in outcome.err
    assert f"fix: on the GPU machine: pip install 'tmi-clnet[trt]' && tmi build {folder}" in outcome.err
    bundle = open_bundle(folder)
    assert bundle.has("onnx")
    assert bundle.has(TYPED)
    assert not bundle.has("trt")
    assert list(tensorrt_of(bundle.manifest).pending) == ["trt"]
    assert not [p for p in folder.rglob("*.engine") if ".rtx." not in p.name]


def test_build_without_gpu_exits_with_5(folder):
    """`tmi build` without package and GPU exits with 5 and changes no file."""
    before = file_digests(folder)
    outcome = tmi("build", folder)
    assert outcome.code == 5
    assert "error: the trt engine cannot be built here: the package tensorrt is not installed" in outcome.err
    assert f"fix: run `tmi build {folder}` on a machine where `nvidia-smi` lists a GPU" in outcome.err
    assert file_digests(folder) == before


def test_build_replaces_plans_and_keeps_other_records(folder, tmp_path):
    """`tmi build` replaces an engine's plans and records and keeps all others."""
    copy = copied(folder, tmp_path)
    before = open_bundle(folder).manifest
    outcome = tmi("build", copy, "--engine", "trt-rtx", "--target", "sm86", "--max-batch", 2)
    assert outcome.code == 0, outcome.err
    assert "trt-rtx      5 plans for sm86" in outcome.out
    after = open_bundle(copy).manifest
    other_records = [r for r in before.parity if r.artefact != "trt-rtx"]
    assert [r for r in after.parity if r.artefact != "trt-rtx"] == other_records
    plan = tensorrt_of(after).plans["trt-rtx"].graphs["ct-0"]
    assert plan.profiles[1]["ct"][2][0] == 2
    assert list(tensorrt_of(after).pending) == ["trt"]


def test_build_with_wrong_layer_type_changes_nothing(folder, monkeypatch):
    """A plan with a layer of an unexpected type is exit code 4, and the bundle is unchanged."""

    def build_half_softmax(*arguments: object, **named: object) -> Plan:
        audit = TypeAudit(layers={"SOFTMAX": {"HALF": 1}}, unexplained=("node_x (SOFTMAX)",), float_nodes={})
        return plan_of(b"plan", audit)

    before = file_digests(folder)
    monkeypatch.setattr(plans, "build_plan", build_half_softmax)
    outcome = tmi("build", folder, "--engine", "trt-rtx", "--target", "sm80")
    assert outcome.code == 4
    assert "first dtypes of ct-0 (trt-rtx): node_x (SOFTMAX); the bundle was left as it was" in outcome.err
    assert file_digests(folder) == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--engine", "onnx", "--precision", "fp16"), "--precision fp16 is for TensorRT engines, and none is named"),
        (("--engine", "trt", "--precision", "int4"), "unknown precision 'int4'"),
        (
            ("--engine", "torch-trt", "--precision", "int8"),
            "torch-trt compiles modules, and INT8 is in the graphs only",
        ),
        (("--engine", "trt", "--precision", "int8"), "INT8 is calibrated on training cases of the run"),
        (("--engine", "trt", "--target", "sm80"), "--target is for --engine trt-rtx"),
        (("--engine", "trt-rtx", "--target", "sm42"), "unknown target 'sm42'"),
        (("--engine", "trt", "--plan-weights", "maybe"), "unknown --plan-weights 'maybe'"),
        (("--engine", "trt", "--hardware-compatibility", "all"), "unknown --hardware-compatibility 'all'"),
    ],
)
def test_invalid_options_exit_with_2(nano_run, tmp_path, arguments, text):
    """Invalid options are exit code 2 with a fix, before anything is written."""
    outcome = tmi("export", nano_run, "--out", tmp_path / "bundle", *arguments)
    assert outcome.code == 2
    assert f"error: {text}" in outcome.err
    assert "fix: " in outcome.err
    assert not (tmp_path / "bundle").exists()


def test_build_needs_typed_graphs_and_engine(folder, tmp_path):
    """`tmi build` is exit code 2 for an engine that is not built, for nothing pending, and without typed graphs."""
    outcome = tmi("build", folder, "--engine", "onnx")
    assert (outcome.code, "'onnx' is not a TensorRT engine" in outcome.err) == (2, True)
    copy = copied(folder, tmp_path)
    manifest = open_bundle(copy).manifest
    complete = replace(manifest, tensorrt=replace(tensorrt_of(manifest), pending={}))
    write_manifest(copy, complete)
    outcome = tmi("build", copy)
    assert (outcome.code, "is pending" in outcome.err) == (2, True)
    untyped = tuple(replace(g, artefacts={k: v for k, v in g.artefacts.items() if k != TYPED}) for g in manifest.graphs)
    write_manifest(copy, replace(complete, graphs=untyped))
    outcome = tmi("build", copy, "--engine", "trt-rtx")
    assert (outcome.code, "has no typed graphs to build engines from" in outcome.err) == (2, True)


def test_build_of_damaged_bundle_exits_with_6(folder, tmp_path):
    """`tmi build` of a damaged bundle is exit code 6."""
    copy = copied(folder, tmp_path)
    (copy / "graphs" / "ct-0.fp16.onnx").unlink()
    (copy / "graphs" / "ct-0.fp16.onnx").write_bytes(b"")
    assert tmi("build", copy).code == 6


def add_overflow(path: Path) -> None:
    """Multiply the features beyond FP16's range by two factors within it, and divide again; float32 is unaffected."""
    model = onnx.load(path)
    last = next(n for n in model.graph.node if "ct_features" in n.output)
    last.output[:] = ["small"]
    constants = {"first": np.float32(2.0**12), "second": np.float32(2.0**15)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    chain = [
        ("Mul", "small", "first", "middle", "up"),
        ("Mul", "middle", "second", "large", "over"),
        ("Div", "large", "second", "again", "back"),
        ("Div", "again", "first", "ct_features", "down"),
    ]
    model.graph.node.extend(helper.make_node(op, [a, b], [y], name=name) for op, a, b, y, name in chain)
    path.unlink()
    onnx.save(model, path)


def add_overflowing_typed_graphs(copy: Path, precision: str) -> tuple[Manifest, list[CheckResult]]:
    manifest = open_bundle(copy).manifest
    reference = Outputs.from_tensors(load_file(copy / GOLDEN_FILE))
    validation_set = ValidationSet(golden=golden_from_manifest(manifest), reference=reference)
    add_overflow(copy / "graphs" / "ct-0.onnx")
    for file in (copy / "graphs").glob("*.fp16.onnx"):
        file.unlink()
    return add_typed_graphs(copy, manifest, precision, validation_set, progress=lambda line: None)


def test_overflow_blocks_fp16_and_names_node(folder, tmp_path):
    """A model that overflows in FP16 fails the finite-inside check, which names the node."""
    _, records = add_overflowing_typed_graphs(copied(folder, tmp_path), "fp16")
    with pytest.raises(
        ParityError, match=r"finite-inside of ct-0 \(fp16-emulation\): [123] of .* first large of over \(Mul"
    ):
        require_passed(records)


def test_auto_precision_excludes_overflow_from_plan(folder, tmp_path):
    """`auto` keeps the node that overflows and its consumer in float32, and the plan has both as float32 layers."""
    copy = copied(folder, tmp_path)
    manifest, records = add_overflowing_typed_graphs(copy, "auto")
    require_passed(records)
    recorded = graph_precision_records(manifest)["ct-0"]
    assert recorded.precision == "float16"
    float32_nodes = recorded.nodes_in_float
    added = {n: why for n, why in float32_nodes.items() if "FP16" in why}
    assert added == {"over": "Mul overflows FP16", "back": "Div reads large, which FP16 cannot hold"}
    assert recorded.search[0].startswith("FP16 wherever it is safe: relative error inf")
    graph = manifest.graph("ct-0")
    options = BuildOptions(target="sm80")
    plan = build_plan(tensorrt_rtx, copy / graph.artefacts[TYPED], graph, options, float32_nodes=float32_nodes)
    assert plan.audit.unexplained == ()
    assert set(added) <= set(plan.audit.float_nodes)


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True)])
def test_float32_and_tf32_use_float32_file(folder, tmp_path, precision, tf32):
    """Graphs in float32 and TF32 are the float32 file; only TF32 is validated by emulation."""
    manifest, records = add_overflowing_typed_graphs(copied(folder, tmp_path), precision)
    require_passed(records)
    assert all(g.artefacts[TYPED] == g.artefacts["onnx"] for g in manifest.graphs)
    assert bool(records) is tf32
    assert plan_precision(manifest) == {"fp32": "float32", "tf32": "tf32"}[precision]
    graph = manifest.graph("ct-0")
    options = BuildOptions(target="sm80", tf32=tf32)
    plan = build_plan(tensorrt_rtx, folder / graph.artefacts[TYPED], graph, options)
    assert (plan.record.tf32, plan.audit.count("HALF")) == (tf32, 0)


def scale_first_weight(factor: float, path: Path) -> None:
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("weight"))
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), tensor.name))
    onnx.save(model, path)


def test_typed_audit_finds_changed_weight_and_epsilon(folder, tmp_path):
    """The audit of a typed graph fails for a changed weight and for a changed epsilon."""
    bundle = open_bundle(folder)
    graph = bundle.manifest.graph("text-0")
    single, half = (bundle.artefact(graph, kind) for kind in ("onnx", TYPED))
    assert single is not None
    assert half is not None
    assert audit_typed(half, single, graph).passed
    changed = tmp_path / "half.onnx"
    shutil.copy(half, changed)
    scale_first_weight(1.01, changed)
    record = audit_typed(changed, single, graph)
    assert not record.passed
    assert "is not the float32 graph's rounded to float16" in record.detail
    model = onnx.load(half)
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
    next(a for a in norm.attribute if a.name == "epsilon").f = 1e-3
    onnx.save(model, changed)
    assert "has epsilon 0.001, the float32 graph's is" in audit_typed(changed, single, graph).detail


def test_changed_typed_graph_stops_an_addition(folder, nano_run, tmp_path):
    """Typed graphs that a bundle has are compared with its float32 graphs, since plans are built from them."""
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    (file, *_) = (g.artefacts["onnx-typed"] for g in open_bundle(copy).manifest.graphs if g.name == "ct-0")
    scale_first_weight(1.01, copy / file)
    reseal(copy)
    with pytest.raises(DamagedError, match=r"ct-0 \(onnx-typed\): .* is not the float32 graph's rounded to float16"):
        add_to_bundle(nano_run, copy, artefacts=("trt-rtx",), force=True)


@pytest.mark.parametrize(("weights", "builds"), [("inside", 5), ("refit", 5), ("strip", 3)])
def test_stripped_plans_are_shared_by_structure(folder, tmp_path, monkeypatch, weights, builds):
    """Graphs of one structure share a plan if weights are stripped, and only then."""

    def fake(trt: object, path: Path, spec: GraphSpec, options: BuildOptions, **_: object) -> Plan:
        built.append(spec.name)
        audit = TypeAudit(layers={"CONVOLUTION": {"HALF": 1}}, unexplained=(), float_nodes={})
        return plan_of(spec.name.encode(), audit, weights=options.weights)

    built: list[str] = []
    monkeypatch.setattr(plans, "build_plan", fake)
    monkeypatch.setattr(plans, "build_blocker", lambda kind, options: None)
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: None if name == "tensorrt" else real(name))
    copy, manifest = copied(folder, tmp_path), open_bundle(folder).manifest
    request = PlanRequest(kinds=("trt",), options=BuildOptions(weights=weights))
    validation_set = ValidationSet(
        golden=golden_from_manifest(manifest), reference=Outputs.from_tensors(load_file(copy / GOLDEN_FILE))
    )
    manifest, records = add_plans(copy, manifest, request, validation_set, progress=lambda line: None)
    assert len(built) == builds
    assert len(records) == builds
    assert all(r.passed for r in records)
    files = {g.name: g.artefacts["trt"] for g in manifest.graphs}
    assert all((copy / file).is_file() for file in files.values())
    assert len(set(files.values())) == builds
    built_plans = tensorrt_of(manifest).plans["trt"].graphs
    assert set(built_plans) == set(files), "the manifest describes the plan of every fold"
    assert [n for n, plan in built_plans.items() if plan.shared] == (["ct-1", "text-1"] if weights == "strip" else [])


def test_inspect_shows_layer_types_and_pending_engines(folder):
    """`tmi inspect` shows layer types, reasons for float32, emulated ranges and pending engines."""
    outcome = tmi("inspect", folder)
    assert outcome.code == 0, outcome.err
    built = tensorrt_of(open_bundle(folder).manifest).plans["trt-rtx"].graphs
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in outcome.out.splitlines() if "trt-rtx │" in line
    ]
    shown = {row[1]: row for row in rows if len(row) == 7 and row[1] in built}
    for name, plan in built.items():
        counts = [str(plan.layers_in_half), str(plan.layers_in_float)]
        assert shown[name][3:6] == ["float16", *counts]
    assert "LayerNormalization: squares and sums a whole row" in outcome.out
    assert "still to be built with `tmi build`: the package tensorrt is not" in " ".join(outcome.out.split())
    assert "emulation  ct-0: " in outcome.out
    document = tmi("inspect", folder, "--json").document
    assert document["manifest"]["tensorrt"]["plans"]["trt-rtx"]["graphs"]["ct-0"]["layers_in_half"] > 0
    assert document["engines"]["trt-rtx"] == "built, cannot run here: no NVIDIA GPU with its driver"
    assert document["engines"]["onnx"] == "ready"


def test_manifest_has_no_local_paths(folder):
    """The manifest contains no path of the exporting machine."""
    text = json.dumps(manifest_to_json(open_bundle(folder).manifest)["tensorrt"])
    roots = [f"/{top}/" for top in ("home", "root", "tmp", "_src")]
    for name in (str(folder.parent), *roots):
        assert name not in text
