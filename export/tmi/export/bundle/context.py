"""What the stages of one export share (`tmi.export.bundle.stages`). Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tmi.export.checks.validation_set import ValidationSet
from tmi.export.graphs.registry import EXPORTERS, INT8, TYPED
from tmi.export.tensorrt.builder import BuildOptions
from tmi.export.tensorrt.engines import PLANS
from tmi.runtime.bundle.check_result import CheckResult, require_passed
from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.toolkit.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tmi.export.graphs.partition import FoldModels, GraphPartition

WEIGHTS = "weights"
"""Artefact kind of the eager weights."""
DEFAULT_PRECISION = "fp16"
"""Precision of TensorRT engines, if none is requested."""
INT8_PRECISION = "int8"
"""Value of `--precision` that adds INT8 graphs."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of an export beyond its artefacts."""

    cases: tuple[Path, ...] = ()
    """Real case or cohort folders to validate the engines on, in addition to the golden inputs. Only their hashes and
    outputs are stored in the bundle."""
    calibration: Path | None = None
    """Cohort that the run was trained on, on whose training cases INT8 graphs are calibrated. Only hashes of them are
    stored in the bundle."""
    int8_optional: bool = False
    """Whether a bundle is written without INT8 graphs, with the reason, if they fail a check or are not calibrated."""
    precision: str | None = None
    """Precision of TensorRT engines, a key of `tmi.export.tensorrt.precision_choice.PRECISIONS`; None: that of the
    bundle's typed graphs, if it has any, else `DEFAULT_PRECISION`."""
    options: BuildOptions = field(default_factory=BuildOptions)
    """Build options of TensorRT engines. The maximum text length is always the run's."""
    check_memory: bool = True
    """Whether the machine's memory is compared with the need before a network runs."""
    created: str | None = None
    """Time to record as that of the export; None: `tmi.export.bundle.reproducible.export_time`."""


@dataclass(kw_only=True)
class ExportContext:
    """State of one export. The attributes without a default are set by the stage that is named."""

    out: Path
    """The bundle's place, for messages."""
    folder: Path
    """The staged folder."""
    artefacts: tuple[str, ...]
    """Names in `EXPORTERS` to write."""
    settings: ExportSettings
    """Settings."""
    progress: Callable[[str], None]
    """Called with one line that describes the current step."""
    created: str
    """Time to record as that of the export, ISO 8601."""
    build: bool = False
    """Whether this is `tmi build`, which has neither a run nor the option `--precision`."""
    weights: bool = True
    """Whether a new bundle stores the eager weights. A bundle that is extended keeps what it has."""
    base: Bundle | None = None
    """The staged copy of the bundle that is extended, without the artefacts that are replaced; None: a new bundle."""
    records: list[CheckResult] = field(default_factory=list)
    """Results of the checks so far, without those of `base`."""
    run: RunFolder = field(init=False)
    """The run; not set by `tmi build`, which has none."""
    manifest: Manifest = field(init=False)
    """The manifest so far. Set by `partition`, and completed by every later stage."""
    partition: GraphPartition = field(init=False)
    """The run's graphs. Set by `partition`."""
    models: FoldModels | None = field(init=False, default=None)
    """The fold models. Set by `partition`, freed after `write`."""
    int8_reason: str | None = None
    """Why INT8 graphs cannot be calibrated. Set by `reference`, if they are optional."""
    validation_set: ValidationSet = field(init=False)
    """Inputs and reference outputs. Set by `reference`."""

    @property
    def graph_artefacts(self) -> tuple[str, ...]:
        """The artefacts that are written from the network; the others are built from their files."""
        return tuple(name for name in self.artefacts if EXPORTERS[name].writer is not None)

    @property
    def checked_artefacts(self) -> tuple[str, ...]:
        """The artefacts whose engines this export validates; those of TensorRT engines may be built elsewhere."""
        return tuple(name for name in self.artefacts if name not in PLANS)

    @property
    def plans(self) -> tuple[str, ...]:
        """The artefacts that are TensorRT engines."""
        return tuple(name for name in self.artefacts if name in PLANS)

    @property
    def calibrates(self) -> bool:
        """Whether INT8 graphs are written for CPU or TensorRT; their errors are measured on calibration cases."""
        signed = self.settings.precision == INT8_PRECISION and bool(self.plans)
        return INT8 in self.artefacts or (signed and not (self.base is not None and self.base.has(TYPED)))

    @property
    def old_graph_artefacts(self) -> tuple[str, ...]:
        """Artefacts of the extended bundle that are written from the network."""
        if self.base is None:
            return ()
        return tuple(n for n in EXPORTERS if EXPORTERS[n].writer is not None and self.base.has(EXPORTERS[n].artefact))

    def staged(self) -> Bundle:
        """The staged folder as a bundle whose files are not compared with the manifest."""
        return Bundle(folder=self.folder, manifest=self.manifest, digest="")

    def require_passed(self) -> None:
        """Raise unless every check so far has passed.

        Raises:
            ParityError: a check failed. Nothing was written.
        """
        require_passed(self.records, consequence=self.consequence)

    @property
    def consequence(self) -> str:
        """What a failed check does to the bundle, for messages."""
        return "no bundle was written" if self.base is None else "the bundle was left as it was"


def with_required_graphs(artefacts: tuple[str, ...], base: Bundle | None, precision: str | None) -> tuple[str, ...]:
    """Add what other artefacts are built from, unless a bundle has it: `onnx`, and INT8 graphs for INT8 plans."""
    if precision == INT8_PRECISION and INT8 not in artefacts and (base is None or not base.has(INT8)):
        artefacts = (INT8, *artefacts)
    needs_onnx = any(EXPORTERS[name].writer is None for name in artefacts) and "onnx" not in artefacts
    return ("onnx", *artefacts) if needs_onnx and (base is None or not base.has("onnx")) else artefacts
