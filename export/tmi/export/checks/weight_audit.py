"""Audits of an exported file against the run's own weights and the eager network's own epsilons.

Outputs alone cannot show a small change: a weight that hardly matters to four golden cases, or an epsilon of 1e-12
where the model has 1e-5, moves them less than float32 rounds. So the file is read back and compared name by name, bit
by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tmi.export.checks.graph_summary import GraphSummary
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import GraphSpec, TensorSpec

OutputDepends = Callable[[Collection[str]], bool]
"""Whether the eager module's answer changes with the parameters of these names."""


def epsilons(module: nn.Module) -> dict[str, float]:
    """Name of every normalisation of an eager module -> its epsilon."""
    return {name: float(m.eps) for name, m in module.named_modules() if isinstance(getattr(m, "eps", None), float)}


def audit_signature(summary: GraphSummary, spec: GraphSpec, artefact: str) -> CheckResult:
    """Names, types and shapes as the manifest says, dynamic axes dynamic."""
    wrong = [
        f"{want.name} {_shape(want)} is {have.name} {_shape(have)} in the file"
        for wants, haves in ((spec.inputs, summary.inputs), (spec.outputs, summary.outputs))
        for want, have in zip(wants, haves or wants, strict=True)
        if not _spec_matches(want, have)
    ]
    detail = "; ".join(wrong) or "tensors are named, typed and shaped as the manifest says"
    return _record("signature", spec, artefact, len(wrong), detail)


def audit_weights(
    summary: GraphSummary, spec: GraphSpec, artefact: str, expected: Mapping[str, Tensor], depends: OutputDepends
) -> CheckResult:
    """Every tensor the graph reads is the run's, and every tensor of the run that matters is read.

    Args:
        facts: the file.
        spec: its graph.
        artefact: its kind.
        expected: the run's weights by the names of the eager module.
        depends: asked only for weights that the graph does not read.
    """
    wanted = {name: t.numpy() for name, t in expected.items() if t.is_floating_point()}
    wrong = list(_wrong_tensors(summary.tensors, wanted))
    unread = sorted(set(wanted) - set(summary.tensors))
    if unread and depends(unread):
        wrong.append(f"{len(unread)} weights are not in the graph although the answer depends on them: {unread[0]}")
    matched = len(set(wanted) & set(summary.tensors))
    detail = "; ".join(wrong[:3]) or f"{matched} tensors equal the run's bit by bit"
    return _record("weights", spec, artefact, len(wrong), detail)


def _wrong_tensors(
    tensors: Mapping[str, NDArray[np.floating]], wanted: Mapping[str, NDArray[np.floating]]
) -> Iterator[str]:
    for name, have in sorted(tensors.items()):
        if name in wanted:
            want = wanted[name]
            if have.dtype != want.dtype or have.shape != want.shape:
                yield f"{name} is {have.dtype}{list(have.shape)}, the model's is {want.dtype}{list(want.shape)}"
            elif have.tobytes() != want.tobytes():
                yield f"{name} differs from the model's by up to {np.abs(have - want).max():.3g}"
        elif have.size > 1 and (have != have.reshape(-1)[0]).any():
            # A constant of one value (a scale, a fill) is the graph's own; anything richer is a weight from elsewhere.
            yield f"{name} {list(have.shape)} is none of the model's weights"


def audit_epsilons(summary: GraphSummary, spec: GraphSpec, artefact: str, expected: Mapping[str, float]) -> CheckResult:
    """Every normalisation has the epsilon of its module, as float32, and every module that scales is such a node."""
    wrong = []
    for norm in summary.norms:
        if norm.module not in expected:
            wrong.append(f"a normalisation with epsilon {norm.epsilon:g} belongs to no module ({norm.module or '?'})")
        elif np.float32(norm.epsilon) != np.float32(expected[norm.module]):
            wrong.append(f"{norm.module} has epsilon {norm.epsilon:g}, the model's is {expected[norm.module]:g}")
    seen = {norm.module for norm in summary.norms}
    for module in sorted(set(expected) - seen):
        if f"{module}.weight" in summary.tensors:
            wrong.append(f"{module} is no normalisation of its own in the graph, so its epsilon cannot be seen")
    detail = "; ".join(wrong[:3]) or f"{len(summary.norms)} normalisations have their module's epsilon"
    return _record("epsilon", spec, artefact, len(wrong), detail)


def make_output_depends(module: nn.Module, example: tuple[Tensor, ...]) -> OutputDepends:
    """Asks the eager module by putting other values into the named tensors and answering the example again."""

    def depends(names: Collection[str]) -> bool:
        state = {name: t for name, t in module.state_dict(keep_vars=True).items() if name in names}
        kept = {name: t.detach().clone() for name, t in state.items()}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            before = module(*example)
            for t in state.values():
                t.copy_(10 * torch.randn(t.shape, generator=generator))
            after = module(*example)
            for name, t in state.items():
                t.copy_(kept[name])
        return not torch.equal(before, after)

    return depends


def _spec_matches(want: TensorSpec, have: TensorSpec) -> bool:
    same_axes = len(want.shape) == len(have.shape) and all(
        isinstance(h, str) if isinstance(w, str) else w == h for w, h in zip(want.shape, have.shape, strict=True)
    )
    return want.name == have.name and want.dtype == have.dtype and same_axes


def _shape(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{','.join(map(str, spec.shape))}]"


def _record(gate: str, spec: GraphSpec, artefact: str, wrong: int, detail: str) -> CheckResult:
    return CheckResult(
        gate=gate,
        artefact=artefact,
        graph=spec.name,
        passed=wrong == 0,
        measured=float(wrong),
        bound=0.0,
        detail=detail,
    )
