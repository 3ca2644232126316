"""INT8: choice of the calibration cases, folding, rounding, search, and the complete stage on a small bundle."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from factories.int8_bundle import calibration_cases, with_int8_graphs
from factories.random_run import write_random_run
from tmi.export.bundle import rebuild
from tmi.export.graphs.partition import DistinctEncoder, FoldModels, GraphPartition, partition_run
from tmi.export.quantization import measuring
from tmi.export.quantization.audit import audit_calibration, audit_quantised
from tmi.export.quantization.calibration_cases import choose_cases, read_calibration_cases
from tmi.export.quantization.folding import folded_graph
from tmi.export.quantization.measuring import largest_magnitudes, layer_errors, outputs_of
from tmi.export.quantization.qdq import quantisable, quantised
from tmi.export.quantization.search import ProbeSet, search_layers
from tmi.runtime.bundle.int8_records import case_digest, untrained_cases
from tmi.runtime.bundle.manifest import manifest_from_json, manifest_to_json
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.outputs import evaluate
from tmi.runtime.verification.parity import relative_error
from tmi.runtime.verification.verify import read_references
from tmi.toolkit.errors import UsageError
from tmi.toolkit.run_folder import RunFolder


@pytest.fixture(scope="module")
def base(nano_bundle):
    return open_bundle(nano_bundle)


@pytest.fixture(scope="module")
def cases(base, nano_run):
    """Two calibration cases of each CT graph, with the outputs of the float32 engine."""
    return calibration_cases(base, nano_run)


@pytest.fixture(scope="module")
def graph(base):
    """Float32 file of a CT encoder, its folded graph, and inputs."""
    path = base.folder / base.manifest.graph("ct-0").artefacts["onnx"]
    golden = golden_from_manifest(base.manifest)
    return path, folded_graph(path, nonnegative=True), [{"ct": golden.ct_B1DHW[[row]]} for row in range(golden.count)]


@pytest.fixture(scope="module")
def int8_bundle(base, cases, tmp_path_factory):
    """A copy of the bundle with INT8 graphs, and the records of their checks."""
    return with_int8_graphs(base, cases, tmp_path_factory.mktemp("int8") / "bundle")


def test_folding_keeps_the_outputs(base, graph):
    """A graph whose batch norms are folded gives the outputs of the original, to float32 rounding."""
    path, model, inputs = graph
    assert not any(n.op_type == "BatchNormalization" for n in model.graph.node)
    before = np.concatenate(outputs_of(onnx.load(path), inputs, threads=1))
    assert relative_error(np.concatenate(outputs_of(model, inputs, threads=1)), before) < 2e-6


def test_every_layer_reads_eight_bits(graph):
    """Each layer reads 8-bit activations, convolutions int8 weights, all with zero point 0; it costs at most 3%."""
    _, model, inputs = graph
    magnitudes = largest_magnitudes(model, inputs, threads=1)
    rounded = quantised(model, magnitudes, list(quantisable(model)))
    tensors = {t.name: numpy_helper.to_array(t) for t in rounded.graph.initializer}
    count = Counter(n.op_type for n in rounded.graph.node if n.name in quantisable(model))
    assert count == {"Conv": 12, "Add": 4, "MaxPool": 1}
    for node in (n for n in rounded.graph.node if n.op_type in count):
        values = node.input[:1] if node.op_type == "MaxPool" else node.input[:2]
        assert all(name.endswith(".dequantized") for name in values), node.name
    zeros = [value for name, value in tensors.items() if name.endswith(".zero_point")]
    assert {str(z.dtype) for z in zeros} == {"int8", "uint8"}
    assert not any(z.any() for z in zeros)
    before = np.concatenate(outputs_of(model, inputs, threads=1))
    assert 1e-4 < relative_error(np.concatenate(outputs_of(rounded, inputs, threads=1)), before) < 0.03


def test_search_keeps_the_layer_with_the_largest_error(graph):
    """If the budget does not hold, additions and then the layers of the largest error stay in float32, few of them."""
    _, model, inputs = graph
    magnitudes = largest_magnitudes(model, inputs, threads=1)
    spoiled = list(magnitudes)[3]
    magnitudes[spoiled] *= 40  # a range that is far too wide: few steps are left for the values
    errors = layer_errors(model, magnitudes, inputs[0], threads=1)
    expected = np.concatenate(outputs_of(model, inputs, threads=1))
    probe = ProbeSet(name="golden", inputs=inputs, expected_BC=expected)
    plan = search_layers(model, magnitudes, [probe], 0.03, threads=1)
    readers = {layer for layer, values in quantisable(model).items() if spoiled in values}
    assert readers <= set(plan.layers_in_float)
    joins = [layer for layer in quantisable(model) if "add" in layer or "pool" in layer]
    assert set(joins) == set(list(plan.layers_in_float)[: len(joins)]), "they come first"
    assert max(errors, key=errors.__getitem__) in readers
    assert len(plan.layers) + len(plan.layers_in_float) == len(errors)
    assert plan.error <= 0.03
    fewer = quantised(model, magnitudes, {*plan.layers, list(plan.layers_in_float)[-1]})
    assert relative_error(np.concatenate(outputs_of(fewer, inputs, threads=1)), expected) > 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ending": ".scale", "factor": 1.01}, "1.01 times"),
        ({"ending": ".zero_point", "plus": 1}, "zero point of"),
        ({"ending": "weight.folded.blocks.int8", "plus": 1}, "differs from the rounded weight"),
        ({"ending": ".folded_bias", "factor": 1.001}, "is not that of the float32 graph"),
    ],
)
def test_audit_finds_a_changed_tensor(base, graph, tmp_path, change, message):
    """The audit of a written file names a tensor that symmetric rounding does not give."""
    path, model, inputs = graph
    magnitudes = largest_magnitudes(model, inputs, threads=1)
    rounded = quantised(model, magnitudes, list(quantisable(model)))
    onnx.save(rounded, tmp_path / "valid.onnx")
    spec = base.manifest.graph("ct-0")
    doubled = {**magnitudes, "ct.blocks": 2 * magnitudes["ct.blocks"]}
    saturated = audit_quantised(tmp_path / "valid.onnx", path, spec, inputs, doubled, threads=1)
    assert "stated range of ct.blocks is 2 times" in saturated.detail
    assert audit_quantised(tmp_path / "valid.onnx", path, spec, inputs, magnitudes, threads=1).passed
    tensor = next(t for t in rounded.graph.initializer if t.name.endswith(change["ending"]))
    value = numpy_helper.to_array(tensor)
    changed = (value * np.float32(change.get("factor", 1)) + change.get("plus", 0)).astype(value.dtype)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(rounded, tmp_path / "changed.onnx")
    result = audit_quantised(tmp_path / "changed.onnx", path, spec, inputs, magnitudes, threads=1)
    assert not result.passed
    assert message in result.detail


@pytest.mark.parametrize("kind", ["QuantizeLinear", "DequantizeLinear", "axis"])
def test_audit_finds_a_pair_that_reads_another_tensor(base, graph, tmp_path, kind):
    """A pair of another value, or with the scales of weights along another axis, is no rounding of its layer."""
    path, model, inputs = graph
    magnitudes = largest_magnitudes(model, inputs, threads=1)
    rounded = quantised(model, magnitudes, list(quantisable(model)))
    if kind == "axis":
        next(n for n in rounded.graph.node if n.op_type == "DequantizeLinear" and n.attribute).attribute[0].i = 1
    else:
        first, second = [n for n in rounded.graph.node if n.op_type == kind and not n.attribute][:2]
        second.input[0] = first.input[0]
    onnx.save(rounded, tmp_path / "changed.onnx")
    spec = base.manifest.graph("ct-0")
    result = audit_quantised(tmp_path / "changed.onnx", path, spec, inputs, magnitudes, threads=1)
    assert (result.passed, "with its scales along the output channels" in result.detail) == (False, True)


@pytest.mark.parametrize(("volumes", "passed"), [(("a", "b"), True), (("a", "a"), False), (("a", "zero"), False)])
def test_calibration_needs_different_volumes(base, volumes, passed):
    """One volume, given twice or beside a constant one, is no calibration."""
    rng = np.random.default_rng(0)
    known = {name: rng.random((1, 1, 4, 4, 4), np.float32) for name in "ab"}
    known["zero"] = np.zeros((1, 1, 4, 4, 4), np.float32)
    result = audit_calibration(base.manifest.graph("ct-0"), [known[name] for name in volumes])
    assert result.passed == passed, result.detail


def test_stage_quantises_every_ct_encoder(int8_bundle):
    """Both CT encoders are INT8, all checks pass on each INT8 engine, and other graphs share their float32 file."""
    bundle, records = int8_bundle
    assert all(r.passed for r in records)
    assert set(bundle.manifest.int8.graphs) == {"ct-0", "ct-1"}
    assert all(g.layers_in_int8 > 10 and g.error <= g.budget for g in bundle.manifest.int8.graphs.values())
    files = {g.name: g.artefacts["onnx-int8"] for g in bundle.manifest.graphs}
    assert files["ct-0"] == "graphs/ct-0.int8.onnx"
    assert files["fusion"] == "graphs/fusion.onnx"
    assert {r.engine for r in records if r.check == "calibration-features"} <= {"openvino-int8", "onnx-int8"}


def test_engine_in_int8_differs_from_float32_within_its_bound(base, int8_bundle):
    """The INT8 engine computes other features than float32, within the bound."""
    bundle, _ = int8_bundle
    golden = golden_from_manifest(base.manifest)
    with open_engine("onnx-int8", bundle, threads=1) as engine:
        features = evaluate(engine, bundle.manifest, golden).features["ct-0"]
    assert 1e-4 < relative_error(features, read_references(base).float32.features["ct-0"]) < 2.0**-5


def test_manifest_without_int8_has_no_such_entry(base, int8_bundle):
    """A bundle without INT8 is the document that it was before; with INT8 it is read back equal."""
    bundle, _ = int8_bundle
    assert "int8" not in manifest_to_json(base.manifest)
    assert manifest_from_json(manifest_to_json(bundle.manifest)) == bundle.manifest


def test_cases_are_training_cases_of_every_fold(nano_run, cases, int8_bundle):
    """Chosen cases are training cases; a held-out one among the recorded digests is named."""
    run, (bundle, _) = RunFolder.open(nano_run), int8_bundle
    partition = partition_run(run, FoldModels(run).weights)
    chosen = choose_cases(run, partition, "f", 8)
    for encoder in (e for e in partition.encoders if e.role == "ct"):
        (fold,) = encoder.folds
        assert {c for c, graphs in chosen.items() if encoder.name in graphs} == set(run.folds[fold].train)
    assert untrained_cases(bundle.manifest, run) == {}
    record = bundle.manifest.int8
    held_out = run.folds[0].test[0]
    digest = case_digest(run.state["cohort"]["fingerprint"], held_out)
    first = record.graphs["ct-0"]
    leaked = replace(first, calibration=(replace(first.calibration[0], case=digest), *first.calibration[1:]))
    manifest = replace(bundle.manifest, int8=replace(record, graphs={**record.graphs, "ct-0": leaked}))
    assert untrained_cases(manifest, run) == {"ct-0": [held_out]}


def test_audit_command_finds_a_held_out_calibration_case(nano_run, int8_bundle):
    """`tmi audit --bundle` reports a leak if a held-out case is among the calibration cases."""
    from tmi.training.leakage_audit.calibration_checks import audit_calibration as audit

    run, (bundle, _) = RunFolder.open(nano_run), int8_bundle
    assert audit(run, bundle.manifest).status == "holds"
    record = bundle.manifest.int8
    swapped = {"ct-0": record.graphs["ct-1"], "ct-1": record.graphs["ct-0"]}
    result = audit(run, replace(bundle.manifest, int8=replace(record, graphs=swapped)))
    assert result.status == "leak"
    assert "ct-0: P0" in result.detail
    first = record.graphs["ct-0"]
    for graphs in ({"ct-0": replace(first, calibration=())}, {"ct-7": first}):
        edited = audit(run, replace(bundle.manifest, int8=replace(record, graphs=graphs)))
        assert edited.status == "leak", "a graph without calibration cases, or of no fold, proves nothing"
    with pytest.raises(UsageError, match="no INT8 graphs"):
        audit(run, replace(bundle.manifest, int8=replace(record, graphs={})))


def test_audit_rejects_the_bundle_of_another_run(nano_run, int8_bundle):
    """A run of the same name and cohort that was started again, or has other folds, is not the bundle's."""
    from tmi.training.leakage_audit.calibration_checks import audit_calibration as audit

    run, (bundle, _) = RunFolder.open(nano_run), int8_bundle
    manifest = bundle.manifest
    again = replace(manifest, run=replace(manifest.run, started_at="2001-01-01T00:00:00+00:00"))
    more = replace(manifest, folds=(*manifest.folds, replace(manifest.folds[0], fold=9)))
    for other in (again, more):
        with pytest.raises(UsageError, match="not an export of this run"):
            audit(run, other)


