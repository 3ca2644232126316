"""Options and fixtures of the benchmarks: the size, the inputs, and the recorder that every question writes with."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import bench_inputs
from bench_inputs import SIZES, Size
from tmi.runtime import Predictor
from tmi.runtime.paired_timing import Ratio, Rounds, ratio


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tmi benchmarks")
    group.addoption("--size", choices=tuple(SIZES), default="small", help="network and CT to measure with")
    group.addoption("--repeats", type=int, help="rounds of every paired measurement; default: the size's")
    group.addoption("--bundle", type=Path, help="bundle of one fold to measure instead of one with random weights")
    group.addoption("--inputs", type=Path, default=bench_inputs.KEPT, help="folder where bundles and cases are kept")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A measurement takes as long as it takes, and what MONAI warns of is not ours to mend."""
    for item in items:
        if Path(str(item.fspath)).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(0))
            item.add_marker(pytest.mark.filterwarnings("ignore"))


class Recorder:
    """Writes figures into the benchmark's JSON; `benchmarks/report.py` reads and judges them."""

    def __init__(self, benchmark: Any, repeats: int) -> None:
        self._benchmark = benchmark
        self.repeats = repeats
        self.figures: dict[str, dict[str, Any]] = benchmark.extra_info.setdefault("figures", {})
        self._timed = False

    def paired(
        self, roads: Mapping[str, Callable[[], object]], *, against: str, repeats: int | None = None, warmup: int = 1
    ) -> dict[str, Ratio]:
        """Time the roads in turn and record each one's seconds and its ratio to `against`, round by round."""
        rounds = Rounds(roads)
        for _ in range(warmup):
            rounds.run()
        rounds.forget()
        self._pedantic(rounds.run, repeats or self.repeats)
        ratios = {}
        for name, seconds in rounds.seconds.items():
            self.figures[f"{name} s"] = {"value": statistics.median(seconds), "unit": "s", "rounds": seconds}
            if name != against:
                ratios[name] = ratio(seconds, rounds.seconds[against])
                self.figures[f"{name} / {against}"] = {
                    "value": ratios[name].median,
                    "unit": "x",
                    **asdict(ratios[name]),
                }
        return ratios

    def once(self, work: Callable[[], Any]) -> Any:
        """Run what measures itself, such as processes; pytest-benchmark shows how long it took as a whole."""
        return self._pedantic(work, 1)

    def note(self, name: str, value: float, unit: str = "", **more: Any) -> None:
        """Record one figure."""
        self.figures[name] = {"value": float(value), "unit": unit, **more}

    def _pedantic(self, work: Callable[[], Any], rounds: int) -> Any:
        assert not self._timed, "pytest-benchmark times once a test"
        self._timed = True
        return self._benchmark.pedantic(work, rounds=rounds, iterations=1)


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Size:
    return SIZES[pytestconfig.getoption("--size")]


@pytest.fixture(scope="session")
def kept(pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("--inputs"))


@pytest.fixture(scope="session")
def one_fold(pytestconfig: pytest.Config, size: Size, kept: Path) -> Path:
    """The bundle of one fold."""
    given = pytestconfig.getoption("--bundle")
    return Path(given) if given else bench_inputs.bundle(size, folds=1, kept=kept)


@pytest.fixture(scope="session")
def case(size: Size, kept: Path) -> Path:
    return bench_inputs.cases(size, 1, kept=kept)[0]


@pytest.fixture(scope="session")
def cohort(size: Size, kept: Path) -> list[Path]:
    """Eight cases."""
    return bench_inputs.cases(size, 8, kept=kept)


@pytest.fixture(scope="module")
def default_predictor(one_fold: Path) -> Iterator[Predictor]:
    """What `tmi predict` opens when no engine is asked for."""
    with Predictor.open(one_fold) as predictor:
        yield predictor


@pytest.fixture
def record(benchmark: Any, request: pytest.FixtureRequest, size: Size) -> Recorder:
    recorder = Recorder(benchmark, request.config.getoption("--repeats") or size.repeats)
    benchmark.extra_info["size"] = size.name
    question = (request.module.__doc__ or "").strip().partition("\n")[0]
    benchmark.extra_info["question"] = question
    return recorder
