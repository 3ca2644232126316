"""Times of engines that depend on no machine."""

from __future__ import annotations

from collections.abc import Sequence

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineTimes
from tmi.runtime.verification.engine_timing import Measure


def engine_times(**seconds: float) -> EngineTimes:
    """Times of a CT encoder; `openvino_bf16` names `openvino-bf16`."""
    named = {name.replace("_", "-"): value for name, value in seconds.items()}
    return EngineTimes(passes="CT encoder", seconds=named, untimed={}, created="2026-01-31")


def in_table_order(bundle: Bundle, engines: Sequence[str], threads: int | None) -> EngineTimes:
    """Each engine takes longer than those before it in the table."""
    seconds = {name: 0.01 * (number + 1) for number, name in enumerate(engines)}
    return EngineTimes(passes="CT encoder", seconds=seconds, untimed={}, created="2026-01-31")


class CountingMeasure:
    """Gives fixed seconds, and records which engines it was asked to time."""

    def __init__(self, **seconds: float) -> None:
        self.calls: list[tuple[str, ...]] = []
        self._seconds = engine_times(**seconds).seconds

    def __call__(self, bundle: Bundle, engines: Sequence[str], threads: int | None) -> EngineTimes | None:
        self.calls.append(tuple(engines))
        return engine_times(**{name.replace("-", "_"): self._seconds.get(name, 9.0) for name in engines})


_: Measure = in_table_order
