"""An exporter with a fault: it writes one graph wrongly and takes the others from a valid bundle."""

from __future__ import annotations

import copy
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from factories.cached_traces import replace_weights
from tmi.export.graphs.registry import EXPORTERS
from tmi.runtime.bundle.manifest import GraphSpec

Change = Callable[[nn.Module], nn.Module]


def plant(
    patch: pytest.MonkeyPatch,
    artefact: str,
    *,
    graph: str,
    valid_bundle: Path,
    change: Change = lambda module: module,
    spec: Callable[[GraphSpec], GraphSpec] = lambda spec: spec,
    weights_alone: bool = False,
) -> None:
    """Patch the writer of `artefact` so that it changes `graph` before writing it.

    Args:
        patch: patches the writer; undone at the end of the test.
        artefact: name in `EXPORTERS`.
        graph: name of the graph to change.
        valid_bundle: bundle of the same run, from which every other graph is copied.
        change: takes a copy of the eager module and returns the module to write.
        spec: changes the graph's spec that the writer gets.
        weights_alone: whether only weights change, so that the ONNX graph need not be traced again.
    """
    exporter = EXPORTERS[artefact]
    assert exporter.writer is not None
    module_name, _, function = exporter.writer.partition(":")
    target = f"{module_name}.{function}"
    writer = getattr(__import__(module_name, fromlist=[function]), function)

    def faulty(module: nn.Module, graph_spec: GraphSpec, example: tuple[Tensor, ...], path: Path) -> None:
        if graph_spec.name == graph:
            changed = change(copy.deepcopy(module))
            if weights_alone and artefact == "onnx":
                replace_weights(valid_bundle / "graphs" / path.name, changed, path)
            else:
                writer(changed, spec(graph_spec), example, path)
        else:
            shutil.copyfile(valid_bundle / "graphs" / path.name, path)

    patch.setattr(target, faulty)


def with_forward(module: nn.Module, forward: Callable[..., Tensor]) -> nn.Module:
    """Replace the forward of a module by `forward(original, *inputs)`; names and weights stay."""
    kind = type(module)

    def replaced(self: nn.Module, *inputs: Tensor) -> Tensor:
        return forward(lambda *i: kind.forward(self, *i), *inputs)

    replaced.__signature__ = inspect.signature(kind.forward)
    module.__class__ = type(f"Faulty{kind.__name__}", (kind,), {"forward": replaced})
    return module
