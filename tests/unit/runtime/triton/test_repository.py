"""The model repository of Triton: complete models, a copy of the bundle, configurations that fit the graphs."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest

from factories.tmi_command import tmi
from tmi.runtime.bundle.reader import inspect_bundle
from tmi.runtime.triton.model_config import Word, config_text


def _blocks(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name} {{\n(.*?)^}}", text, re.M | re.S)


def test_model_holds_the_bundle_byte_by_byte(nano_bundle, tmp_path):
    """The predictor's model: configuration, loader, and a copy that is the same bundle."""
    repository = tmp_path / "repository"
    outcome = tmi("triton", nano_bundle, repository, "--engine", "onnx", "--threads", 2, "--queue", 7)
    assert outcome.code == 0, outcome.err
    model = repository / "tmi"
    assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt"]
    assert inspect_bundle(model / "1" / "bundle").digest == inspect_bundle(nano_bundle).digest
    text = (model / "config.pbtxt").read_text()
    assert 'backend: "python"' in text
    assert "max_queue_size: 7" in text
    (engine, precision, threads) = _blocks(text, "parameters")
    assert 'key: "engine"' in engine
    assert 'string_value: "onnx"' in engine
    assert 'string_value: "auto"' in precision
    assert 'string_value: "2"' in threads
    compile((model / "1" / "model.py").read_text(), "model.py", "exec")


def test_existing_model_is_kept(nano_bundle, tmp_path):
    """A model is replaced with `--force` only, and models of other names stay."""
    repository = tmp_path / "repository"
    (repository / "other").mkdir(parents=True)
    assert tmi("triton", nano_bundle, repository).code == 0
    again = tmi("triton", nano_bundle, repository)
    assert (again.code, "exists" in again.err) == (2, True)
    assert tmi("triton", nano_bundle, repository, "--force").code == 0
    assert sorted(path.name for path in repository.iterdir()) == ["other", "tmi"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_graph_models_have_the_tensors_of_the_graphs(nano_bundle, tmp_path, backend):
    """Each graph is a model with its file, and with names and sizes without the axis of the batch."""
    repository = tmp_path / "repository"
    assert tmi("triton", nano_bundle, repository, "--graphs", backend, "--max-batch", 3).code == 0
    graphs = inspect_bundle(nano_bundle).manifest.graphs
    assert {p.name for p in repository.iterdir()} == {"tmi", *(f"tmi-{graph.name}" for graph in graphs)}
    for graph in graphs:
        folder = repository / f"tmi-{graph.name}"
        text = (folder / "config.pbtxt").read_text()
        assert "max_batch_size: 3" in text
        model = onnx.load(folder / "1" / "model.onnx")
        for kind, tensors in (("input", model.graph.input), ("output", model.graph.output)):
            found = [
                (re.search(r'name: "(.*)"', block)[1], re.search(r"dims: \[(.*)\]", block)[1])
                for block in _blocks(text, kind)
            ]
            wanted = [
                (t.name, ", ".join(str(d.dim_value or -1) for d in t.type.tensor_type.shape.dim[1:])) for t in tensors
            ]
            assert found == wanted


def test_bundle_without_plans_has_no_tensorrt_models(nano_bundle, tmp_path):
    """What the bundle lacks is exit code 5 with the way to add it, and nothing is written."""
    outcome = tmi("triton", nano_bundle, tmp_path / "repository", "--graphs", "tensorrt")
    assert (outcome.code, "tmi export RUN --engine trt" in outcome.err) == (5, True), outcome.err
    assert not (tmp_path / "repository").exists()


def test_damaged_bundle_is_rejected(nano_bundle, tmp_path):
    """Every byte is compared before a model is written."""
    import shutil

    bundle = Path(shutil.copytree(nano_bundle, tmp_path / "bundle"))
    graph = next(bundle.rglob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    outcome = tmi("triton", bundle, tmp_path / "repository")
    assert (outcome.code, (tmp_path / "repository").exists()) == (6, False), outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [(("missing", "r"), "does not exist"), (("{bundle}", "r", "--engine", "best"), "unknown engine"),
     (("{bundle}", "r", "--precision", "fp8"), "unknown precision")],
)  # fmt: skip
def test_wrong_usage(nano_bundle, tmp_path, monkeypatch, words, message):
    """A mistake is exit code 2 before anything is written: Triton would find it only when it loads the model."""
    monkeypatch.chdir(tmp_path)
    outcome = tmi("triton", *(word.format(bundle=nano_bundle) for word in words))
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err
    assert not (tmp_path / "r").exists()


def test_configuration_text_escapes_and_nests():
    """Text format: words without quotes, a repeated object as several, other bytes as octal escapes."""
    text = config_text(
        {"name": 'a"b\\é', "kind": Word("KIND_CPU"), "on": True, "dims": [1, -1], "p": [{"k": 1}, {"k": 2}]}
    )
    assert text == (
        'name: "a\\042b\\134\\303\\251"\nkind: KIND_CPU\non: true\ndims: [1, -1]\np {\n  k: 1\n}\np {\n  k: 2\n}\n'
    )
