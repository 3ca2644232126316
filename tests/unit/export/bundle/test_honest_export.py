"""Exports of good models: they pass all checks, and their bundles describe themselves correctly."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from factories.paths import ROOT
from factories.random_run import write_random_run
from factories.valid_models import QUICK, ValidModel
from tmi.export.bundle.writer import export_run
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.outputs import FLOAT64_PREFIX, Outputs, evaluate
from tmi.runtime.verification.parity import BOUNDS, relative_error
from tmi.runtime.verification.verify import verify_bundle
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.hashing import sha256_file


@pytest.mark.long
@pytest.mark.parametrize("rebuild", QUICK, ids=lambda r: r.name)
def test_good_model_is_exported_and_verified(rebuild: ValidModel, nano_config, tmp_path):
    """All checks of a good model's export and of `tmi verify` pass."""
    config = rebuild.change(nano_config)
    run = write_random_run(tmp_path / "run", config, seed=rebuild.seed, **rebuild.sharing)
    bundle = export_run(run, tmp_path / "bundle", artefacts=rebuild.artefacts)
    assert all(r.passed for r in bundle.manifest.parity)
    names = [g.name for g in bundle.manifest.graphs]
    assert ("ct-1" in names) == ("shared_ct" not in rebuild.sharing)
    assert ("text-1" in names) == ("shared_text" not in rebuild.sharing)
    verification = verify_bundle(tmp_path / "bundle", engines=[rebuild.artefacts[0]], threads=1)
    assert verification.passed


@pytest.fixture(scope="module")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory, nano_config: Config) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_random_run(folder / "run", nano_config, folds=3, seed=9, shared_text=True)
    export_run(folder / "run", folder / "bundle", artefacts=("torchscript",), weights=False)
    return folder / "bundle"


def test_shared_encoder_is_stored_once(shared_bundle):
    """An encoder with equal weights in several folds is one graph, compared with the weights of each fold."""
    manifest = open_bundle(shared_bundle).manifest
    assert [g.name for g in manifest.graphs] == ["ct-0", "ct-1", "ct-2", "text-0", "fusion"]
    assert [(f.fold, f.ct, f.text) for f in manifest.folds] == [
        (0, "ct-0", "text-0"),
        (1, "ct-1", "text-0"),
        (2, "ct-2", "text-0"),
    ]
    assert [p.name for p in (shared_bundle / "tokenizers").iterdir()] == ["text-0.json"]
    # the weights of the shared encoder were compared with those of each of its three folds
    assert len([r for r in manifest.parity if r.check == "weights" and r.graph == "text-0"]) == 3


def test_no_weights_omits_eager_weights(shared_bundle):
    """A bundle exported with `weights=False` has no weights folder."""
    bundle = open_bundle(shared_bundle)
    assert not bundle.has("weights")
    assert not (shared_bundle / "weights").exists()


def test_text_encoders_with_different_tokenizers_are_distinct(nano_config, tmp_path):
    """Text encoders with equal weights are shared only if their tokenizers are equal too."""
    run_path = write_random_run(tmp_path / "run", nano_config, seed=1, shared_text=True)
    other = write_random_run(tmp_path / "other", nano_config, seed=1)
    from tmi.export.graphs.partition import partition_run
    from tmi.toolkit.run_folder import RunFolder

    run = RunFolder.open(run_path)
    assert [e.name for e in partition_run(run).encoders] == ["ct-0", "ct-1", "text-0"]
    run.fold(1).tokenizer.write_bytes((other / "fold1" / "tokenizer.json").read_bytes())
    assert [e.name for e in partition_run(run).encoders] == ["ct-0", "ct-1", "text-0", "text-1"]


def test_manifest_records_every_check_of_every_engine(nano_bundle):
    """The manifest has a record of each parity check for each engine, and of each audit for each file."""
    manifest = open_bundle(nano_bundle).manifest
    validated = {(r.artefact, r.engine) for r in manifest.parity if r.engine} - {("onnx", "openvino-bf16")}
    assert validated == {("onnx", "onnx"), ("onnx", "openvino"), ("torchscript", "torchscript")}
    for engine in ("onnx", "openvino", "torchscript"):
        assert {r.check for r in manifest.parity if r.engine == engine} == {
            "finite", "features", "logits", "probabilities", "decisions", "fold-order",
            "batch-of-1", "permutation", "neighbours", "largest-batch", "padding", "float64",
        }  # fmt: skip
    for artefact in ("onnx", "torchscript"):
        audited = {(r.check, r.graph) for r in manifest.parity if r.artefact == artefact and not r.engine}
        graphs = [g.name for g in manifest.graphs]
        assert audited == {(check, g) for check in ("signature", "weights", "epsilon") for g in graphs}
    norms = next(r for r in manifest.parity if r.check == "epsilon" and r.graph == "text-0")
    assert norms.detail == "3 normalisations have their module's epsilon"
    assert set(manifest.golden.float32_noise or ()) == {"ct-0", "ct-1", "text-0", "text-1", "pipeline"}
    assert manifest.versions["torch"].startswith("2.")
    assert manifest.run.name == "run"
    assert manifest.synthetic


