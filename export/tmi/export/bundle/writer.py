"""`tmi export`: writes a finished run as a bundle, or adds artefacts to a bundle of the same run.

All files are written into a staged folder, which takes the place of the bundle only if every check passes
(`tmi.export.bundle.stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tmi.export.bundle.additions import require_addable, staged_copy, typed_precision, without_artefacts
from tmi.export.bundle.context import INT8_PRECISION, ExportContext, ExportSettings, with_required_graphs
from tmi.export.bundle.out_of_memory import out_of_memory_as_error
from tmi.export.bundle.reproducible import export_time
from tmi.export.bundle.request_checks import (
    check_request,
    require_replaceable,
    tries_int8,
    with_int8,
)
from tmi.export.bundle.stages import run_stages
from tmi.export.checks.acceptance import Progress
from tmi.export.graphs.partition import require_exportable
from tmi.export.graphs.registry import exporter_spec
from tmi.export.tensorrt.builder import BuildOptions
from tmi.export.tensorrt.engines import require_target
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.bundle.signing import Keys, open_trusted_bundle
from tmi.toolkit.errors import UsageError
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.atomic_files import staged_folder
from tmi.toolkit.storage.outputs import output_lock


def export(
    run: Path | str,
    out: Path | str,
    *,
    engines: Sequence[str] = ("onnx",),
    cases: Sequence[Path | str] = (),
    weights: bool = True,
    force: bool = False,
    precision: str | None = None,
    calibration: Path | str | None = None,
    target: str | None = None,
    progress: Progress = lambda line: None,
) -> Bundle:
    """Export a finished run as a bundle, as `tmi export` does. It is written only if every parity check passes.

    Args:
        run: folder of a finished run.
        out: folder of the bundle.
        engines: formats to write: `onnx`, `torchscript`, `trt`, `trt-rtx`, `torch-trt`.
        cases: real case or cohort folders to validate the engines on, in addition to the golden inputs.
        weights: store the eager weights, which the engine `eager`, `tmi explain` and `tmi report` need.
        force: replace an existing bundle.
        precision: `int8` adds INT8 graphs, `auto` tries them if `calibration` is given; of TensorRT engines: `fp16`,
            `int8`, `tf32`, `fp32`, or `auto` to search; None: the default.
        calibration: cohort that the run was trained on, whose training cases calibrate INT8.
        target: GPU that plans of `trt-rtx` are built for, for example `sm80`; None: that of this machine.
        progress: called with one line for each step.

    Returns:
        The bundle. A TensorRT engine that cannot be built here is in `manifest.tensorrt.pending`, with the reason.

    Raises:
        UsageError: a precision or a target without an engine that has one; and as in `export_run`.
        UnavailableError, DamagedError, InputRejectedError, ParityError: as in `export_run`.
    """
    plans = [name for name in engines if exporter_spec(name).plan is not None]
    optional = tries_int8(engines, precision)
    if optional:
        precision = None if calibration is None else INT8_PRECISION
    engines, precision = with_int8(engines, precision)
    if precision is not None and not plans:
        raise UsageError("a precision is for TensorRT engines, and none is named", fix="omit it")
    require_target(plans, target)
    settings = ExportSettings(
        cases=tuple(Path(case) for case in cases),
        calibration=None if calibration is None else Path(calibration),
        int8_optional=optional,
        precision=precision,
        options=BuildOptions(target=target),
    )
    return export_run(
        Path(run), Path(out), artefacts=engines, force=force, weights=weights, settings=settings, progress=progress
    )


def export_run(
    run: Path,
    out: Path,
    *,
    artefacts: Sequence[str] = ("onnx",),
    force: bool = False,
    weights: bool = True,
    settings: ExportSettings | None = None,
    progress: Progress = lambda line: None,
) -> Bundle:
    """Export a finished run as a bundle. The bundle is written only if every check passes.

    The same run, versions, machine and threads give the same bytes, except for the recorded time of the export (and
    for TensorRT engines, whose builder measures times).

    A TensorRT engine that cannot be built on this machine is recorded as pending in the bundle
    (`tmi.export.tensorrt.engines.pending_engines`).

    Args:
        run: folder of a finished run.
        out: folder of the bundle.
        artefacts: names in `EXPORTERS`.
        force: replace an existing bundle at `out`.
        weights: store the eager weights in the bundle. The engine `eager` needs them.
        settings: real cases, precision and build options of TensorRT engines; None: the defaults.
        progress: called with one line for each step.

    Raises:
        UsageError: no such run, an unfinished run, an unknown artefact, or `out` exists, cannot be written or is being
            written by another process.
        UnavailableError: an artefact cannot be written on this machine, or memory or disk space ran out.
        DamagedError: the run was changed after the training.
        InputRejectedError: a real case cannot be used.
        ParityError: a check failed; nothing was written.
    """
    settings, names = settings or ExportSettings(), tuple(dict.fromkeys(artefacts))
    folder = check_request(
        run, out, artefacts=names, precision=settings.precision, force=force, calibration=settings.calibration
    )
    return _export(
        folder,
        out,
        names,
        settings,
        progress,
        check_output=lambda: require_replaceable(out, force=force),
        weights=weights,
    )


def add_to_bundle(
    run: Path,
    out: Path,
    *,
    artefacts: Sequence[str],
    force: bool = False,
    key: Keys = None,
    settings: ExportSettings | None = None,
    progress: Progress = lambda line: None,
) -> Bundle:
    """Add artefacts to a bundle of the same run, after the checks of an export. The bundle is replaced at the end.

    The artefacts that the bundle has, their files and check records stay as they are. A signature is removed, because
    it covers the old files.

    Args:
        run: folder of the run that the bundle was exported from.
        out: folder of the bundle.
        artefacts: names in `EXPORTERS`.
        force: write artefacts again that the bundle has.
        key: public keys of which one must have signed the bundle (`tmi.runtime.bundle.signing.required_keys`).
        settings: as in `export_run`. The real cases must be those that the bundle was validated on.
        progress: called with one line for each step.

    Raises:
        UsageError: as in `export_run`; no bundle at `out`; it is of another run, format or version, or has the
            artefact.
        UnavailableError: as in `export_run`.
        DamagedError: the bundle is damaged or holds other weights, or the run was changed after the training.
        InputRejectedError: a real case cannot be used.
        ParityError: a check failed; the bundle was left as it was.
    """
    return extend_bundle(
        run,
        out,
        lambda folder: open_trusted_bundle(folder, key),
        artefacts=artefacts,
        force=force,
        settings=settings,
        progress=progress,
    )


def extend_bundle(
    run: Path,
    out: Path,
    open_base: Callable[[Path], Bundle],
    *,
    artefacts: Sequence[str],
    force: bool,
    settings: ExportSettings | None,
    progress: Progress,
) -> Bundle:
    """Like `add_to_bundle`, for a caller that decides how the bundle is opened, and thus whether it must be signed.

    Args:
        run, out, artefacts, force, settings, progress: as in `add_to_bundle`.
        open_base: opens the bundle while it is locked.

    Raises:
        UsageError, UnavailableError, DamagedError, InputRejectedError, ParityError: as in `add_to_bundle`.
    """
    settings, names = settings or ExportSettings(), tuple(dict.fromkeys(artefacts))
    folder = check_request(run, None, artefacts=names, precision=settings.precision, calibration=settings.calibration)
    return _export(
        folder,
        out,
        names,
        settings,
        progress,
        check_output=lambda: require_addable(out, names, precision=settings.precision, force=force),
        open_base=open_base,
    )


def _export(
    run: RunFolder,
    out: Path,
    names: tuple[str, ...],
    settings: ExportSettings,
    progress: Progress,
    *,
    check_output: Callable[[], object],
    weights: bool = True,
    open_base: Callable[[Path], Bundle] | None = None,
) -> Bundle:
    """Run the stages in a staged folder while the bundle's place is locked.

    Args:
        run: a checked run.
        out: folder of the bundle.
        names: artefacts, each once.
        settings: as in `export_run`.
        progress: called with one line for each step.
        check_output: called under the lock, because another export may have ended since the first check.
        weights: store the eager weights in a new bundle.
        open_base: opens the bundle to extend; None: a new bundle.
    """
    recorded = settings.created or export_time()
    progress("checking the run" if open_base is None else "checking the run and the bundle")
    require_exportable(run)
    with output_lock(out, kind="bundle"):  # before the work, so that a second export ends at once
        check_output()
        run.require_finished()
        with out_of_memory_as_error("the export", progress) as on_step, staged_folder(out) as stage:
            base = None
            if open_base is not None:
                copy = staged_copy(open_base(out), stage)
                settings = replace(settings, precision=settings.precision or typed_precision(copy.manifest))
                base = without_artefacts(copy, names, settings.precision)
            context = ExportContext(
                out=out,
                folder=stage,
                artefacts=with_required_graphs(names, base, settings.precision),
                settings=settings,
                progress=on_step,
                created=recorded,
                weights=weights,
                base=base,
            )
            context.run = run
            run_stages(context)
        return open_bundle(out)
