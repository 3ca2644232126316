"""Builder of TensorRT plans (serialized engines) from ONNX graphs, for `tensorrt` 10.x and 11.x and `tensorrt_rtx`.

The TensorRT module is a parameter, because the three share an API: a strongly typed network (a flag in 10.x, the only
kind in 11.x), an ONNX parser, optimization profiles, a builder configuration. Features that one of them does not have
are detected by attribute; the plan's record says which features were used, or the build fails. No option is ignored
silently.

A plan cannot be inspected without a GPU. Its record is therefore made during the build and stored in the manifest.
"""

from __future__ import annotations

import gc
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.manifest_records import FileSpec
from tmi.runtime.bundle.tensorrt_records import FloatNode, GraphSource, PlanFeatures, PlanRecord
from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.storage.bounded_files import TIMING_CACHE_BYTES, read_bytes
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file

TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120")
"""Compute capabilities for which TensorRT-RTX builds ahead of time; A100 is sm80."""
NON_COMPUTE_LAYERS = frozenset(
    "CAST CONSTANT SHUFFLE SQUEEZE UNSQUEEZE IDENTITY SHAPE ASSERTION QUANTIZE DEQUANTIZE".split()
)
"""Layer types without arithmetic of their own. Their types follow from their neighbours' and are not audited."""
ONNX_LAYER_NAME = re.compile(r"\[ONNX Layer: (.*?)(?:\]|$)")
Profile = dict[str, tuple[tuple[int, ...], ...]]
"""Input -> its minimum, optimum and maximum shape."""
HardwareLevel = Literal["none", "ampere-plus", "same-compute-capability"]
WeightsMode = Literal["inside", "refit", "strip"]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Build options of TensorRT plans."""

    max_batch: int = 4
    """Largest batch. The optimization profiles are batch 1, and batches 1 to `max_batch`."""
    max_length: int = 512
    """Maximum text length in tokens."""
    target: str | None = None
    """One of `TARGETS`; None: the GPU of this machine."""
    tf32: bool = False
    """Allow TF32 for float32 products. TensorRT's own default is on."""
    hardware: HardwareLevel = "none"
    """Hardware compatibility level: the other GPUs that the plan must run on."""
    optimisation_level: int = 3
    """Builder optimization level, 0 to 5. Higher levels search longer for faster kernels."""
    workspace_mib: int | None = None
    """Workspace memory limit of kernels in MiB; None: the GPU's memory."""
    weights: WeightsMode = "inside"
    """`inside`: stored in the plan. `refit`: stored and refittable. `strip`: read from the ONNX file at load time."""
    timing_cache: Path | None = None
    """File of the timing cache, which is read before and written after a build."""


