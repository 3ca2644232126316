"""Faults that an export must reject. Each is a known error of an exporter, an optimiser or a user."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from factories.faulty_exporter import plant, with_forward
from factories.tmi_command import tmi
from tmi.export.bundle.writer import export_run
from tmi.export.checks.acceptance import audit_fold_files
from tmi.runtime.bundle.check_result import CheckResult, ParityError
from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.outputs import Outputs
from tmi.runtime.verification.parity import check_engine
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.run_folder import RunFolder

ARTEFACTS = ("onnx", "torchscript")
FILE_CHECKS = {"weights", "epsilon", "signature"}


def export_failures(run: Path, out: Path, artefact: str) -> tuple[CheckResult, ...]:
    """Run an export that must fail without writing anything, and return its failed checks."""
    with pytest.raises(ParityError, match=r"parity checks failed.*no bundle was written") as caught:
        export_run(run, out, artefacts=(artefact,))
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))
    assert caught.value.exit_code == 4
    return tuple(r for r in caught.value.records if not r.passed)


def check_names(failed: tuple[CheckResult, ...]) -> set[str]:
    return {r.check for r in failed}


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_weight_change_below_float32_noise_is_rejected(artefact, nano_run, nano_bundle, tmp_path, monkeypatch):
    """A weight change too small to move any output beyond the bounds fails the weight audit."""

    def nudge(module: nn.Module) -> nn.Module:
        weight = module.get_parameter("backbone.layer3.0.conv1.weight")
        with torch.no_grad():
            weight[0, 0, 0, 0, 0] *= 1 + 1e-6
        return module

    plant(monkeypatch, artefact, graph="ct-1", valid_bundle=nano_bundle, change=nudge, weights_alone=True)
    failed = export_failures(nano_run, tmp_path / "bundle", artefact)
    assert check_names(failed) == {"weights"}  # only the file differs, no output does
    assert "backbone.layer3.0.conv1.weight differs from the model's by up to" in failed[0].detail


def test_large_weight_change_fails_features_of_its_graph(nano_run, nano_bundle, tmp_path, monkeypatch):
    """A large weight change also fails the features check of its graph, and of no other."""

    def scale(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            module.get_parameter("bert.encoder.layer.0.output.dense.weight").mul_(1.5)
        return module

    plant(monkeypatch, "torchscript", graph="text-0", valid_bundle=nano_bundle, change=scale)
    failed = export_failures(nano_run, tmp_path / "bundle", "torchscript")
    assert {"weights", "features"} <= check_names(failed)
    assert {r.graph for r in failed if r.check == "features"} == {"text-0"}


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_exchanged_folds_are_rejected_and_named(artefact, nano_run, nano_bundle, tmp_path, monkeypatch):
    """Two exchanged folds fail the weight audit and the fold-order check, which names both."""

    def exchange(module: nn.Module) -> nn.Module:
        module.folds = nn.ModuleList(reversed(module.folds))
        return module

    plant(monkeypatch, artefact, graph="fusion", valid_bundle=nano_bundle, change=exchange, weights_alone=True)
    failed = export_failures(nano_run, tmp_path / "bundle", artefact)
    assert {"weights", "logits", "fold-order"} <= check_names(failed)
    details = {r.detail for r in failed if r.check == "fold-order"}
    assert details == {"fold 0 matches fold 1; fold 1 matches fold 0"}


@pytest.mark.parametrize("artefact", ARTEFACTS)
@pytest.mark.parametrize(
    ("graph", "module", "epsilon"),
    [
        ("text-0", "bert.embeddings.LayerNorm", 1e-7),
        ("fusion", "folds.1.ima.clinical.norm", 1.1e-5),
        ("ct-0", "backbone.bn1", 1.0001e-5),
    ],
)
def test_wrong_epsilon_is_rejected(artefact, graph, module, epsilon, nano_run, nano_bundle, tmp_path, monkeypatch):
    """A wrong epsilon fails its audit although no output moves beyond the bounds."""

    def change(net: nn.Module) -> nn.Module:
        net.get_submodule(module).eps = epsilon
        return net

    plant(monkeypatch, artefact, graph=graph, valid_bundle=nano_bundle, change=change)
    failed = export_failures(nano_run, tmp_path / "bundle", artefact)
    assert check_names(failed) == {"epsilon"}
    assert f"{module} has epsilon {epsilon:g}, the model's is" in failed[0].detail


@pytest.mark.parametrize(
    ("graph", "artefact"),
    [("ct-0", "onnx"), ("ct-0", "torchscript"), ("text-1", "torchscript"), ("fusion", "torchscript")],
)
def test_leaking_batch_rows_are_rejected(artefact, graph, nano_run, nano_bundle, tmp_path, monkeypatch):
    """A graph whose rows depend on each other fails the batch checks although every weight is right."""

    def leak(honest, *inputs):
        output = honest(*inputs)
        return output - 1e-3 * output.mean(dim=0, keepdim=True)

    plant(monkeypatch, artefact, graph=graph, valid_bundle=nano_bundle, change=lambda m: with_forward(m, leak))
    failed = export_failures(nano_run, tmp_path / "bundle", artefact)
    assert {"batch-of-1", "neighbours"} <= check_names(failed)
    assert not check_names(failed) & FILE_CHECKS  # every weight is right, only the rows depend on each other
    assert graph in {r.graph for r in failed} or graph == "fusion"


def test_lost_attention_mask_is_rejected(nano_run, nano_bundle, tmp_path, monkeypatch):
    """A text graph that ignores its attention mask fails the padding check."""

    def unmasked(honest, ids, mask):
        return honest(ids, torch.ones_like(mask))

    plant(
        monkeypatch, "torchscript", graph="text-0", valid_bundle=nano_bundle, change=lambda m: with_forward(m, unmasked)
    )
    failed = export_failures(nano_run, tmp_path / "bundle", "torchscript")
    assert "padding" in check_names(failed)


def test_trace_with_fixed_batch_is_rejected(nano_run, nano_bundle, tmp_path, monkeypatch):
    """A trace with a fixed batch size cannot run the golden batch."""

    def bake(honest, ct):
        return honest(ct).reshape(2, 8)

    plant(monkeypatch, "torchscript", graph="ct-0", valid_bundle=nano_bundle, change=lambda m: with_forward(m, bake))
    failed = export_failures(nano_run, tmp_path / "bundle", "torchscript")
    assert check_names(failed) == {"runs"}
    assert "a batch of 4" in failed[0].detail


def test_onnx_graph_with_fixed_batch_is_rejected(nano_run, nano_bundle, tmp_path, monkeypatch):
    """An ONNX graph with a fixed batch size fails its signature, and no engine loads it."""

    def bake(honest, ct):
        return honest(ct).reshape(2, 8)

    plant(monkeypatch, "onnx", graph="ct-0", valid_bundle=nano_bundle, change=lambda m: with_forward(m, bake))
    failed = export_failures(nano_run, tmp_path / "bundle", "onnx")
    assert check_names(failed) == {"signature", "loads"}


def test_trace_with_branch_is_rejected(nano_run, nano_bundle, tmp_path, monkeypatch):
    """A module with control flow that depends on values cannot be traced."""

    def branch(honest, ct):
        return honest(ct) if ct.sum() > 0 else -honest(ct)

    plant(monkeypatch, "torchscript", graph="ct-0", valid_bundle=nano_bundle, change=lambda m: with_forward(m, branch))
    (failed,) = export_failures(nano_run, tmp_path / "bundle", "torchscript")
    assert failed.check == "writes"
    assert "the trace of ct-0 does not reproduce the model" in failed.detail


def test_onnx_file_with_fixed_input_batch_is_rejected(nano_run, nano_bundle, tmp_path, monkeypatch):
    """An ONNX file with a fixed input batch fails its signature, and no engine loads it."""

    def fix(spec: GraphSpec) -> GraphSpec:
        return replace(spec, inputs=tuple(replace(t, shape=(2, *t.shape[1:])) for t in spec.inputs))

    plant(monkeypatch, "onnx", graph="ct-0", valid_bundle=nano_bundle, spec=fix)
    failed = export_failures(nano_run, tmp_path / "bundle", "onnx")
    assert check_names(failed) == {"signature", "loads"}
    assert {r.engine for r in failed if r.check == "loads"} == {"onnx", "openvino"}
    assert "ct float32[B,1,8,16,16] is ct float32[2,1,8,16,16] in the file" in failed[0].detail


def test_graph_without_needed_weight_is_rejected(nano_run, nano_bundle, tmp_path, monkeypatch):
    """A weight that affects the output and is missing from the graph fails the weight audit."""

    def without_positions(module: nn.Module) -> nn.Module:
        module.bert.embeddings.position_embeddings = _ZeroEmbedding()
        return module

    class _ZeroEmbedding(nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.zeros((), dtype=torch.float32)

    plant(monkeypatch, "onnx", graph="text-0", valid_bundle=nano_bundle, change=without_positions)
    failed = export_failures(nano_run, tmp_path / "bundle", "onnx")
    weights = next(r for r in failed if r.check == "weights")
    assert "1 weights are missing from the graph although the output depends on them" in weights.detail
    assert "position_embeddings.weight" in weights.detail


@pytest.fixture(scope="module")
def opened(nano_bundle: Path) -> Bundle:
    return open_bundle(nano_bundle)


def failed_checks(bundle: Bundle, folder: Path) -> set[str]:
    """Names of the checks that fail if an honest bundle's files are run with this bundle's manifest."""
    from safetensors.numpy import load_file

    reference = Outputs.from_tensors(load_file(folder / "golden.safetensors"))
    with open_engine("onnx", bundle) as engine:
        records = check_engine(
            engine, bundle.manifest, golden_from_manifest(bundle.manifest), reference, artefact="onnx"
        )
    return check_names(tuple(r for r in records if not r.passed))


def test_honest_bundle_passes_again(opened):
    """The parity checks of an unchanged bundle pass again."""
    assert failed_checks(opened, opened.folder) == set()


@pytest.mark.parametrize("part", ["ct", "text"])
def test_exchanged_encoders_of_folds_are_rejected(part, opened):
    """Folds that use each other's encoder fail the logits check."""
    first, second = opened.manifest.folds
    exchanged = (
        replace(first, **{part: getattr(second, part)}),
        replace(second, **{part: getattr(first, part)}),
    )
    bundle = replace(opened, manifest=replace(opened.manifest, folds=exchanged))
    assert "logits" in failed_checks(bundle, opened.folder)


