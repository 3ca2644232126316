"""Cases, a predictor and a report shared by the tests of the runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from factories.cases import MARKUP_CASE_ID, write_case
from factories.staged_predictor import OpenBundle
from factories.tmi_command import CommandResult, tmi
from tmi.runtime import Predictor
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.serving.startup import open_selected_engine


@pytest.fixture(scope="session")
def good_cases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four valid cases; read only."""
    folder = tmp_path_factory.mktemp("good_cases")
    paths = [folder / f"P{seed:03d}" for seed in range(4)]
    for seed, path in enumerate(paths):
        write_case(path, seed=seed)
    return paths


@pytest.fixture(scope="session")
def opened(tiny_bundle: Path) -> Iterator[OpenBundle]:
    """A bundle on one thread of ONNX Runtime, for predictors with replaced parts."""
    bundle = open_bundle(tiny_bundle)
    engine, record = open_selected_engine("onnx", bundle, threads=1)
    with engine:
        yield OpenBundle(bundle, engine, record)


@pytest.fixture(scope="session")
def predictor(opened: OpenBundle) -> Predictor:
    """The predictor of that bundle."""
    return Predictor(opened.bundle, opened.engine, opened.record)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Two valid cases, the second with a free-text report and without a mask, and a rejected one; read only."""
    folder = tmp_path_factory.mktemp("explained") / "cohort"
    write_case(folder / "P1", seed=1)
    strange = write_case(folder / MARKUP_CASE_ID, seed=2, with_mask=False)
    record = (strange / "clinical.json").read_text()
    (strange / "clinical.json").write_text(record.replace('"report": null', '"report": "Secret words of a patient."'))
    broken = write_case(folder / "P3", seed=3)
    (broken / "clinical.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def reported(cohort, tiny_bundle, tmp_path_factory) -> tuple[Path, CommandResult]:
    """Folder of the pages, and the result of the command."""
    out = tmp_path_factory.mktemp("report") / "report"
    return out, tmi("report", cohort, "--bundle", tiny_bundle, "--out", out, "--threads", 1)
