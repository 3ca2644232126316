"""Recorder of the metrics of a benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from tmi.runtime.benchmark.interleaved_timing import InterleavedTimer, Ratio, ratio


class Recorder:
    """Writes metrics into the JSON of pytest-benchmark, from which `benchmarks/report.py` reads them."""

    def __init__(self, benchmark: Any, repeats: int) -> None:
        self._benchmark = benchmark
        self.repeats = repeats
        self.metrics: dict[str, dict[str, Any]] = benchmark.extra_info.setdefault("figures", {})
        self._timed = False

    def paired(
        self,
        pipelines: Mapping[str, Callable[[], object]],
        *,
        against: str,
        repeats: int | None = None,
        warmup: int = 1,
    ) -> dict[str, Ratio]:
        """Time the pipelines in turn; record the seconds of each and its ratio to `against`, round by round."""
        rounds = InterleavedTimer(pipelines)
        for _ in range(warmup):
            rounds.run()
        rounds.discard_rounds()
        self._pedantic(rounds.run, repeats or self.repeats)
        ratios = {}
        for name, seconds in rounds.seconds.items():
            self.metrics[f"{name} s"] = {"value": statistics.median(seconds), "unit": "s", "rounds": seconds}
            if name != against:
                ratios[name] = ratio(seconds, rounds.seconds[against])
                self.metrics[f"{name} / {against}"] = {
                    "value": ratios[name].median,
                    "unit": "x",
                    **asdict(ratios[name]),
                }
        return ratios

    def once(self, work: Callable[[], Any]) -> Any:
        """Run a function that measures by itself, such as processes; pytest-benchmark shows its total time."""
        return self._pedantic(work, 1)

    def note(self, name: str, value: float, unit: str = "", **more: Any) -> None:
        """Record one metric."""
        self.metrics[name] = {"value": float(value), "unit": unit, **more}

    def _pedantic(self, work: Callable[[], Any], rounds: int) -> Any:
        assert not self._timed, "pytest-benchmark can time only once in a test"
        self._timed = True
        return self._benchmark.pedantic(work, rounds=rounds, iterations=1)
