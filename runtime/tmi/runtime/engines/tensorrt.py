"""TensorRT on an NVIDIA GPU: plans of `tensorrt` (`trt`) and of `tensorrt_rtx` (`trt-rtx`). No torch.

All memory is allocated when the bundle is opened: two sets of pinned host and device buffers for the largest batch, and
one workspace shared by all graphs and profiles, which one stream runs one after another. A batch is split into chunks
of at most the profile's largest batch. While a chunk computes, a second stream uploads the next one. Of all copies,
only the upload of the first chunk and the download of the last one are not hidden (`copied_seconds`). The work of a
profile for a set of shapes is captured as a CUDA graph on first use and launched afterwards.

Driver, GPU and version are compared with the manifest before a plan is deserialized: some runtimes crash otherwise.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.tensorrt_records import PlanRecord
from tmi.runtime.engines.graph_engine import GraphEngine
from tmi.runtime.engines.nvidia_driver import Gpu, require_driver, require_gpu
from tmi.runtime.engines.registry import engine_spec
from tmi.toolkit.errors import DamagedError, UnavailableError

SLOTS = 2
"""Number of buffer sets: one computes while the other is filled."""
AMPERE = (8, 0)
"""Compute capability from which plans with Ampere-plus compatibility run."""
EVENTS = ("begun", "uploaded", "computed", "done")
"""Events of a chunk: upload started, upload complete, forward pass complete, download complete."""
UPLOAD_EVENTS, DOWNLOAD_EVENTS = EVENTS[:2], EVENTS[2:]


def plan_metadata(manifest: Manifest, kind: str) -> dict[str, PlanRecord]:
    """Graph -> the manifest's metadata of its plan.

    Raises:
        DamagedError: the bundle has plans, but the manifest does not describe them.
    """
    plans = None if manifest.tensorrt is None else manifest.tensorrt.plans.get(kind)
    if plans is None or not {g.name for g in manifest.graphs} <= set(plans.graphs):
        raise DamagedError(f"bundle: the manifest does not describe its {kind} plans", fix="build it again")
    return {g.name: plans.graphs[g.name] for g in manifest.graphs}


def require_compatible_plan(metadata: PlanRecord, version: str, gpu: Gpu, folder: Path) -> None:
    """Require that a plan was built for the installed TensorRT version and this GPU.

    Args:
        metadata: metadata of the plan.
        version: installed version of TensorRT.
        gpu: the GPU of this machine.
        folder: the bundle's folder, for the message.

    Raises:
        UnavailableError: the plan was built for another version or GPU.
    """
    fix = f"build the plans for this machine: tmi build {folder}"
    package, _, built_with = metadata.builder.partition(" ")
    if built_with.split(".")[:3] != version.split(".")[:3]:
        raise UnavailableError(
            f"the plans in {folder} were built with {package} {built_with}, installed is {version}", fix=fix
        )
    target = metadata.target or metadata.built_on
    level = metadata.features.hardware_compatibility
    if level == "ampere-plus" and gpu.compute_capability >= AMPERE:
        return
    if target != gpu.target:
        raise UnavailableError(
            f"the plans in {folder} are for a GPU of {target} (hardware compatibility: {level}), "
            f"this machine has {gpu.name}, {gpu.target}",
            fix=fix,
        )


def tensor_names(trt: Any, engine: Any, spec: GraphSpec) -> dict[str, str]:
    """Name in the manifest -> name in the plan. Plans of torch-tensorrt have other names in the same order.

    Raises:
        DamagedError: the plan's tensors differ from its graph's.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    mode = trt.TensorIOMode
    actual = [n for kind in (mode.INPUT, mode.OUTPUT) for n in names if engine.get_tensor_mode(n) == kind]
    expected = [t.name for t in (*spec.inputs, *spec.outputs)]
    if len(actual) != len(expected):
        raise DamagedError(f"bundle: the plan of {spec.name} has the tensors {actual}", fix="build it again")
    return {n: n for n in expected} if set(expected) == set(actual) else dict(zip(expected, actual, strict=True))


@dataclass
class _Slot:
    """One set of buffers of a graph, and the CUDA graphs captured on it."""

    buffers: dict[str, Any]
    contexts: list[Any]
    captured: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    events: dict[str, Any] = field(default_factory=dict)
    """By name, in `EVENTS`."""


@dataclass
class _Graph:
    """A deserialized plan."""

    engine: Any
    slots: list[_Slot]
    largest: int
    """Largest batch of its profiles."""