def test_manifest_has_no_case_ids(nano_bundle):
    """The manifest contains no case id of the training cohort."""
    text = (nano_bundle / "manifest.json").read_text()
    assert "P000" not in text


def test_bundle_has_no_local_paths(nano_bundle):
    """No file of a bundle contains a path of the exporting machine."""
    checkout = str(ROOT).encode()
    for path in nano_bundle.rglob("*"):
        if path.is_file() and path.suffix != ".pt":  # TorchScript stores source positions for its error messages
            assert checkout not in path.read_bytes(), path.name


def test_files_follow_the_umask(nano_bundle, tmp_path):
    """Every file has the mode of a new one: safetensors alone would write for the owner only."""
    new = tmp_path / "new"
    new.touch()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in nano_bundle.rglob("*") if path.is_file()}
    assert set(modes.values()) == {stat.S_IMODE(new.stat().st_mode)}


def test_golden_file_holds_eager_outputs(nano_bundle):
    """`golden.safetensors` holds the eager outputs for the golden inputs that the seed generates."""
    bundle = open_bundle(nano_bundle)
    golden = golden_from_manifest(bundle.manifest)
    stored = load_file(nano_bundle / "golden.safetensors")
    with open_engine("eager", bundle, threads=1) as engine:
        eager = evaluate(engine, bundle.manifest, golden)
    assert relative_error(eager.logits_BFK, stored["logits"]) < 1e-6
    assert {name for name in stored if not name.startswith(FLOAT64_PREFIX)} == {*eager.tensors()}
    assert {name.removeprefix(FLOAT64_PREFIX) for name in stored if name.startswith(FLOAT64_PREFIX)} == {
        *eager.tensors()
    }
    np.testing.assert_allclose(stored["probabilities"], eager.probabilities_BK, atol=1e-6)


def test_onnx_runtime_and_openvino_agree(nano_bundle):
    """ONNX Runtime and OpenVINO agree within the float32 bound on the same file."""
    bundle = open_bundle(nano_bundle)
    golden = golden_from_manifest(bundle.manifest)
    outputs: list[Outputs] = []
    for name in ("onnx", "openvino"):
        with open_engine(name, bundle, threads=1) as engine:
            outputs.append(evaluate(engine, bundle.manifest, golden))
    assert relative_error(outputs[1].logits_BFK, outputs[0].logits_BFK) < BOUNDS["float32"].relative


def test_golden_input_of_other_seed_is_rejected(nano_bundle):
    """Golden inputs whose digests differ from the manifest's are damage."""
    manifest = open_bundle(nano_bundle).manifest
    other = replace(manifest, golden=replace(manifest.golden, seed=manifest.golden.seed + 1))
    with pytest.raises(DamagedError, match="golden input ct has other bytes here than at the export"):
        golden_from_manifest(other)


def test_onnx_file_keeps_parameter_names(nano_bundle):
    """An ONNX graph is one file with the module's parameter names, a dynamic batch and no zero biases."""
    import onnx

    model = onnx.load(nano_bundle / "graphs" / "ct-0.onnx")
    assert not any(i.data_location == onnx.TensorProto.EXTERNAL for i in model.graph.initializer)
    names = {i.name for i in model.graph.initializer}
    assert {"backbone.conv1.weight", "backbone.bn1.running_var"} <= names
    assert model.opset_import[0].version == 20
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["B", 1, 8, 16, 16]
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    assert {len(n.input) for n in convolutions} == {2}  # torch exports a missing bias as zeros of a wrong shape


def test_existing_folder_is_replaced_only_if_bundle_and_forced(nano_run, nano_bundle, tmp_path):
    """Without force nothing is overwritten; with force only a bundle is."""
    before = sha256_file(nano_bundle / "manifest.json")
    with pytest.raises(UsageError, match="exists"):
        export_run(nano_run, nano_bundle)
    assert sha256_file(nano_bundle / "manifest.json") == before
    other_folder = tmp_path / "home"
    other_folder.mkdir()
    (other_folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not a bundle; --force replaces bundles only"):
        export_run(nano_run, other_folder, force=True)
    assert (other_folder / "thesis.txt").read_text() == "years of work"


def test_changed_run_is_rejected(nano_config, tmp_path):
    """A run with a file that changed after the training is damage, and nothing is written."""
    run = write_random_run(tmp_path / "run", nano_config)
    model = run / "fold1" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(DamagedError, match=r"fold1/model.safetensors was changed after the training"):
        export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_tokenizer_larger_than_embedding_is_rejected(nano_config, tmp_path):
    """A tokenizer with more tokens than the embedding table has rows is damage."""
    text = replace(nano_config.network.text_encoder, vocab_size=100)
    small = replace(nano_config, network=replace(nano_config.network, text_encoder=text), clinical=replace(
        nano_config.clinical, vocab_size=None))  # fmt: skip
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(200))]))
    run = write_random_run(tmp_path / "run", small, vocab=vocab)
    with pytest.raises(DamagedError, match="the tokenizer of text-0 has 204 tokens, the embedding table 100"):
        export_run(run, tmp_path / "bundle")
