"""ONNX export without tracing: graphs of another run of the same configuration get the weights of this run.

Tracing takes most of the time of an export of small networks and does not depend on the weights, which are stored under
their parameter names. The parity checks run as usual, so a graph with a wrong weight is rejected.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from torch import Tensor, nn

from tmi.runtime.bundle.manifest import GraphSpec


def use_cached_traces(patch: pytest.MonkeyPatch, traced: Path) -> None:
    """Patch the ONNX writer to write the graphs of a bundle with the weights of its module.

    Args:
        patch: patches the writer until its context ends.
        traced: bundle of a run whose networks have the same configuration and number of folds.
    """

    def write(module: nn.Module, spec: GraphSpec, example: tuple[Tensor, ...], path: Path) -> None:
        replace_weights(traced / "graphs" / path.name, module, path)

    patch.setattr("tmi.export.graphs.onnx.write_onnx", write)


def replace_weights(graph: Path, module: nn.Module, path: Path) -> None:
    """Write an ONNX file with the weights of a module of the same configuration."""
    model = onnx.load(graph)
    state = module.state_dict()
    for stored in model.graph.initializer:
        if stored.name in state:
            value = numpy_helper.from_array(state[stored.name].numpy(), stored.name)
            assert (value.dims, value.data_type) == (stored.dims, stored.data_type), stored.name
            stored.CopyFrom(value)
    onnx.save(model, path)
