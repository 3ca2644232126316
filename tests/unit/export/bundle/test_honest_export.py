"""Good models are never refused, and what their bundles say of themselves is true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from factories.honest_rebuilds import QUICK, Rebuild
from factories.paths import ROOT
from factories.random_run import write_random_run
from tmi.export.bundle.writer import export_run
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.parity import BOUNDS, FLOAT64_PREFIX, Outputs, evaluate, relative_error
from tmi.runtime.verification.verify import verify_bundle
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.hashing import sha256_file


@pytest.mark.parametrize("rebuild", QUICK, ids=lambda r: r.name)
def test_a_good_model_is_never_refused(rebuild: Rebuild, nano_config, tmp_path):
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


def test_an_encoder_that_folds_share_is_stored_once_and_named_by_each_of_them(shared_bundle):
    manifest = open_bundle(shared_bundle).manifest
    assert [g.name for g in manifest.graphs] == ["ct-0", "ct-1", "ct-2", "text-0", "fusion"]
    assert [(f.fold, f.ct, f.text) for f in manifest.folds] == [
        (0, "ct-0", "text-0"),
        (1, "ct-1", "text-0"),
        (2, "ct-2", "text-0"),
    ]
    assert [p.name for p in (shared_bundle / "tokenizers").iterdir()] == ["text-0.json"]
    # the weights of the shared encoder were compared with those of each of its three folds
    assert len([r for r in manifest.parity if r.gate == "weights" and r.graph == "text-0"]) == 3


def test_without_weights_a_bundle_holds_no_eager_reference(shared_bundle):
    bundle = open_bundle(shared_bundle)
    assert not bundle.has("weights")
    assert not (shared_bundle / "weights").exists()


def test_encoders_with_equal_weights_and_different_tokenizers_stay_apart(nano_config, tmp_path):
    run_path = write_random_run(tmp_path / "run", nano_config, seed=1, shared_text=True)
    other = write_random_run(tmp_path / "other", nano_config, seed=1)
    from tmi.export.graphs.partition import partition_run
    from tmi.toolkit.run_folder import RunFolder

    run = RunFolder.open(run_path)
    assert [e.name for e in partition_run(run).encoders] == ["ct-0", "ct-1", "text-0"]
    run.fold(1).tokenizer.write_bytes((other / "fold1" / "tokenizer.json").read_bytes())
    assert [e.name for e in partition_run(run).encoders] == ["ct-0", "ct-1", "text-0", "text-1"]


def test_the_manifest_carries_evidence_of_every_gate_on_every_engine(nano_bundle):
    manifest = open_bundle(nano_bundle).manifest
    judged = {(r.artefact, r.engine) for r in manifest.parity if r.engine} - {("onnx", "openvino-bf16")}
    assert judged == {("onnx", "onnx"), ("onnx", "openvino"), ("torchscript", "torchscript")}
    for engine in ("onnx", "openvino", "torchscript"):
        assert {r.gate for r in manifest.parity if r.engine == engine} == {
            "finite", "features", "logits", "probabilities", "decisions", "fold-order",
            "batch-of-1", "permutation", "neighbours", "largest-batch", "padding", "float64",
        }  # fmt: skip
    for artefact in ("onnx", "torchscript"):
        audited = {(r.gate, r.graph) for r in manifest.parity if r.artefact == artefact and not r.engine}
        graphs = [g.name for g in manifest.graphs]
        assert audited == {(gate, g) for gate in ("signature", "weights", "epsilon") for g in graphs}
    norms = next(r for r in manifest.parity if r.gate == "epsilon" and r.graph == "text-0")
    assert norms.detail == "3 normalisations have their module's epsilon"
    assert manifest.golden["float32_noise"].keys() == {"ct-0", "ct-1", "text-0", "text-1", "pipeline"}
    assert manifest.versions["torch"].startswith("2.")
    assert manifest.run["name"] == "run"
    assert manifest.synthetic


def test_a_bundle_says_nothing_of_single_cases(nano_bundle):
    text = (nano_bundle / "manifest.json").read_text()
    assert "P000" not in text


def test_no_file_of_a_bundle_names_a_path_of_the_exporting_machine(nano_bundle):
    here = str(ROOT).encode()
    for path in nano_bundle.rglob("*"):
        if path.is_file() and path.suffix != ".pt":  # TorchScript keeps source positions for its error messages
            assert here not in path.read_bytes(), path.name


def test_the_golden_file_holds_what_eager_answers_to_inputs_made_again_from_the_seed(nano_bundle):
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


def test_onnx_runtime_and_openvino_answer_alike_from_the_same_file(nano_bundle):
    bundle = open_bundle(nano_bundle)
    golden = golden_from_manifest(bundle.manifest)
    answers: list[Outputs] = []
    for name in ("onnx", "openvino"):
        with open_engine(name, bundle, threads=1) as engine:
            answers.append(evaluate(engine, bundle.manifest, golden))
    assert relative_error(answers[1].logits_BFK, answers[0].logits_BFK) < BOUNDS["float32"].relative


def test_an_exchanged_golden_input_is_refused(nano_bundle):
    manifest = open_bundle(nano_bundle).manifest
    other = replace(manifest, golden=manifest.golden | {"seed": manifest.golden["seed"] + 1})
    with pytest.raises(DamagedError, match="golden input ct comes out with other bytes here"):
        golden_from_manifest(other)


def test_an_onnx_graph_is_one_file_with_every_parameter_under_its_own_name(nano_bundle):
    import onnx

    model = onnx.load(nano_bundle / "graphs" / "ct-0.onnx")
    assert not any(i.data_location == onnx.TensorProto.EXTERNAL for i in model.graph.initializer)
    names = {i.name for i in model.graph.initializer}
    assert {"backbone.conv1.weight", "backbone.bn1.running_var"} <= names
    assert model.opset_import[0].version == 20
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["B", 1, 8, 16, 16]
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    assert {len(n.input) for n in convolutions} == {2}  # torch exports zeros of a wrong shape where there is no bias


def test_nothing_is_overwritten_without_force_and_only_a_bundle_with_it(nano_run, nano_bundle, tmp_path):
    before = sha256_file(nano_bundle / "manifest.json")
    with pytest.raises(UsageError, match="exists"):
        export_run(nano_run, nano_bundle)
    assert sha256_file(nano_bundle / "manifest.json") == before
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no bundle; --force replaces bundles only"):
        export_run(nano_run, precious, force=True)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_run_that_was_changed_after_the_training_is_refused(nano_config, tmp_path):
    run = write_random_run(tmp_path / "run", nano_config)
    model = run / "fold1" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(DamagedError, match=r"fold1/model.safetensors was changed after the training"):
        export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_tokenizer_larger_than_the_embedding_table_is_refused(nano_config, tmp_path):
    text = replace(nano_config.network.text_encoder, vocab_size=100)
    small = replace(nano_config, network=replace(nano_config.network, text_encoder=text), clinical=replace(
        nano_config.clinical, vocab_size=None))  # fmt: skip
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(200))]))
    run = write_random_run(tmp_path / "run", small, vocab=vocab)
    with pytest.raises(DamagedError, match="the tokenizer of text-0 has 204 tokens, the embedding table 100"):
        export_run(run, tmp_path / "bundle")