@pytest.mark.parametrize("part", ["scaler", "text"])
def test_exchanged_scaler_or_tokenizer_is_rejected(part, opened, nano_run):
    """A fold with another fold's scaler or tokenizer fails the fold-files check."""
    run = RunFolder.open(nano_run)
    assert audit_fold_files(opened.folder, opened.manifest, run).passed
    first, second = opened.manifest.folds
    folds = (replace(first, **{part: getattr(second, part)}), second)
    record = audit_fold_files(opened.folder, replace(opened.manifest, folds=folds), run)
    assert not record.passed
    expected = {"scaler": "scalers/fold1.json is not the run's fold0/scaler.json"}
    assert expected.get(part, "tokenizers/text-1.json is not the run's fold0/tokenizer.json") == record.detail


def test_failed_export_prints_difference_and_keeps_bundle(nano_run, nano_bundle, tmp_path, monkeypatch):
    """A failed export prints the failed check, exits with 4 and leaves the existing bundle unchanged."""

    def change(net: nn.Module) -> nn.Module:
        net.get_submodule("backbone.bn1").eps = 1e-3
        return net

    out = tmp_path / "bundle"
    shutil.copytree(nano_bundle, out)
    before = open_bundle(out).digest
    plant(monkeypatch, "torchscript", graph="ct-0", valid_bundle=nano_bundle, change=change)
    outcome = tmi("export", nano_run, "--engine", "torchscript", "--out", out, "--force")
    assert outcome.code == 4
    assert re.search(r"epsilon\s.*ct-0\s.*torchscript", outcome.err)
    assert "backbone.bn1 has epsilon 0.001, the model's is 1e-05" in " ".join(outcome.err.split())
    assert "fix: do not use this model exported with these versions" in outcome.err
    assert open_bundle(out).digest == before


def test_changed_byte_in_any_file_is_rejected(nano_bundle, tmp_path):
    """A bundle with one changed bit in any of its files cannot be opened."""
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
