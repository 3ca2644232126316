"""Artefacts that are added to a bundle: what may be added, and whether the bundle is an export of the run.

A bundle is extended in a copy that takes its place at the end. Its files and check records stay as they are;
`Manifest.additions` records each addition with its time, versions and hardware.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tmi.export.bundle.context import INT8_PRECISION, ExportContext
from tmi.export.bundle.run_record import recorded_versions
from tmi.export.checks.validation_set import RealCase
from tmi.export.graphs.registry import EXPORTERS, INT8, TYPED
from tmi.export.tensorrt.engines import PLANS, pending_engines, without_plans
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import EVIDENCE_FOLDER, MANIFEST_FILE, REAL_CASES_FILE, Manifest
from tmi.runtime.bundle.manifest_records import Addition, Hardware, RunRecord
from tmi.runtime.bundle.reader import Bundle, inspect_bundle, open_bundle
from tmi.runtime.engines.host import hardware
from tmi.runtime.engines.precision import FLOAT32
from tmi.runtime.verification.parity import BOUNDS, relative_error
from tmi.runtime.verification.verify import read_references
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.storage.hashing import canonical_json, sha256_file

PACKAGE = "tmi-clnet"


def require_addable(out: Path, artefacts: Sequence[str], *, precision: str | None, force: bool) -> Bundle:
    """Check that artefacts can be added to a bundle, without hashing a file.

    Returns:
        The bundle, whose names and sizes were compared with its manifest.

    Raises:
        UsageError: no bundle, one of another format or version, an artefact that it has, or a precision that other
            engines of the bundle do not have.
        DamagedError: the manifest is damaged.
    """
    if not (out / MANIFEST_FILE).is_file():
        raise UsageError(f"{out} is not a bundle to add to", fix="name one with --out, or omit --add to make a new one")
    bundle = inspect_bundle(out)
    schema = read_json(out / MANIFEST_FILE, kind="bundle")["schema"]
    manifest = bundle.manifest
    everything = ",".join(dict.fromkeys((*present_artefacts(bundle), *artefacts)))
    again = f"export the run again with --engine {everything} --force"
    if schema != manifest.schema:
        raise UsageError(f"bundle {out} has the format {schema}, which cannot be extended", fix=again)
    made, here = manifest.versions.get(PACKAGE), recorded_versions().get(PACKAGE)
    if made != here:
        raise UsageError(f"bundle {out} was exported by tmi {made}, this is tmi {here}", fix=again)
    existing = [name for name in artefacts if name in present_artefacts(bundle)]
    if existing and not force:
        raise UsageError(f"bundle {out} has {', '.join(existing)} already", fix="replace it with --force")
    built = [*_plans(bundle), *([INT8] if bundle.has(INT8) else [])]
    kept = [name for name in built if name not in artefacts]
    recorded = typed_precision(manifest)
    plans = [name for name in kept if name in PLANS]
    if INT8 in existing and recorded == INT8_PRECISION and plans:
        raise UsageError(
            f"{', '.join(plans)} of bundle {out} was calibrated with the INT8 graphs that --force replaces",
            fix=f"name it too: --engine {everything}",
        )
    if "onnx" in existing and kept:
        raise UsageError(
            f"{', '.join(kept)} of bundle {out} was built from the onnx graphs that --force replaces",
            fix=f"name it too: --engine {everything}",
        )
    if precision is not None and recorded not in (None, precision) and kept:
        raise UsageError(
            f"the typed graphs of bundle {out} have --precision {recorded}, which {', '.join(kept)} was built with",
            fix=f"omit --precision, or replace all of them: --engine {everything} --force",
        )
    return bundle


def present_artefacts(bundle: Bundle) -> list[str]:
    """Names of the artefacts that a bundle has for every graph."""
    return [name for name, exporter in EXPORTERS.items() if bundle.has(exporter.artefact)]


def typed_precision(manifest: Manifest) -> str | None:
    """Value of `--precision` that a bundle's typed graphs were written with; None if it has none."""
    record = None if manifest.tensorrt is None else manifest.tensorrt.precision
    return None if record is None else record.requested


