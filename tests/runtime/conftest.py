"""Four good cases and a predictor that the runtime's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from factories.cases import write_case
from tmi.runtime import Predictor


@pytest.fixture(scope="session")
def good_cases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Read only."""
    folder = tmp_path_factory.mktemp("good_cases")
    paths = [folder / f"P{seed:03d}" for seed in range(4)]
    for seed, path in enumerate(paths):
        write_case(path, seed=seed)
    return paths


@pytest.fixture(scope="session")
def predictor(tiny_bundle: Path) -> Iterator[Predictor]:
    with Predictor.open(tiny_bundle, engine="onnx", threads=1) as opened:
        yield opened
