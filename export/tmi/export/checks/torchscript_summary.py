"""Reader that summarises a TorchScript file as `GraphSummary`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tmi.export.checks.graph_summary import GraphSummary, NormNode
from tmi.toolkit.compute.silence import Ignored, quiet

NORMS = {
    "aten::layer_norm": (2, 4),
    "aten::batch_norm": (1, 7),
    "aten::group_norm": (2, 4),
    "aten::instance_norm": (1, 7),
}
"""Operator -> positions of its scale and epsilon inputs."""


def read_summary(path: Path) -> GraphSummary:
    """Load a TorchScript file and read its inlined graph. The format declares no input and output names."""
    # TorchScript is deprecated in favour of torch.export; the constraints pin a torch that still reads it.
    with quiet([Ignored(r".*torch\.jit\.load.*", DeprecationWarning)]):
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    graph = module.inlined_graph
    stored = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors: dict[str, NDArray[np.floating]] = {}
    for node in _nodes(graph):
        if node.kind() == "prim::GetAttr":
            name = _attribute_path(node.output())
            if name in stored and stored[name].is_floating_point():
                tensors[name] = stored[name].detach().numpy()
        elif node.kind() == "prim::Constant":
            value = node.output().toIValue()
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                tensors[f"constant {node.output().debugName()}"] = value.detach().numpy()
    return GraphSummary(
        tensors=tensors, norms=tuple(_norm(n) for n in _nodes(graph) if n.kind() in NORMS), inputs=None, outputs=None
    )


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _attribute_path(value: Any) -> str:
    """`a.b.weight` for a chain of `prim::GetAttr` that starts at the module; empty for any other value."""
    names: list[str] = []
    node = value.node()
    while node.kind() == "prim::GetAttr":
        names.append(node.s("name"))
        value = next(iter(node.inputs()))
        node = value.node()
    return ".".join(reversed(names)) if node.kind() == "prim::Param" else ""


def _norm(node: Any) -> NormNode:
    scale_index, epsilon_index = NORMS[node.kind()]
    inputs = list(node.inputs())
    module, _, parameter = _attribute_path(inputs[scale_index]).rpartition(".")
    epsilon = inputs[epsilon_index].toIValue()
    return NormNode(
        module=module if parameter == "weight" else "",
        epsilon=float(epsilon) if isinstance(epsilon, float) else float("nan"),
    )
