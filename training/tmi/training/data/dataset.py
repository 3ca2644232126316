"""Prepares a cohort once for all folds and epochs. N cases, V fields of the clinical schema, F radiomics features.

The CTs are one float32 array, in memory if it is small enough, else memory-mapped from a file (a case of the full-size
preset is 67 MB). Rejected cases are left out and reported.

A cohort without any CT consists of clinical records. Models that use only the clinical modality can be trained on it;
their volumes have one voxel and their features are missing. If any case has a CT, every case must be complete for every
model, so that all models are trained on the same cases and folds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from tmi.toolkit.cases.case import Case, Cohort, reading
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.config.schema import N_RADIOMICS, Config
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.preprocessing.cache import PreparedCache
from tmi.toolkit.preprocessing.clinical_features import clinical_inputs
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.trust.measurements import GEOMETRY_SIZE

IN_MEMORY_BYTES = 2 * 2**30
"""CT arrays larger than this are memory-mapped from a file."""


@dataclass(frozen=True, kw_only=True)
class CohortArrays:
    """Prepared cases in the cohort's order, without the rejected ones."""

    cases: tuple[Case, ...]
    """The N cases."""
    ct_N1DHW: Float[np.ndarray, "N 1 D H W"]
    """CT volumes; float32."""
    radiomics_NF: Float[np.ndarray, "N F"]
    """Unscaled features, NaN where missing; float64."""
    texts: tuple[str, ...]
    """Clinical texts."""
    numbers_NV: Float[np.ndarray, "N V"]
    """Clinical values as numbers, NaN where missing; float64."""
    labels_N: Int[np.ndarray, " N"]
    """Class indices; int64."""
    rejected: tuple[InputRejectedError, ...]
    """Reasons of the rejected cases."""
    reports: tuple[str, ...] = ()
    """Free-text report at the end of each text, empty where there is none; no element: no case has a report."""
    spans: tuple[tuple[tuple[str | None, int, int], ...], ...] = ()
    """Name, first character and one past the last of each field in each text; no element: unknown."""
    geometry_NG: Float[np.ndarray, "N 6"] | None = None
    """Voxels of each CT's file along D, H, W and their sizes in mm, NaN where unknown; None: unknown for all."""
    fields: tuple[str, ...] = ()
    """Names of the V values; no element: unknown."""

    def rows(self, case_ids: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Row indices of the named cases."""
        position = {case.case_id: i for i, case in enumerate(self.cases)}
        return np.array([position[i] for i in case_ids], dtype=np.intp)


def prepare_cohort(
    cohort: Cohort,
    config: Config,
    schema: Schema,
    *,
    store: Path,
    cache: PreparedCache | None = None,
    progress: Callable[[Case], None] | None = None,
) -> CohortArrays:
    """Prepare every case of a cohort.

    Args:
        cohort: the cases.
        config: settings of the run.
        schema: clinical schema of the run.
        store: file from which the CTs are mapped if they do not fit in memory.
        cache: cache of prepared images; None disables caching.
        progress: called after each case.
    """
    records_only = is_clinical_only(cohort) and active_modalities(config) == ("clinical",)
    shape = (len(cohort.cases), 1, *((1, 1, 1) if records_only else config.ct.shape_DHW))
    if int(np.prod(shape, dtype=np.int64)) * 4 <= IN_MEMORY_BYTES:
        ct = np.zeros(shape, dtype=np.float32)
    else:
        store.parent.mkdir(parents=True, exist_ok=True)
        ct = np.lib.format.open_memmap(store, mode="w+", dtype=np.float32, shape=shape)
    radiomics = np.full((len(cohort.cases), N_RADIOMICS), np.nan)
    numbers = np.full((len(cohort.cases), len(schema.fields)), np.nan)
    geometry = np.full((len(cohort.cases), GEOMETRY_SIZE), np.nan)
    accepted: list[Case] = []
    texts: list[str] = []
    reports: list[str] = []
    spans: list[tuple[tuple[str | None, int, int], ...]] = []
    rejected: list[InputRejectedError] = []
    for case in cohort.cases:
        try:
            with reading(case.case_id):
                record = clinical_inputs(case, config, schema)
                prepared = None if records_only else prepare_case(case, config, schema, cache=cache)
        except InputRejectedError as error:
            rejected.append(error)
        else:
            if prepared is not None:
                ct[len(accepted)] = prepared.ct_1DHW
                radiomics[len(accepted)] = prepared.radiomics_F
                if prepared.geometry_G is not None:
                    geometry[len(accepted)] = prepared.geometry_G
            numbers[len(accepted)] = record.numbers_V
            accepted.append(case)
            texts.append(record.text)
            reports.append(record.report)
            spans.append(record.spans)
        if progress is not None:
            progress(case)
    return CohortArrays(
        cases=tuple(accepted),
        ct_N1DHW=ct[: len(accepted)],
        radiomics_NF=radiomics[: len(accepted)],
        texts=tuple(texts),
        numbers_NV=numbers[: len(accepted)],
        labels_N=np.array([c.label for c in accepted], dtype=np.int64),
        rejected=tuple(rejected),
        reports=tuple(reports),
        spans=tuple(spans),
        geometry_NG=geometry[: len(accepted)],
        fields=tuple(field.name for field in schema.fields),
    )


def is_clinical_only(cohort: Cohort) -> bool:
    """Whether no case has a CT."""
    return not any(case.ct.is_file() for case in cohort.cases)
