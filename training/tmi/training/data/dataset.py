"""A whole cohort, prepared once for all folds and epochs. N cases, V fields of the clinical schema.

CTs lie in one float32 array, in memory while they fit there and in a file mapped into memory where they do not
(a case of the full-size preset is 67 MB). A case that is refused is left out and reported; the rest go on.

A cohort that has no CT at all is one of clinical records; systems that look at nothing else are trained on it, and get
volumes of one voxel and no features. Where any case has a CT, every case must be whole, whatever the system looks at:
all systems then see the same cases and folds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from tmi.toolkit.cases.case import COHORT_FILE, Case, Cohort
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.config.schema import N_RADIOMICS, Config
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.preprocessing.cache import PreparedCache
from tmi.toolkit.preprocessing.clinical_features import clinical_inputs
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.storage.hashing import sha256_file, sha256_json

IN_MEMORY_BYTES = 2 * 2**30
"""Cohorts whose CTs take more than this are mapped from a file."""


@dataclass(frozen=True, kw_only=True)
class CohortArrays:
    """Prepared cases, in the cohort's order, without those refused."""

    cases: tuple[Case, ...]
    """The cases, N of them."""
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
    """Why cases were left out."""

    def rows(self, case_ids: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Positions of the named cases."""
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
    """Prepare every case.

    Args:
        cohort: the cases.
        config: settings of the run.
        schema: clinical schema of the run.
        store: file the CTs are mapped from where they do not fit in memory.
        cache: of prepared images; None prepares every case anew.
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
    kept: list[Case] = []
    texts: list[str] = []
    refused: list[InputRejectedError] = []
    for case in cohort.cases:
        try:
            record = clinical_inputs(case, config, schema)
            prepared = None if records_only else prepare_case(case, config, schema, cache=cache)
        except InputRejectedError as error:
            refused.append(error)
        else:
            if prepared is not None:
                ct[len(kept)] = prepared.ct_1DHW
                radiomics[len(kept)] = prepared.radiomics_F
            numbers[len(kept)] = record.numbers_V
            kept.append(case)
            texts.append(record.text)
        if progress is not None:
            progress(case)
    return CohortArrays(
        cases=tuple(kept),
        ct_N1DHW=ct[: len(kept)],
        radiomics_NF=radiomics[: len(kept)],
        texts=tuple(texts),
        numbers_NV=numbers[: len(kept)],
        labels_N=np.array([c.label for c in kept], dtype=np.int64),
        rejected=tuple(refused),
    )


def is_clinical_only(cohort: Cohort) -> bool:
    """Whether no case has a CT."""
    return not any(case.ct.is_file() for case in cohort.cases)


def fingerprint(cohort: Cohort) -> str:
    """SHA-256 over the cohort's table and every file of its cases; names the data a run was trained on."""
    digests = {
        f"{case.case_id}/{path.name}": _digest(path)
        for case in cohort.cases
        for path in (case.ct, case.mask, case.radiomics, case.clinical)
        if path.is_file()
    }
    return sha256_json({"table": sha256_file(cohort.folder / COHORT_FILE), "files": digests})


def _digest(path: Path) -> str | None:
    """Of a file; None where it cannot be read, so that its case is left out by its own check."""
    try:
        return sha256_file(path)
    except OSError:
        return None
