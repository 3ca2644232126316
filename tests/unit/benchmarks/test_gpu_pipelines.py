"""The pipelines of `make bench-gpu`, run on the CPU: their outputs must match those of eager."""

from __future__ import annotations

import numpy as np
import pytest

from test_gpu_engines import eager_forward, inputs_of, onnx_forward
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.registry import open_engine


@pytest.mark.parametrize("graph", ["ct-0", "text-0"])
def test_gpu_pipelines_match_eager_on_cpu(tiny_bundle, graph):
    """Float32 pipelines match eager, and autocast differs a little."""
    bundle = open_bundle(tiny_bundle)
    inputs = inputs_of(bundle, graph)
    with open_engine("eager", bundle, threads=1) as eager:
        (expected,) = eager.run(graph, inputs).values()
    size = np.abs(expected).max()
    exact = eager_forward(bundle, graph, inputs, device="cpu", half=False)()
    onnx = onnx_forward(bundle, graph, inputs, provider="CPUExecutionProvider")()
    half = eager_forward(bundle, graph, inputs, device="cpu", half=True)()
    assert np.abs(exact - expected).max() <= 1e-6 * size
    assert np.abs(onnx - expected).max() <= 1e-4 * size
    assert 0 < np.abs(half - expected).max() <= 0.05 * size, "autocast must have an effect, and a small one"
