"""Which nodes of a graph must stay in float32, found by measuring: the search behind `--precision auto`.

The ladder, one rung after another until the parity budget holds on every trial:

1. FP16 wherever it is safe by operator and weight (`tmi.export.tensorrt.fp16_conversion`).
2. Nodes that overflow in FP16 go to float32, and the readers of a value that FP16 cannot hold go with them: first the
   node that overflows first, then again, until every tensor is finite.
3. If the answer is still too far from eager float32: the nodes are cut into stretches, each stretch is run in FP16
   alone (its sensitivity), and the most sensitive ones go to float32 until the budget holds; then what was taken along
   needlessly is given back, half by half.
4. TF32, called so, where more than half of the convolutions and matrix products had to leave FP16.
5. float32.

Everything is measured by the emulation of `tmi.export.tensorrt.fp16_simulation`.
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
)
from tmi.export.tensorrt.fp16_simulation import run_emulation as run
from tmi.runtime.engines.precision import FLOAT16, FLOAT32, TF32
from tmi.runtime.verification.parity import relative_error

SEGMENTS = 16
"""Into how many stretches the nodes are cut to measure their sensitivity."""


@dataclass(frozen=True, kw_only=True)
class ProbeInput:
    """One question to a graph and the reference's answer."""

    inputs: Mapping[str, NDArray[np.generic]]
    """By name, as the graph takes them."""
    expected: NDArray[np.float32]
    """What eager float32 answers."""


@dataclass(frozen=True, kw_only=True)
class PrecisionPlan:
    """What the search settled on."""

    precision: str
    """`float16`, `tf32` or `float32`."""
    error: float
    """Largest relative error over the questions."""
    keep: Mapping[str, str] = field(default_factory=dict)
    """Nodes kept in float32 beyond those that are unsafe anyway -> why."""
    steps: tuple[str, ...] = ()
    """What was tried, one line each."""


@dataclass(frozen=True, kw_only=True)
class _Measurement:
    error: float
    overflows: tuple[TensorExtreme, ...]


def search_precision(
    path: Path, probe_inputs: Sequence[ProbeInput], budget: float, *, threads: int = 1
) -> PrecisionPlan:
    """Walk the ladder for one graph.

    Args:
        path: float32 ONNX file with one output.
        probe_inputs: at least one.
        budget: largest `relative_error` that is accepted.
        threads: for ONNX Runtime.

    Raises:
        RuntimeError: the graph cannot be converted.
    """
    return _Search(path, probe_inputs, budget, threads).run()


