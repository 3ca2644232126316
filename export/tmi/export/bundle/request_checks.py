"""Checks of an export's run, output and options, which take no torch and come before all work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tmi.export.bundle.context import INT8_PRECISION
from tmi.export.graphs.registry import EXPORTERS, INT8, TORCH_TRT, require_exporter
from tmi.export.tensorrt.precision_choice import require_precision
from tmi.runtime.bundle.manifest import MANIFEST_FILE
from tmi.toolkit.errors import UsageError
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.atomic_files import require_absent

AUTO_PRECISION = "auto"
"""Value of `--precision` that tries INT8 graphs where no TensorRT engine is exported."""


def check_request(
    run: Path,
    out: Path | None,
    *,
    artefacts: Sequence[str],
    precision: str | None,
    force: bool = False,
    calibration: Path | None = None,
) -> RunFolder:
    """Check what an export is asked for, without hashing a file: first the run, then the output.

    Args:
        run: folder of the run.
        out: folder of the new bundle; None: a bundle is extended.
        artefacts: names in `EXPORTERS`.
        precision: value of `--precision`, if one is given.
        force: as in `require_replaceable`.
        calibration: cohort to calibrate INT8 on, if one is given.

    Returns:
        The run, which is finished.

    Raises:
        UsageError: no such run, an unfinished run, an unknown or no artefact or precision, or `out` exists.
        UnavailableError: an artefact cannot be written on this machine.
        DamagedError: a file of the run is missing or malformed.
    """
    for name in artefacts:
        require_exporter(name)
    if not artefacts:
        raise UsageError("nothing to export", fix=f"name one of {', '.join(EXPORTERS)} with --engine")
    if precision is not None:
        require_precision(precision)
    int8 = INT8 in artefacts or precision == INT8_PRECISION
    if int8 and calibration is None:
        raise UsageError(
            "INT8 is calibrated on training cases of the run, and no cohort is given",
            fix="name the cohort that the run was trained on with --calibration",
        )
    if not int8 and calibration is not None:
        raise UsageError("--calibration is for INT8, which is not exported", fix="omit it, or add --precision int8")
    folder = RunFolder.open(run)
    folder.require_status()
    if out is not None:
        require_replaceable(out, force=force)
    return folder


def with_int8(engines: Sequence[str], precision: str | None) -> tuple[list[str], str | None]:
    """Artefacts and precision of TensorRT engines that `--engine` and `--precision` ask for.

    INT8 of the CPU is an artefact; a TensorRT engine takes the artefact's graphs as signed ones.

    Raises:
        UsageError: INT8 of torch-trt, which compiles modules and takes no graphs.
    """
    if precision != INT8_PRECISION:
        return list(engines), precision
    if TORCH_TRT in engines:
        raise UsageError(
            f"{TORCH_TRT} compiles modules, and INT8 is in the graphs only",
            fix="use --engine trt or trt-rtx, or another --precision",
        )
    if any(EXPORTERS[name].plan is not None for name in engines):
        return list(engines), precision
    return [*engines, *([] if INT8 in engines else [INT8])], None


def tries_int8(engines: Sequence[str], precision: str | None) -> bool:
    """Whether `--precision auto` means that INT8 is tried: with a TensorRT engine it searches that engine's."""
    return precision == AUTO_PRECISION and INT8 not in engines and all(EXPORTERS[name].plan is None for name in engines)


def require_replaceable(out: Path, *, force: bool) -> None:
    """Check that `out` is free, or with `force`, that it is free or a bundle.

    Raises:
        UsageError: `out` exists and may not be replaced.
    """
    require_absent(out, force=force, kind="bundle")
    occupied = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if occupied and not (out / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{out} exists and is not a bundle; --force replaces bundles only",
            fix="name another folder with --out",
        )
