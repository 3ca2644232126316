"""Engines of TensorRT added to a bundle that has its typed graphs: `tmi build`. No torch (torch-trt needs it).

The golden cases run through the new engines on this machine before the bundle is replaced, and it is replaced as a
whole: when a gate fails, or the machine goes down, the old bundle is there as it was.
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
from tmi.export.tensorrt.builder import BuildOptions
from tmi.export.tensorrt.engines import PLANS, TYPED, PlanRequest, add_plans, build_blocker, pending
from tmi.runtime.bundle.check_result import require_passed
from tmi.runtime.bundle.manifest import MODEL_CARD_FILE, SBOM_FILE, SIGNATURE_FILE
from tmi.runtime.bundle.reader import Bundle, fingerprint, open_bundle, write_manifest
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.verify import read_references
from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.storage.atomic_files import staged_folder, write_text


def build_bundle(
    folder: Path,
    kinds: Sequence[str] | None = None,
    *,
    options: BuildOptions | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Build engines and put them into the bundle.

    Args:
        folder: of the bundle.
        kinds: names in `PLANS`; None: those that are pending since the export. One that is there is built anew.
        options: how; None: for batches up to 4.
        progress: told one line of what is being done.

    Raises:
        UsageError: no bundle, nothing to build, or no typed graphs in it.
        DamagedError: the bundle is damaged.
        UnavailableError: this machine cannot build an engine, TensorRT refuses a graph, or memory ran out.
        ParityError: a gate failed; the bundle was left as it was.
    """
    bundle = open_bundle(folder)
    chosen = tuple(dict.fromkeys(kinds or pending(bundle.manifest)))
    unknown = [kind for kind in chosen if kind not in PLANS]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no engine that is built", fix=f"choose among {', '.join(PLANS)}")
    if not bundle.has(TYPED):
        raise UsageError(
            f"bundle {folder} holds no graphs that engines are built from",
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
                fix=f"run `tmi build {folder}` on a machine where `nvidia-smi` lists a GPU and where "
                f"pip install 'tmi-clnet[{'trt-rtx' if kind == 'trt-rtx' else 'trt'}]' was done",
            )
    references = read_references(bundle)
    validation_set = ValidationSet(
        golden=golden_from_manifest(bundle.manifest), reference=references.float32, reference_float64=references.float64
    )
    with out_of_memory_as_error("the build", progress) as progress, staged_folder(folder) as stage:
        shutil.copytree(folder, stage, dirs_exist_ok=True)
        manifest, records = add_plans(stage, bundle.manifest, request, validation_set, progress=progress)
        require_passed(
            records,
            consequence="the bundle was left as it was",
            fix="try --precision auto, which keeps what FP16 cannot hold in float32; docs/tensorrt.md says more",
        )
        kept = [r for r in manifest.parity if r.artefact not in chosen]
        manifest = replace(manifest, parity=(*kept, *records))
        write_text(stage / MODEL_CARD_FILE, model_card(manifest))
        write_text(stage / SBOM_FILE, sbom(manifest))
        (stage / SIGNATURE_FILE).unlink(missing_ok=True)  # it signed the bundle as it was; sign the new one
        progress("taking fingerprints")
        write_manifest(stage, replace(manifest, files=fingerprint(stage)))
    return open_bundle(folder)
