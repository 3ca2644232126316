"""`tmi build`: adds TensorRT engines to a bundle that has typed graphs. Only torch-trt needs torch.

The golden cases run through the new engines on this machine before the bundle is replaced. The replacement is atomic:
if a parity check fails or the process is killed, the old bundle is unchanged. The stages are the last ones of an export
(`tmi.export.bundle.stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.numpy import save_file

from tmi.export.bundle.additions import staged_copy, without_artefacts
from tmi.export.bundle.context import ExportContext, ExportSettings
from tmi.export.bundle.out_of_memory import out_of_memory_as_error
from tmi.export.bundle.reproducible import export_time, sort_metadata
from tmi.export.bundle.stages import run_stages
from tmi.export.checks.validation_set import ValidationSet
from tmi.export.graphs.registry import TYPED
from tmi.export.tensorrt.builder import BuildOptions
from tmi.export.tensorrt.engines import PLANS, build_blocker, pending_engines
from tmi.runtime.bundle.check_result import require_passed
from tmi.runtime.bundle.manifest import GOLDEN_CASE_FILE, manifest_to_json, part_digests
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.bundle.signing import Keys, open_trusted_bundle
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.preprocessing_check import compare_metadata, output_metadata, read_golden_case
from tmi.runtime.verification.verify import read_references
from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.storage.atomic_files import staged_folder
from tmi.toolkit.storage.outputs import output_lock


def build_bundle(
    folder: Path,
    kinds: Sequence[str] | None = None,
    *,
    options: BuildOptions | None = None,
    key: Keys = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Build TensorRT engines, validate them, and add them to a bundle.

    Args:
        folder: folder of the bundle.
        kinds: names in `PLANS`; None: the engines that the export left pending. Existing engines are rebuilt.
        options: build options; None: the defaults.
        key: public keys of which one must have signed the bundle (`tmi.runtime.bundle.signing.required_keys`).
        progress: called with one line for each step.

    Raises:
        UsageError: no bundle, nothing to build, no typed graphs in the bundle, or another process writes the bundle.
        DamagedError: the bundle is damaged.
        UnavailableError: this machine cannot build an engine, TensorRT rejects a graph, or memory ran out.
        ParityError: a parity check failed; the bundle is unchanged.
    """
    options = options or BuildOptions()
    with output_lock(folder, kind="bundle"):
        bundle = open_trusted_bundle(folder, key)
        chosen = tuple(dict.fromkeys(kinds or pending_engines(bundle.manifest)))
        _require_buildable(bundle, chosen, options)
        with out_of_memory_as_error("the build", progress) as progress, staged_folder(folder) as stage:
            base = without_artefacts(staged_copy(bundle, stage), chosen, None)
            context = ExportContext(
                out=folder,
                folder=stage,
                artefacts=chosen,
                settings=ExportSettings(options=options),
                progress=progress,
                created=export_time(),
                build=True,
                base=base,
            )
            restate_claims(base)
            references = read_references(base)
            context.manifest = replace(base.manifest, files={})
            context.validation_set = ValidationSet(
                golden=golden_from_manifest(base.manifest),
                reference=references.float32,
                reference_float64=references.float64,
            )
            run_stages(context, start="tensorrt")
        return open_bundle(folder)


def restate_claims(bundle: Bundle) -> None:
    """Write the golden case's metadata for a manifest whose config and run have another form than in its file.

    A manifest of an earlier schema or version is written in the form of this one. The metadata holds digests of that
    form, so it is compared with the old manifest and then written anew.

    Args:
        bundle: the staged copy.

    Raises:
        ParityError: the old manifest is not the one that the golden case states.
    """
    if bundle.parts == part_digests(manifest_to_json(bundle.manifest)):
        return
    arrays, stored = read_golden_case(bundle)
    require_passed(list(compare_metadata(bundle, stored)), consequence="the bundle was left as it was")
    stated = output_metadata(replace(bundle, parts=None))
    save_file(arrays, bundle.folder / GOLDEN_CASE_FILE, metadata={name: stated[name] for name in stored})
    sort_metadata(bundle.folder / GOLDEN_CASE_FILE)


def _require_buildable(bundle: Bundle, kinds: Sequence[str], options: BuildOptions) -> None:
    """Check that TensorRT engines can be built from a bundle on this machine.

    Raises:
        UsageError: no such engine, no typed graphs, or nothing to build.
        UnavailableError: this machine cannot build an engine.
    """
    folder = bundle.folder
    unknown = [kind for kind in kinds if kind not in PLANS]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is not a TensorRT engine", fix=f"choose among {', '.join(PLANS)}")
    if not bundle.has(TYPED):
        raise UsageError(
            f"bundle {folder} has no typed graphs to build engines from",
            fix=f"add the engine with its run: tmi export RUN --add --engine {kinds[0] if kinds else 'trt'} --out "
            f"{folder}",
        )
    if not kinds:
        raise UsageError(
            f"no engine of bundle {folder} is pending", fix=f"name one of {', '.join(PLANS)} with --engine"
        )
    for kind in kinds:
        missing = build_blocker(kind, options)
        if missing is not None:
            raise UnavailableError(
                f"the {kind} engine cannot be built here: {missing}",
                fix=f"run `tmi build {folder}` on a machine where `nvidia-smi` lists a GPU, after "
                f"pip install 'tmi-clnet[{'trt-rtx' if kind == 'trt-rtx' else 'trt'}]'",
            )
