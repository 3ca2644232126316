"""Mixed-precision search (`--precision auto`): finds the nodes of a graph that must stay in float32.

The error budget is a bound on the relative error against eager float32, on every probe input. All errors are measured
with the emulation of `tmi.export.tensorrt.fp16_simulation`. The search takes these steps until the budget holds:

1. Convert every node to FP16 that is safe by operator and weights (`tmi.export.tensorrt.fp16_conversion`).
2. Remove overflows: exclude the first node that overflows from FP16, together with the consumers of a value beyond
   FP16's range, and measure again, until every tensor is finite.
3. If the error exceeds the budget, split the nodes into segments and measure each segment's sensitivity: the error with
   that segment alone in FP16. Exclude segments from FP16, the most sensitive first, until the budget holds. Then return
   nodes to FP16 by bisection as long as the budget holds.
4. If more than half of the convolutions and matrix products are excluded, or the budget does not hold, try TF32 for the
   whole graph.
5. Otherwise use float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmi.export.tensorrt.fp16_conversion import float_nodes, read_typed, to_fp16, unsafe_nodes
from tmi.export.tensorrt.fp16_simulation import (
    MATRIX_PRODUCT_OPS,
    Emulation,
    TensorExtreme,
    emulate_fp16,
    emulate_tf32,
    emulation_session,
    run_emulation,
)
from tmi.runtime.bundle.tensorrt_records import PlanPrecision
from tmi.runtime.engines.precision import FLOAT16, FLOAT32, TF32
from tmi.runtime.verification.parity import relative_error

SEGMENTS = 16
"""Number of segments whose sensitivity is measured."""


@dataclass(frozen=True, kw_only=True)
class ProbeInput:
    """Inputs of one graph and the reference output."""

    inputs: Mapping[str, NDArray[np.generic]]
    """Graph inputs by name."""
    expected: NDArray[np.float32]
    """Output of the eager float32 model."""


@dataclass(frozen=True, kw_only=True)
class PrecisionPlan:
    """Result of the search."""

    precision: PlanPrecision
    """Number format of the products."""
    error: float
    """Largest relative error over the probe inputs; NaN if the precision was given and not searched."""
    float32_nodes: Mapping[str, str] = field(default_factory=dict)
    """Nodes excluded from FP16 in addition to the unsafe ones -> reason."""
    steps: tuple[str, ...] = ()
    """Steps of the search, one line each."""


@dataclass(frozen=True, kw_only=True)
class _Measurement:
    """Emulated error of a graph, and the FP16 tensors that overflow, in the graph's order."""

    error: float
    overflows: tuple[TensorExtreme, ...]

    def within(self, budget: float) -> bool:
        """Whether the error is within the budget and nothing overflows."""
        return self.error <= budget and not self.overflows


def search_precision(
    path: Path, probe_inputs: Sequence[ProbeInput], budget: float, *, threads: int = 1
) -> PrecisionPlan:
    """Search the precision of one graph.

    Args:
        path: float32 ONNX file with one output.
        probe_inputs: inputs to measure on; at least one.
        budget: largest accepted `relative_error`.
        threads: threads of ONNX Runtime.

    Raises:
        RuntimeError: the graph cannot be converted, or a tensor is not finite in float32 either.
    """
    return _Search(path, probe_inputs, budget, threads).run()