@dataclass(frozen=True, kw_only=True)
class TypeAudit:
    """Data types of the layers of a parsed network."""

    layers: Mapping[str, Mapping[str, int]]
    """Layer type -> data type of its first output -> number of layers. A layer whose inputs are all dequantized INT8
    tensors counts as INT8: TensorRT fuses it with the pairs around it into an INT8 kernel."""
    unexplained: tuple[str, ...]
    """Layers that compute in float32 although they come from no node that was excluded from FP16."""
    float_nodes: Mapping[str, tuple[str, ...]]
    """Node excluded from FP16 -> types of its layers."""
    int8_nodes: frozenset[str] = frozenset()
    """Nodes whose layers compute in INT8."""

    def count(self, dtype: str) -> int:
        """Number of layers with outputs of a data type, without `NON_COMPUTE_LAYERS`."""
        return sum(counts.get(dtype, 0) for kind, counts in self.layers.items() if kind not in NON_COMPUTE_LAYERS)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A serialized engine and its build record."""

    data: bytes
    """The serialized engine."""
    audit: TypeAudit
    """Data types of the network that it was built from."""
    record: PlanRecord = field(repr=False)
    """Build record for the manifest."""


def build_plan(
    trt: ModuleType,
    graph: Path,
    spec: GraphSpec,
    options: BuildOptions,
    *,
    float32_nodes: Mapping[str, str] | None = None,
) -> Plan:
    """Parse a graph, audit its data types and build its plan.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        graph: ONNX file. Its types are the plan's types.
        spec: names and dynamic axes of the graph.
        options: build options.
        float32_nodes: nodes of an FP16 graph that stay in float32 -> reason; None: the whole graph is float32.

    Raises:
        UnavailableError: this TensorRT cannot parse or build the graph; the message quotes its log.
    """
    with _no_collection():
        return _PlanBuilder(trt, graph, spec, options, float32_nodes).build()


def shape_ranges(spec: GraphSpec, options: BuildOptions, *, batch: tuple[int, int, int]) -> Profile:
    """Input -> its minimum, optimum and maximum shape in an optimization profile with that batch range."""
    # Kernels are tuned for the optimum shape: the largest batch and the longest text.
    sizes = {"B": batch, "T": (1, options.max_length, options.max_length)}
    return {
        t.name: tuple(tuple(sizes[a][i] if isinstance(a, str) else a for a in t.shape) for i in range(3))
        for t in spec.inputs
    }


def optimization_profiles(spec: GraphSpec, options: BuildOptions) -> list[Profile]:
    """Profile 0 is for a single case, the usual request of a service; profile 1 is for batches up to the largest."""
    ranges = [(1, 1, 1)] + ([(1, options.max_batch, options.max_batch)] if options.max_batch > 1 else [])
    return [shape_ranges(spec, options, batch=r) for r in ranges]


class _PlanBuilder:
    """Builds one plan. TensorRT's objects must not outlive the call of `build`."""

    def __init__(
        self,
        trt: ModuleType,
        graph: Path,
        spec: GraphSpec,
        options: BuildOptions,
        float32_nodes: Mapping[str, str] | None,
    ) -> None:
        self.trt, self.graph, self.spec, self.options, self.float32_nodes = trt, graph, spec, options, float32_nodes
        self.log = collecting_logger(trt)
        self.features: dict[str, str] = {}

    def build(self) -> Plan:
        """Parse, audit, configure and build."""
        trt = self.trt
        builder = trt.Builder(self.log)
        network = builder.create_network(self._network_flags())
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse_from_file(str(self.graph)):
            reasons = [_one_line(parser.get_error(i).desc()) for i in range(parser.num_errors)]
            self._raise_unavailable("cannot parse", reasons)
        # The network definition names the ONNX node of each layer; the built engine has fused layers.
        audit = audit_network(network, self.float32_nodes)
        config = builder.create_builder_config()
        profiles = self._add_profiles(builder, network, config)
        self._configure(config)
        cache = self._load_timing_cache(config)
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            self._raise_unavailable("cannot build a plan from", self.log.errors)
        self._save_timing_cache(cache)
        data = bytes(serialized)
        return Plan(data=data, audit=audit, record=self._record(data, audit, profiles))

    def _network_flags(self) -> int:
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        self.features["strong_typing"] = "always, no flag" if flag is None else "asked for"
        return 0 if flag is None else 1 << int(flag)

    def _add_profiles(self, builder: Any, network: Any, config: Any) -> list[Profile]:
        """Add the optimization profiles and return their shapes."""
        specs = {t.name: t for t in self.spec.inputs}
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            tensor_spec = specs.get(tensor.name)
            for axis, size in enumerate(tensor.shape):
                # TensorRT marks a dynamic axis by -1, the manifest by a name.
                if size < 0 and (tensor_spec is None or not isinstance(tensor_spec.shape[axis], str)):
                    self._raise_unavailable(
                        "cannot build a plan from",
                        [f"axis {axis} of input {tensor.name} is dynamic and no profile gives its range"],
                    )
        profiles = optimization_profiles(self.spec, self.options)
        for ranges in profiles:
            profile = builder.create_optimization_profile()
            for name, shapes in ranges.items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        return profiles

    def _configure(self, config: Any) -> None:
        trt, options = self.trt, self.options
        if options.tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)  # TensorRT's default is on
        config.builder_optimization_level = options.optimisation_level
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
        self._set_target(config)
        self._set_hardware_compatibility(config)
        if options.weights != "inside":
            # A stripped plan gets its weights by refitting, so it needs both flags.
            names = {"refit": ("REFIT",), "strip": ("STRIP_PLAN", "REFIT")}[options.weights]
            for name in names:
                flag = getattr(trt.BuilderFlag, name, None)
                if flag is None:
                    self._raise_unavailable("cannot build", [f"this version has no {name} plans"])
                config.set_flag(flag)
        self.features["weights"] = options.weights

    def _set_target(self, config: Any) -> None:
        target = self.options.target
        if target is None:
            self.features["target"] = "the GPU of the machine that built it"
            return
        capability = getattr(getattr(self.trt, "ComputeCapability", None), target.upper(), None)
        if capability is None or not hasattr(config, "set_compute_capability"):
            self._raise_unavailable(
                f"has no build target {target} for", [f"targets of TensorRT-RTX are {', '.join(TARGETS)}"]
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
        self.features["target"] = target

    def _set_hardware_compatibility(self, config: Any) -> None:
        requested = self.options.hardware
        if requested == "none":
            self.features["hardware_compatibility"] = "none"
            return
        name = requested.upper().replace("-", "_")
        level = getattr(getattr(self.trt, "HardwareCompatibilityLevel", None), name, None)
        # TensorRT-RTX has build targets (`set_compute_capability`) instead of compatibility levels.
        if level is None or hasattr(config, "set_compute_capability"):
            self._raise_unavailable("has no hardware compatibility levels", ["it builds for targets: use --target"])
        config.hardware_compatibility_level = level
        self.features["hardware_compatibility"] = requested

    def _load_timing_cache(self, config: Any) -> Any:
        path = self.options.timing_cache
        if path is None:
            self.features["timing_cache"] = "none"
            return None
        cache = config.create_timing_cache(_read_timing_cache(path))
        accepted = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
        # A cache may also be ignored with a warning instead of an error.
        accepted = accepted and not any("timing cache" in warning for warning in self.log.warnings)
        self.features["timing_cache"] = "used" if accepted else "rejected: of another version or GPU, or not supported"
        return config.get_timing_cache() if accepted else None

    def _save_timing_cache(self, cache: Any) -> None:
        if cache is not None and self.options.timing_cache is not None:
            self.options.timing_cache.write_bytes(bytes(cache.serialize()))

    def _record(self, data: bytes, audit: TypeAudit, profiles: Sequence[Profile]) -> PlanRecord:
        reasons = self.float32_nodes or {}
        return PlanRecord(
            builder=f"{self.trt.__name__} {self.trt.__version__}",
            target=self.options.target,
            tf32=self.options.tf32,
            optimisation_level=self.options.optimisation_level,
            workspace_mib=self.options.workspace_mib,
            features=PlanFeatures(**self.features),
            profiles=tuple(profiles),
            source=GraphSource(file=self.graph.name, sha256=sha256_file(self.graph)),
            plan=FileSpec(sha256=sha256_bytes(data), bytes=len(data)),
            layers=audit.layers,
            layers_in_half=audit.count("HALF"),
            layers_in_float=audit.count("FLOAT"),
            layers_in_int8=audit.count("INT8") or None,
            float_nodes={
                node: FloatNode(layers=kinds, why=reasons.get(node, "")) for node, kinds in audit.float_nodes.items()
            },
            notes=tuple(self.log.warnings),
        )

    def _raise_unavailable(self, what: str, reasons: Sequence[str]) -> None:
        why = "; ".join(_one_line(r) for r in reasons[:3]) or "it gives no reason"
        raise UnavailableError(
            f"{self.trt.__name__} {self.trt.__version__} {what} graph {self.spec.name} ({self.graph.name}): {why}",
            fix="try another --precision or --target, or export with --engine onnx, which runs on OpenVINO and ONNX "
            "Runtime; docs/tensorrt.md lists what TensorRT is known to reject",
        )


def _read_timing_cache(path: Path) -> bytes:
    """Content of a timing cache; empty if the file does not exist.

    Raises:
        UsageError: it cannot be read, is no regular file, or is larger than a timing cache can be.
    """
    try:
        return read_bytes(path, max_bytes=TIMING_CACHE_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(
            f"timing cache {path} cannot be read: {error.strerror}", fix="name another file; a missing one is created"
        ) from error


def audit_network(network: Any, float32_nodes: Mapping[str, str] | None) -> TypeAudit:
    """Count the data types of a parsed network's layers, and find float32 layers from nodes that should be FP16.

    Args:
        network: the parsed network.
        float32_nodes: nodes that stay in float32; None: all nodes.
    """
    layers: dict[str, Counter[str]] = defaultdict(Counter)
    dequantized = _dequantized_tensors(network)
    int8_nodes: set[str] = set()
    unexplained: list[str] = []
    layers_by_node: dict[str, list[str]] = defaultdict(list)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        output = layer.get_output(0)
        dtype = "NONE" if output is None else output.dtype.name
        if layer.type.name not in NON_COMPUTE_LAYERS and _inputs(layer) and _inputs(layer) <= dequantized:
            dtype = "INT8"
            int8_nodes |= set(ONNX_LAYER_NAME.findall(layer.metadata or "")) or {layer.name}
        layers[layer.type.name][dtype] += 1
        if float32_nodes is None or dtype != "FLOAT" or layer.type.name in NON_COMPUTE_LAYERS:
            continue
        sources = _source_nodes(layer) & set(float32_nodes)
        if not sources:
            unexplained.append(f"{layer.name} ({layer.type.name})")
        for node in sources:
            layers_by_node[node].append(layer.type.name)
    return TypeAudit(
        layers={kind: dict(counts) for kind, counts in sorted(layers.items())},
        unexplained=tuple(unexplained),
        float_nodes={node: tuple(kinds) for node, kinds in sorted(layers_by_node.items())},
        int8_nodes=frozenset(int8_nodes),
    )


def _inputs(layer: Any) -> set[str]:
    """Names of the tensors that a layer reads."""
    tensors = (layer.get_input(i) for i in range(layer.num_inputs))
    return {tensor.name for tensor in tensors if tensor is not None}


def _dequantized_tensors(network: Any) -> set[str]:
    """Names of the tensors that were INT8."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    pairs = (layer for layer in layers if layer.type.name == "DEQUANTIZE")
    return {layer.get_output(0).name for layer in pairs if layer.get_input(0).dtype.name == "INT8"}


def _source_nodes(layer: Any) -> set[str]:
    """Names of the ONNX nodes that a layer comes from, by its metadata and its own name."""
    return {*ONNX_LAYER_NAME.findall(layer.metadata or ""), layer.name}


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause garbage collection.

    TensorRT calls the logger, which is Python, while it holds a lock. A collection in that call may free the builder of
    an earlier failure, which its traceback kept in a cycle, and freeing a builder waits for the same lock: a deadlock.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def collecting_logger(trt: ModuleType) -> Any:
    """Create a TensorRT logger that collects messages in `errors` and `warnings` and prints nothing."""
    base: Any = trt.ILogger

    class Collecting(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(_one_line(message))
            elif severity == trt.ILogger.Severity.WARNING and _one_line(message) not in self.warnings:
                self.warnings.append(_one_line(message))

    return Collecting()


def _one_line(message: str) -> str:
    """Join a message into one line, without the source paths that TensorRT's messages contain."""
    return re.sub(r"/\S*/", "", " ".join(message.split()))[:300]
