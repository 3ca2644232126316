"""How fast are the engines on a GPU, compared with each other and with eager PyTorch on the same GPU?

The benchmark runs TensorRT engines built on this GPU, ONNX Runtime's CUDA provider, eager float32 and eager under
float16 autocast on one case, copies to and from the device included. `make bench-gpu` runs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from bench_inputs import Size, gpu_bundle
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines.eager import EagerEngine
from tmi.runtime.engines.nvidia_driver import find_gpu
from tmi.runtime.engines.registry import ENGINES, open_engine

CUDA = "CUDAExecutionProvider"
Forward = Callable[[], Any]
Arrays = dict[str, np.ndarray[Any, Any]]


def eager_forward(bundle: Bundle, graph: str, inputs: Arrays, *, device: str, half: bool) -> Forward:
    """Forward pass of the eager module on a device; the copy to the host synchronises."""
    engine = EagerEngine()
    engine.open(bundle, threads=None)
    module = engine.module(graph).to(device)
    names = [t.name for t in bundle.manifest.graph(graph).inputs]
    kind = torch.device(device).type

    def run() -> np.ndarray[Any, Any]:
        with torch.inference_mode(), torch.autocast(kind, torch.float16 if kind == "cuda" else torch.bfloat16, half):
            tensors = [torch.from_numpy(inputs[name]).to(device) for name in names]
            return module(*tensors).float().cpu().numpy()

    return run


def onnx_forward(bundle: Bundle, graph: str, inputs: Arrays, *, provider: str) -> Forward:
    """Forward pass of ONNX Runtime with one execution provider."""
    path = bundle.artefact(bundle.manifest.graph(graph), "onnx")
    session = onnxruntime.InferenceSession(str(path), providers=[provider])
    return lambda: session.run(None, inputs)[0]


def inputs_of(bundle: Bundle, graph: str) -> Arrays:
    """Random inputs of one case; the time does not depend on the values."""
    rng = np.random.default_rng(0)
    if bundle.manifest.graph(graph).role == "ct":
        return {"ct": rng.random((1, 1, *bundle.manifest.config.ct.shape_DHW), dtype=np.float32)}
    return {"input_ids": rng.integers(5, 200, (1, 400)), "attention_mask": np.ones((1, 400), dtype=np.int64)}


@pytest.fixture(scope="module")
def bundles(size: Size, cache_folder: Path) -> dict[str, Path]:
    """GPU engine -> its bundle, built on this GPU; skipped without a GPU."""
    if find_gpu() is None:
        pytest.skip("no NVIDIA GPU with its driver on this machine")
    names = [n for n, spec in ENGINES.items() if spec.plans and importlib.util.find_spec(spec.package) is not None]
    return {name: gpu_bundle(size, name, cache=cache_folder) for name in names}


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["ct-0", "text-0"])
def test_forward_on_a_gpu(
    record: Any, one_fold: Path, bundles: dict[str, Path], closing: ExitStack, graph: str
) -> None:
    bundle = open_bundle(one_fold)
    inputs = inputs_of(bundle, graph)
    pipelines: dict[str, Forward] = {}
    for name, folder in bundles.items():
        engine = closing.enter_context(open_engine(name, open_bundle(folder)))
        pipelines[name] = lambda engine=engine: engine.run(graph, inputs)
    if CUDA in onnxruntime.get_available_providers():
        pipelines["onnx, CUDA"] = onnx_forward(bundle, graph, inputs, provider=CUDA)
    if torch.cuda.is_available():
        pipelines["eager, CUDA, float16"] = eager_forward(bundle, graph, inputs, device="cuda", half=True)
        pipelines["eager, CUDA"] = eager_forward(bundle, graph, inputs, device="cuda", half=False)
    if len(pipelines) < 2:
        pytest.skip(f"nothing to compare: only {', '.join(pipelines) or 'no engine'} runs on this GPU")
    record.paired(pipelines, against=list(pipelines)[-1], repeats=30, warmup=5)
