"""What every engine does alike: open each graph of a bundle, check what goes in and out, close.

An engine adds how one graph is loaded and how it is run. Names, dtypes and ranks are compared with the manifest on both
sides of every call: an engine that renames, drops or retypes a tensor is found here and not in a probability.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import GraphSpec, TensorSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.registry import Arrays, engine_spec
from tmi.toolkit.errors import UnavailableError


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class GraphEngine(ABC):
    """Base of the engines; see `tmi.runtime.engines.registry.Engine` for the contract."""

    name: ClassVar[str]
    """Name in `ENGINES`."""
    copied_seconds: float | None = None
    """As the contract has it: None, but for engines of a device with its own memory."""

    def __init__(self) -> None:
        self._specs: dict[str, GraphSpec] = {}
        self._loaded: dict[str, Any] = {}
        self.threads = 0
        """Threads it was opened with."""

    def open(self, bundle: Bundle, *, threads: int | None) -> None:
        """Load every graph; `threads=None` takes all cores.

        Raises:
            UnavailableError: the bundle holds no artefact for this engine, or its package is missing.
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
                self._loaded[spec.name] = self._load(spec, path)
                self._specs[spec.name] = spec
        except BaseException:
            self.close()
            raise

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Outputs of one graph by name.

        Args:
            graph: name of a graph of the opened bundle.
            inputs: every input of the graph by name, in the manifest's dtypes and shapes.

        Raises:
            ValueError: no such graph, or inputs that are not the graph's.
        """
        if graph not in self._specs:
            raise ValueError(f"engine {self.name} has no graph {graph!r} open; open are {sorted(self._specs)}")
        spec = self._specs[graph]
        _compare(f"input of graph {graph}", spec.inputs, inputs)
        ordered = {t.name: np.ascontiguousarray(inputs[t.name]) for t in spec.inputs}
        outputs = self._run(spec, self._loaded[graph], ordered)
        _compare(f"output of graph {graph} on engine {self.name}", spec.outputs, outputs)
        return outputs

    def close(self) -> None:
        """Free everything; may be called twice."""
        self._loaded.clear()
        self._specs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, bundle: Bundle) -> None:  # noqa: B027 - most engines have nothing to set up
        """Set up what all graphs share."""

    @abstractmethod
    def _load(self, spec: GraphSpec, path: Path) -> Any:
        """One graph from its artefact file."""

    @abstractmethod
    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Outputs by name; the inputs are contiguous and in the manifest's order."""


def _compare(what: str, specs: tuple[TensorSpec, ...], arrays: Arrays) -> None:
    """Names, dtypes, ranks and fixed sizes as the manifest says, and one size for each dynamic axis."""
    expected = {t.name for t in specs}
    if set(arrays) != expected:
        raise ValueError(f"{what}: expected {sorted(expected)}, got {sorted(arrays)}")
    sizes: dict[str, int] = {}
    for spec in specs:
        array = arrays[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            size == sizes.setdefault(axis, size) if isinstance(axis, str) else size == axis
            for axis, size in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype != spec.dtype or not fits:
            raise ValueError(
                f"{what}: {spec.name} is {array.dtype}{list(array.shape)}, not {spec.dtype}{list(spec.shape)}"
            )
