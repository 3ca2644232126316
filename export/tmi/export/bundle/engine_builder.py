"""`tmi build`: adds TensorRT engines to a bundle that has typed graphs. Only torch-trt needs torch.

The golden cases run through the new engines on this machine before the bundle is replaced. The replacement is atomic:
if a parity check fails or the process is killed, the old bundle is unchanged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tmi.export.bundle.model_card import model_card
from tmi.export.bundle.out_of_memory import out_of_memory_as_error
from tmi.export.bundle.sbom import sbom
from tmi.export.checks.validation_set import ValidationSet
from tmi.export.graphs.registry import TYPED
from tmi.export.tensorrt.builder import BuildOptions
from tmi.export.tensorrt.engines import PLANS, PlanRequest, add_plans, build_blocker, pending_engines
from tmi.runtime.bundle.check_result import require_passed
from tmi.runtime.bundle.manifest import MODEL_CARD_FILE, SBOM_FILE, SIGNATURE_FILE
from tmi.runtime.bundle.reader import Bundle, fingerprint, open_bundle, write_manifest
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.verify import read_references
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError
from tmi.toolkit.storage.atomic_files import staged_folder, write_text
from tmi.toolkit.storage.outputs import output_lock


def build_bundle(
    folder: Path,
    kinds: Sequence[str] | None = None,
    *,
    options: BuildOptions | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Build TensorRT engines, validate them, and add them to a bundle.

    Args:
        folder: folder of the bundle.
        kinds: names in `PLANS`; None: the engines that the export left pending. Existing engines are rebuilt.
        options: build options; None: the defaults.
        progress: called with one line for each step.

    Raises:
        UsageError: no bundle, nothing to build, no typed graphs in the bundle, or another process writes the bundle.
        DamagedError: the bundle is damaged.
        UnavailableError: this machine cannot build an engine, TensorRT rejects a graph, or memory ran out.
        ParityError: a parity check failed; the bundle is unchanged.
    """
    with output_lock(folder, kind="bundle"):
        return _build(folder, kinds, options, progress)


def _build(
    folder: Path, kinds: Sequence[str] | None, options: BuildOptions | None, progress: Callable[[str], None]
) -> Bundle:
    bundle = open_bundle(folder)
    chosen = tuple(dict.fromkeys(kinds or pending_engines(bundle.manifest)))
    unknown = [kind for kind in chosen if kind not in PLANS]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is not a TensorRT engine", fix=f"choose among {', '.join(PLANS)}")
    if not bundle.has(TYPED):
        raise UsageError(
            f"bundle {folder} has no typed graphs to build engines from",
            fix="export the run again with --engine trt or --engine trt-rtx",
        )
    if not chosen:
        raise UsageError(
            f"no engine of bundle {folder} is pending", fix=f"name one of {', '.join(PLANS)} with --engine"
        )
    longest = bundle.manifest.parsed_config().clinical.max_length
    request = PlanRequest(kinds=chosen, options=replace(options or BuildOptions(), max_length=longest))
    for kind in chosen:
        missing = build_blocker(kind, request.options)
        if missing is not None:
            raise UnavailableError(
                f"the {kind} engine cannot be built here: {missing}",
                fix=f"run `tmi build {folder}` on a machine where `nvidia-smi` lists a GPU, after "
                f"pip install 'tmi-clnet[{'trt-rtx' if kind == 'trt-rtx' else 'trt'}]'",
            )
    references = read_references(bundle)
    validation_set = ValidationSet(
        golden=golden_from_manifest(bundle.manifest), reference=references.float32, reference_float64=references.float64
    )
    with out_of_memory_as_error("the build", progress) as progress, staged_folder(folder) as stage:
        shutil.copytree(folder, stage, dirs_exist_ok=True)
        _require_same_bundle(bundle, stage)
        manifest, records = add_plans(stage, bundle.manifest, request, validation_set, progress=progress)
        require_passed(
            records,
            consequence="the bundle was left as it was",
            fix="try --precision auto, which keeps nodes that overflow FP16 in float32; see docs/tensorrt.md",
        )
        other_records = [r for r in manifest.parity if r.artefact not in chosen]
        manifest = replace(manifest, parity=(*other_records, *records))
        write_text(stage / MODEL_CARD_FILE, model_card(manifest))
        write_text(stage / SBOM_FILE, sbom(manifest))
        (stage / SIGNATURE_FILE).unlink(missing_ok=True)  # the signature covers the old files
        progress("hashing the files")
        write_manifest(stage, replace(manifest, files=fingerprint(stage)))
    return open_bundle(folder)


def _require_same_bundle(bundle: Bundle, copy: Path) -> None:
    """Require that a copy holds the files of the opened bundle: engines are built from the copy.

    Raises:
        DamagedError: a file of the bundle was exchanged after it was opened.
    """
    if open_bundle(copy).digest != bundle.digest:
        raise DamagedError(f"bundle {bundle.folder} was exchanged during the build", fix="build it again")