def test_run_without_a_calibration_case_is_rejected_early(nano_config, synthetic_cohort, tmp_path):
    """A CT encoder that all folds share has no case that every fold was trained on: nothing can be calibrated."""
    run = RunFolder.open(write_random_run(tmp_path / "run", nano_config, folds=2, cohort=synthetic_cohort))
    shared = DistinctEncoder(name="ct-0", role="ct", folds=tuple(s.fold for s in run.folds), tokenizer=None)
    partition = GraphPartition(encoders=(shared,), folds=shared.folds)
    with pytest.raises(UsageError, match="no CT encoder that INT8 can be calibrated for"):
        read_calibration_cases(synthetic_cohort, run, partition, FoldModels(run))


def test_errors_of_layers_do_not_depend_on_their_groups(graph, monkeypatch):
    """Layers measured one at a time have the errors that they have together."""
    _, model, inputs = graph
    magnitudes = largest_magnitudes(model, inputs, threads=1)
    together = layer_errors(model, magnitudes, inputs[0], threads=1)
    monkeypatch.setattr(measuring, "LAYERS_AT_ONCE", 1)
    assert layer_errors(model, magnitudes, inputs[0], threads=1) == pytest.approx(together, rel=1e-5)
    assert list(together) == list(quantisable(model))


def test_no_cohort_is_a_typed_error(nano_run, tmp_path):
    """INT8 without a cohort, and a cohort without INT8, are errors that name the option."""
    from factories.tmi_command import tmi

    missing = tmi("export", nano_run, "--precision", "int8", "--out", tmp_path / "bundle")
    assert missing.code == 2
    assert "--calibration" in missing.err
    unused = tmi("export", nano_run, "--engine", "onnx", "--calibration", nano_run, "--out", tmp_path / "bundle")
    assert unused.code == 2
    assert "--precision int8" in unused.err


