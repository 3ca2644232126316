"""Preprocessing pipeline: reads a case folder and returns the arrays and the text that the network takes as input.

Training and prediction use the same pipeline. Radiomics and text are returned unscaled and untokenised; the fold that
owns the scaler and tokenizer transforms them and reports what it imputed, clipped or truncated.

A gzip stream is inflated sequentially on one core. The other cores work in parallel with it: each slab of the CT is
reoriented, windowed and resampled as soon as it is inflated, and the mask is read in a thread of its own. If the
checks reject the CT afterwards, the result is discarded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from tmi.toolkit.cases.arrays import CaseArrays
from tmi.toolkit.cases.case import MASK_FILE, RADIOMICS_FILE, Case, open_case
from tmi.toolkit.cases.file_bytes import CaseBytes
from tmi.toolkit.cases.loaded import LoadedCase
from tmi.toolkit.cases.provenance import read_case_record
from tmi.toolkit.clinical.completeness import check_completeness
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.rendering import render
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.units import check_units
from tmi.toolkit.compute.buffer_pool import ArrayAllocator
from tmi.toolkit.compute.cpu import worker_pool
from tmi.toolkit.compute.stage_timer import Span, StageTimer, sum_spans
from tmi.toolkit.config.schema import MODALITIES, N_RADIOMICS, Config, Modality
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.ct_resampling import StreamingResampler, prepare_ct
from tmi.toolkit.imaging.volume import Grid, Volume, read_ct, read_mask
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.preprocessing.cache import PreparedCache, PreparedImages
from tmi.toolkit.preprocessing.clinical_features import numbers
from tmi.toolkit.qc.check_registry import ALERTS
from tmi.toolkit.qc.image_checks import check_ct, check_mask, check_mask_name, raise_on_error
from tmi.toolkit.radiomics.table import read_case_table, require_features

if TYPE_CHECKING:
    from tmi.toolkit.radiomics.extractor import ExtractedFeatures  # SimpleITK is optional and slow to import

NO_FIX = "none needed; give radiomics.csv to use the features of another program"
STAGES = ("record", "cache", "read", "inflate", "resample", "check", "mask", "radiomics")
"""Timed stages of the pipeline. Work that runs in parallel with `inflate` is not counted again:

`record`: reading the clinical record, rendering its text, reading the radiomics table; `cache`: hashing the files and
looking up the entry; `read`: waiting for the disk; `inflate`: inflating the CT's gzip stream; `resample`: the
reorientation, windowing, scaling and resampling that remain when the stream ends; `check`: checks of CT and mask;
`mask`: waiting for the mask; `radiomics`: their extraction."""


@dataclass(frozen=True, kw_only=True)
class PreparedCase:
    """Network inputs of one case, before any fitted scaling."""

    case_id: str
    """Case id."""
    patient_id: str | None
    """Patient id from the cohort table or the clinical record."""
    ct_1DHW: Float[np.ndarray, "1 D H W"]
    """float32, windowed, scaled and resampled; empty if `image` is not an active modality."""
    radiomics_F: Float[np.ndarray, "1781"]
    """float64, unscaled, NaN where missing; all NaN if `radiomics` is not an active modality."""
    text: str
    """Clinical record as text; empty if `clinical` is not an active modality."""
    warnings: tuple[Issue, ...]
    """Warnings of the checks, alerts included, and notes on how the inputs were obtained."""
    numbers_V: Float[np.ndarray, " V"] | None = None
    """Values of the record in the schema's order, NaN where missing; None if `clinical` is not an active modality."""
    geometry_G: Float[np.ndarray, "6"] | None = None
    """Voxels of the CT's file along D, H, W and their sizes in mm; None if no CT was read."""
    spans: tuple[Span, ...] = ()
    """When the preparation worked on which of `STAGES`; without gaps or overlap, in chronological order."""

    @property
    def alerts(self) -> tuple[Issue, ...]:
        """Those of the warnings because of which a prediction must not be relied on."""
        return tuple(issue for issue in self.warnings if issue.code in ALERTS)

    @property
    def seconds(self) -> Mapping[str, float]:
        """Wall-clock seconds of each of `STAGES`; their sum is the total time."""
        return sum_spans(self.spans, STAGES)


