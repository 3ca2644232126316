"""What a manifest records of files, golden inputs, the training run and the exporting machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tmi.runtime.bundle.frozen_values import FrozenValues


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec(FrozenValues):
    """Fingerprint of a file."""

    sha256: str
    """SHA-256, hexadecimal."""
    bytes: int
    """Size in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClinicalSpec(FrozenValues):
    """Conversion of clinical records to the text the models were trained on."""

    schema: str
    """File of the clinical schema, relative to the bundle."""
    rendering: str
    """Name of the rendering."""
    rendering_version: int
    """Version of the rendering at training; a reader with another version rejects the bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware(FrozenValues):
    """Machine of the export, without its host name."""

    machine: str
    """Machine type, for example `x86_64`."""
    cpu: str
    """Name of the processor."""
    system: str
    """Operating system and its release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition(FrozenValues):
    """Artefacts that were added to a bundle after its export."""

    artefacts: tuple[str, ...]
    """Their names."""
    created: str
    """UTC time, ISO 8601."""
    versions: Mapping[str, str]
    """Tool and library versions at the addition."""
    hardware: Hardware
    """Machine of the addition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRecord(FrozenValues):
    """Statistics of the training cases, against which a prediction states the p-values of its case."""

    level: float
    """Largest joint p-value at which a case is not trusted, unless a command gives another level."""
    cases: int
    """Number of held-out training cases of all folds; the smallest possible p-value is 1 / (cases + 1)."""
    files: tuple[str, ...]
    """File of each fold's statistics (`tmi.toolkit.trust`), in the order of `Manifest.folds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRecord(FrozenValues):
    """How the golden inputs are generated, and their digests."""

    seed: int
    """Seed, not negative."""
    count: int
    """Number of cases."""
    vocabularies: Mapping[str, int]
    """Name of a text graph -> size of its tokenizer's vocabulary."""
    digests: Mapping[str, str]
    """Name of an input -> SHA-256 of its little-endian bytes."""
    float32_noise: Mapping[str, float] | None = None
    """Graph -> relative error of eager float32 against eager float64; null if float64 was not computed."""
    largest_batch: int | None = None
    """Largest batch on which engines were checked; null in a bundle of an earlier version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortRecord(FrozenValues):
    """Cohort of the training run, in numbers."""

    cases: int | None = None
    """Number of cases."""
    fingerprint: str | None = None
    """SHA-256 over the cases; says whether another cohort is the same."""
    synthetic: bool = False
    """Whether a program generated it."""
    rejected: int | None = None
    """Number of cases that the checks rejected; null if it was not counted."""
    radiomics_axes: Mapping[str, int] = field(default_factory=dict)
    """Axes on which radiomics were extracted -> number of cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSummary(FrozenValues):
    """A metric over the folds in which it is defined."""

    mean: float | None = None
    """Mean; null if no fold defines it."""
    std: float | None = None
    """Sample standard deviation; null for fewer than two folds."""
    folds: int | None = None
    """Number of folds that define it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldMetrics(FrozenValues):
    """Metrics of one fold on its held-out cases."""

    fold: int
    """Fold number in the run."""
    test: Mapping[str, float | None] = field(default_factory=dict)
    """Metric -> its value at the threshold 0.5; null if undefined."""
    test_at_threshold: Mapping[str, float | None] = field(default_factory=dict)
    """The same at the fold's own threshold, with calibrated probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSummary(FrozenValues):
    """Calibration of the ensemble."""

    threshold: float
    """Threshold fitted on the inner validation predictions of all folds."""
    test: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """`raw` or `calibrated` -> error of the probabilities (`ece`, `brier`, `log_loss`) -> mean over the folds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary(FrozenValues):
    """Metrics of the run on its held-out cases."""

    cases: int | None = None
    """Number of held-out cases of all folds."""
    rejected_cases: int | None = None
    """Number of cases that the checks rejected."""
    over_folds: Mapping[str, MetricSummary] = field(default_factory=dict)
    """Metric -> its summary over the folds."""
    folds: tuple[FoldMetrics, ...] = ()
    """Metrics of each fold."""
    calibration: CalibrationSummary | None = None
    """Calibration; null if the run has none."""
    notes: tuple[str, ...] = ()
    """What a reader of the metrics must know, in sentences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord(FrozenValues):
    """Description of the training run: fingerprints, numbers and metrics, no patient data."""

    name: str
    """Name of the run."""
    started_at: str | None = None
    """UTC time of its start, ISO 8601."""
    finished_at: str | None = None
    """UTC time of its end, ISO 8601."""
    cohort: CohortRecord = field(default_factory=CohortRecord)
    """Cohort."""
    class_counts: Mapping[str, int] = field(default_factory=dict)
    """Class -> number of held-out cases; empty if one is too small to be published."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> its version at training."""
    summary: RunSummary | None = None
    """Metrics; null if the run has none."""
