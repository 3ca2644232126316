"""From a case folder to the arrays and the text of the network: the one road of training and of prediction.

Whatever is scaled by a fitted thing (radiomics, tokens) stays raw here: the fold that owns the scaler or tokenizer does
that, and can then say what it imputed, clipped or cut.

A gzip stream can only be inflated from its beginning, on one core. So everything else happens meanwhile on the others:
the CT's slabs are turned, windowed and resampled as they come, and the mask is read beside them. What was made of a CT
that its checks then refuse is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tmi.toolkit.cases.case import MASK_FILE, RADIOMICS_FILE, Case, open_case
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.rendering import render
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.units import check_units
from tmi.toolkit.compute.buffer_pool import ArrayAllocator
from tmi.toolkit.compute.cpu import worker_pool
from tmi.toolkit.compute.stage_timer import StageTimer
from tmi.toolkit.config.schema import MODALITIES, N_RADIOMICS, Config, Modality
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.ct_resampling import StreamingResampler, prepare_ct
from tmi.toolkit.imaging.volume import Grid, Volume, read_ct, read_mask
from tmi.toolkit.preprocessing.cache import PreparedCache, PreparedImages
from tmi.toolkit.qc.image_checks import check_ct, check_mask, raise_on_error
from tmi.toolkit.radiomics.table import read_table

STAGES = ("record", "cache", "read", "inflate", "resample", "check", "mask", "radiomics")
"""Stages of a preparation, in the order of the road. What others do in the shadow of `inflate` is not counted again:

`record`: the clinical record, its text and the table of radiomics; `cache`: hashing the files and looking for an entry;
`read`: waiting for the disk; `inflate`: the CT's gzip stream; `resample`: what of turning, window, scale and resampling
was left when it ended; `check`: the checks of CT and mask; `mask`: what was left of reading the mask; `radiomics`:
their extraction."""


@dataclass(frozen=True, kw_only=True)
class PreparedCase:
    """One case as the network's inputs, before any fitted scaling."""

    case_id: str
    """Name of the case."""
    patient_id: str | None
    """Patient, from the cohort's table or the clinical record."""
    ct_1DHW: Float[np.ndarray, "1 D H W"]
    """float32, windowed, scaled and resampled; without a voxel where the image is not looked at."""
    radiomics_F: Float[np.ndarray, "1781"]
    """float64, unscaled, NaN where missing, and everywhere where they are not looked at."""
    text: str
    """Clinical record as text; empty where it is not looked at."""
    warnings: tuple[str, ...]
    """What was done that a user should know of."""
    seconds: Mapping[str, float]
    """Wall-clock seconds of each of `STAGES`; they add up to what the preparation took."""


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
    """Read, check and prepare one case, as far as it is looked at: files of other modalities need not be there.

    Radiomics come from radiomics.csv where it is there, else from the liver mask. A mask that is there is checked in
    either case: one that does not fit its CT is a sign of mixed-up files.

    Args:
        case: the case.
        config: the settings of the run or bundle.
        schema: its clinical schema.
        modalities: what is looked at.
        cache: where the images' part is looked for and stored; answer, warnings and refusals are the same without.
        on_text_ready: told the text as soon as it is known, before any image is read; the case may still be refused.
        empty: makes the large arrays.

    Raises:
        InputRejectedError: a file is missing, unreadable or implausible; the case is named.
        UnavailableError: radiomics must be extracted and pyradiomics is not installed.
    """
    timer = StageTimer(STAGES)
    open_case(case.folder)  # a folder that is not there is told as such, not as its first missing file
    record = read_clinical(case, schema) if "clinical" in modalities else None
    given: Float[np.ndarray, "1781"] | None = np.full(N_RADIOMICS, np.nan)
    if "radiomics" in modalities:
        given = read_table(case.radiomics, case_id=case.case_id) if case.radiomics.is_file() else None
    if given is None and not case.mask.is_file():
        raise InputRejectedError(
            f"neither {RADIOMICS_FILE} nor {MASK_FILE} is there",
            code="radiomics-missing",
            case_id=case.case_id,
            fix=f"give {RADIOMICS_FILE}, or a liver mask from which the features are extracted",
        )
    warnings: tuple[str, ...] = ()
    text = ""
    if record is not None:
        warnings = raise_on_error(
            check_units(record.values, schema), case.case_id
        )  # outside what is cached by the images
        text = render(record, schema, config.clinical.rendering)
        on_text_ready(text)

    timer.lap("record")

    def make() -> PreparedImages:
        timer.lap("cache")
        return _images(case, config, extract=given is None, timer=timer, empty=empty)

    if given is not None and "image" not in modalities:
        images = PreparedImages(ct_1DHW=np.zeros((1, 0, 0, 0), np.float32), warnings=(), radiomics_F=None)
    else:
        images = make() if cache is None else cache.get_or_prepare(case, config.ct, extract=given is None, make=make)
    timer.lap("cache")
    radiomics_F = images.radiomics_F if given is None else given
    assert radiomics_F is not None  # extracted where none was given
    timer.lap("record")
    return PreparedCase(
        case_id=case.case_id,
        patient_id=case.patient_id or (None if record is None else record.patient_id),
        ct_1DHW=images.ct_1DHW,
        radiomics_F=radiomics_F,
        text=text,
        warnings=warnings
        + images.warnings
        + (("radiomics were extracted from the liver mask",) if given is None else ()),
        seconds=timer.seconds,
    )