def _plans(bundle: Bundle) -> list[str]:
    """TensorRT engines of a bundle, pending ones included."""
    return [n for n in PLANS if bundle.has(EXPORTERS[n].artefact) or n in pending_engines(bundle.manifest)]


def without_artefacts(bundle: Bundle, names: Collection[str], precision: str | None) -> Bundle:
    """Remove the artefacts that are written again from a staged copy of a bundle, with their records.

    Typed graphs are removed too if the float32 graphs, or the INT8 graphs of typed ones in INT8, are replaced or the
    precision changes.

    Args:
        bundle: the staged copy.
        names: names in `EXPORTERS`; those that the bundle does not have are ignored.
        precision: the requested precision; None: that of the bundle.

    Returns:
        The bundle without them. Their files are deleted.
    """
    manifest = bundle.manifest
    present = [name for name in names if name in present_artefacts(bundle) or name in pending_engines(manifest)]
    kinds = {EXPORTERS[name].artefact for name in present}
    recorded = typed_precision(manifest)
    recalibrated = INT8 in present and recorded == INT8_PRECISION
    if recorded is not None and ("onnx" in present or recalibrated or precision not in (None, recorded)):
        kinds.add(TYPED)
    if not kinds:
        return bundle
    graphs = tuple(
        replace(g, artefacts={k: v for k, v in g.artefacts.items() if k not in kinds}) for g in manifest.graphs
    )
    # A pending engine has no files yet: the addition that wrote its typed graphs stays recorded.
    replaced = [name for name in present if name in present_artefacts(bundle) or TYPED in kinds]
    removed = [r for r in manifest.parity if r.artefact in kinds]
    engines = {r.engine for r in removed} | {e for n in present for e in EXPORTERS[n].engines}
    additions = tuple(
        replace(addition, artefacts=left)
        for addition in manifest.additions
        if (left := tuple(name for name in addition.artefacts if name not in replaced))
    )
    changed = replace(
        manifest,
        graphs=graphs,
        parity=tuple(r for r in manifest.parity if r.artefact not in kinds),
        engines_not_validated={e: why for e, why in manifest.engines_not_validated.items() if e not in engines},
        engines_rejected={e: why for e, why in manifest.engines_rejected.items() if e not in engines},
        additions=additions,
    )
    if INT8 in present:
        changed = replace(changed, int8=None)
    changed = without_plans(changed, [name for name in present if name in PLANS], typed=TYPED in kinds)
    unused = set(manifest.referenced_files()) - set(changed.referenced_files())
    unused |= {f"{EVIDENCE_FOLDER}/{engine}.safetensors" for engine in engines if engine}
    for name in unused:
        (bundle.folder / name).unlink(missing_ok=True)
    return replace(bundle, manifest=changed)


def staged_copy(bundle: Bundle, stage: Path) -> Bundle:
    """Copy an opened bundle into a staged folder, and open the copy: what is added is built from the copy.

    Raises:
        DamagedError: a file of the bundle was exchanged after it was opened.
    """
    shutil.copytree(bundle.folder, stage, dirs_exist_ok=True)
    copy = open_bundle(stage)
    if copy.digest != bundle.digest:
        raise DamagedError(f"bundle {bundle.folder} was exchanged during the build", fix="build it again")
    return copy


def require_same_run(context: ExportContext, base: Bundle, manifest: Manifest, copied: Mapping[str, Path]) -> None:
    """Require that a bundle is an export of a run, by everything but its weights and outputs.

    Args:
        context: the addition.
        base: the bundle.
        manifest: a new manifest of the run, without artefacts.
        copied: name in a bundle -> file of the run.

    Raises:
        UsageError: it is an export of another run; the message names the first difference.
    """
    difference = next(_run_differences(base.manifest, manifest, copied), None)
    if difference is not None:
        name = base.manifest.run.name
        raise UsageError(
            f"bundle {context.out} is not an export of run {context.run.path}: {difference}",
            fix=f"name its own run ({name}), or write another bundle with --out and without --add",
        )


