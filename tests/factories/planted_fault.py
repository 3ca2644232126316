"""Writing one graph with a fault in it while the others are taken from an honest bundle, as a broken exporter would."""

from __future__ import annotations

import copy
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from factories.traced_once import replace_weights
from tmi.export.graphs.registry import EXPORTERS
from tmi.runtime.bundle.manifest import GraphSpec

Change = Callable[[nn.Module], nn.Module]


def plant(
    patch: pytest.MonkeyPatch,
    artefact: str,
    *,
    graph: str,
    honest: Path,
    change: Change = lambda module: module,
    spec: Callable[[GraphSpec], GraphSpec] = lambda spec: spec,
    weights_alone: bool = False,
) -> None:
    """Let the writer of `artefact` change `graph` before it writes it.

    Args:
        patch: undone when the test ends.
        artefact: name in `EXPORTERS`.
        graph: the graph to change.
        honest: bundle of the same run that every other graph is copied from.
        change: gets a copy of the eager module; what it returns is written.
        spec: changes what the writer is told of the graph.
        weights_alone: the change leaves the graph as it is, so that ONNX need not be traced again.
    """
    exporter = EXPORTERS[artefact]
    assert exporter.writer is not None
    module_name, _, function = exporter.writer.partition(":")
    target = f"{module_name}.{function}"
    writer = getattr(__import__(module_name, fromlist=[function]), function)

    def faulty(module: nn.Module, asked: GraphSpec, example: tuple[Tensor, ...], path: Path) -> None:
        if asked.name == graph:
            changed = change(copy.deepcopy(module))
            if weights_alone and artefact == "onnx":
                replace_weights(honest / "graphs" / path.name, changed, path)
            else:
                writer(changed, spec(asked), example, path)
        else:
            shutil.copyfile(honest / "graphs" / path.name, path)

    patch.setattr(target, faulty)


def with_forward(module: nn.Module, forward: Callable[..., Tensor]) -> nn.Module:
    """The same module and weights under the same names; `forward(honest, *inputs)` answers instead."""
    kind = type(module)

    def replaced(self: nn.Module, *inputs: Tensor) -> Tensor:
        return forward(lambda *i: kind.forward(self, *i), *inputs)

    replaced.__signature__ = inspect.signature(kind.forward)
    module.__class__ = type(f"Faulty{kind.__name__}", (kind,), {"forward": replaced})
    return module
