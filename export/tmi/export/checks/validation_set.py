"""Validation inputs of an export, their reference outputs, and the files that record each engine's outputs.

The module does not import torch, because `tmi build` uses it without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.int8_records import CalibrationCase
from tmi.runtime.bundle.manifest import EVIDENCE_FOLDER, Manifest
from tmi.runtime.engines.registry import Engine
from tmi.runtime.verification.golden_inputs import GoldenInputs
from tmi.runtime.verification.outputs import Outputs
from tmi.runtime.verification.parity import check_outputs
from tmi.toolkit.storage.atomic_files import write_json


@dataclass(frozen=True, kw_only=True)
class RealCase:
    """One real case without its name."""

    inputs: GoldenInputs
    """Its network inputs, in the form of one golden case."""
    reference: Outputs
    """Outputs of the eager model."""
    outputs: dict[str, Outputs] = field(default_factory=dict)
    """Engine -> its outputs; filled while engines are validated."""


@dataclass(frozen=True, kw_only=True)
class CalibratedCase:
    """A training case that calibrates INT8 graphs."""

    record: CalibrationCase
    """Its digests."""
    graphs: tuple[str, ...]
    """Encoder graphs that it calibrates."""
    case: RealCase
    """Network inputs and eager outputs."""


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Inputs that every engine is validated on, and the eager model's outputs for them."""

    golden: GoldenInputs
    """The golden inputs."""
    reference: Outputs
    """Eager float32 outputs for the golden inputs."""
    reference_float64: Outputs | None = None
    """Eager float64 outputs; None for large volumes."""
    real_cases: Sequence[RealCase] = ()
    """Real cases given with --cases."""
    calibration: Sequence[CalibratedCase] = ()
    """Training cases that INT8 is calibrated on."""


def validate_real_cases(
    engine: Engine,
    manifest: Manifest,
    cases: Sequence[RealCase],
    *,
    artefact: str,
    precision: str = "float32",
    kind: str = "real",
) -> list[CheckResult]:
    """Run the parity checks on each case and return the worst result of each, named `<kind>-<check>`.

    Args:
        engine: engine opened on the bundle of `manifest`.
        manifest: manifest with graphs, folds and threshold.
        cases: the cases. The engine's outputs are added to their `outputs`.
        artefact: artefact kind that the engine runs, for the records.
        precision: a key of `tmi.runtime.verification.parity.BOUNDS`.
        kind: what the cases are.
    """
    by_check: dict[tuple[str, str], list[CheckResult]] = {}
    for case in cases:
        keep = partial(case.outputs.__setitem__, engine.name)
        for r in check_outputs(
            engine, manifest, case.inputs, case.reference, artefact=artefact, precision=precision, keep=keep
        ):
            by_check.setdefault((r.check, r.graph), []).append(r)
    # A failed record is worse than any measured error: its `measured` may be None.
    worst = [max(records, key=lambda r: (not r.passed, r.measured or 0.0)) for records in by_check.values()]
    return [
        replace(r, check=f"{kind}-{r.check}", detail=f"worst of {len(cases)} {kind} cases: {r.detail}") for r in worst
    ]


def write_engine_outputs(folder: Path, engine: str, outputs: Outputs) -> None:
    """Write an engine's outputs for the golden inputs into a bundle's evidence folder."""
    path = folder / EVIDENCE_FOLDER / f"{engine}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(outputs.tensors(), path)


def write_real_cases(path: Path, cases: Sequence[RealCase], others: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write hashes of the inputs, and the outputs of the eager model and of every engine.

    Args:
        path: the file.
        cases: the cases.
        others: for each case, recorded outputs of further engines by name.
    """
    rows = [
        {
            "inputs": case.inputs.digests(),
            "eager": _outputs_document(case.reference),
            "engines": {**other, **{name: _outputs_document(outputs) for name, outputs in case.outputs.items()}},
        }
        for case, other in zip(cases, others or [{}] * len(cases), strict=True)
    ]
    # Sorted by hash, so that the file does not reveal the order of the cases on the command line.
    write_json(path, {"cases": sorted(rows, key=lambda row: str(row["inputs"]["ct"]))})


def _outputs_document(outputs: Outputs) -> dict[str, Any]:
    return {
        "logits": outputs.logits_BFK[0].astype(float).tolist(),
        "probabilities": outputs.probabilities_BK[0].tolist(),
    }
