"""`auto` takes the quickest engine that passes its checks; what is named is taken as named."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories.engine_times import CountingMeasure
from factories.tmi_command import tmi
from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving import startup
from tmi.runtime.serving.startup import chosen_by_auto, open_selected_engine

OPTIONAL = "openvino-bf16"


@pytest.fixture
def bundle(nano_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle on a machine that has opened none yet and can run every engine."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tmi.runtime.engines.openvino.OpenVinoBf16Engine.encoder_precision", "f32")
    monkeypatch.setattr("tmi.runtime.engines.registry.missing_requirement", _missing)
    monkeypatch.setattr(startup, "require_survived_trial", lambda *_, **options: None)  # a process for each engine
    return open_bundle(nano_bundle)


def _missing(name: str) -> str | None:
    return "no NVIDIA GPU with its driver" if startup.engine_spec(name).gpu else None


def opened(bundle: Bundle, measure: CountingMeasure, engine: str = "auto", **options) -> EngineRecord:
    lines: list[str] = options.pop("lines", [])
    selected, record = open_selected_engine(
        engine, bundle, threads=1, measure=measure, log=lines.append, **options
    )  # fmt: skip
    selected.close()
    return record


@pytest.mark.parametrize("quickest", ["onnx", "openvino", OPTIONAL])
def test_quickest_engine_is_taken(bundle, quickest):
    """The engine that is quickest here is taken, at the first opening and at the next; the reason has the times."""
    measure = CountingMeasure(**{quickest.replace("-", "_"): 1.0})
    first = opened(bundle, measure)
    assert (first.name, first.verified) == (quickest, "now")
    assert first.reason.startswith("auto: 1 s a CT encoder pass; ")
    assert "measured 2026-01-31" in first.reason
    again = opened(bundle, measure)
    assert (again.name, again.reason, again.verified) == (quickest, first.reason, "before")
    assert len(measure.calls) == 1


def test_named_engine_and_precision_override_the_times(bundle):
    """A named engine is not timed; a precision restricts the engines that are."""
    measure = CountingMeasure(openvino_bf16=1.0, onnx=2.0)
    assert opened(bundle, measure, "openvino").name == "openvino"
    assert measure.calls == []
    assert opened(bundle, measure, precision="fp32").name == "onnx"
    assert measure.calls == [("openvino", "onnx")]
    assert opened(bundle, measure, precision="bf16").name == OPTIONAL
    assert len(measure.calls) == 1, "one engine alone needs no time"


def test_without_the_self_test_nothing_is_timed(bundle):
    """`--no-verify` times nothing, and uses times that are remembered."""
    measure = CountingMeasure(onnx=1.0)
    first = opened(bundle, measure, verify=False)
    assert "the first that is installed" in first.reason
    assert measure.calls == []
    assert opened(bundle, measure).name == "onnx"
    assert opened(bundle, measure, verify=False).name == "onnx"
    assert len(measure.calls) == 1


def test_next_quickest_replaces_an_engine_that_fails(bundle, monkeypatch):
    """The quickest engine that fails its self-test is skipped with the reason, then and later, without timing again."""
    monkeypatch.setattr(startup, "run_self_test", _failing(startup.run_self_test))
    measure, lines = CountingMeasure(openvino_bf16=1.0, onnx=2.0, openvino=3.0), list[str]()
    record = opened(bundle, measure, lines=lines)
    assert record.name == "onnx"
    assert f"{OPTIONAL}: its outputs differ" in record.reason
    assert f"engine {OPTIONAL} is skipped: its outputs differ" in lines
    monkeypatch.setattr(startup, "cached_result", lambda b, name: (name == OPTIONAL, _why(name)))
    assert opened(bundle, measure).name == "onnx"
    assert len(measure.calls) == 1


def _why(name: str) -> str | None:
    return "its outputs differ" if name == OPTIONAL else None


def _failing(original):
    def run(bundle, engine, *, log):
        if engine.name == OPTIONAL:
            raise ParityError("its outputs differ", fix="another engine")
        return original(bundle, engine, log=log)

    return run


def test_doctor_shows_what_auto_takes(bundle, monkeypatch):
    """Before the first prediction it says that the engines are not timed yet, afterwards it has their times."""
    words = ("doctor", "--bundle", bundle.folder)
    assert "the first prediction times the engines" in tmi(*words).out
    monkeypatch.setattr(startup, "measure_engines", CountingMeasure(onnx=1.0))
    name, reason, times = chosen_by_auto(bundle, may_time=True)
    assert name == "onnx"
    assert times is not None
    assert f"--engine auto    onnx ({reason})" in tmi(*words).out
    assert tmi(*words, "--json").document["auto"] == {"engine": "onnx", "reason": reason}
