"""A prepared cohort of random arrays without files, for tests of training and of the models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tmi.toolkit.cases.case import Case
from tmi.toolkit.config.schema import N_RADIOMICS
from tmi.toolkit.run_folder import FoldSplit
from tmi.training.data.dataset import CohortArrays

IDS = tuple(f"C{i:02d}" for i in range(26))
SPLIT = FoldSplit(fold=1, train=IDS[:14], validation=IDS[14:20], test=IDS[20:])


def make_arrays(shape_DHW: tuple[int, int, int], *, seed: int = 3) -> CohortArrays:
    """Cases with alternating labels; some features are missing, one is always missing and one is constant."""
    random = np.random.default_rng(seed)
    radiomics = random.normal(0, 10, (len(IDS), N_RADIOMICS))
    radiomics[random.uniform(size=radiomics.shape) < 0.02] = np.nan
    radiomics[:, 5], radiomics[:, 6] = np.nan, 4.0
    radiomics[:, 7] = np.arange(len(IDS)) % 2 + random.normal(0, 0.3, len(IDS))
    numbers = random.normal(0, 5, (len(IDS), 6))
    numbers[::5, 1], numbers[:, 2] = np.nan, np.nan
    numbers[:, 3] += 4.0 * (np.arange(len(IDS)) % 2)
    return CohortArrays(
        cases=tuple(Case(folder=Path(i), case_id=i, patient_id=i, label=k % 2) for k, i in enumerate(IDS)),
        ct_N1DHW=random.uniform(0, 1, (len(IDS), 1, *shape_DHW)).astype(np.float32),
        radiomics_NF=radiomics,
        texts=tuple(f"Albumin: {30 + k} g/L. Word{k}word." for k in range(len(IDS))),
        numbers_NV=numbers,
        labels_N=np.arange(len(IDS), dtype=np.int64) % 2,
        rejected=(),
    )


def changed(arrays: CohortArrays, ids: tuple[str, ...]) -> CohortArrays:
    """The cohort with all data of the named cases replaced, labels included."""
    rows = arrays.rows(ids)
    ct, radiomics, labels = arrays.ct_N1DHW.copy(), arrays.radiomics_NF.copy(), arrays.labels_N.copy()
    numbers = arrays.numbers_NV.copy()
    ct[rows], radiomics[rows], labels[rows], numbers[rows] = 0.25, 15.0, 1 - labels[rows], -40.0
    texts = tuple("Ünknown ZZZ 999" if i in rows else text for i, text in enumerate(arrays.texts))
    return replace(arrays, ct_N1DHW=ct, radiomics_NF=radiomics, labels_N=labels, texts=texts, numbers_NV=numbers)