def test_rebuild_needs_the_cohort_and_calibrates_on_it(int8_bundle, nano_run, monkeypatch, tmp_path):
    """`tmi verify --rebuild` of a bundle with INT8 exports again with the cohort, and asks for it if none is given."""
    bundle, _ = int8_bundle
    with pytest.raises(UsageError, match="cannot be repeated without their calibration cases") as error:
        rebuild.compare_with_rebuild(bundle, nano_run)
    assert "--cohort" in error.value.fix
    asked = []

    def export(*args, artefacts, settings, **options):
        asked.append((artefacts, settings.calibration, settings.int8_optional))
        return bundle

    monkeypatch.setattr(rebuild, "export_run", export)
    assert rebuild.compare_with_rebuild(bundle, nano_run, calibration=tmp_path).files == len(bundle.manifest.files)
    ((artefacts, calibration, optional),) = asked
    assert ("onnx-int8" in artefacts, calibration, optional) == (True, tmp_path, False)


def test_rebuild_tries_int8_where_the_export_did(base, nano_run, monkeypatch, tmp_path):
    """A bundle whose export left INT8 out is exported again in the same way, which needs the cohort too."""
    rejected = dict.fromkeys(("openvino-int8", "onnx-int8"), "it failed")
    bundle = replace(base, manifest=replace(base.manifest, engines_rejected=rejected))
    with pytest.raises(UsageError, match="cannot be repeated without their calibration cases"):
        rebuild.compare_with_rebuild(bundle, nano_run)
    asked = []

    def export(*args, artefacts, settings, **options):
        asked.append((artefacts, settings.calibration, settings.int8_optional))
        return bundle

    monkeypatch.setattr(rebuild, "export_run", export)
    rebuild.compare_with_rebuild(bundle, nano_run, calibration=tmp_path)
    ((artefacts, calibration, optional),) = asked
    assert ("onnx-int8" in artefacts, calibration, optional) == (True, tmp_path, True)
