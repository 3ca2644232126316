"""INT8 plans of TensorRT: the signed graphs that they are built from, the audit of their layers, and their records."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from factories.int8_bundle import calibration_cases, validation_set, with_int8_graphs
from factories.tmi_command import tmi
from tmi.export.bundle.request_checks import with_int8
from tmi.export.quantization.signed_graphs import audit_signed_graph
from tmi.export.tensorrt import engines as plans
from tmi.export.tensorrt import typed_graphs
from tmi.export.tensorrt.builder import BuildOptions, TypeAudit
from tmi.export.tensorrt.engines import PlanRequest, add_plans
from tmi.export.tensorrt.typed_graphs import TYPED, add_typed_graphs
from tmi.runtime.bundle.manifest import manifest_from_json, manifest_to_json
from tmi.runtime.bundle.reader import fingerprint, open_bundle, write_manifest
from tmi.runtime.engines.precision import engine_precision, largest_error
from tmi.toolkit.errors import UsageError

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this platform")


@pytest.fixture(scope="module")
def base(nano_bundle):
    return open_bundle(nano_bundle)


@pytest.fixture(scope="module")
def cases(base, nano_run):
    return calibration_cases(base, nano_run)


def built_once(build):
    """Builds the plans of the CT encoders, and one of a text encoder, which stands for the other FP16 plans."""
    known = {}

    def build_or_reuse(trt, graph, spec, options, **named):
        name = spec.name if spec.role == "ct" else "text"
        if name not in known:
            known[name] = build(trt, graph, spec, options, **named)
        return known[name]

    return build_or_reuse


@pytest.fixture(scope="module")
def built(base, cases, tmp_path_factory):
    """A bundle with INT8 plans for SM80, and the records of the typed graphs and of the plans; read only."""
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    bundle, _ = with_int8_graphs(base, cases, folder)
    quiet = {"progress": lambda line: None}
    manifest, typed = add_typed_graphs(folder, bundle.manifest, "int8", validation_set(base, cases), **quiet)
    request = PlanRequest(kinds=("trt-rtx",), options=BuildOptions(target="sm80"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "find_gpu", lambda: None)
        patch.setattr(plans, "build_plan", built_once(plans.build_plan))
        manifest, records = add_plans(folder, manifest, request, validation_set(base, cases), **quiet)
    manifest = replace(manifest, parity=(*manifest.parity, *typed, *records))
    write_manifest(folder, replace(manifest, files=fingerprint(folder)))
    return open_bundle(folder), typed, records


def test_signed_graphs_have_no_unsigned_value(built):
    """Typed CT graphs in INT8 round everything to int8 with zero point 0; text and fusion are the FP16 graphs."""
    bundle, typed, _ = built
    assert all(r.passed for r in typed), [r for r in typed if not r.passed]
    precisions = {name: g.precision for name, g in bundle.manifest.tensorrt.precision.graphs.items()}
    assert precisions == {
        "ct-0": "int8", "ct-1": "int8", "text-0": "float16", "text-1": "float16", "fusion": "float16",
    }  # fmt: skip
    model = onnx.load(bundle.artefact(bundle.manifest.graph("ct-0"), TYPED))
    zeros = [t for t in model.graph.initializer if t.name.endswith(".zero_point")]
    assert {t.data_type for t in zeros} == {TensorProto.INT8}
    assert not any(numpy_helper.to_array(t).any() for t in zeros)
    float32 = onnx.load(bundle.artefact(bundle.manifest.graph("ct-0"), "onnx-int8"))
    assert TensorProto.UINT8 in {t.data_type for t in float32.graph.initializer}, "the CPU's graph has unsigned ones"


def test_simulation_holds_the_bounds_of_int8(built):
    """The simulation runs every parity check on the signed graphs, with the bounds of the INT8 engines of the CPU."""
    bundle, typed, _ = built
    simulated = {(r.check, r.graph): r for r in typed if r.engine == "fp16-emulation"}
    features = simulated["features", "ct-0"]
    assert (features.bound, simulated["probabilities", "pipeline"].bound) == (2.0**-5, 1e-2)
    assert 1e-4 < features.measured <= features.bound
    assert ("batch-of-1", "pipeline") in simulated
    record = bundle.manifest.tensorrt.precision.graphs["ct-0"]
    stated = bundle.manifest.int8.graphs["ct-0"]
    assert 0 < record.nodes_in_int8 <= stated.layers_in_int8
    assert record.nodes_in_int8 + len(record.nodes_in_float) == stated.layers_in_int8 + len(stated.layers_in_float)


def test_plan_states_its_layers_and_that_it_has_not_run(built):
    """A plan's layers in INT8 are those of its graph, it is recorded as not validated, and `tmi inspect` shows both."""
    bundle, _, records = built
    manifest = bundle.manifest
    assert all(r.passed for r in records)
    assert {r.check for r in records} == {"dtypes"}
    assert manifest.engines_not_validated["trt-rtx"].startswith("no NVIDIA GPU at the export")
    plan = manifest.tensorrt.plans["trt-rtx"].graphs["ct-0"]
    assert plan.layers_in_int8 == manifest.tensorrt.precision.graphs["ct-0"].nodes_in_int8
    assert plan.layers["CONVOLUTION"]["INT8"] > 5
    assert plan.layers_in_half == 0
    text = manifest.tensorrt.plans["trt-rtx"].graphs["text-0"]
    assert text.layers_in_int8 is None
    assert text.layers_in_half > 0
    shown = tmi("inspect", bundle.folder)
    (row,) = (line for line in shown.out.splitlines() if "trt-rtx │ ct-0" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]][3:5] == ["int8", str(plan.layers_in_int8)]
    assert engine_precision("trt-rtx", manifest) == "int8"
    assert largest_error("trt-rtx", "int8") == 1e-2
    assert largest_error("trt-rtx", "float16") == 5e-3


