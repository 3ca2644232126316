"""`tmi predict --dicom`: the prediction of one case as DICOM objects of the study that it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import require_folder_name, require_paths
from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.storage.atomic_files import require_absent, staged_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tmi.runtime.bundle.reader import Bundle
    from tmi.runtime.dicom_results.source import SourceSeries
    from tmi.runtime.engines.selection import EngineRecord
    from tmi.runtime.serving.results import CaseResult
    from tmi.toolkit.cases.case import Case


@dataclass(frozen=True, kw_only=True)
class DicomOptions:
    """Options of `tmi predict` about DICOM results."""

    out: Path | None
    """Folder of the results; None: none are wanted."""
    source: Path | None
    """Folder of the series."""
    uid_root: str | None
    """Root of the new UIDs."""


def require_dicom(options: DicomOptions, *, force: bool) -> None:
    """Check the options before any case is read.

    Raises:
        UsageError: an option is missing or has no effect, or the folder exists.
        UnavailableError: highdicom is not installed.
    """
    if options.out is None:
        if options.source is not None or options.uid_root is not None:
            raise UsageError("options of DICOM results have no effect without --dicom", fix="give --dicom FOLDER")
        return
    if options.source is None:
        raise UsageError(
            "DICOM results take patient and study from the series of the case, and none is given",
            fix="give its folder with --dicom-source",
        )
    require_paths(("series", options.source))
    require_folder_name(options.out, kind="DICOM results")
    require_absent(options.out, force=force, kind="DICOM results")
    try:
        from tmi.runtime.dicom_results.objects import require_root
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("highdicom", "pydicom"):
            raise
        raise UnavailableError("DICOM results need the package highdicom", fix="install tmi-clnet[dicom]") from error
    require_root(options.uid_root)


def open_source(options: DicomOptions, cases: Sequence[Case]) -> SourceSeries | None:
    """Read the series and compare it with the case; None: no DICOM results are wanted.

    Raises:
        UsageError: there are several cases, or the series is not that of the case.
        InputRejectedError: the series or the CT of the case cannot be read.
    """
    from tmi.runtime.dicom_results.source import read_source

    if options.out is None or options.source is None:
        return None
    if len(cases) != 1:
        raise UsageError(f"--dicom writes the results of one case, not of {len(cases)}", fix="give one case folder")
    return read_source(options.source, cases[0])


def write_dicom(
    results: Sequence[CaseResult],
    cases: Sequence[Case],
    source: SourceSeries,
    options: DicomOptions,
    *,
    bundle: Bundle,
    engine: EngineRecord,
) -> None:
    """Write the results of the case, unless it was rejected."""
    from importlib.metadata import version

    from tmi.runtime.dicom_results.objects import Origin
    from tmi.runtime.dicom_results.writer import write_dicom_results
    from tmi.runtime.serving.results import RejectedCase

    (result,), (case,), out = results, cases, options.out
    if out is None:
        return
    if isinstance(result, RejectedCase):
        echo(f"{out} is not written: the case was rejected", err=True)
        return
    origin = Origin(
        version=version("tmi-clnet"),
        bundle=bundle.digest,
        engine=f"{engine.name} {engine.precision}",
        uid_root=options.uid_root,
    )
    with staged_folder(out) as folder:
        written = write_dicom_results(result, case, source, folder, origin)
    echo(f"written {out}: {', '.join(written.files)}", err=True)
    if written.no_segmentation is not None:
        echo(f"no segmentation and no outline: {written.no_segmentation}", err=True)
