"""What the export must refuse. Each fault is one that an exporter, an optimiser or a careless hand has made before."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from factories.planted_fault import plant, with_forward
from factories.tmi_command import tmi
from tmi.export.bundle.writer import export_run
from tmi.export.checks.acceptance import audit_fold_files
from tmi.runtime.bundle.check_result import CheckResult, ParityError
from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.parity import Outputs, check_engine
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.run_folder import RunFolder

ARTEFACTS = ("onnx", "torchscript")
FILE_GATES = {"weights", "epsilon", "signature"}


def refused(run: Path, out: Path, artefact: str) -> tuple[CheckResult, ...]:
    """The failed gates of an export that must be refused and must leave nothing behind."""
    with pytest.raises(ParityError, match=r"parity gates failed.*no bundle was written") as caught:
        export_run(run, out, artefacts=(artefact,))
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))
    assert caught.value.exit_code == 4
    return tuple(r for r in caught.value.records if not r.passed)


def gates(failed: tuple[CheckResult, ...]) -> set[str]:
    return {r.gate for r in failed}


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_a_weight_changed_by_less_than_float32_noise_in_the_answer_is_refused(
    artefact, nano_run, nano_bundle, tmp_path, monkeypatch
):
    def nudge(module: nn.Module) -> nn.Module:
        weight = module.get_parameter("backbone.layer3.0.conv1.weight")
        with torch.no_grad():
            weight[0, 0, 0, 0, 0] *= 1 + 1e-6
        return module

    plant(monkeypatch, artefact, graph="ct-1", honest=nano_bundle, change=nudge, weights_alone=True)
    failed = refused(nano_run, tmp_path / "bundle", artefact)
    assert gates(failed) == {"weights"}  # the outputs show nothing; the file does
    assert "backbone.layer3.0.conv1.weight differs from the model's by up to" in failed[0].detail


def test_a_large_weight_error_is_seen_in_the_outputs_of_that_graph_too(nano_run, nano_bundle, tmp_path, monkeypatch):
    def scale(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            module.get_parameter("bert.encoder.layer.0.output.dense.weight").mul_(1.5)
        return module

    plant(monkeypatch, "torchscript", graph="text-0", honest=nano_bundle, change=scale)
    failed = refused(nano_run, tmp_path / "bundle", "torchscript")
    assert {"weights", "features"} <= gates(failed)
    assert {r.graph for r in failed if r.gate == "features"} == {"text-0"}


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_two_exchanged_folds_are_refused_and_named(artefact, nano_run, nano_bundle, tmp_path, monkeypatch):
    def exchange(module: nn.Module) -> nn.Module:
        module.folds = nn.ModuleList(reversed(module.folds))
        return module

    plant(monkeypatch, artefact, graph="fusion", honest=nano_bundle, change=exchange, weights_alone=True)
    failed = refused(nano_run, tmp_path / "bundle", artefact)
    assert {"weights", "logits", "fold-order"} <= gates(failed)
    details = {r.detail for r in failed if r.gate == "fold-order"}
    assert details == {"fold 0 answers like fold 1; fold 1 answers like fold 0"}


@pytest.mark.parametrize("artefact", ARTEFACTS)
@pytest.mark.parametrize(
    ("graph", "module", "epsilon"),
    [
        ("text-0", "bert.embeddings.LayerNorm", 1e-7),
        ("fusion", "folds.1.ima.clinical.norm", 1.1e-5),
        ("ct-0", "backbone.bn1", 1.0001e-5),
    ],
)
def test_a_wrong_epsilon_is_refused_although_the_outputs_hardly_move(
    artefact, graph, module, epsilon, nano_run, nano_bundle, tmp_path, monkeypatch
):
    def change(net: nn.Module) -> nn.Module:
        net.get_submodule(module).eps = epsilon
        return net

    plant(monkeypatch, artefact, graph=graph, honest=nano_bundle, change=change)
    failed = refused(nano_run, tmp_path / "bundle", artefact)
    assert gates(failed) == {"epsilon"}
    assert f"{module} has epsilon {epsilon:g}, the model's is" in failed[0].detail


@pytest.mark.parametrize(
    ("graph", "artefact"),
    [("ct-0", "onnx"), ("ct-0", "torchscript"), ("text-1", "torchscript"), ("fusion", "torchscript")],
)
def test_rows_that_leak_into_each_other_are_refused(artefact, graph, nano_run, nano_bundle, tmp_path, monkeypatch):
    def leak(honest, *inputs):
        answer = honest(*inputs)
        return answer - 1e-3 * answer.mean(dim=0, keepdim=True)

    plant(monkeypatch, artefact, graph=graph, honest=nano_bundle, change=lambda m: with_forward(m, leak))
    failed = refused(nano_run, tmp_path / "bundle", artefact)
    assert {"batch-of-1", "neighbours"} <= gates(failed)
    assert not gates(failed) & FILE_GATES  # every weight is right; only the rows are not alone
    assert graph in {r.graph for r in failed} or graph == "fusion"


def test_a_lost_attention_mask_is_refused(nano_run, nano_bundle, tmp_path, monkeypatch):
    def unmasked(honest, ids, mask):
        return honest(ids, torch.ones_like(mask))

    plant(monkeypatch, "torchscript", graph="text-0", honest=nano_bundle, change=lambda m: with_forward(m, unmasked))
    failed = refused(nano_run, tmp_path / "bundle", "torchscript")
    assert "padding" in gates(failed)


def test_a_batch_size_baked_into_a_trace_is_refused(nano_run, nano_bundle, tmp_path, monkeypatch):
    def bake(honest, ct):
        return honest(ct).reshape(2, 8)

    plant(monkeypatch, "torchscript", graph="ct-0", honest=nano_bundle, change=lambda m: with_forward(m, bake))
    failed = refused(nano_run, tmp_path / "bundle", "torchscript")
    assert gates(failed) == {"runs"}
    assert "a batch of 4" in failed[0].detail


def test_a_batch_size_baked_into_an_onnx_graph_is_refused(nano_run, nano_bundle, tmp_path, monkeypatch):
    def bake(honest, ct):
        return honest(ct).reshape(2, 8)

    plant(monkeypatch, "onnx", graph="ct-0", honest=nano_bundle, change=lambda m: with_forward(m, bake))
    failed = refused(nano_run, tmp_path / "bundle", "onnx")
    assert gates(failed) == {"signature", "runs"}


def test_a_trace_that_cannot_follow_the_models_branches_is_refused(nano_run, nano_bundle, tmp_path, monkeypatch):
    def branch(honest, ct):
        return honest(ct) if ct.sum() > 0 else -honest(ct)

    plant(monkeypatch, "torchscript", graph="ct-0", honest=nano_bundle, change=lambda m: with_forward(m, branch))
    (failed,) = refused(nano_run, tmp_path / "bundle", "torchscript")
    assert failed.gate == "writes"
    assert "the trace of ct-0 does not follow the model" in failed.detail


def test_an_onnx_file_with_a_fixed_batch_is_refused_by_its_signature_and_by_both_engines(
    nano_run, nano_bundle, tmp_path, monkeypatch
):
    def fix(spec: GraphSpec) -> GraphSpec:
        return replace(spec, inputs=tuple(replace(t, shape=(2, *t.shape[1:])) for t in spec.inputs))

    plant(monkeypatch, "onnx", graph="ct-0", honest=nano_bundle, spec=fix)
    failed = refused(nano_run, tmp_path / "bundle", "onnx")
    assert gates(failed) == {"signature", "runs"}
    assert {r.engine for r in failed if r.gate == "runs"} == {"onnx", "openvino"}
    assert "ct float32[B,1,8,16,16] is ct float32[2,1,8,16,16] in the file" in failed[0].detail


def test_a_weight_that_the_graph_lost_is_refused(nano_run, nano_bundle, tmp_path, monkeypatch):
    def without_positions(module: nn.Module) -> nn.Module:
        module.bert.embeddings.position_embeddings = _Nothing()
        return module

    class _Nothing(nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.zeros((), dtype=torch.float32)

    plant(monkeypatch, "onnx", graph="text-0", honest=nano_bundle, change=without_positions)
    failed = refused(nano_run, tmp_path / "bundle", "onnx")
    weights = next(r for r in failed if r.gate == "weights")
    assert "1 weights are not in the graph although the answer depends on them" in weights.detail
    assert "position_embeddings.weight" in weights.detail


@pytest.fixture(scope="module")
def opened(nano_bundle: Path) -> Bundle:
    return open_bundle(nano_bundle)


def failed_gates(bundle: Bundle, folder: Path) -> set[str]:
    """Gates that do not hold when an honest bundle's files are run as this manifest says."""
    from safetensors.numpy import load_file

    reference = Outputs.from_tensors(load_file(folder / "golden.safetensors"))
    with open_engine("onnx", bundle) as engine:
        records = check_engine(
            engine, bundle.manifest, golden_from_manifest(bundle.manifest), reference, artefact="onnx"
        )
    return gates(tuple(r for r in records if not r.passed))


