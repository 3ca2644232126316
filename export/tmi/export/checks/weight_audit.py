"""Audits of an exported file: its signature, its weights against the run's, its epsilons against the eager network's.

Comparing outputs does not detect small changes: a weight with little influence on four golden cases, or an epsilon of
1e-12 instead of 1e-5, changes them by less than float32 rounding. The file is therefore read back, and its tensors are
compared by name and bit by bit.
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
"""Whether the eager module's output depends on the parameters of these names."""


def epsilons(module: nn.Module) -> dict[str, float]:
    """Name of every normalisation of an eager module -> its epsilon."""
    return {name: float(m.eps) for name, m in module.named_modules() if isinstance(getattr(m, "eps", None), float)}


def audit_signature(summary: GraphSummary, spec: GraphSpec, artefact: str) -> CheckResult:
    """Check that names, types, shapes and dynamic axes of inputs and outputs match the manifest."""
    mismatches = [
        f"{expected.name} {_format_spec(expected)} is {actual.name} {_format_spec(actual)} in the file"
        for expected_specs, actual_specs in ((spec.inputs, summary.inputs), (spec.outputs, summary.outputs))
        for expected, actual in zip(expected_specs, actual_specs or expected_specs, strict=True)
        if not _spec_matches(expected, actual)
    ]
    detail = "; ".join(mismatches) or "names, types and shapes of all tensors match the manifest"
    return _record("signature", spec, artefact, len(mismatches), detail)


def audit_weights(
    summary: GraphSummary, spec: GraphSpec, artefact: str, expected: Mapping[str, Tensor], depends: OutputDepends
) -> CheckResult:
    """Check that every tensor of the graph equals the run's, and that no weight that affects the output is missing.

    Args:
        summary: contents of the file.
        spec: its graph.
        artefact: its artefact kind.
        expected: the run's weights by the names of the eager module.
        depends: called only with weights that the graph does not read.
    """
    weights = {name: t.numpy() for name, t in expected.items() if t.is_floating_point()}
    mismatches = list(_weight_mismatches(summary.tensors, weights))
    unread = sorted(set(weights) - set(summary.tensors))
    if unread and depends(unread):
        mismatches.append(
            f"{len(unread)} weights are missing from the graph although the output depends on them: {unread[0]}"
        )
    matched = len(set(weights) & set(summary.tensors))
    detail = "; ".join(mismatches[:3]) or f"{matched} tensors equal the run's bit by bit"
    return _record("weights", spec, artefact, len(mismatches), detail)


def _weight_mismatches(
    tensors: Mapping[str, NDArray[np.floating]], weights: Mapping[str, NDArray[np.floating]]
) -> Iterator[str]:
    for name, actual in sorted(tensors.items()):
        if name in weights:
            expected = weights[name]
            if actual.dtype != expected.dtype or actual.shape != expected.shape:
                yield (
                    f"{name} is {actual.dtype}{list(actual.shape)}, "
                    f"the model's is {expected.dtype}{list(expected.shape)}"
                )
            # Bytes, not values: NaN differs from itself, and -0.0 equals 0.0.
            elif actual.tobytes() != expected.tobytes():
                yield f"{name} differs from the model's by up to {np.abs(actual - expected).max():.3g}"
        elif actual.size > 1 and (actual != actual.reshape(-1)[0]).any():
            # Uniform constants (a scale, a fill value) belong to the graph; any other unnamed tensor is a weight.
            yield f"{name} {list(actual.shape)} is none of the model's weights"


def audit_epsilons(summary: GraphSummary, spec: GraphSpec, artefact: str, expected: Mapping[str, float]) -> CheckResult:
    """Check each normalisation node's epsilon against its module's, as float32.

    A module with a scale in the graph must also have a normalisation node; otherwise its epsilon cannot be checked.
    """
    mismatches = []
    for norm in summary.norms:
        if norm.module not in expected:
            mismatches.append(
                f"a normalisation with epsilon {norm.epsilon:g} belongs to no module ({norm.module or '?'})"
            )
        elif np.float32(norm.epsilon) != np.float32(expected[norm.module]):
            mismatches.append(f"{norm.module} has epsilon {norm.epsilon:g}, the model's is {expected[norm.module]:g}")
    audited = {norm.module for norm in summary.norms}
    for module in sorted(set(expected) - audited):
        if f"{module}.weight" in summary.tensors:
            mismatches.append(f"{module} has no normalisation node in the graph, so its epsilon cannot be checked")
    detail = "; ".join(mismatches[:3]) or f"{len(summary.norms)} normalisations have their module's epsilon"
    return _record("epsilon", spec, artefact, len(mismatches), detail)


def make_output_depends(module: nn.Module, example: tuple[Tensor, ...]) -> OutputDepends:
    """Return a function that overwrites the named tensors with random values and compares the eager outputs."""

    def depends(names: Collection[str]) -> bool:
        state = {name: t for name, t in module.state_dict(keep_vars=True).items() if name in names}
        originals = {name: t.detach().clone() for name, t in state.items()}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            before = module(*example)
            for t in state.values():
                t.copy_(10 * torch.randn(t.shape, generator=generator))
            after = module(*example)
            for name, t in state.items():
                t.copy_(originals[name])
        return not torch.equal(before, after)

    return depends


def _spec_matches(expected: TensorSpec, actual: TensorSpec) -> bool:
    # A dynamic axis may have any name, because exporters rename axes.
    same_axes = len(expected.shape) == len(actual.shape) and all(
        isinstance(a, str) if isinstance(e, str) else e == a for e, a in zip(expected.shape, actual.shape, strict=True)
    )
    return expected.name == actual.name and expected.dtype == actual.dtype and same_axes


def _format_spec(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{','.join(map(str, spec.shape))}]"


def _record(check: str, spec: GraphSpec, artefact: str, mismatches: int, detail: str) -> CheckResult:
    return CheckResult(
        check=check,
        artefact=artefact,
        graph=spec.name,
        passed=mismatches == 0,
        measured=float(mismatches),
        bound=0.0,
        detail=detail,
    )