def _run_differences(base: Manifest, manifest: Manifest, copied: Mapping[str, Path]) -> Iterator[str]:
    for field in sorted(f.name for f in fields(RunRecord)):
        if getattr(base.run, field) != getattr(manifest.run, field):
            yield f"its run has another {field.replace('_', ' ')}"
    if base.config != manifest.config:
        yield "its config is another one"
    for field in ("preset", "threshold", "modalities", "classes", "positive", "synthetic", "clinical", "folds"):
        if getattr(base, field) != getattr(manifest, field):
            yield f"its {field} is another one"
    if base.temperatures != manifest.temperatures:
        yield "its temperatures are others"
    if tuple(replace(g, artefacts={}) for g in base.graphs) != manifest.graphs:
        yield "its graphs are others"
    for name, source in copied.items():
        recorded = base.files.get(name)
        if recorded is None or recorded.sha256 != sha256_file(source):
            yield f"its {name} is another file"


def require_same_weights(context: ExportContext, audits: Iterable[CheckResult]) -> None:
    """Require that the audits of a bundle's old files against the run passed.

    Raises:
        DamagedError: one failed.
    """
    failed = next((r for r in audits if not r.passed), None)
    if failed is not None:
        raise DamagedError(
            f"bundle {context.out} does not hold the weights of run {context.run.path}: {failed.graph} "
            f"({failed.artefact}): {failed.detail}",
            fix="name the run that it was exported from, or export this run again with --force and without --add",
        )


def require_same_references(context: ExportContext, base: Bundle) -> None:
    """Require that the eager outputs and real cases of a bundle are those of the run.

    Raises:
        DamagedError: the outputs for the golden inputs differ by more than float32 rounding.
        UsageError: it was validated on other real cases.
    """
    stored, computed = read_references(base).float32.by_graph(), context.validation_set.reference.by_graph()
    for name, output in computed.items():
        if name not in stored or relative_error(stored[name], output) > BOUNDS[FLOAT32].relative:
            raise DamagedError(
                f"bundle {context.out}: its golden outputs of {name} are not the run's",
                fix="export the run again with --force and without --add",
            )
    given = [case.inputs.digests() for case in context.validation_set.real_cases]
    recorded = [row["inputs"] for row in real_case_rows(base)]
    if sorted(map(canonical_json, given)) != sorted(map(canonical_json, recorded)):  # whatever the order of their keys
        raise UsageError(
            f"bundle {context.out} was validated on {len(recorded)} real cases, and --cases gives "
            f"{len(given)}{' others' if len(given) == len(recorded) else ''}",
            fix="name the same cases with --cases, or export all engines again with --force and without --add",
        )


def real_case_rows(bundle: Bundle) -> list[dict[str, Any]]:
    """Recorded evidence of real cases; empty if the bundle has none."""
    if REAL_CASES_FILE not in bundle.manifest.files:
        return []
    path = bundle.folder / REAL_CASES_FILE
    rows: list[dict[str, Any]] = read_json(path, kind="bundle", data=bundle.read(path))["cases"]
    return rows


def evidence_of_others(base: Bundle, case: RealCase, engines: Collection[str]) -> dict[str, Any]:
    """Recorded outputs of a real case by the engines of a bundle that stay in it."""
    row = next(r for r in real_case_rows(base) if r["inputs"] == case.inputs.digests())
    kept = {r.engine for r in base.manifest.parity}
    return {name: outputs for name, outputs in row["engines"].items() if name in kept and name not in engines}


def real_cases_of_others(base: Bundle, engines: Collection[str]) -> list[dict[str, Any]]:
    """Recorded evidence of real cases without that of engines which are built again: theirs would be of other files."""
    kept = {r.engine for r in base.manifest.parity} - set(engines)
    return [
        {**row, "engines": {name: outputs for name, outputs in row["engines"].items() if name in kept}}
        for row in real_case_rows(base)
    ]


def addition_record(context: ExportContext) -> Addition:
    """The entry of the manifest for what a context added."""
    return Addition(
        artefacts=context.artefacts,
        created=context.created,
        versions=recorded_versions(),
        hardware=Hardware(**hardware()),
    )
