"""The engines of TensorRT on a real GPU: parity, batches, reuse, bundles for other machines, latency."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from tmi.export.bundle.engine_builder import build_bundle
from tmi.export.tensorrt.builder import BuildOptions
from tmi.runtime.bundle.manifest import GOLDEN_FILE
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines.nvidia_driver import find_gpu
from tmi.runtime.engines.precision import plan_precision
from tmi.runtime.engines.registry import ENGINES, open_engine
from tmi.runtime.engines.selection import choose_engine
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.parity import Outputs, check_engine, evaluate
from tmi.toolkit.errors import UnavailableError

pytestmark = pytest.mark.gpu
NAMES = [name for name, spec in ENGINES.items() if spec.gpu]


@pytest.mark.parametrize("name", NAMES)
def test_every_gate_holds_on_the_engine_itself(name, built):
    bundle = open_bundle(built(name))
    golden = golden_from_manifest(bundle.manifest)
    reference = Outputs.from_tensors(load_file(bundle.folder / GOLDEN_FILE))
    with open_engine(name, bundle) as engine:
        precision = plan_precision(bundle.manifest)
        records = check_engine(engine, bundle.manifest, golden, reference, artefact=name, precision=precision)
    assert [r for r in records if not r.passed] == []
    assert "profile-edges" in {r.gate for r in records}
    assert any(r.engine == name for r in bundle.manifest.parity), "the export judged it too"
    assert f"evidence/{name}.safetensors" in bundle.manifest.files
    assert bundle.manifest.extra["tensorrt"]["judged_on"][name]["gpu"] == find_gpu().name


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_beyond_the_largest_profile_goes_in_chunks_and_answers_the_same(name, built):
    bundle = open_bundle(built(name))
    golden = golden_from_manifest(bundle.manifest)
    rows = [i % golden.count for i in range(11)]
    with open_engine(name, bundle) as engine:
        few = evaluate(engine, bundle.manifest, golden)
        many = evaluate(engine, bundle.manifest, golden.rows(rows))
        again = evaluate(engine, bundle.manifest, golden)
    np.testing.assert_allclose(many.logits_BFK, few.logits_BFK[rows], rtol=0, atol=1e-2)
    np.testing.assert_array_equal(again.logits_BFK, few.logits_BFK)


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_opens_closes_and_opens_again(name, built):
    bundle = open_bundle(built(name))
    for _ in range(3):
        with open_engine(name, bundle) as engine:
            assert engine.name == name
        engine.close()


@pytest.mark.parametrize("name", NAMES)
def test_auto_takes_it(name, built):
    assert choose_engine("auto", open_bundle(built(name)))[0] == name


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_that_claims_another_gpu_is_refused_before_it_is_loaded(name, built):
    bundle = open_bundle(built(name))
    about = json.loads(json.dumps(bundle.manifest.extra))
    for facts in about["tensorrt"]["plans"][name]["graphs"].values():
        facts["target"] = facts["built_on"] = "sm50"
    other = Bundle(folder=bundle.folder, manifest=replace(bundle.manifest, extra=about), digest="")
    with pytest.raises(UnavailableError, match="are for a GPU of sm50"):
        open_engine(name, other)


@pytest.mark.parametrize("weights", ["refit", "strip"])
def test_stripped_plans_take_their_weights_from_the_onnx_file(weights, built):
    """Folds of one structure share a plan when the weights are left out."""
    folder = built("trt")
    bundle = build_bundle(folder, ("trt",), options=BuildOptions(weights=weights))
    files = {g.artefacts["trt"] for g in bundle.manifest.graphs if g.role == "ct"}
    assert len(files) == (1 if weights == "strip" else 2)


def median_ms(call: Callable[[], object], repeats: int = 30) -> float:
    for _ in range(5):
        call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()  # answers are on the host when it returns, so the device is in step
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds))


@pytest.mark.parametrize("name", NAMES)
def test_latency_against_eager_and_onnx_runtime_on_the_gpu(name, built, capsys):
    """One case through the CT encoder; the figures are the last line, as JSON."""
    bundle = open_bundle(built(name))
    golden = golden_from_manifest(bundle.manifest).rows([0])
    spec = bundle.manifest.graph("ct-0")
    figures = {}
    with open_engine(name, bundle) as engine:
        figures[name] = median_ms(lambda: engine.run("ct-0", {"ct": golden.ct_B1DHW}))
    figures |= _eager_on_the_gpu(bundle, golden.ct_B1DHW)
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        session = onnxruntime.InferenceSession(str(bundle.artefact(spec, "onnx")), providers=["CUDAExecutionProvider"])
        figures["onnxruntime cuda"] = median_ms(lambda: session.run(None, {"ct": golden.ct_B1DHW}))
    with capsys.disabled():
        print(json.dumps({"latency_ms": figures, "gpu": find_gpu().name}))
    assert figures[name] < 2 * figures.get("eager cuda", np.inf)


def _eager_on_the_gpu(bundle: Bundle, ct: np.ndarray) -> dict[str, float]:
    """Nothing where this torch has no CUDA: the other figures are printed all the same."""
    import torch

    if not torch.cuda.is_available():
        return {}
    with open_engine("eager", bundle) as eager, torch.inference_mode():
        module = eager.module("ct-0").cuda()
        return {"eager cuda": median_ms(lambda: module(torch.from_numpy(ct).cuda()).cpu())}
