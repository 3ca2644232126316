"""The one place that builds TensorRT plans, for `tensorrt` 10.x and 11.x and for `tensorrt_rtx`.

The module is a parameter, because the three share an API: a strongly typed network (10.x must be asked for it, 11.x has
no other kind), an ONNX parser, optimisation profiles, a builder configuration. What one of them lacks is looked for by
name and written down in the plan's facts; nothing is dropped silently.

A plan says nothing of itself without a GPU, so its facts are taken while it is built: they go into the manifest.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file

TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120")
"""Compute capabilities that TensorRT-RTX builds for ahead of time; A100 is sm80."""
NON_COMPUTE_LAYERS = frozenset("CAST CONSTANT SHUFFLE SQUEEZE UNSQUEEZE IDENTITY SHAPE ASSERTION".split())
"""Layer types that compute nothing; their types follow from their neighbours'."""
ONNX_LAYER_NAME = re.compile(r"\[ONNX Layer: (.*?)(?:\]|$)")
HardwareLevel = Literal["none", "ampere-plus", "same-compute-capability"]
WeightsMode = Literal["inside", "refit", "strip"]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How plans are built."""

    max_batch: int = 4
    """Largest batch; the profiles are batch 1 alone and batch 1 to this."""
    max_length: int = 512
    """Longest text, in tokens."""
    target: str | None = None
    """One of `TARGETS`; None: the GPU of this machine."""
    tf32: bool = False
    """Let float32 products round their inputs to TF32. TensorRT's own default is yes."""
    hardware: HardwareLevel = "none"
    """Which other GPUs the plan must run on."""
    optimisation_level: int = 3
    """0 to 5; higher looks longer for quicker kernels."""
    workspace_mib: int | None = None
    """Memory that kernels may take; None: as much as the GPU has."""
    weights: WeightsMode = "inside"
    """`inside` the plan; exchangeable there (`refit`); `strip`: left out, and taken from the ONNX file on loading."""
    timing_cache: Path | None = None
    """File that keeps timings of kernels between builds."""


