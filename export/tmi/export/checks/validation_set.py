"""What every engine is asked at an export, and what is kept of its answers. No torch: `tmi build` needs it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from safetensors.numpy import save_file

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import EVIDENCE_FOLDER, Manifest
from tmi.runtime.engines.registry import Engine
from tmi.runtime.verification.golden_inputs import GoldenInputs
from tmi.runtime.verification.parity import Outputs, check_outputs


@dataclass(frozen=True, kw_only=True)
class RealCase:
    """One case without its name."""

    inputs: GoldenInputs
    """As the network reads it, in the form of one golden case."""
    reference: Outputs
    """What the eager model says."""
    outputs: dict[str, Outputs] = field(default_factory=dict)
    """What each engine said; filled while engines are judged."""


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """What every engine is asked, and what the eager model says to it."""

    golden: GoldenInputs
    """The golden inputs."""
    reference: Outputs
    """Eager float32."""
    reference_float64: Outputs | None = None
    """Eager float64, where it was affordable."""
    real_cases: Sequence[RealCase] = ()
    """Real cases, where some were given."""


def validate_real_cases(
    engine: Engine, manifest: Manifest, cases: Sequence[RealCase], *, artefact: str, precision: str = "float32"
) -> list[CheckResult]:
    """The worst figure of each gate over the cases, as `real-<gate>`.

    Args:
        engine: opened on the bundle of `manifest`.
        manifest: names graphs, folds, threshold.
        cases: their `outputs` get the engine's.
        artefact: artefact kind that the engine runs, for the records.
        precision: a key of `tmi.runtime.verification.parity.BOUNDS`.
    """
    by_gate: dict[tuple[str, str], list[CheckResult]] = {}
    for case in cases:
        keep = partial(case.outputs.__setitem__, engine.name)
        for r in check_outputs(
            engine, manifest, case.inputs, case.reference, artefact=artefact, precision=precision, keep=keep
        ):
            by_gate.setdefault((r.gate, r.graph), []).append(r)
    worst = [max(records, key=lambda r: (not r.passed, r.measured or 0.0)) for records in by_gate.values()]
    return [replace(r, gate=f"real-{r.gate}", detail=f"worst of {len(cases)} real cases: {r.detail}") for r in worst]


def write_engine_outputs(folder: Path, engine: str, outputs: Outputs) -> None:
    """An engine's answers to the golden inputs, into a bundle's folder."""
    path = folder / EVIDENCE_FOLDER / f"{engine}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(outputs.tensors(), path)