class _Search:
    """One walk; a node once kept stays kept until the last step."""

    def __init__(self, path: Path, probe_inputs: Sequence[ProbeInput], budget: float, threads: int) -> None:
        self.path, self.probe_inputs, self.budget, self.threads = path, probe_inputs, budget, threads
        model = read_typed(path)
        self.output = str(model.graph.outputs[0].name)
        unsafe = unsafe_nodes(model)
        self.readers: dict[str, list[str]] = {
            str(v.name): [str(n.name) for n in v.consumers()] for node in model.graph for v in node.outputs
        } | {str(v.name): [str(n.name) for n in v.consumers()] for v in model.graph.inputs}
        self.nodes = {str(n.name): n.op_type for n in float_nodes(model) if n.name not in unsafe}
        self.keep: dict[str, str] = {}
        self.steps: list[str] = []

    def run(self) -> PrecisionPlan:
        """The first rung that holds."""
        measured = self._resolve_overflows()
        if measured.error > self.budget:
            self._keep_sensitive_segments()
            measured = self._resolve_overflows()
        products = [name for name, op in self.nodes.items() if op in MATRIX_PRODUCT_OPS]
        left = [name for name in products if name in self.keep]
        if measured.error <= self.budget and (not products or len(left) <= len(products) / 2):
            return self._plan(FLOAT16, measured.error, self.keep)
        self.steps.append(f"{len(left)} of {len(products)} convolutions and products had to leave FP16")
        error = self._measure(emulate_tf32(read_typed(self.path))).error
        self.steps.append(f"TF32: relative error {error:.2e}")
        if error <= self.budget:
            return self._plan(TF32, error, {})
        return self._plan(FLOAT32, self._measure(Emulation(model=read_typed(self.path), probes={})).error, {})

    def _resolve_overflows(self) -> _Measurement:
        """Measure, and send to float32 what overflows, until nothing does."""
        while True:
            measured = self._measure_fp16(self.keep)
            what = f"{len(self.keep)} nodes kept beyond the unsafe ones" if self.keep else "FP16 wherever it is safe"
            self.steps.append(f"{what}: relative error {measured.error:.2e}, {len(measured.overflows)} overflows")
            if not measured.overflows:
                return measured
            self._keep_overflow_source(measured.overflows[0])

    def _keep_overflow_source(self, first: TensorExtreme) -> None:
        if first.node in self.nodes and first.node not in self.keep:
            self.keep[first.node] = f"{first.operator} overflows FP16"
            return
        # Not a node of the float32 graph: the cast that brings a float32 value to its FP16 readers.
        source = first.tensor.removesuffix("_to_fp16")
        readers = [name for name in self.readers[source] if name in self.nodes and name not in self.keep]
        if not readers:
            raise RuntimeError(f"{self.path.name}: {first.tensor} is not finite in float32 either")
        for name in readers:
            self.keep[name] = f"{self.nodes[name]} reads {source}, which FP16 cannot hold"

    def _keep_sensitive_segments(self) -> None:
        """Keep the most sensitive stretches in float32 until the budget holds, then give back what was needless."""
        free = [name for name in self.nodes if name not in self.keep]
        size = max(1, -(-len(free) // SEGMENTS))
        stretches = [free[i : i + size] for i in range(0, len(free), size)]
        alone = [self._measure_fp16({n: "" for n in self.nodes if n not in stretch}).error for stretch in stretches]
        taken: list[list[str]] = []
        for index in sorted(range(len(stretches)), key=lambda i: -alone[i]):
            why = f"among the most sensitive: its stretch alone in FP16 has relative error {alone[index]:.2e}"
            self.keep |= dict.fromkeys(stretches[index], why)
            taken.append(stretches[index])
            measured = self._measure_fp16(self.keep)
            self.steps.append(f"stretch {index} to float32: relative error {measured.error:.2e}")
            if measured.error <= self.budget and not measured.overflows:
                break
        else:
            return
        for stretch in taken:
            self._return_to_fp16(stretch)

    def _return_to_fp16(self, names: list[str]) -> None:
        kept = {name: why for name, why in self.keep.items() if name not in names}
        measured = self._measure_fp16(kept)
        if measured.error <= self.budget and not measured.overflows:
            self.keep = kept
            self.steps.append(f"{len(names)} nodes back to FP16: relative error {measured.error:.2e}")
        elif len(names) > 1:
            self._return_to_fp16(names[: len(names) // 2])
            self._return_to_fp16(names[len(names) // 2 :])

    def _measure_fp16(self, keep: Mapping[str, str]) -> _Measurement:
        return self._measure(emulate_fp16(to_fp16(self.path, keep=keep).model))

    def _measure(self, emulation: Emulation) -> _Measurement:
        order = {str(v.name): i for i, node in enumerate(emulation.model.graph) for v in node.outputs}
        loaded = emulation_session(emulation, threads=self.threads)
        error = 0.0
        overflows: dict[str, TensorExtreme] = {}
        for question in self.probe_inputs:
            outputs, extremes = run(loaded, [self.output], question.inputs)
            error = max(error, relative_error(outputs[self.output], question.expected))
            overflows |= {e.tensor: e for e in extremes.values() if not e.finite}
        return _Measurement(error=error, overflows=tuple(sorted(overflows.values(), key=lambda e: order[e.tensor])))

    def _plan(self, precision: str, error: float, keep: Mapping[str, str]) -> PrecisionPlan:
        self.steps.append(f"{precision}: relative error {error:.2e}, budget {self.budget:.2e}")
        return PrecisionPlan(precision=precision, error=error, keep=dict(keep), steps=tuple(self.steps))