class _Search:
    """State of one search: the nodes excluded from FP16 so far and the steps taken."""

    def __init__(self, path: Path, probe_inputs: Sequence[ProbeInput], budget: float, threads: int) -> None:
        self.path, self.probe_inputs, self.budget, self.threads = path, probe_inputs, budget, threads
        model = read_typed(path)
        self.output = str(model.graph.outputs[0].name)
        unsafe = unsafe_nodes(model)
        self.consumers: dict[str, list[str]] = {
            str(v.name): [str(n.name) for n in v.consumers()] for node in model.graph for v in node.outputs
        } | {str(v.name): [str(n.name) for n in v.consumers()] for v in model.graph.inputs}
        # The candidates for FP16, in the graph's order, and their operators.
        self.nodes = {str(n.name): n.op_type for n in float_nodes(model) if n.name not in unsafe}
        self.float32_nodes: dict[str, str] = {}
        self.steps: list[str] = []

    def run(self) -> PrecisionPlan:
        """Return the first precision whose error is within the budget."""
        measurement = self._resolve_overflows()
        if measurement.error > self.budget:
            self._exclude_sensitive_segments()
            # Other nodes now feed FP16 tensors, so new overflows are possible.
            measurement = self._resolve_overflows()
        products = [name for name, op in self.nodes.items() if op in MATRIX_PRODUCT_OPS]
        excluded = [name for name in products if name in self.float32_nodes]
        if measurement.error <= self.budget and (not products or len(excluded) <= len(products) / 2):
            return self._plan(FLOAT16, measurement.error, self.float32_nodes)
        self.steps.append(f"{len(excluded)} of {len(products)} convolutions and products are excluded from FP16")
        error = self._measure(emulate_tf32(read_typed(self.path))).error
        self.steps.append(f"TF32: relative error {error:.2e}")
        if error <= self.budget:
            return self._plan(TF32, error, {})
        return self._plan(FLOAT32, self._measure(Emulation(model=read_typed(self.path), probes={})).error, {})

    def _resolve_overflows(self) -> _Measurement:
        """Exclude the first node that overflows and measure again, until nothing overflows."""
        while True:
            measurement = self._measure_fp16(self.float32_nodes)
            excluded = len(self.float32_nodes)
            what = f"{excluded} nodes in float32 beyond the unsafe ones" if excluded else "FP16 wherever it is safe"
            self.steps.append(f"{what}: relative error {measurement.error:.2e}, {len(measurement.overflows)} overflows")
            if not measurement.overflows:
                return measurement
            # Only the first: later overflows are often its consequences.
            self._exclude_overflow(measurement.overflows[0])

    def _exclude_overflow(self, overflow: TensorExtreme) -> None:
        """Exclude the node that overflows, or the consumers of a float32 value that FP16 cannot hold."""
        if overflow.node in self.nodes and overflow.node not in self.float32_nodes:
            self.float32_nodes[overflow.node] = f"{overflow.operator} overflows FP16"
            return
        # The overflow is in an inserted cast, which passes a float32 value to its FP16 consumers.
        source = overflow.tensor.removesuffix("_to_fp16")
        consumers = [n for n in self.consumers[source] if n in self.nodes and n not in self.float32_nodes]
        if not consumers:
            raise RuntimeError(f"{self.path.name}: {overflow.tensor} is not finite in float32 either")
        for name in consumers:
            self.float32_nodes[name] = f"{self.nodes[name]} reads {source}, which FP16 cannot hold"

    def _exclude_sensitive_segments(self) -> None:
        """Exclude segments by decreasing sensitivity until the budget holds, then return nodes that FP16 can have."""
        candidates = [name for name in self.nodes if name not in self.float32_nodes]
        size = max(1, -(-len(candidates) // SEGMENTS))  # ceiling division
        segments = [candidates[i : i + size] for i in range(0, len(candidates), size)]
        # Sensitivity of a segment: the error with all other nodes in float32.
        sensitivity = [
            self._measure_fp16({n: "" for n in self.nodes if n not in segment}).error for segment in segments
        ]
        excluded: list[list[str]] = []
        for index in sorted(range(len(segments)), key=lambda i: -sensitivity[i]):
            why = f"among the most sensitive: its segment alone in FP16 has relative error {sensitivity[index]:.2e}"
            self.float32_nodes |= dict.fromkeys(segments[index], why)
            excluded.append(segments[index])
            measurement = self._measure_fp16(self.float32_nodes)
            self.steps.append(f"segment {index} to float32: relative error {measurement.error:.2e}")
            if measurement.within(self.budget):
                break
        else:
            return  # even without FP16 in any segment the budget does not hold
        for segment in excluded:
            self._return_to_fp16(segment)

    def _return_to_fp16(self, names: list[str]) -> None:
        """Return nodes to FP16 if the budget still holds, else try each half of them."""
        remaining = {name: why for name, why in self.float32_nodes.items() if name not in names}
        measurement = self._measure_fp16(remaining)
        if measurement.within(self.budget):
            self.float32_nodes = remaining
            self.steps.append(f"{len(names)} nodes back to FP16: relative error {measurement.error:.2e}")
        elif len(names) > 1:
            self._return_to_fp16(names[: len(names) // 2])
            self._return_to_fp16(names[len(names) // 2 :])

    def _measure_fp16(self, float32_nodes: Mapping[str, str]) -> _Measurement:
        return self._measure(emulate_fp16(to_fp16(self.path, float32_nodes=float32_nodes).model))

    def _measure(self, emulation: Emulation) -> _Measurement:
        """Run an emulation on every probe input: the largest error, and every tensor that overflowed."""
        order = {str(v.name): i for i, node in enumerate(emulation.model.graph) for v in node.outputs}
        session = emulation_session(emulation, threads=self.threads)
        error = 0.0
        overflows: dict[str, TensorExtreme] = {}
        for probe in self.probe_inputs:
            outputs, extremes = run_emulation(session, [self.output], probe.inputs)
            error = max(error, relative_error(outputs[self.output], probe.expected))
            overflows |= {e.tensor: e for e in extremes.values() if not e.finite}
        return _Measurement(error=error, overflows=tuple(sorted(overflows.values(), key=lambda e: order[e.tensor])))

    def _plan(self, precision: PlanPrecision, error: float, float32_nodes: Mapping[str, str]) -> PrecisionPlan:
        self.steps.append(f"{precision}: relative error {error:.2e}, budget {self.budget:.2e}")
        return PrecisionPlan(
            precision=precision, error=error, float32_nodes=dict(float32_nodes), steps=tuple(self.steps)
        )