class TrtEngine(GraphEngine):
    """Runs plans of `tensorrt` with its runtime."""

    name: ClassVar[str] = "trt"

    def __init__(self) -> None:
        super().__init__()
        self._cuda: Any = None
        self._trt: Any = None
        self._runtime: Any = None
        self._log: Any = None
        self.copied_seconds: float = 0.0
        self._copying: Any = None
        self._computing: Any = None
        self._workspace: int | None = None
        self._metadata: Mapping[str, PlanRecord] = {}
        self._typed: dict[str, Callable[[], bytes]] = {}
        self._names: dict[str, dict[str, str]] = {}

    def open(self, bundle: Bundle, *, threads: int | None) -> None:
        """Load every plan and allocate all memory.

        Raises:
            UnavailableError: no GPU, no plan, or plans for another GPU or version.
        """
        super().open(bundle, threads=threads)
        try:
            self._share_workspace()
        except BaseException:
            self.close()
            raise

    def _start(self, bundle: Bundle) -> None:
        gpu = require_gpu(f"engine {self.name}")
        require_driver(engine_spec(self.name).package, gpu)
        self._metadata = plan_metadata(bundle.manifest, engine_spec(self.name).artefact)
        self._trt = _import(engine_spec(self.name).package, self.name)
        for plan in self._metadata.values():
            require_compatible_plan(plan, self._trt.__version__, gpu, bundle.folder)
        self._cuda = _import("tmi.runtime.engines.cuda", self.name)
        typed = {g.name: bundle.artefact(g, "onnx-typed") for g in bundle.manifest.graphs}
        self._typed = {name: partial(bundle.read, file) for name, file in typed.items() if file is not None}
        self._log = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(self._log)
        self._copying, self._computing = self._cuda.Stream(), self._cuda.Stream()

    def _load(self, spec: GraphSpec, path: Path, read: Callable[[], bytes]) -> _Graph:
        engine = self._runtime.deserialize_cuda_engine(read())
        if engine is None:
            raise UnavailableError(
                f"{self._trt.__name__} {self._trt.__version__} cannot load {path.name}",
                fix=f"build the plans for this machine: tmi build {path.parents[1]}",
            )
        self._names[spec.name] = tensor_names(self._trt, engine, spec)
        metadata = self._metadata[spec.name]
        if metadata.features.weights == "strip":
            self._refit(engine, spec)
        largest = max(shapes[-1][0] for profile in metadata.profiles for shapes in profile.values())
        longest = max((s[-1][1] for p in metadata.profiles for n, s in p.items() if _has_length(spec, n)), default=1)
        slots = [self._slot(engine, spec, largest, longest) for _ in range(SLOTS)]
        return _Graph(engine=engine, slots=slots, largest=largest)

    def _refit(self, engine: Any, spec: GraphSpec) -> None:
        """Fill a plan without weights with those of its graph's ONNX file."""
        refitter = self._trt.Refitter(engine, self._log)
        parser = self._trt.OnnxParserRefitter(refitter, self._log)
        if not parser.refit_from_bytes(self._typed[spec.name]()) or not refitter.refit_cuda_engine():
            raise RuntimeError(f"the plan of {spec.name} cannot be refitted with the weights of its ONNX file")

    def _slot(self, engine: Any, spec: GraphSpec, largest: int, longest: int) -> _Slot:
        sizes = {"B": largest, "T": longest}
        buffers = {
            t.name: self._cuda.PinnedBuffer(tuple(sizes[a] if isinstance(a, str) else a for a in t.shape), t.dtype)
            for t in (*spec.inputs, *spec.outputs)
        }
        names, contexts = self._names[spec.name], []
        for profile in range(engine.num_optimization_profiles):
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
            context.set_optimization_profile_async(profile, self._computing.handle)
            for name, buffer in buffers.items():
                context.set_tensor_address(names[name], buffer.device)
            contexts.append(context)
        events = {name: self._cuda.new_event() for name in EVENTS}
        return _Slot(buffers=buffers, contexts=contexts, events=events)

    def _share_workspace(self) -> None:
        """Allocate one workspace, sized for the profile that needs most."""
        graphs: list[_Graph] = list(self._loaded.values())
        size = max(
            g.engine.get_device_memory_size_for_profile_v2(p)
            for g in graphs
            for p in range(g.engine.num_optimization_profiles)
        )
        self._workspace = self._cuda.allocate(size)
        for graph in graphs:
            for slot in graph.slots:
                for context in slot.contexts:
                    context.set_device_memory(self._workspace, size)

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        graph: _Graph = loaded
        rows = next(iter(inputs.values())).shape[0]
        results: list[dict[str, NDArray[np.float32]]] = []
        pending: list[tuple[_Slot, int]] = []

        def collect(*, last: bool) -> None:
            slot, count = pending.pop(0)
            outputs = self._collect(spec, slot, count)
            # Only the first upload and the last download do not overlap with computation.
            ends = [pair for pair, counts in ((UPLOAD_EVENTS, not results), (DOWNLOAD_EVENTS, last)) if counts]
            self.copied_seconds += sum(self._cuda.seconds_between(*(slot.events[e] for e in pair)) for pair in ends)
            results.append(outputs)

        for number, start in enumerate(range(0, rows, graph.largest)):
            slot = graph.slots[number % SLOTS]
            if len(pending) == SLOTS:  # this slot's buffers still hold an earlier chunk
                collect(last=False)
            chunk = {name: array[start : start + graph.largest] for name, array in inputs.items()}
            self._enqueue(spec, slot, chunk)
            pending.append((slot, min(graph.largest, rows - start)))
        while pending:
            collect(last=len(pending) == 1)
        return {t.name: np.concatenate([a[t.name] for a in results]) for t in spec.outputs}

    def _enqueue(self, spec: GraphSpec, slot: _Slot, chunk: dict[str, NDArray[Any]]) -> None:
        """Upload on one stream; compute and download on the other."""
        self._copying.mark(slot.events["begun"])
        for name, array in chunk.items():
            slot.buffers[name].upload(array, self._copying.handle)
        self._copying.mark(slot.events["uploaded"])
        self._computing.wait(slot.events["uploaded"])
        batch = next(iter(chunk.values())).shape[0]
        # Profile 0 is for a batch of one, profile 1 for larger batches.
        profile = 0 if batch == 1 or len(slot.contexts) == 1 else 1
        shapes = {name: array.shape for name, array in chunk.items()}
        self._compute(slot, profile, shapes, self._names[spec.name])
        self._computing.mark(slot.events["computed"])
        for t in spec.outputs:
            slot.buffers[t.name].download((batch, *t.shape[1:]), self._computing.handle)
        self._computing.mark(slot.events["done"])

    def _compute(self, slot: _Slot, profile: int, shapes: dict[str, tuple[int, ...]], names: Mapping[str, str]) -> None:
        context, key = slot.contexts[profile], (profile, *shapes.items())
        if key in slot.captured:
            slot.captured[key].launch(self._computing)
            return
        for name, shape in shapes.items():
            if not context.set_input_shape(names[name], shape):
                raise ValueError(f"engine {self.name}: {name} {list(shape)} is outside every profile of its plan")

        def work() -> None:
            if not context.execute_async_v3(self._computing.handle):
                raise RuntimeError(f"engine {self.name} could not run a graph on {shapes}")

        work()  # the first run with new shapes does setup work that cannot be captured
        self._computing.synchronise()
        slot.captured[key] = self._cuda.CapturedGraph(self._computing, work)

    def _collect(self, spec: GraphSpec, slot: _Slot, rows: int) -> dict[str, NDArray[np.float32]]:
        self._cuda.wait_for(slot.events["done"])
        return {t.name: slot.buffers[t.name].host((rows, *t.shape[1:])).copy() for t in spec.outputs}

    def close(self) -> None:
        """Free all resources; may be called twice."""
        if self._computing is not None:
            self._computing.synchronise()
        for graph in self._loaded.values():
            for slot in graph.slots:
                for captured in slot.captured.values():
                    captured.free()
                for buffer in slot.buffers.values():
                    buffer.free()
                for event in slot.events.values():
                    self._cuda.free_event(event)
                slot.contexts.clear()
        super().close()
        if self._workspace is not None:
            self._cuda.release(self._workspace)
        for stream in (self._copying, self._computing):
            if stream is not None:
                stream.free()
        self._workspace = self._copying = self._computing = self._runtime = None


class TrtRtxEngine(TrtEngine):
    """Runs plans of `tensorrt_rtx`, which only its own runtime loads."""

    name: ClassVar[str] = "trt-rtx"


class TorchTrtEngine(TrtEngine):
    """Runs plans compiled by torch-tensorrt with the runtime of `tensorrt`."""

    name: ClassVar[str] = "torch-trt"


def _has_length(spec: GraphSpec, name: str) -> bool:
    return any(t.name == name and "T" in t.shape for t in spec.inputs)


def _import(module: str, engine: str) -> ModuleType:
    """Import a module that exists on GPU machines only.

    Raises:
        UnavailableError: its package is missing, or its libraries cannot be loaded.
    """
    extra = engine_spec(engine).extra
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise UnavailableError(
            f"engine {engine} cannot load {module}: {' '.join(str(error).split())[:200]}",
            fix=f"pip install 'tmi-clnet[{extra}]', and add the folder of TensorRT's libraries to LD_LIBRARY_PATH",
        ) from error
