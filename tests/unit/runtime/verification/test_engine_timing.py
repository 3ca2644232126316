"""Times of the engines: the quickest in bounded time, remembered for bundle, versions, processor and threads."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from factories.engine_times import CountingMeasure, in_table_order
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines import registry, selection
from tmi.runtime.engines.registry import ENGINES, EngineSpec
from tmi.runtime.engines.selection import timed_engines
from tmi.runtime.verification import engine_timing
from tmi.runtime.verification.engine_timing import BUDGET_SECONDS, engine_times, measure_engines, time_engines
from tmi.runtime.verification.timing_process import EngineFailedError, TimingProcess, TooSlowError

TABLE = ("openvino-bf16", "openvino", "onnx")
"""Engines of these tests, in the order of the table; the first is optional."""


@pytest.fixture(scope="module")
def bundle(nano_bundle: Path) -> Bundle:
    return open_bundle(nano_bundle)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has opened no bundle yet."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class ScriptedTimer:
    """Passes of fixed seconds on a clock of its own; `failures` are engines that cannot run."""

    def __init__(self, seconds: dict[str, float], failures: dict[str, EngineFailedError] | None = None) -> None:
        self.now, self.runs, self.closed = 0.0, list[str](), list[str]()
        self._seconds, self._failures = seconds, failures or {}

    def run(self, engine: str, *, limit: float | None = None) -> float:
        self.runs.append(engine)
        if engine in self._failures:
            raise self._failures[engine]
        self.now += min(self._seconds[engine], limit or self._seconds[engine])
        if limit is not None and self._seconds[engine] > limit:
            raise TooSlowError(limit)
        return self._seconds[engine]

    def close(self, engine: str) -> None:
        self.closed.append(engine)


def timed(timer: ScriptedTimer, engines: tuple[str, ...] = TABLE):
    return time_engines(engines, timer, passes="CT encoder", clock=lambda: timer.now)


def test_slow_optional_engine_is_stopped():
    """An engine that is many times slower costs half as much again as the quickest, and is named with that limit."""
    timer = ScriptedTimer({"openvino-bf16": 400.0, "openvino": 12.9, "onnx": 31.0})
    times = timed(timer)
    assert times is not None
    assert (times.seconds, set(times.untimed)) == ({"openvino": 12.9}, {"openvino-bf16", "onnx"})
    assert times.untimed["openvino-bf16"] == "over 19.9 s"
    assert timer.now < BUDGET_SECONDS
    assert times.summary("openvino") == (
        f"12.9 s a CT encoder pass; onnx over 19.9 s, openvino-bf16 over 19.9 s; measured {times.created}"
    )


def test_no_engine_starts_after_the_budget():
    """The time is bounded by the first engine and the budget, however many engines there are."""
    timer = ScriptedTimer({"openvino-bf16": 55.0, "openvino": 50.0, "onnx": 1.0})
    times = timed(timer)
    assert times is not None
    assert times.untimed == {"openvino-bf16": "over 50 s", "onnx": "not timed within 60 s"}
    assert timer.now <= BUDGET_SECONDS + 50.0


def test_quicker_engine_is_found_at_the_end_of_the_budget():
    """What is left of the budget does not make a quick engine a slow one."""
    times = timed(ScriptedTimer({"openvino-bf16": 12.0, "openvino": 57.6, "onnx": 1.0}))
    assert times is not None
    assert times.order(TABLE)[0] == "openvino-bf16"
    assert times.seconds["openvino-bf16"] == 12.0


def test_loading_pass_does_not_replace_the_time_of_the_quickest():
    """The quickest engine is opened again after another one was stopped; that pass is slower and does not count."""

    class LoadingTimer(ScriptedTimer):
        """Passes after a stopped one load first and take a fifth more."""

        is_warm = True

        def run(self, engine: str, *, limit: float | None = None) -> float:
            try:
                seconds = super().run(engine, limit=limit)
            except TooSlowError:
                self.is_warm = False
                raise
            return seconds * (1.2 if engine == "openvino" and not self.is_warm else 1.0)

    times = timed(LoadingTimer({"openvino": 5.0, "openvino-bf16": 90.0, "onnx": 5.5}))
    assert times is not None
    assert times.order(TABLE)[0] == "openvino"
    assert (times.seconds["openvino"], times.seconds["onnx"]) == (5.0, 5.5)


def test_first_engine_timed_is_not_optional():
    """An optional engine, which may be slow on this processor, is timed against one that is not."""
    timer = ScriptedTimer({"openvino-bf16": 3.0, "openvino": 9.0, "onnx": 8.0})
    times = timed(timer)
    assert timer.runs == ["openvino", "openvino-bf16", "onnx"]
    assert times is not None
    assert times.order(TABLE)[0] == "openvino-bf16"
    assert timer.closed == ["openvino"], "its memory is freed before the next engine is opened"


def test_short_and_close_passes_are_timed_in_turn():
    """Engines of short passes, and long ones that differ little, run alternately, and the quickest pass counts."""
    timer = ScriptedTimer({"openvino": 0.02, "onnx": 0.021})
    assert timed(timer, ("openvino", "onnx")) is not None
    assert timer.runs == ["openvino"] * 2 + ["onnx"] + ["onnx", "openvino"] * 3
    timer = ScriptedTimer({"openvino": 10.0, "onnx": 11.0})
    assert timed(timer, ("openvino", "onnx")) is not None
    assert timer.runs == ["openvino", "onnx", "onnx", "openvino"]


def test_engine_that_crashes_is_left_out():
    """Others are timed; if the first one crashes none is, because a malicious graph would crash each of them."""
    crash = EngineFailedError("crashes", ended=True)
    times = timed(ScriptedTimer({"openvino": 1.0, "onnx": 0.9}, {"openvino-bf16": crash}))
    assert times is not None
    assert (times.order(TABLE)[0], times.untimed) == ("onnx", {"openvino-bf16": "cannot be timed: crashes"})
    timer = ScriptedTimer({}, {"openvino": crash})
    assert timed(timer) is None
    assert timer.runs == ["openvino"]


def test_engines_come_from_the_table(bundle, monkeypatch):
    """A new row of the table is a candidate; one that the export rejected, or that imports torch, is not."""
    new = EngineSpec(target=None, artefact="onnx", package="numpy", extra=None, max_abs_err=1e-2, optional=True)
    for module in (registry, selection):
        monkeypatch.setattr(module, "ENGINES", {"new": new, **ENGINES})
    names = timed_engines(bundle)
    assert (names[0], names[-1]) == ("new", "onnx")
    assert not {"eager", "torchscript"} & set(names)
    rejected = replace(bundle, manifest=replace(bundle.manifest, engines_rejected={"new": "its outputs differ"}))
    assert "new" not in timed_engines(rejected)
    assert "openvino-bf16" not in timed_engines(bundle, precision="fp32")


def measured(bundle: Bundle, measure: CountingMeasure, *, threads: int = 1, skipped=(), log=lambda line: None):
    reasons = dict.fromkeys(skipped, "its outputs differ")
    return engine_times(bundle, TABLE, threads=threads, skipped=reasons, measure=measure, log=log)


def test_times_are_remembered(bundle, cache, monkeypatch):
    """A later start reads the times; other threads, versions, processors or bundles are timed again."""
    measure, lines = CountingMeasure(onnx=1.0), list[str]()
    first = measured(bundle, measure, log=lines.append)
    assert "first use of this bundle on this machine: timing openvino-bf16, openvino, onnx" in lines[0]
    assert f"cached in {cache / 'engine-times'}" in lines[1]
    assert measured(bundle, measure) == first
    assert len(measure.calls) == 1
    measured(bundle, measure, threads=2)
    for name, value in (("package_version", "9.9"), ("cpu_name", "Another CPU"), ("cpu_features", "amx")):
        with monkeypatch.context() as patch:
            patch.setattr(engine_timing, name, lambda *_, value=value: value)
            measured(bundle, measure)
    measured(replace(bundle, digest="0" * 64), measure)
    assert len(measure.calls) == 6
    assert measured(bundle, measure) == first
    assert len(measure.calls) == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: "",
        lambda record: "[]",
        lambda record: json.dumps({**record, "combination": {}}),
        lambda record: json.dumps({**record, "times": {}}),
        lambda record: json.dumps({**record, "times": {**record["times"], "seconds": {"onnx": "fast"}}}),
        lambda record: json.dumps({**record, "times": {**record["times"], "seconds": {"another": 1.0}}}),
    ],
    ids=["empty", "no object", "another combination", "no times", "no number", "unknown engine"],
)
def test_damaged_record_is_replaced(bundle, cache, damage):
    """A damaged record does not count; it is measured again and then remembered."""
    measure = CountingMeasure(onnx=1.0)
    measured(bundle, measure)
    (file,) = (cache / "engine-times").iterdir()
    file.write_text(damage(json.loads(file.read_text())))
    assert measured(bundle, measure) == measured(bundle, measure)
    assert len(measure.calls) == 2


def test_without_a_writable_cache_the_engines_are_timed_at_every_start(bundle, tmp_path, monkeypatch):
    """A cache that is off or cannot be written stops nothing, and is named."""
    (tmp_path / "file").write_text("in the way")
    for setting, said in (("off", "not cached, caching is off"), (str(tmp_path / "file"), "cannot be cached in")):
        monkeypatch.setenv("TMI_CACHE", setting)
        measure, lines = CountingMeasure(onnx=1.0), list[str]()
        for _ in range(2):
            measured(bundle, measure, log=lines.append)
        assert len(measure.calls) == 2
        assert said in lines[-1]


def test_failed_engine_is_never_timed(bundle, cache):
    """An engine that is known to fail its checks is not timed, and one engine alone needs no time."""
    measure = CountingMeasure(onnx=1.0)
    measured(bundle, measure, skipped=["openvino-bf16"])
    assert measure.calls == [("openvino", "onnx")]
    assert engine_times(bundle, ("onnx",), threads=1, skipped={}, measure=measure) is None


def test_processes_that_start_together_measure_once(bundle, cache):
    """The second one waits for the times of the first; measuring at the same time would disturb both."""
    started, go, calls, lines = threading.Event(), threading.Event(), list[str](), list[str]()

    def slow(*words):
        calls.append("measured")
        started.set()
        go.wait(10)
        return in_table_order(*words)

    results: list[object] = []
    first, second = (
        threading.Thread(target=lambda: results.append(measured(bundle, slow, log=lines.append))) for _ in range(2)
    )
    first.start()
    assert started.wait(10)
    second.start()
    while not any("waiting" in line for line in lines):
        assert second.is_alive()
    go.set()
    for thread in (first, second):
        thread.join(10)
    assert calls == ["measured"]
    assert len(results) == 2
    assert results[0] == results[1] is not None


def test_real_engines_are_timed_in_another_process(bundle):
    """Every engine that runs here gets its seconds."""
    engines = timed_engines(bundle)
    times = measure_engines(bundle, engines, 1)
    assert times is not None
    assert {*times.seconds, *times.untimed} == set(engines)
    assert all(0 < seconds < 1 for seconds in times.seconds.values())
    assert times.passes == "CT encoder"


def test_pass_over_its_limit_ends_the_process(bundle):
    """A pass is stopped at its limit, an unknown engine is reported, and both leave a process that goes on."""
    with TimingProcess(bundle, "ct-0", ("onnx",), threads=1) as timer:
        timer.run("onnx")
        with pytest.raises(TooSlowError):
            timer.run("onnx", limit=0.0)
        assert timer.run("onnx") > 0
        with pytest.raises(EngineFailedError, match="unknown engine") as failed:
            timer.run("nothing")
        assert not failed.value.ended
        timer.close("onnx")


def test_process_that_dies_is_reported(bundle):
    """A crash is found at once, not at the limit."""
    with TimingProcess(bundle, "ct-0", ("onnx",), threads=1) as timer:
        timer.run("onnx")
        assert timer._process is not None
        timer._process.kill()
        with pytest.raises(EngineFailedError, match="crashes") as failed:
            timer.run("onnx")
        assert failed.value.ended
