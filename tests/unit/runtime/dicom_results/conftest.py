"""A case that was imported from a DICOM series, and its prediction."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from factories.dicom_series import SeriesSpec, liver_at, make_slices, write_seg, write_slices
from tmi.runtime.dicom_results.objects import Origin
from tmi.runtime.serving.results import FoldPrediction, Prediction
from tmi.toolkit.cases.case import Case
from tmi.toolkit.ingest.case_importer import import_case

SPEC = SeriesSpec(slices=24, rows=48, columns=64, spacing_mm=(5.5, 5.5), step_mm=6.0)


class Imported(NamedTuple):
    """A case, its series, and the liver on the slices."""

    case: Case
    series: Path
    liver: np.ndarray


@pytest.fixture(scope="session")
def imported(tmp_path_factory) -> Imported:
    """A case from an axial series with shuffled file names, and a SEG of its liver; read-only."""
    folder = tmp_path_factory.mktemp("source")
    slices = make_slices(SPEC)
    liver = np.stack([liver_at(SPEC.positions_of(k)) for k in range(SPEC.slices)])
    series = write_slices(folder / "series", slices, shuffle=3)
    seg = write_seg(folder / "seg.dcm", slices, [liver.astype(np.uint8)], ["hepar"])
    import_case(folder / "P1", ct=series, mask=seg)
    return Imported(Case(folder=folder / "P1", case_id="P1"), series, liver)


@pytest.fixture
def prediction() -> Prediction:
    """A prediction of two fold models."""
    folds = tuple(
        FoldPrediction(fold=fold, probability={"good": 1 - bad, "bad": bad}) for fold, bad in ((0, 0.625), (1, 0.875))
    )
    return Prediction(
        case_id="P1", probability={"good": 0.25, "bad": 0.75}, folds=folds, spread=0.125, decision="bad", warnings=(),
        engine="onnx", bundle="b" * 64, seconds={"total": 1.0}, overlapped={},
    )  # fmt: skip


@pytest.fixture
def origin() -> Origin:
    """A bundle and engine, with a UID root of an organisation."""
    return Origin(version="1.2.3", bundle="b" * 64, engine="onnx float32", uid_root="1.2.826.0.1.3680043.9")
