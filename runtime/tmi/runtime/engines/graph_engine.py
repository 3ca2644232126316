"""Base class of the engines: opens the graphs of a bundle, checks inputs and outputs, closes.

A subclass implements loading and running one graph. Names, dtypes and ranks are compared with the manifest before and
after every call, so that an engine that renames, drops or retypes a tensor raises an error instead of changing a
probability.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import GraphSpec, TensorSpec
from tmi.runtime.bundle.onnx_check import require_exported_graph
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.registry import Arrays, engine_spec
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.errors import UnavailableError

ONNX_SUFFIX = ".onnx"


class GraphEngine(ABC):
    """Base class of the engines; `tmi.runtime.engines.registry.Engine` defines the interface."""

    name: ClassVar[str]
    """Name in `ENGINES`."""
    copied_seconds: float | None = None
    """As in the interface: None unless the engine's device has its own memory."""

    def __init__(self) -> None:
        self._specs: dict[str, GraphSpec] = {}
        self._loaded: dict[str, Any] = {}
        self.threads = 0
        """Number of threads, set by `open`."""

    def open(self, bundle: Bundle, *, threads: int | None) -> None:
        """Load every graph; `threads=None` uses all cores.

        Raises:
            UnavailableError: the bundle has no artefact for this engine, or its package is missing.
        """
        self.close()
        self.threads = threads or available_cores()
        artefact = engine_spec(self.name).artefact
        try:
            self._start(bundle)
            for spec in bundle.manifest.graphs:
                path = bundle.artefact(spec, artefact)
                if path is None:
                    raise UnavailableError(
                        f"bundle {bundle.folder} holds no {artefact} file of graph {spec.name}",
                        fix=f"export it with --engine {artefact}, or choose another engine",
                    )
                self._loaded[spec.name] = self._load(spec, path, partial(_read_checked, bundle, spec, path))
                self._specs[spec.name] = spec
        except BaseException:
            self.close()
            raise

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Run one graph.

        Args:
            graph: name of a graph of the opened bundle.
            inputs: all inputs of the graph by name, with the manifest's dtypes and shapes.

        Returns:
            All outputs of the graph by name.

        Raises:
            ValueError: no such graph, or the inputs do not match it.
        """
        if graph not in self._specs:
            raise ValueError(f"engine {self.name} has no graph {graph!r} open; open are {sorted(self._specs)}")
        spec = self._specs[graph]
        _require_match(f"input of graph {graph}", spec.inputs, inputs)
        ordered = {t.name: np.ascontiguousarray(inputs[t.name]) for t in spec.inputs}
        outputs = self._run(spec, self._loaded[graph], ordered)
        _require_match(f"output of graph {graph} on engine {self.name}", spec.outputs, outputs)
        return outputs

    def close(self) -> None:
        """Free all resources; may be called twice."""
        self._loaded.clear()
        self._specs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, bundle: Bundle) -> None:  # noqa: B027 - most engines have nothing to set up
        """Set up resources that all graphs share."""

    @abstractmethod
    def _load(self, spec: GraphSpec, path: Path, read: Callable[[], bytes]) -> Any:
        """Load one graph from the bytes that `read` returns, which are those that the manifest records.

        `path` is for messages: what is opened by path may be exchanged after its digest was compared.
        """

    @abstractmethod
    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Outputs by name. The inputs are contiguous and in the manifest's order."""


def _read_checked(bundle: Bundle, spec: GraphSpec, path: Path) -> bytes:
    """Bytes of an artefact file. An ONNX graph is checked first: native code may crash on a malformed one."""
    data = bundle.read(path)
    if path.suffix == ONNX_SUFFIX:
        require_exported_graph(data, spec)
    return data


def _require_match(what: str, specs: tuple[TensorSpec, ...], arrays: Arrays) -> None:
    """Require the manifest's names, dtypes, ranks and fixed sizes, and one size for each dynamic axis."""
    expected = {t.name for t in specs}
    if set(arrays) != expected:
        raise ValueError(f"{what}: expected {sorted(expected)}, got {sorted(arrays)}")
    sizes: dict[str, int] = {}
    for spec in specs:
        array = arrays[spec.name]
        matches = array.ndim == len(spec.shape) and all(
            size == sizes.setdefault(axis, size) if isinstance(axis, str) else size == axis
            for axis, size in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype != spec.dtype or not matches:
            raise ValueError(
                f"{what}: {spec.name} is {array.dtype}{list(array.shape)}, not {spec.dtype}{list(spec.shape)}"
            )
