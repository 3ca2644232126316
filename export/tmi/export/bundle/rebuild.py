"""`tmi verify --rebuild RUN`: export a run again and compare the bundle with it, byte by byte.

Digests and a signature show that a bundle is as it was exported or signed. Only another export shows that it is what
its run gives: that no graph, weight, scaler, threshold or record was put in on the way.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tmi.export.bundle.context import WEIGHTS, ExportSettings
from tmi.export.bundle.writer import export_run, extend_bundle
from tmi.export.checks.acceptance import Progress
from tmi.export.graphs.registry import EXPORTERS, INT8
from tmi.export.tensorrt.engines import PLANS
from tmi.runtime.bundle.manifest import REAL_CASES_FILE, Manifest, manifest_to_json
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError

ENVIRONMENT = ("versions", "hardware", "engines_not_validated", "additions")
"""Entries of a manifest that describe the exporting machine."""
SHOWN = 5
"""Number of differences that a message names."""
NOTHING = "nothing"
"""Shown for an entry that is missing."""


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """Result of a comparison that found no difference."""

    run: str
    """Name of the run."""
    files: int
    """Number of files whose bytes are equal, without the manifest, which is equal too."""


def compare_with_rebuild(
    bundle: Bundle, run: Path, *, calibration: Path | None = None, progress: Progress = lambda line: None
) -> Rebuild:
    """Export a run again with the options of a bundle, and require the same bytes.

    Args:
        bundle: an opened bundle.
        run: folder of the run that it is said to be an export of.
        calibration: cohort that the run was trained on, for a bundle with INT8 graphs.
        progress: called with one line for each step.

    Raises:
        UsageError: no such run, or the bundle holds what an export cannot repeat: TensorRT engines, or evidence of real
            cases, which it does not contain; or INT8 graphs, and `calibration` is not given or another cohort.
        DamagedError: the bundle differs from an export of the run, or the run was changed.
        UnavailableError: it differs, but this machine or its packages differ from those of the export.
        ParityError: the run's export does not pass its checks.
    """
    kinds = {kind for graph in bundle.manifest.graphs for kind in graph.artefacts}
    tried = INT8 not in kinds and any(name in bundle.manifest.engines_rejected for name in EXPORTERS[INT8].engines)
    _require_repeatable(bundle, kinds | ({INT8} if tried else set()), calibration)
    # The order of --engine is that of the parity records.
    order = list(dict.fromkeys(record.artefact for record in bundle.manifest.parity))
    artefacts = sorted(
        (name for name, exporter in EXPORTERS.items() if exporter.artefact in kinds and name not in PLANS),
        key=lambda name: order.index(EXPORTERS[name].artefact) if EXPORTERS[name].artefact in order else len(order),
    )
    additions = bundle.manifest.additions
    added = {name for addition in additions for name in addition.artefacts}
    with tempfile.TemporaryDirectory(prefix="tmi-rebuild-") as folder:
        out = Path(folder) / "bundle"
        first = [name for name in artefacts if name not in added] or artefacts  # all were replaced
        first += [INT8] if tried else []
        again = export_run(
            run,
            out,
            artefacts=first,
            weights=WEIGHTS in kinds,
            settings=ExportSettings(
                created=bundle.manifest.created,
                calibration=calibration if INT8 in first else None,
                int8_optional=tried,
            ),
            progress=progress,
        )
        for addition in additions:  # one after another, as they were made: the order of the records shows it
            settings = ExportSettings(
                created=addition.created, calibration=calibration if INT8 in addition.artefacts else None
            )
            again = extend_bundle(
                run, out, open_bundle, artefacts=addition.artefacts, force=True, settings=settings, progress=progress
            )
    differing = differences(bundle.manifest, again.manifest)
    if not differing:
        return Rebuild(run=again.manifest.run.name, files=len(again.manifest.files))
    named = "; ".join(differing[:SHOWN]) + (f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else "")
    environment = [line for line in differing if line.startswith(ENVIRONMENT)]
    if environment:
        raise UnavailableError(
            f"bundle {bundle.folder} cannot be compared with an export of {run} on this machine: {named}",
            fix="compare on the machine and with the package versions that the manifest names",
        )
    raise DamagedError(
        f"bundle {bundle.folder} is not what an export of {run} gives: {named}",
        fix="name the run that it was exported from, or export that run again; the number of cores must be the same",
    )


def _require_repeatable(bundle: Bundle, kinds: set[str], calibration: Path | None) -> None:
    exported = {exporter.artefact for name, exporter in EXPORTERS.items() if name not in PLANS}
    others = sorted(kinds - exported - {WEIGHTS})
    if others:
        raise UsageError(
            f"bundle {bundle.folder} holds {', '.join(others)}, which differs with every build",
            fix="compare a bundle without TensorRT engines: export the run with --engine onnx",
        )
    if INT8 in kinds and calibration is None:
        raise UsageError(
            f"INT8 graphs of bundle {bundle.folder} cannot be repeated without their calibration cases",
            fix="name the cohort that the run was trained on with --cohort",
        )
    if REAL_CASES_FILE in bundle.manifest.files:
        raise UsageError(
            f"bundle {bundle.folder} holds evidence of real cases (--cases), which cannot be repeated without them",
            fix="compare a bundle that was exported without --cases",
        )


def differences(bundle: Manifest, again: Manifest) -> list[str]:
    """One line for each entry of the manifest that differs, those of the machine first, and for each such file."""
    entries = [_flat(manifest_to_json(replace(m, files={}))) for m in (bundle, again)]
    changed = [
        f"{name}: {entries[0].get(name, NOTHING)[:80]}, exported again {entries[1].get(name, NOTHING)[:80]}"
        for name in sorted({*entries[0], *entries[1]}, key=lambda name: (not name.startswith(ENVIRONMENT), name))
        if entries[0].get(name, NOTHING) != entries[1].get(name, NOTHING)
    ]
    return changed + [
        f"{name} {'differs' if name in bundle.files and name in again.files else 'is in one of them only'}"
        for name in sorted({*bundle.files, *again.files})
        if bundle.files.get(name) != again.files.get(name)
    ]


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Every leaf of a JSON document as JSON, by its dotted name."""
    if isinstance(value, Mapping) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}" if name else key).items()}
    if isinstance(value, list) and value:
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{name}[{i}]").items()}
    return {name: json.dumps(value)}
