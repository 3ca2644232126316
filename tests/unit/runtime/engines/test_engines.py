"""One contract for every engine: the same answers, the same checks, the same end."""

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

CPU_ENGINES = [n for n, spec in ENGINES.items() if not spec.gpu and installed(n) and missing_requirement(n) is None]
"""tests/gpu asks the others the same questions. bfloat16 is not asked where the processor has none."""


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


def answer(engine: Engine, bundle: Bundle, golden: GoldenInputs) -> np.ndarray:
    return run_folds(
        engine,
        bundle.manifest,
        ct_B1DHW=golden.ct_B1DHW,
        texts=golden.texts,
        radiomics_BFR=golden.radiomics_BFR,
    )


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_engine_agrees_with_eager_within_its_declared_error(name, engines, bundle, golden):
    reference = probabilities(answer(engines["eager"], bundle, golden))
    ours = probabilities(answer(engines[name], bundle, golden))
    assert np.abs(ours - reference).max() <= ENGINES[name].max_abs_err


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_a_batch_answers_like_its_cases_one_by_one(name, engines, bundle, golden):
    together = probabilities(answer(engines[name], bundle, golden))
    alone = np.concatenate(
        [probabilities(answer(engines[name], bundle, golden.rows([i]))) for i in range(golden.count)]
    )
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_an_engine_refuses_what_is_not_the_graphs_input(name, engines, golden):
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
def test_an_answer_is_not_overwritten_by_the_next_one(name, engines, golden):
    first = engines[name].run("ct-0", {"ct": golden.ct_B1DHW[:1]})["ct_features"]
    kept = first.copy()
    engines[name].run("ct-0", {"ct": golden.ct_B1DHW[:1] + np.float32(1)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_a_closed_engine_may_be_closed_again_and_does_not_run(name, bundle, golden):
    with open_engine(name, bundle, threads=1) as engine:
        pass
    engine.close()
    with pytest.raises(ValueError, match="open are \\[\\]"):
        engine.run("ct-0", {"ct": golden.ct_B1DHW})


@pytest.mark.parametrize("name", ["torchscript", "eager"])
def test_torchs_thread_count_is_put_back(name, bundle):
    import torch

    before = torch.get_num_threads()
    with open_engine(name, bundle, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_openvino_computes_in_float32(engines):
    precisions = {
        graph: compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        for graph, compiled in engines["openvino"]._loaded.items()
    }
    assert set(precisions.values()) == {"f32"}


def test_an_openvino_graph_in_another_precision_is_refused():
    from tmi.runtime.engines.openvino import OpenVinoEngine

    lowered = SimpleNamespace(get_property=lambda _: SimpleNamespace(get_type_name=lambda: "bf16"))
    engine = OpenVinoEngine()
    engine._core = SimpleNamespace(read_model=lambda path: path, compile_model=lambda *_: lowered)
    with pytest.raises(UnavailableError, match="graph ct-0 in bf16 although float32 was asked for"):
        engine._load(SimpleNamespace(name="ct-0", role="ct"), Path("ct-0.onnx"))  # type: ignore[arg-type]


def test_weights_of_another_network_are_refused(bundle, tmp_path):
    from safetensors.numpy import load_file, save_file

    fusion = bundle.manifest.graph("fusion")
    weights = load_file(bundle.folder / fusion.artefacts["weights"])
    changed = tmp_path / "bundle" / fusion.artefacts["weights"]
    for spec in bundle.manifest.graphs:
        target = tmp_path / "bundle" / spec.artefacts["weights"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(bundle.folder / spec.artefacts["weights"])
    changed.unlink()
    other = replace(bundle, folder=tmp_path / "bundle")

    save_file({**weights, "fold9.extra": np.zeros(1, np.float32)}, changed)
    with pytest.raises(DamagedError, match=r"unknown weight fold9\.extra"):
        open_engine("eager", other, threads=1)
    gone = next(key for key in weights if key.endswith(".weight"))
    save_file({key: value for key, value in weights.items() if key != gone}, changed)
    with pytest.raises(DamagedError, match=r"are not those of the network in its config: .* is missing"):
        open_engine("eager", other, threads=1)


def test_an_unknown_engine_lists_the_known_ones(bundle):
    with pytest.raises(UsageError, match="unknown engine 'cuda'") as caught:
        choose_engine("cuda", bundle)
    assert all(name in caught.value.fix for name in (*ENGINES, "auto"))


def test_an_engine_that_is_not_installed_is_not_replaced(bundle, monkeypatch):
    monkeypatch.setattr(engine_table.importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(UnavailableError, match="needs the package openvino, which is not installed") as caught:
        open_engine("openvino", bundle)
    assert "pip install 'tmi-clnet[openvino]'" in caught.value.fix


def test_auto_says_what_it_passed_over(bundle, monkeypatch):
    name, reason = choose_engine("auto", bundle, rejected={"openvino-bf16": "it was off"})
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


def test_auto_takes_torchscript_where_a_bundle_has_nothing_else(bundle):
    name, reason = choose_engine("auto", without(bundle, "onnx"))
    assert name == "torchscript"
    assert "onnx: the bundle holds no onnx graphs" in reason


def test_a_bundle_without_the_engines_graphs_says_how_to_get_them(bundle):
    with pytest.raises(UnavailableError, match="holds no onnx graphs, which engine onnx runs") as caught:
        open_engine("onnx", without(bundle, "onnx"))
    assert "--engine onnx" in caught.value.fix
    with pytest.raises(UnavailableError, match="no engine can run bundle"):
        choose_engine("auto", without(bundle, "onnx", "torchscript", "weights"))


CHANGE_OF_BUNDLES = """
import signal, sys
from pathlib import Path
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.bundle.reader import open_bundle
bundle = open_bundle(Path(sys.argv[1]))
old = open_engine("openvino", bundle, threads=1)
new = open_engine("openvino", bundle, threads=1)
old.close()
new.close()
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif("openvino" not in CPU_ENGINES, reason="openvino is not installed")
def test_a_service_hears_signals_after_it_changed_its_bundle(tiny_bundle):
    """OpenVINO gives a thread its own stack for signals, and takes it away in an order that leaves none."""
    done = subprocess.run([sys.executable, "-c", CHANGE_OF_BUNDLES, tiny_bundle], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
