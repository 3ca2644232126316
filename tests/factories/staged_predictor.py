"""Predictors with replaced stages, engines or numbers of cores, built through the arguments of `Predictor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.registry import Arrays, Engine
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.pipeline import InferencePipeline
from tmi.runtime.serving.predictor import Predictor


class StagedPipeline:
    """A pipeline some of whose stages are replaced."""

    def __init__(self, pipeline: InferencePipeline, stages: dict[str, Callable[..., Any]]) -> None:
        self._pipeline, self._stages = pipeline, stages

    def __getattr__(self, name: str) -> Any:
        return self._stages[name] if name in self._stages else getattr(self._pipeline, name)


class WatchedEngine:
    """An engine that calls `before_run` with a graph and its inputs, and may claim a device of its own."""

    def __init__(
        self,
        engine: Engine,
        *,
        before_run: Callable[[str, Arrays], None] = lambda graph, inputs: None,
        copied_seconds: float | None = None,
    ) -> None:
        self._engine, self._before_run = engine, before_run
        self.copied_seconds = copied_seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, graph: str, inputs: Arrays) -> Any:
        """Run the graph after `before_run`."""
        self._before_run(graph, inputs)
        return self._engine.run(graph, inputs)


@dataclass(frozen=True)
class OpenBundle:
    """A bundle that an engine has open."""

    bundle: Bundle
    engine: Engine
    record: EngineRecord

    def with_manifest(self, **changes: Any) -> OpenBundle:
        """The same graphs with fields of the manifest replaced."""
        return replace(self, bundle=replace(self.bundle, manifest=replace(self.bundle.manifest, **changes)))

    @property
    def pipeline(self) -> InferencePipeline:
        """The pipeline of the bundle."""
        return InferencePipeline(self.bundle, self.engine)

    def on_gpu(self, **stages: Callable[..., Any]) -> Predictor:
        """A predictor whose engine claims a device of its own."""
        return self.predictor(WatchedEngine(self.engine, copied_seconds=0.0), **stages)

    def on_cores(self, cores: int, *, threads: int | None = None, **stages: Callable[..., Any]) -> Predictor:
        """A predictor on so many cores, of which the engine uses `threads`, or all."""
        return self.predictor(cores=cores, threads=cores if threads is None else threads, **stages)

    def predictor(
        self, engine: Any = None, *, cores: int | None = None, threads: int | None = None, **stages: Callable[..., Any]
    ) -> Predictor:
        """A predictor with another engine, and with stages of the pipeline replaced by name."""
        engine = engine or self.engine
        record = self.record if threads is None else replace(self.record, threads=threads)
        pipeline: Any = StagedPipeline(InferencePipeline(self.bundle, engine), stages)
        return Predictor(self.bundle, engine, record, pipeline=pipeline, cores=cores)