def test_the_files_of_an_honest_bundle_pass_when_judged_again(opened):
    assert failed_gates(opened, opened.folder) == set()


@pytest.mark.parametrize("part", ["ct", "text"])
def test_two_folds_that_read_each_others_encoder_are_refused(part, opened):
    first, second = opened.manifest.folds
    exchanged = (
        replace(first, **{part: getattr(second, part)}),
        replace(second, **{part: getattr(first, part)}),
    )
    bundle = replace(opened, manifest=replace(opened.manifest, folds=exchanged))
    assert "logits" in failed_gates(bundle, opened.folder)


@pytest.mark.parametrize("part", ["scaler", "text"])
def test_two_folds_with_each_others_scaler_or_tokenizer_are_refused(part, opened, nano_run):
    run = RunFolder.open(nano_run)
    assert audit_fold_files(opened.folder, opened.manifest, run).passed
    first, second = opened.manifest.folds
    folds = (replace(first, **{part: getattr(second, part)}), second)
    record = audit_fold_files(opened.folder, replace(opened.manifest, folds=folds), run)
    assert not record.passed
    expected = {"scaler": "scalers/fold1.json is not the run's fold0/scaler.json"}
    assert expected.get(part, "tokenizers/text-1.json is not the run's fold0/tokenizer.json") == record.detail


