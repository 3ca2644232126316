"""TensorRT engines on a GPU: parity, batches, repeated use, plans for other GPUs, latency."""

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
from tmi.runtime.verification.outputs import Outputs, evaluate
from tmi.runtime.verification.parity import check_engine
from tmi.toolkit.errors import UnavailableError

pytestmark = pytest.mark.gpu
NAMES = [name for name, spec in ENGINES.items() if spec.plans]


@pytest.mark.parametrize("name", NAMES)
def test_engine_passes_every_check(name, built):
    """The engine passes all checks on the GPU, again and at the export, with evidence in the bundle."""
    bundle = open_bundle(built(name))
    golden = golden_from_manifest(bundle.manifest)
    reference = Outputs.from_tensors(load_file(bundle.folder / GOLDEN_FILE))
    with open_engine(name, bundle) as engine:
        precision = plan_precision(bundle.manifest)
        records = check_engine(engine, bundle.manifest, golden, reference, artefact=name, precision=precision)
    assert [r for r in records if not r.passed] == []
    assert "profile-edges" in {r.check for r in records}
    assert any(r.engine == name for r in bundle.manifest.parity), "the export validated it too"
    assert f"evidence/{name}.safetensors" in bundle.manifest.files
    assert bundle.manifest.tensorrt.validated_on[name].gpu == find_gpu().name


@pytest.mark.parametrize("name", NAMES)
def test_batch_beyond_profile_runs_in_chunks(name, built):
    """A batch larger than the profile runs in chunks, and repeated runs give equal outputs."""
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
def test_engine_opens_repeatedly(name, built):
    """An engine can be opened and closed repeatedly."""
    bundle = open_bundle(built(name))
    for _ in range(3):
        with open_engine(name, bundle) as engine:
            assert engine.name == name
        engine.close()


@pytest.mark.parametrize("name", NAMES)
def test_auto_uses_tensorrt(name, built):
    """`auto` uses TensorRT on a machine with a GPU."""
    assert choose_engine("auto", open_bundle(built(name)))[0] == name


@pytest.mark.parametrize("name", NAMES)
def test_plan_for_other_gpu_is_rejected(name, built):
    """A plan for another GPU is rejected before it is loaded."""
    bundle = open_bundle(built(name))
    tensorrt = bundle.manifest.tensorrt
    graphs = {n: replace(p, target="sm50", built_on="sm50") for n, p in tensorrt.plans[name].graphs.items()}
    plans = {**tensorrt.plans, name: replace(tensorrt.plans[name], graphs=graphs)}
    manifest = replace(bundle.manifest, tensorrt=replace(tensorrt, plans=plans))
    other = Bundle(folder=bundle.folder, manifest=manifest, digest="")
    with pytest.raises(UnavailableError, match="are for a GPU of sm50"):
        open_engine(name, other)


@pytest.mark.parametrize("weights", ["refit", "strip"])
def test_stripped_plans_are_shared_by_folds(weights, built):
    """Folds of one structure share a plan if the weights are stripped."""
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
        call()  # outputs are on the host when it returns, so no synchronisation is needed
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds))


@pytest.mark.parametrize("name", NAMES)
def test_latency_against_eager_and_onnx_runtime(name, built, capsys):
    """The CT encoder is at most twice as slow as eager on the GPU; the last line is JSON with the latencies."""
    bundle = open_bundle(built(name))
    golden = golden_from_manifest(bundle.manifest).rows([0])
    spec = bundle.manifest.graph("ct-0")
    latencies = {}
    with open_engine(name, bundle) as engine:
        latencies[name] = median_ms(lambda: engine.run("ct-0", {"ct": golden.ct_B1DHW}))
    latencies |= _eager_cuda_latency(bundle, golden.ct_B1DHW)
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        session = onnxruntime.InferenceSession(str(bundle.artefact(spec, "onnx")), providers=["CUDAExecutionProvider"])
        latencies["onnxruntime cuda"] = median_ms(lambda: session.run(None, {"ct": golden.ct_B1DHW}))
    with capsys.disabled():
        print(json.dumps({"latency_ms": latencies, "gpu": find_gpu().name}))
    assert latencies[name] < 2 * latencies.get("eager cuda", np.inf)


def _eager_cuda_latency(bundle: Bundle, ct: np.ndarray) -> dict[str, float]:
    """Median latency in ms of the eager CT encoder on the GPU; empty if torch has no CUDA."""
    import torch

    if not torch.cuda.is_available():
        return {}
    with open_engine("eager", bundle) as eager, torch.inference_mode():
        module = eager.module("ct-0").cuda()
        return {"eager cuda": median_ms(lambda: module(torch.from_numpy(ct).cuda()).cpu())}
