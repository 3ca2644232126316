"""What a manifest records of INT8: quantised layers, calibration cases, and the error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tmi.runtime.bundle.frozen_values import FrozenValues
from tmi.toolkit.storage.hashing import sha256_json

if TYPE_CHECKING:
    from tmi.runtime.bundle.manifest import Manifest
    from tmi.toolkit.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationCase(FrozenValues):
    """A training case on which activations were calibrated. It holds digests alone."""

    case: str
    """SHA-256 of the cohort's fingerprint and the case id (`case_digest`)."""
    volume: str
    """SHA-256 of the prepared volume's little-endian bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Graph(FrozenValues):
    """A quantised graph."""

    calibration: tuple[CalibrationCase, ...]
    """Cases that the ranges were measured on: training cases of every fold that uses the graph."""
    magnitudes: Mapping[str, float]
    """Quantised activation -> its largest magnitude on the calibration cases, which becomes the last step."""
    layers_in_int8: int
    """Number of layers that compute in INT8."""
    error: float
    """Relative error of the outputs against eager float32, the largest over all inputs of the search."""
    budget: float
    """Largest relative error that the search accepted."""
    layers_in_float: Mapping[str, str] = field(default_factory=dict)
    """Layer that could be quantised and stays in float32 -> reason."""
    steps: tuple[str, ...] = ()
    """Steps of the search, one line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Record(FrozenValues):
    """INT8 graphs of a bundle."""

    graphs: Mapping[str, Int8Graph]
    """Quantised graph -> its record."""
    graphs_in_float: Mapping[str, str] = field(default_factory=dict)
    """Graph that stays in float32 -> reason."""


def case_digest(cohort_fingerprint: str, case_id: str) -> str:
    """Digest of a case id, which tells whoever has the run's case ids which case it is."""
    return sha256_json({"cohort": cohort_fingerprint, "case": case_id})


def untrained_cases(manifest: Manifest, run: RunFolder) -> dict[str, list[str]]:
    """Calibration cases that a fold of their graph was not trained on, by graph.

    Args:
        manifest: of a bundle of the run.
        run: the run, whose splits name the cases.

    Returns:
        Quantised graph -> case ids; `unknown` stands for a case that is none of the run's, and for a graph that records
        no case. Graphs without such cases are left out.
    """
    fingerprint = run.state["cohort"]["fingerprint"]
    splits = {split.fold: split for split in run.folds}
    ids = {i for split in run.folds for part in (split.train, split.validation, split.test) for i in part}
    names = {case_digest(fingerprint, case_id): case_id for case_id in ids}
    found: dict[str, list[str]] = {}
    for graph, record in ({} if manifest.int8 is None else manifest.int8.graphs).items():
        folds = [splits[fold.fold] for fold in manifest.folds if fold.ct == graph]
        parts = [set(s.train) - set(s.validation) - set(s.test) for s in folds]
        trained = set.intersection(*parts) if parts else set()  # a graph that no fold uses: nothing was trained
        cases = [names.get(case.case, "unknown") for case in record.calibration] or ["unknown"]
        if wrong := sorted(case for case in cases if case not in trained):
            found[graph] = wrong
    return found
