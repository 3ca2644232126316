"""Options and fixtures of the benchmarks: size, inputs and the recorder of metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bench_inputs
from bench_inputs import SIZES, Size
from recorder import Recorder
from tmi.runtime import Predictor


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tmi benchmarks")
    group.addoption("--size", choices=tuple(SIZES), default="small", help="network and CT to measure with")
    group.addoption("--repeats", type=int, help="rounds of every paired measurement; default: the size's")
    group.addoption("--bundle", type=Path, help="bundle of one fold to measure instead of one with random weights")
    group.addoption(
        "--inputs", type=Path, default=bench_inputs.CACHE_FOLDER, help="folder in which bundles and cases are cached"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Disable the timeout, and ignore warnings: those of MONAI cannot be fixed here."""
    for item in items:
        if Path(str(item.fspath)).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(0))
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Remove the name of the host from the JSON."""
    machine_info.pop("node", None)


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Size:
    return SIZES[pytestconfig.getoption("--size")]


@pytest.fixture(scope="session")
def cache_folder(pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("--inputs"))


@pytest.fixture(scope="session")
def one_fold(pytestconfig: pytest.Config, size: Size, cache_folder: Path) -> Path:
    """The bundle of one fold."""
    bundle = pytestconfig.getoption("--bundle")
    return Path(bundle) if bundle else bench_inputs.bundle(size, folds=1, cache=cache_folder)


@pytest.fixture(scope="session")
def case(size: Size, cache_folder: Path) -> Path:
    return bench_inputs.cases(size, 1, cache=cache_folder)[0]


@pytest.fixture(scope="session")
def cohort(size: Size, cache_folder: Path) -> list[Path]:
    """Eight cases."""
    return bench_inputs.cases(size, 8, cache=cache_folder)


@pytest.fixture(scope="module")
def default_predictor(one_fold: Path) -> Iterator[Predictor]:
    """A predictor with the engine that `auto` chooses."""
    with Predictor.open(one_fold) as predictor:
        yield predictor


@pytest.fixture
def record(benchmark: Any, request: pytest.FixtureRequest, size: Size) -> Recorder:
    recorder = Recorder(benchmark, request.config.getoption("--repeats") or size.repeats)
    benchmark.extra_info["size"] = size.name
    question = (request.module.__doc__ or "").strip().partition("\n")[0]
    benchmark.extra_info["question"] = question
    return recorder