class _ReadAhead:
    """What begins while the CT is still being read: its resampling, and the reading of the mask."""

    def __init__(self, case: Case, resampling: StreamingResampler, mask_pool: Executor, empty: ArrayAllocator) -> None:
        self._case, self._mask_pool, self._empty = case, mask_pool, empty
        self.on_planes_ready = resampling.on_planes_ready
        self.mask: Future[Volume] | None = None

    def on_grid_ready(self, grid: Grid) -> None:
        """The CT's grid is known, and with it whether the mask lies on it."""
        if self._case.mask.is_file():
            self.mask = self._mask_pool.submit(read_mask, self._case, grid, empty=self._empty)


def _images(case: Case, config: Config, *, extract: bool, timer: StageTimer, empty: ArrayAllocator) -> PreparedImages:
    """What depends on CT and mask alone, and may therefore be cached by their content."""
    with worker_pool() as pool, ThreadPoolExecutor(max_workers=1, thread_name_prefix="mask") as mask_pool:
        resampling = StreamingResampler(config.ct, pool, empty=empty)
        ahead = _ReadAhead(case, resampling, mask_pool, empty)
        ct = read_ct(case, pool=pool, callbacks=ahead, timer=timer, empty=empty)
        timer.lap("inflate")
        warnings = raise_on_error(check_ct(ct), case.case_id)
        timer.lap("check")
        mask = None if ahead.mask is None else ahead.mask.result()
        timer.lap("mask")
        if mask is not None:
            warnings += raise_on_error(check_mask(ct, mask), case.case_id)
        timer.lap("check")
        ct_1DHW = prepare_ct(ct, config.ct, resampling)
    timer.lap("resample")
    radiomics_F = None
    if extract:
        assert mask is not None  # the caller has seen that it is there
        radiomics_F, note = _extract(case, ct, mask)
        warnings += (note,) if note else ()
        timer.lap("radiomics")
    return PreparedImages(ct_1DHW=ct_1DHW, warnings=warnings, radiomics_F=radiomics_F)


def _extract(case: Case, ct: Volume, mask: Volume) -> tuple[Float[np.ndarray, "1781"], str | None]:
    """The features, from the cache where they are there, and what the user should know of how they were had."""
    from tmi.toolkit.radiomics.cache import extract_cached  # pyradiomics is an extra, and slow to import

    try:
        extracted = extract_cached(ct, mask)
        return extracted.values_F, extracted.note
    except InputRejectedError as error:
        raise error.for_case(case.case_id) from error