@dataclass(frozen=True, kw_only=True)
class TypeAudit:
    """The types that a parsed network computes in."""

    layers: Mapping[str, Mapping[str, int]]
    """Layer type -> type of its first output -> number of layers."""
    unexplained: tuple[str, ...]
    """Layers that compute in float32 although no node that was kept in float32 gives them."""
    float_nodes: Mapping[str, tuple[str, ...]]
    """Node kept in float32 -> the layer types that it became."""

    def count(self, dtype: str) -> int:
        """Layers that compute (`NON_COMPUTE_LAYERS` do not) with outputs of a type."""
        return sum(by.get(dtype, 0) for kind, by in self.layers.items() if kind not in NON_COMPUTE_LAYERS)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A serialized engine and what is known of it."""

    data: bytes
    """What the runtime deserializes."""
    audit: TypeAudit
    """Types of the network that it was built from."""
    facts: dict[str, Any] = field(repr=False)
    """For the manifest; plain JSON values."""


def build_plan(
    trt: ModuleType,
    graph: Path,
    spec: GraphSpec,
    options: BuildOptions,
    *,
    kept: Mapping[str, str] | None = None,
) -> Plan:
    """Parse, audit and build one graph.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`, imported.
        graph: ONNX file; its types are the plan's types.
        spec: its names and dynamic axes.
        options: how.
        kept: nodes of an FP16 graph that stay in float32 -> why; None: the graph is float32 throughout.

    Raises:
        UnavailableError: this TensorRT cannot parse or build it, with its own words.
    """
    return _Build(trt, graph, spec, options, kept).run()


def shape_ranges(
    spec: GraphSpec, options: BuildOptions, *, batch: tuple[int, int, int]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Input -> its smallest, most usual and largest shape in a profile of that batch range."""
    longest = options.max_length
    sizes = {"B": batch, "T": (1, longest, longest)}
    return {
        t.name: tuple(tuple(sizes[a][i] if isinstance(a, str) else a for a in t.shape) for i in range(3))
        for t in spec.inputs
    }


def profiles(spec: GraphSpec, options: BuildOptions) -> list[dict[str, tuple[tuple[int, ...], ...]]]:
    """Profile 0 is for one case, which is what a service asks most; profile 1 for batches up to the largest."""
    ranges = [(1, 1, 1)] + ([(1, options.max_batch, options.max_batch)] if options.max_batch > 1 else [])
    return [shape_ranges(spec, options, batch=r) for r in ranges]


class _Build:
    """One build; the objects of TensorRT must not outlive it."""

    def __init__(
        self, trt: ModuleType, graph: Path, spec: GraphSpec, options: BuildOptions, kept: Mapping[str, str] | None
    ) -> None:
        self.trt, self.graph, self.spec, self.options, self.kept = trt, graph, spec, options, kept
        self.log = collecting_logger(trt)
        self.features: dict[str, str] = {}

    def run(self) -> Plan:
        """The plan."""
        trt = self.trt
        builder = trt.Builder(self.log)
        network = builder.create_network(self._network_flags())
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse_from_file(str(self.graph)):
            reasons = [_one_line(parser.get_error(i).desc()) for i in range(parser.num_errors)]
            self._raise_unavailable("cannot parse", reasons)
        audit = audit_network(network, self.kept)
        config = builder.create_builder_config()
        described = self._add_profiles(builder, network, config)
        self._configure(config)
        cache = self._load_timing_cache(config)
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            self._raise_unavailable("cannot build a plan from", self.log.errors)
        self._save_timing_cache(cache)
        data = bytes(serialized)
        return Plan(data=data, audit=audit, facts=self._facts(data, audit, described))

    def _network_flags(self) -> int:
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        self.features["strong typing"] = "always, no flag" if flag is None else "asked for"
        return 0 if flag is None else 1 << int(flag)

    def _add_profiles(self, builder: Any, network: Any, config: Any) -> list[dict[str, Any]]:
        named = {t.name: t for t in self.spec.inputs}
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            known = named.get(tensor.name)
            for axis, size in enumerate(tensor.shape):
                if size < 0 and (known is None or not isinstance(known.shape[axis], str)):
                    self._raise_unavailable(
                        "cannot build a plan from",
                        [f"axis {axis} of input {tensor.name} is dynamic and no profile gives its range"],
                    )
        described = profiles(self.spec, self.options)
        for ranges in described:
            profile = builder.create_optimization_profile()
            for name, shapes in ranges.items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        return [{name: [list(shape) for shape in shapes] for name, shapes in ranges.items()} for ranges in described]

    def _configure(self, config: Any) -> None:
        trt, options = self.trt, self.options
        if options.tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)
        config.builder_optimization_level = options.optimisation_level
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
        self._target(config)
        self._hardware(config)
        if options.weights != "inside":
            names = {"refit": ("REFIT",), "strip": ("STRIP_PLAN", "REFIT")}[options.weights]
            for name in names:
                flag = getattr(trt.BuilderFlag, name, None)
                if flag is None:
                    self._raise_unavailable("cannot build", [f"this version has no {name} plans"])
                config.set_flag(flag)
        self.features["weights"] = options.weights

    def _target(self, config: Any) -> None:
        target = self.options.target
        if target is None:
            self.features["target"] = "the GPU of the machine that built it"
            return
        capability = getattr(getattr(self.trt, "ComputeCapability", None), target.upper(), None)
        if capability is None or not hasattr(config, "set_compute_capability"):
            self._raise_unavailable(
                f"builds for no target {target}", [f"targets of TensorRT-RTX are {', '.join(TARGETS)}"]
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
        self.features["target"] = target

    def _hardware(self, config: Any) -> None:
        wanted = self.options.hardware
        if wanted == "none":
            self.features["hardware compatibility"] = "none"
            return
        name = wanted.upper().replace("-", "_")
        level = getattr(getattr(self.trt, "HardwareCompatibilityLevel", None), name, None)
        if level is None or hasattr(config, "set_compute_capability"):
            self._raise_unavailable("has no hardware compatibility levels", ["it is built for targets: use --target"])
        config.hardware_compatibility_level = level
        self.features["hardware compatibility"] = wanted

    def _load_timing_cache(self, config: Any) -> Any:
        path = self.options.timing_cache
        if path is None:
            self.features["timing cache"] = "none"
            return None
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        taken = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
        taken = taken and not any("timing cache" in note for note in self.log.warnings)
        self.features["timing cache"] = "used" if taken else "refused: of another version or GPU, or not supported"
        return config.get_timing_cache() if taken else None

    def _save_timing_cache(self, cache: Any) -> None:
        if cache is not None and self.options.timing_cache is not None:
            self.options.timing_cache.write_bytes(bytes(cache.serialize()))

    def _facts(self, data: bytes, audit: TypeAudit, described: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "builder": f"{self.trt.__name__} {self.trt.__version__}",
            "target": self.options.target,
            "tf32": self.options.tf32,
            "optimisation_level": self.options.optimisation_level,
            "workspace_mib": self.options.workspace_mib,
            "features": self.features,
            "profiles": list(described),
            "from": {"file": self.graph.name, "sha256": sha256_file(self.graph)},
            "plan": {"sha256": sha256_bytes(data), "bytes": len(data)},
            "layers": {kind: dict(by) for kind, by in audit.layers.items()},
            "layers_in_half": audit.count("HALF"),
            "layers_in_float": audit.count("FLOAT"),
            "float_nodes": {
                node: {"layers": list(kinds), "why": (self.kept or {}).get(node, "")}
                for node, kinds in audit.float_nodes.items()
            },
            "notes": self.log.warnings,
        }

    def _raise_unavailable(self, what: str, reasons: Sequence[str]) -> None:
        why = "; ".join(_one_line(r) for r in reasons[:3]) or "it gives no reason"
        raise UnavailableError(
            f"{self.trt.__name__} {self.trt.__version__} {what} graph {self.spec.name} ({self.graph.name}): {why}",
            fix="try another --precision or --target, or export with --engine onnx, which runs on OpenVINO and ONNX "
            "Runtime; docs/tensorrt.md lists what is known to be refused",
        )


def audit_network(network: Any, kept: Mapping[str, str] | None) -> TypeAudit:
    """Count the types of a parsed network's layers, and find float32 layers that nobody asked for.

    Args:
        network: as the parser left it.
        kept: nodes that stay in float32; None: all of them.
    """
    layers: dict[str, Counter[str]] = defaultdict(Counter)
    unexplained: list[str] = []
    nodes: dict[str, list[str]] = defaultdict(list)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        output = layer.get_output(0)
        dtype = "NONE" if output is None else output.dtype.name
        layers[layer.type.name][dtype] += 1
        if kept is None or dtype != "FLOAT" or layer.type.name in NON_COMPUTE_LAYERS:
            continue
        origins = _source_nodes(layer) & set(kept)
        if not origins:
            unexplained.append(f"{layer.name} ({layer.type.name})")
        for node in origins:
            nodes[node].append(layer.type.name)
    return TypeAudit(
        layers={kind: dict(by) for kind, by in sorted(layers.items())},
        unexplained=tuple(unexplained),
        float_nodes={node: tuple(kinds) for node, kinds in sorted(nodes.items())},
    )


def _source_nodes(layer: Any) -> set[str]:
    """ONNX nodes that a layer came from: by its metadata, and by its own name."""
    return {*ONNX_LAYER_NAME.findall(layer.metadata or ""), layer.name}


def collecting_logger(trt: ModuleType) -> Any:
    """A logger that prints nothing and keeps errors and warnings in `errors` and `warnings`."""
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
    """One line, without paths of the machine that built the library."""
    return re.sub(r"/\S*/", "", " ".join(message.split()))[:300]