def prepare_case(
    case: Case,
    config: Config,
    schema: Schema,
    *,
    modalities: Collection[Modality] = MODALITIES,
    cache: PreparedCache | None = None,
    on_text_ready: Callable[[str], None] = lambda text: None,
    empty: ArrayAllocator = np.empty,
) -> PreparedCase:
    """Read, check and prepare the active modalities of one case; files of other modalities may be absent.

    A case in memory (`CaseArrays`, `CaseBytes`) or loaded (`LoadedCase`) is prepared in the same way to the same bits;
    its images are not cached.

    Radiomics are read from radiomics.csv if it exists and extracted from the liver mask otherwise. An existing mask is
    checked in both cases, because a mask that does not match its CT indicates mixed-up files.

    Args:
        case: the case.
        config: config of the run or bundle.
        schema: clinical schema of the run or bundle.
        modalities: active modalities.
        cache: cache of the prepared images; results, warnings and rejections are the same without it.
        on_text_ready: called with the text before any image is read; the case may still be rejected afterwards.
        empty: allocates the large arrays.

    Raises:
        InputRejectedError: a file is missing, unreadable or implausible; carries the case id.
        UnavailableError: radiomics must be extracted and SimpleITK or PyWavelets is not installed.
    """
    timer = StageTimer()
    in_memory = isinstance(case, CaseArrays)
    if not isinstance(case, CaseArrays | CaseBytes):
        open_case(case.folder)  # reports a missing folder as such, not as its first missing file
    mask_issues: tuple[Issue, ...] = ()
    if not in_memory:
        case_record = read_case_record(case, case_id=case.case_id)  # rejects a malformed one, as `tmi check` does
        mask_issues = tuple(check_mask_name(case_record)) if {*modalities} - {"clinical"} else ()
    record = read_clinical(case, schema) if "clinical" in modalities else None
    table_F = _read_radiomics(case, modalities)
    warnings: tuple[Issue, ...] = ()
    text = ""
    if record is not None:
        # not cached: entries are keyed by the images alone
        issues = (*check_units(record.values, schema), *check_completeness(record, schema))
        warnings = raise_on_error(issues, case.case_id)
        text = render(record, schema, config.clinical.rendering)
        on_text_ready(text)

    timer.lap("record")
    extract = table_F is None

    def prepare() -> PreparedImages:
        timer.lap("cache")
        return _prepare_images(case, config, extract=extract, timer=timer, empty=empty)

    if not extract and "image" not in modalities:
        images = PreparedImages(ct_1DHW=np.zeros((1, 0, 0, 0), np.float32), warnings=(), radiomics_F=None)
    elif cache is None or in_memory or isinstance(case, LoadedCase):
        images = prepare()
    else:
        images = cache.get_or_prepare(case, config.ct, extract=extract, prepare=prepare)
    timer.lap("cache")
    radiomics_F = images.radiomics_F if table_F is None else table_F
    assert radiomics_F is not None  # extracted if there is no table
    notes = (
        (Issue.of("radiomics-extracted", "radiomics were extracted from the liver mask", NO_FIX),) if extract else ()
    )
    timer.lap("record")
    return PreparedCase(
        case_id=case.case_id,
        patient_id=case.patient_id or (None if record is None else record.patient_id),
        ct_1DHW=images.ct_1DHW,
        radiomics_F=radiomics_F,
        text=text,
        numbers_V=None if record is None else numbers(record, schema),
        geometry_G=images.geometry_G,
        warnings=tuple(issue.of_case(case.case_id) for issue in (*warnings, *mask_issues, *images.warnings, *notes)),
        spans=tuple(timer.spans),
    )


