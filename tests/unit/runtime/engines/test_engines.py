"""All engines have one interface: equal outputs, equal checks, equal shutdown."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines import registry as engine_table
from tmi.runtime.engines.registry import ENGINES, Engine, installed, missing_requirement, open_engine
from tmi.runtime.engines.selection import choose_engine
from tmi.runtime.inference.ensemble import probabilities, run_folds
from tmi.runtime.verification.golden_inputs import GoldenInputs, golden_from_manifest
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError

CPU_ENGINES = [
    n
    for n, spec in ENGINES.items()
    if not spec.gpu and spec.precision != "int8" and installed(n) and missing_requirement(n) is None
]
"""Engines of float32 graphs that run here. tests/gpu tests those on a GPU, tests/unit/export/quantization INT8.
bfloat16 is left out on processors without it."""


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> GoldenInputs:
    return golden_from_manifest(bundle.manifest)


@pytest.fixture(scope="module")
def engines(bundle: Bundle) -> Any:
    opened = {name: open_engine(name, bundle, threads=1) for name in CPU_ENGINES}
    yield opened
    for engine in opened.values():
        engine.close()


def ensemble_logits(engine: Engine, bundle: Bundle, golden: GoldenInputs) -> np.ndarray:
    """Logits [B, F, K] of the golden inputs."""
    return run_folds(
        engine,
        bundle.manifest,
        ct_B1DHW=golden.ct_B1DHW,
        texts=golden.texts,
        radiomics_BFR=golden.radiomics_BFR,
    )


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_engine_agrees_with_eager_within_its_declared_error(name, engines, bundle, golden):
    """Probabilities differ from eager's by at most the declared error."""
    reference = probabilities(ensemble_logits(engines["eager"], bundle, golden))
    actual = probabilities(ensemble_logits(engines[name], bundle, golden))
    assert np.abs(actual - reference).max() <= ENGINES[name].max_abs_err


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_batch_equals_single_cases(name, engines, bundle, golden):
    """A batch gives the same probabilities as its cases one by one."""
    batched = probabilities(ensemble_logits(engines[name], bundle, golden))
    single = np.concatenate(
        [probabilities(ensemble_logits(engines[name], bundle, golden.rows([i]))) for i in range(golden.count)]
    )
    np.testing.assert_allclose(batched, single, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_mismatched_inputs_are_rejected(name, engines, golden):
    """Inputs with other names, dtypes or shapes than the graph's are rejected."""
    ct = golden.ct_B1DHW
    engine = engines[name]
    with pytest.raises(ValueError, match=r"expected \['ct'\], got \['image'\]"):
        engine.run("ct-0", {"image": ct})
    with pytest.raises(ValueError, match="ct is float64"):
        engine.run("ct-0", {"ct": ct.astype(np.float64)})
    with pytest.raises(ValueError, match=r"not float32\['B', 1,"):
        engine.run("ct-0", {"ct": ct[..., :-1]})
    text = golden.texts["text-0"]
    with pytest.raises(ValueError, match="attention_mask is int64"):
        engine.run("text-0", {"input_ids": text.input_ids_BT, "attention_mask": text.attention_mask_BT[:, :-1]})
    with pytest.raises(ValueError, match="has no graph 'ct-99' open"):
        engine.run("ct-99", {"ct": ct})


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_outputs_are_not_overwritten(name, engines, golden):
    """A later run does not overwrite the outputs of an earlier one."""
    first = engines[name].run("ct-0", {"ct": golden.ct_B1DHW[:1]})["ct_features"]
    copy = first.copy()
    engines[name].run("ct-0", {"ct": golden.ct_B1DHW[:1] + np.float32(1)})
    np.testing.assert_array_equal(first, copy)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_closed_engine_does_not_run(name, bundle, golden):
    """A closed engine may be closed again and rejects runs."""
    with open_engine(name, bundle, threads=1) as engine:
        pass
    engine.close()
    with pytest.raises(ValueError, match="open are \\[\\]"):
        engine.run("ct-0", {"ct": golden.ct_B1DHW})


@pytest.mark.parametrize("name", ["torchscript", "eager"])
def test_torch_thread_count_is_restored(name, bundle):
    """Closing an engine restores torch's thread count."""
    import torch

    before = torch.get_num_threads()
    with open_engine(name, bundle, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_openvino_computes_in_float32(engines):
    """Every graph of `openvino` is compiled in float32."""
    precisions = {
        graph: compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        for graph, compiled in engines["openvino"]._loaded.items()
    }
    assert set(precisions.values()) == {"f32"}


def test_openvino_graph_in_other_precision_is_rejected():
    """A graph that OpenVINO compiled in another precision is rejected."""
    from tmi.runtime.engines.openvino import OpenVinoEngine

    lowered = SimpleNamespace(get_property=lambda _: SimpleNamespace(get_type_name=lambda: "bf16"))
    engine = OpenVinoEngine()
    engine._core = SimpleNamespace(read_model=lambda path: path, compile_model=lambda *_: lowered)
    with pytest.raises(UnavailableError, match="graph ct-0 in bf16 although float32 was requested"):
        engine._load(SimpleNamespace(name="ct-0", role="ct"), Path("ct-0.onnx"), lambda: b"")  # type: ignore[arg-type]


def test_weights_of_other_network_are_rejected(bundle, tmp_path):
    """Unknown and missing weights are rejected by name."""
    from safetensors.numpy import load_file, save_file

    fusion = bundle.manifest.graph("fusion")
    weights = load_file(bundle.folder / fusion.artefacts["weights"])
    changed = tmp_path / "bundle" / fusion.artefacts["weights"]
    for spec in bundle.manifest.graphs:
        target = tmp_path / "bundle" / spec.artefacts["weights"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(bundle.folder / spec.artefacts["weights"])
    changed.unlink()
    # Without fingerprints, as during an export: the loader itself must notice.
    other = replace(bundle, folder=tmp_path / "bundle", manifest=replace(bundle.manifest, files={}))

    save_file({**weights, "fold9.extra": np.zeros(1, np.float32)}, changed)
    with pytest.raises(DamagedError, match=r"unknown weight fold9\.extra"):
        open_engine("eager", other, threads=1)
    missing = next(key for key in weights if key.endswith(".weight"))
    save_file({key: value for key, value in weights.items() if key != missing}, changed)
    with pytest.raises(DamagedError, match=r"are not those of the network in its config: .* is missing"):
        open_engine("eager", other, threads=1)


def test_unknown_engine_lists_the_known_ones(bundle):
    """The error for an unknown engine lists the known ones."""
    with pytest.raises(UsageError, match="unknown engine 'cuda'") as caught:
        choose_engine("cuda", bundle)
    assert all(name in caught.value.fix for name in (*ENGINES, "auto"))


def test_missing_engine_is_not_replaced(bundle, monkeypatch):
    """A named engine that is not installed raises, and is not replaced by another one."""
    monkeypatch.setattr(engine_table.importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(UnavailableError, match="needs the package openvino, which is not installed") as caught:
        open_engine("openvino", bundle)
    assert "pip install 'tmi-clnet[openvino]'" in caught.value.fix


def test_auto_reports_skipped_engines(bundle, monkeypatch):
    """The reason of `auto` lists the skipped engines."""
    name, reason = choose_engine("auto", bundle, rejected={"openvino-bf16": "its outputs differ"})
    assert name == "openvino"
    assert reason.startswith("auto: the first that is installed and has graphs in the bundle; openvino-bf16: ")
    monkeypatch.setattr(engine_table.importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    name, reason = choose_engine("auto", bundle)
    assert name == "onnx"
    assert reason.endswith("openvino: openvino is not installed")


def without(bundle: Bundle, *kinds: str) -> Bundle:
    graphs = tuple(
        replace(g, artefacts={k: f for k, f in g.artefacts.items() if k not in kinds}) for g in bundle.manifest.graphs
    )
    return replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))


def test_auto_falls_back_to_torchscript(bundle):
    """`auto` selects torchscript if the bundle has no ONNX graphs."""
    name, reason = choose_engine("auto", without(bundle, "onnx"))
    assert name == "torchscript"
    assert "onnx: the bundle holds no onnx graphs" in reason


def test_bundle_without_graphs_names_the_export_option(bundle):
    """The error for missing graphs names the export option that adds them."""
    with pytest.raises(UnavailableError, match="holds no onnx graphs, which engine onnx runs") as caught:
        open_engine("onnx", without(bundle, "onnx"))
    assert "--engine onnx" in caught.value.fix
    with pytest.raises(UnavailableError, match="no engine can run bundle"):
        choose_engine("auto", without(bundle, "onnx", "torchscript", "weights"))


REPLACE_BUNDLE = """
import signal, sys
from pathlib import Path
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.bundle.reader import open_bundle
bundle = open_bundle(Path(sys.argv[1]))
old = open_engine("openvino", bundle, threads=1)
new = open_engine("openvino", bundle, threads=1)
old.close()
new.close()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif("openvino" not in CPU_ENGINES, reason="openvino is not installed")
def test_signals_are_handled_after_replacing_a_bundle(tiny_bundle):
    """A process still handles signals after two OpenVINO engines were closed in the order of opening.

    Each `openvino.Core` installs an alternative signal stack; destroying two cores in that order would leave a freed
    one.
    """
    process = subprocess.run([sys.executable, "-c", REPLACE_BUNDLE, tiny_bundle], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "handled\n"), process.stderr