def test_other_documents_have_no_int8_entries(built):
    """Entries of INT8 are left out where they are null, and read back as they were written."""
    document = manifest_to_json(built[0].manifest)
    graphs = document["tensorrt"]["plans"]["trt-rtx"]["graphs"]
    assert "layers_in_int8" in graphs["ct-0"]
    assert "layers_in_int8" not in graphs["text-0"]
    assert "nodes_in_int8" not in document["tensorrt"]["precision"]["graphs"]["text-0"]
    assert manifest_from_json(document) == built[0].manifest


@pytest.mark.parametrize(
    ("layers", "nodes", "message"),
    [
        ({"CONVOLUTION": {"FLOAT": 12}}, frozenset(), "no layer computes in INT8"),
        ({"CONVOLUTION": {"INT8": 1, "FLOAT": 11}}, frozenset({"a"}), "1 nodes compute in INT8, the typed graph has"),
        (
            {"CONVOLUTION": {"INT8": 1, "HALF": 1}},
            frozenset({"a"}),
            "compute in HALF although the graph is int8",
        ),
    ],
)
def test_plan_with_other_layers_is_rejected(built, layers, nodes, message):
    """A plan without INT8 layers, with fewer than its graph, or with FP16 ones fails its audit by name."""
    manifest = built[0].manifest
    audit = TypeAudit(layers=layers, unexplained=(), float_nodes={}, int8_nodes=nodes)
    plan = plans.Plan(data=b"", audit=audit, record=manifest.tensorrt.plans["trt-rtx"].graphs["ct-0"])
    asked = manifest.tensorrt.precision.graphs["ct-0"]
    record = plans._audit_layer_types(plan, manifest.graph("ct-0"), "trt-rtx", asked)
    assert (record.passed, message in record.detail) == (False, True), record.detail


@pytest.mark.parametrize(
    ("ending", "change", "message"),
    [
        (".scale", lambda value: value * np.float32(1.01), "1.01 times"),
        (".zero_point", lambda value: value + 1, "zero point of"),
        (".zero_point", lambda value: value.astype(np.uint8), "zero point of .* is uint8"),
    ],
)
def test_audit_finds_a_changed_tensor(built, tmp_path, ending, change, message):
    """The audit of a signed file names a scale or zero point that symmetric signed rounding does not give."""
    bundle, _, _ = built
    spec = bundle.manifest.graph("ct-0")
    shutil.copytree(bundle.folder / "graphs", tmp_path / "graphs")
    file = spec.artefacts[TYPED]
    assert audit_signed_graph(tmp_path, file, spec, bundle.manifest).passed
    model = onnx.load(tmp_path / file)
    tensor = next(t for t in model.graph.initializer if t.name.endswith(ending))
    value = numpy_helper.to_array(tensor)
    changed = np.asarray(change(value))
    kind = changed.dtype if "uint8" in message else value.dtype
    tensor.CopyFrom(numpy_helper.from_array(changed.astype(kind), tensor.name))
    onnx.save(model, tmp_path / file)
    record = audit_signed_graph(tmp_path, file, spec, bundle.manifest)
    assert not record.passed
    assert re.search(message, record.detail), record.detail


def test_budget_shrinks_until_the_pipeline_holds(base, cases, built, tmp_path, monkeypatch):
    """If a parity check fails, the signed graphs are made again with less of the error budget."""
    folder = Path(shutil.copytree(built[0].folder, tmp_path / "bundle"))
    shares = []

    def once(*args, share, **options):
        shares.append(share)
        passed = share < 1
        return built[0].manifest, [replace(built[1][0], passed=passed)]

    monkeypatch.setattr(typed_graphs, "_add_once", once)
    add_typed_graphs(folder, base.manifest, "int8", validation_set(base, cases), progress=lambda line: None)
    assert shares == [1.0, 0.75]
    shares.clear()
    add_typed_graphs(folder, base.manifest, "fp16", validation_set(base, cases), progress=lambda line: None)
    assert shares == [1.0]


def test_torch_trt_has_no_int8(built, base, cases):
    """torch-trt compiles modules: INT8 is an error that names other engines."""
    with pytest.raises(UsageError, match="torch-trt compiles modules"):
        with_int8(["torch-trt"], "int8")
    request = PlanRequest(kinds=("torch-trt",), options=BuildOptions())
    with pytest.raises(UsageError, match="typed graphs are in INT8"):
        add_plans(built[0].folder, built[0].manifest, request, validation_set(base, cases), progress=lambda line: None)


def test_options_ask_for_int8_of_the_right_engines():
    """`--precision int8` adds the CPU's graphs, or is the precision of the TensorRT engine that is named."""
    assert with_int8(["onnx"], "int8") == (["onnx", "onnx-int8"], None)
    assert with_int8(["onnx", "trt-rtx"], "int8") == (["onnx", "trt-rtx"], "int8")
    assert with_int8(["trt"], "fp16") == (["trt"], "fp16")