def _read_radiomics(case: Case, modalities: Collection[Modality]) -> Float[np.ndarray, "1781"] | None:
    """Return the features of radiomics.csv, NaN if radiomics are inactive, or None if they must be extracted."""
    if "radiomics" not in modalities:
        return np.full(N_RADIOMICS, np.nan)
    if isinstance(case, CaseArrays) and case.radiomics_F is not None:
        return require_features(case.radiomics_F, case_id=case.case_id)
    if case.has_radiomics:
        return read_case_table(case)
    if not case.has_mask:
        raise InputRejectedError(
            f"neither {RADIOMICS_FILE} nor {MASK_FILE} exists",
            code="radiomics-missing",
            case_id=case.case_id,
            fix=f"give {RADIOMICS_FILE}, or a liver mask to extract the features from",
        )
    return None


class _ReadAhead:
    """Callbacks of `read_ct` that start resampling and reading the mask while the CT is still being inflated."""

    def __init__(self, case: Case, resampling: StreamingResampler, mask_pool: Executor, empty: ArrayAllocator) -> None:
        self._case, self._mask_pool, self._empty = case, mask_pool, empty
        self.on_planes_ready = resampling.on_planes_ready
        self._mask: Future[Volume] | None = None

    def on_grid_ready(self, grid: Grid) -> None:
        """Start reading the mask; the grid is needed to check that the mask matches the CT."""
        if self._case.has_mask:
            self._mask = self._mask_pool.submit(read_mask, self._case, grid, empty=self._empty)

    def mask(self) -> Volume | None:
        """Wait for the mask; None for a case without one. May be called once.

        Raises:
            InputRejectedError: the mask is rejected.
        """
        future, self._mask = self._mask, None
        try:
            return None if future is None else future.result()
        finally:
            del future  # an error holds the frames that it passes, and the future holds the error: a cycle with the CT


def _prepare_images(
    case: Case, config: Config, *, extract: bool, timer: StageTimer, empty: ArrayAllocator
) -> PreparedImages:
    """Prepare what depends on CT and mask alone and can therefore be cached by their content."""
    with worker_pool() as pool, ThreadPoolExecutor(max_workers=1, thread_name_prefix="mask") as mask_pool:
        resampling = StreamingResampler(config.ct, pool, empty=empty)
        read_ahead = _ReadAhead(case, resampling, mask_pool, empty)
        ct = read_ct(case, pool=pool, callbacks=read_ahead, timer=timer, empty=empty)
        timer.lap("inflate")
        # the CT is checked before the mask's result is awaited, so that a bad CT is reported first
        warnings = raise_on_error(check_ct(ct), case.case_id)
        timer.lap("check")
        mask = read_ahead.mask()
        timer.lap("mask")
        if mask is not None:
            warnings += raise_on_error(check_mask(ct, mask), case.case_id)
        timer.lap("check")
        ct_1DHW = prepare_ct(ct, config.ct, resampling)
    timer.lap("resample")
    radiomics_F = None
    if extract:
        assert mask is not None  # checked by `_read_radiomics`
        extracted = _extract_radiomics(case, ct, mask)
        radiomics_F = extracted.values_F
        warnings += extracted.issues(case.case_id)
        timer.lap("radiomics")
    geometry_G = np.array([*ct.grid.shape_DHW, *ct.grid.spacing_DHW_mm], np.float64)
    return PreparedImages(ct_1DHW=ct_1DHW, warnings=warnings, radiomics_F=radiomics_F, geometry_G=geometry_G)


def _extract_radiomics(case: Case, ct: Volume, mask: Volume) -> ExtractedFeatures:
    """Return the features, cached or extracted."""
    from tmi.toolkit.radiomics.cache import extract_cached  # SimpleITK is optional and slow to import

    try:
        return extract_cached(ct, mask, use_cache=not isinstance(case, CaseBytes))  # which leaves nothing on a disk
    except InputRejectedError as error:
        error.for_case(case.case_id)
        raise
