"""What a manifest records of TensorRT: precision of the typed graphs, their emulation, and the plans built from them.

A plan cannot be inspected without a GPU, so its build stores here what a reader needs to know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tmi.runtime.bundle.frozen_values import FrozenValues
from tmi.runtime.bundle.manifest_records import FileSpec

PlanPrecision = Literal["float32", "tf32", "float16", "int8"]
"""Number format of a plan's products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPrecision(FrozenValues):
    """Precision of one graph in TensorRT plans."""

    precision: PlanPrecision
    """Number format of its products."""
    search: tuple[str, ...] = ()
    """Steps of the precision search, one line each; empty if the precision was given."""
    nodes_in_half: int | None = None
    """Number of nodes in FP16; null if the graph is not FP16."""
    nodes_in_float: Mapping[str, str] = field(default_factory=dict)
    """Node of an FP16 or INT8 graph that stays in float32 although others of its kind do not -> reason."""
    nodes_in_int8: int | None = None
    """Number of nodes in INT8; null if the graph is not INT8, and then left out of the document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRecord(FrozenValues):
    """Precision of all graphs in TensorRT plans."""

    graphs: Mapping[str, GraphPrecision]
    """Graph -> its precision."""
    requested: str = "unknown"
    """Precision that the export was called with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPosition(FrozenValues):
    """A tensor of a graph."""

    tensor: str
    """Its name."""
    node: str
    """Node that computes it."""
    operator: str
    """Operator of the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulationRecord(FrozenValues):
    """Largest FP16 magnitude of one graph on golden inputs and real cases."""

    tensors: int
    """Number of FP16 tensors; 0 if the graph has none, and then the other fields are null."""
    largest: float | None = None
    """Largest magnitude."""
    at: TensorPosition | None = None
    """Tensor that has it."""
    share_of_fp16_range: float | None = None
    """Largest magnitude divided by the largest FP16 number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSource(FrozenValues):
    """ONNX file that a plan was built from."""

    file: str
    """Name of the file."""
    sha256: str
    """SHA-256, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatNode(FrozenValues):
    """Node that stays in float32 in an FP16 plan."""

    layers: tuple[str, ...]
    """Types of its layers."""
    why: str
    """Reason; empty if none was recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFeatures(FrozenValues):
    """Features of TensorRT that a build used."""

    weights: str = "inside"
    """`inside` the plan, `refit` (replaceable), or `strip` (read from the ONNX file)."""
    hardware_compatibility: str = "none"
    """Other GPUs that the plan runs on."""
    target: str | None = None
    """GPU that the plan was built for."""
    strong_typing: str | None = None
    """How types are kept."""
    timing_cache: str | None = None
    """Whether a timing cache was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord(FrozenValues):
    """One plan (serialized engine)."""

    builder: str
    """Package that built it, and its version."""
    features: PlanFeatures
    """Features that the build used."""
    profiles: tuple[Mapping[str, tuple[tuple[int, ...], ...]], ...]
    """Optimization profiles: input -> its smallest, optimal and largest shape."""
    plan: FileSpec
    """Fingerprint of the plan."""
    target: str | None = None
    """Compute capability that was requested; null: that of the building GPU."""
    built_on: str | None = None
    """Compute capability of the building GPU; null if the plan was built for a named target."""
    compiler: str | None = None
    """Package that compiled it from a module instead of an ONNX graph, and its version."""
    source: GraphSource | None = None
    """File that it was built from; null if it was compiled from a module."""
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Layer type -> data type of the output -> number of layers before fusion; INT8: every input is a dequantized INT8
    tensor."""
    layers_in_half: int | None = None
    """Number of layers that compute in FP16."""
    layers_in_float: int | None = None
    """Number of layers that compute in float32."""
    layers_in_int8: int | None = None
    """Number of layers that compute in INT8; null if there is none, and then left out of the document."""
    float_nodes: Mapping[str, FloatNode] = field(default_factory=dict)
    """Node that stays in float32 -> why."""
    tf32: bool | None = None
    """Whether products may use TF32."""
    optimisation_level: int | None = None
    """Builder optimization level."""
    workspace_mib: int | None = None
    """Workspace limit in MiB."""
    notes: tuple[str, ...] = ()
    """Warnings of the builder."""
    shared: str | None = None
    """File of the plan, if another graph of the same structure owns it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(FrozenValues):
    """Build options of an engine's plans; null where its compiler does not have the option."""

    target: str | None = None
    """Compute capability; null: that of the building GPU."""
    max_batch: int | None = None
    """Largest batch."""
    max_length: int | None = None
    """Maximum text length in tokens."""
    tf32: bool | None = None
    """Whether TF32 was allowed for all graphs."""
    hardware: str | None = None
    """Hardware compatibility level."""
    optimisation_level: int | None = None
    """Builder optimization level."""
    workspace_mib: int | None = None
    """Workspace limit in MiB."""
    weights: str | None = None
    """`inside`, `refit` or `strip`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlans(FrozenValues):
    """All plans of one engine."""

    graphs: Mapping[str, PlanRecord]
    """Graph -> its plan."""
    options: PlanOptions = field(default_factory=PlanOptions)
    """Build options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRecord(FrozenValues):
    """GPU on which an engine was validated."""

    gpu: str
    """Name."""
    compute_capability: str
    """Compute capability, for example `sm90`."""
    driver_cuda: str
    """CUDA version of the driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtRecord(FrozenValues):
    """Everything about TensorRT."""

    precision: PrecisionRecord | None = None
    """Precision of the typed graphs."""
    emulation: Mapping[str, EmulationRecord] = field(default_factory=dict)
    """Graph -> its largest FP16 magnitude."""
    plans: Mapping[str, EnginePlans] = field(default_factory=dict)
    """Engine -> its plans."""
    pending: Mapping[str, str] = field(default_factory=dict)
    """Engine that is not built yet -> why the export could not build it."""
    validated_on: Mapping[str, GpuRecord] = field(default_factory=dict)
    """Engine -> GPU on which it passed the parity checks."""