def test_the_command_prints_what_differs_exits_with_4_and_leaves_the_old_bundle_alone(
    nano_run, nano_bundle, tmp_path, monkeypatch
):
    def change(net: nn.Module) -> nn.Module:
        net.get_submodule("backbone.bn1").eps = 1e-3
        return net

    out = tmp_path / "bundle"
    shutil.copytree(nano_bundle, out)
    before = open_bundle(out).digest
    plant(monkeypatch, "torchscript", graph="ct-0", honest=nano_bundle, change=change)
    outcome = tmi("export", nano_run, "--engine", "torchscript", "--out", out, "--force")
    assert outcome.code == 4
    assert re.search(r"epsilon\s.*ct-0\s.*torchscript", outcome.err)
    assert "backbone.bn1 has epsilon 0.001, the model's is 1e-05" in " ".join(outcome.err.split())
    assert "fix: do not use this model exported with these versions" in outcome.err
    assert open_bundle(out).digest == before


def test_a_changed_byte_in_any_file_of_a_bundle_is_refused_when_it_is_opened(nano_bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(nano_bundle, folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    assert len(files) > 20
    for path in files:
        honest = path.read_bytes()
        for position in {0, len(honest) // 2, len(honest) - 1}:
            path.write_bytes(honest[:position] + bytes([honest[position] ^ 1]) + honest[position + 1 :])
            with pytest.raises(DamagedError, match="was changed after the export") as caught:
                open_bundle(folder)
            assert caught.value.exit_code == 6
            assert path.name in caught.value.what or path.name == "manifest.json.sha256"
        path.write_bytes(honest)
    open_bundle(folder)
