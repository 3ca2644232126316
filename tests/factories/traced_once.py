"""ONNX graphs from the trace of another run of the same configuration, for tests of what comes after the trace.

Tracing takes most of an export of small networks, and weights have no part in it: each parameter is stored in the file
under its own name. The gates look at such a graph as at any other, so that one with a wrong weight is refused.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from torch import Tensor, nn

from tmi.runtime.bundle.manifest import GraphSpec


def use_cached_traces(patch: pytest.MonkeyPatch, traced: Path) -> None:
    """Let the ONNX writer take the graphs of a bundle and the weights that it is asked to write.

    Args:
        patch: undone when it ends.
        traced: bundle of a run whose networks have the same configuration and number of folds.
    """

    def write(module: nn.Module, spec: GraphSpec, example: tuple[Tensor, ...], path: Path) -> None:
        replace_weights(traced / "graphs" / path.name, module, path)

    patch.setattr("tmi.export.graphs.onnx.write_onnx", write)


def replace_weights(graph: Path, module: nn.Module, path: Path) -> None:
    """An ONNX file with the weights of a module of the same configuration."""
    model = onnx.load(graph)
    state = module.state_dict()
    for stored in model.graph.initializer:
        if stored.name in state:
            value = numpy_helper.from_array(state[stored.name].numpy(), stored.name)
            assert (value.dims, value.data_type) == (stored.dims, stored.data_type), stored.name
            stored.CopyFrom(value)
    onnx.save(model, path)
