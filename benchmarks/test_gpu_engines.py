"""How quick are the engines on a GPU, against each other and against eager PyTorch on the same GPU?

TensorRT engines from plans that are built here, ONNX Runtime's CUDA provider, eager float32 and eager under float16
autocast; one case, copies to and from the device included, as a prediction pays them. `make bench-gpu`.
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
    """The module on a device; reading the answer back waits for it."""
    engine = EagerEngine()
    engine.open(bundle, threads=None)
    module = engine.module(graph).to(device)
    names = [t.name for t in bundle.manifest.graph(graph).inputs]
    kind = torch.device(device).type

    def run() -> np.ndarray[Any, Any]:
        with torch.inference_mode(), torch.autocast(kind, torch.float16 if kind == "cuda" else torch.bfloat16, half):
            given = [torch.from_numpy(inputs[name]).to(device) for name in names]
            return module(*given).float().cpu().numpy()

    return run


def onnx_forward(bundle: Bundle, graph: str, inputs: Arrays, *, provider: str) -> Forward:
    """ONNX Runtime with one execution provider."""
    path = bundle.artefact(bundle.manifest.graph(graph), "onnx")
    session = onnxruntime.InferenceSession(str(path), providers=[provider])
    return lambda: session.run(None, inputs)[0]


def inputs_of(bundle: Bundle, graph: str) -> Arrays:
    """Noise of the right shapes: times do not depend on the values."""
    rng = np.random.default_rng(0)
    if bundle.manifest.graph(graph).role == "ct":
        return {"ct": rng.random((1, 1, *bundle.manifest.parsed_config().ct.shape_DHW), dtype=np.float32)}
    return {"input_ids": rng.integers(5, 200, (1, 400)), "attention_mask": np.ones((1, 400), dtype=np.int64)}


@pytest.fixture(scope="module")
def bundles(size: Size, kept: Path) -> dict[str, Path]:
    """GPU engine -> its bundle, built on this GPU; none where there is no GPU."""
    if find_gpu() is None:
        pytest.skip("no NVIDIA GPU with its driver on this machine")
    names = [n for n, spec in ENGINES.items() if spec.gpu and importlib.util.find_spec(spec.package) is not None]
    return {name: gpu_bundle(size, name, kept=kept) for name in names}


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["ct-0", "text-0"])
def test_forward_on_a_gpu(
    record: Any, one_fold: Path, bundles: dict[str, Path], closing: ExitStack, graph: str
) -> None:
    plain = open_bundle(one_fold)
    inputs = inputs_of(plain, graph)
    roads: dict[str, Forward] = {}
    for name, folder in bundles.items():
        engine = closing.enter_context(open_engine(name, open_bundle(folder)))
        roads[name] = lambda engine=engine: engine.run(graph, inputs)
    if CUDA in onnxruntime.get_available_providers():
        roads["onnx, CUDA"] = onnx_forward(plain, graph, inputs, provider=CUDA)
    if torch.cuda.is_available():
        roads["eager, CUDA, float16"] = eager_forward(plain, graph, inputs, device="cuda", half=True)
        roads["eager, CUDA"] = eager_forward(plain, graph, inputs, device="cuda", half=False)
    if len(roads) < 2:
        pytest.skip(f"nothing to compare: only {', '.join(roads) or 'no engine'} runs on this GPU")
    record.paired(roads, against=list(roads)[-1], repeats=30, warmup=5)
