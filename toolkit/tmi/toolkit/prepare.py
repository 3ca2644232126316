"""From a case folder to the arrays and the text of the network: the one road of training and of prediction.

Whatever is scaled by a fitted thing (radiomics, tokens) stays raw here: the fold that owns the scaler or tokenizer does
that, and can then say what it imputed, clipped or cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from jaxtyping import Float

from tmi.toolkit.case import MASK_FILE, RADIOMICS_FILE, Case, open_case
from tmi.toolkit.clinical import read_clinical
from tmi.toolkit.clinical_schema import Schema
from tmi.toolkit.clinical_text import render
from tmi.toolkit.clinical_units import check_units
from tmi.toolkit.config import Config
from tmi.toolkit.content_checks import check_ct, check_mask, refuse_on_error
from tmi.toolkit.errors import InputRefusedError
from tmi.toolkit.intensity import prepare_ct
from tmi.toolkit.prepared_cache import PreparedCache, PreparedImages
from tmi.toolkit.radiomics_table import read_table
from tmi.toolkit.volume import Volume, read_ct, read_mask


@dataclass(frozen=True, kw_only=True)
class PreparedCase:
    """One case as the network's inputs, before any fitted scaling."""

    case_id: str
    """Name of the case."""
    patient_id: str | None
    """Patient, from the cohort's table or the clinical record."""
    ct_1DHW: Float[np.ndarray, "1 D H W"]
    """float32, windowed, scaled and resampled."""
    radiomics_F: Float[np.ndarray, "1781"]
    """float64, unscaled, NaN where missing."""
    text: str
    """Clinical record as text."""
    warnings: tuple[str, ...]
    """What was done that a user should know of."""
    seconds: Mapping[str, float]
    """Time spent, by stage: `read`, `preprocess`, `radiomics`."""


def prepare_case(
    case: Case,
    config: Config,
    schema: Schema,
    *,
    cache: PreparedCache | None = None,
    on_text: Callable[[str], None] = lambda text: None,
) -> PreparedCase:
    """Read, check and prepare one case.

    Radiomics come from radiomics.csv where it is there, else from the liver mask. A mask that is there is checked in
    either case: one that does not fit its CT is a sign of mixed-up files.

    Args:
        case: the case.
        config: the settings of the run or bundle.
        schema: its clinical schema.
        cache: where the images' part is looked for and stored; answer, warnings and refusals are the same without.
        on_text: told the text as soon as it is known, before any image is read; the case may still be refused.

    Raises:
        InputRefusedError: a file is missing, unreadable or implausible; the case is named.
        UnavailableError: radiomics must be extracted and pyradiomics is not installed.
    """
    start = perf_counter()
    open_case(case.folder)  # a folder that is not there is told as such, not as its first missing file
    record = read_clinical(case, schema)
    given = read_table(case.radiomics, case_id=case.case_id) if case.radiomics.is_file() else None
    if given is None and not case.mask.is_file():
        raise InputRefusedError(
            f"neither {RADIOMICS_FILE} nor {MASK_FILE} is there",
            code="radiomics-missing",
            case_id=case.case_id,
            fix=f"give {RADIOMICS_FILE}, or a liver mask from which the features are extracted",
        )
    seconds = {"read": 0.0, "preprocess": 0.0, "radiomics": 0.0}
    warnings = refuse_on_error(check_units(record, schema), case.case_id)  # outside what is cached by the images
    text = render(record, schema, config.clinical.rendering)
    on_text(text)

    def make() -> PreparedImages:
        return _images(case, config, extract=given is None, seconds=seconds)

    images = make() if cache is None else cache.images(case, config.ct, extract=given is None, make=make)
    radiomics_F = images.radiomics_F if given is None else given
    assert radiomics_F is not None  # extracted where none was given
    # what is neither preprocessing nor extraction was reading, a look into the cache included
    seconds["read"] = perf_counter() - start - seconds["preprocess"] - seconds["radiomics"]
    return PreparedCase(
        case_id=case.case_id,
        patient_id=case.patient_id or record.patient_id,
        ct_1DHW=images.ct_1DHW,
        radiomics_F=radiomics_F,
        text=text,
        warnings=warnings
        + images.warnings
        + (("radiomics were extracted from the liver mask",) if given is None else ()),
        seconds=seconds,
    )


def _images(case: Case, config: Config, *, extract: bool, seconds: dict[str, float]) -> PreparedImages:
    """What depends on CT and mask alone, and may therefore be cached by their content."""
    ct = read_ct(case)
    warnings = refuse_on_error(check_ct(ct), case.case_id)
    mask = read_mask(case, ct) if case.mask.is_file() else None
    if mask is not None:
        warnings += refuse_on_error(check_mask(ct, mask), case.case_id)
    read = perf_counter()
    ct_1DHW = prepare_ct(ct, config.ct)
    prepared = perf_counter()
    radiomics_F = None
    if extract:
        assert mask is not None  # the caller has seen that it is there
        radiomics_F, note = _extract(case, ct, mask)
        warnings += (note,) if note else ()
    seconds.update(preprocess=prepared - read, radiomics=perf_counter() - prepared)
    return PreparedImages(ct_1DHW=ct_1DHW, warnings=warnings, radiomics_F=radiomics_F)


def _extract(case: Case, ct: Volume, mask: Volume) -> tuple[Float[np.ndarray, "1781"], str | None]:
    """The features, from the cache where they are there, and what the user should know of how they were had."""
    from tmi.toolkit.radiomics_cache import extract_once  # pyradiomics is an extra, and slow to import

    try:
        extracted = extract_once(ct, mask)
        return extracted.values_F, extracted.note
    except InputRefusedError as error:
        raise error.for_case(case.case_id) from error
