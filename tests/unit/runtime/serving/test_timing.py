"""Timing of predictions: stages add up to the wall time, and each second is counted once."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from factories.tmi_command import tmi
from tmi.runtime.serving import case_loader as case_loader
from tmi.runtime.serving import predictor as predictor_module
from tmi.runtime.serving import text_encoding as text_encoding
from tmi.runtime.serving.results import COPIES, STAGES, RejectedCase
from tmi.runtime.serving.timing import split_overlap, stages_match_total, unaccounted_seconds
from tmi.toolkit.cases.case import Case

NAP = 0.3


def slow(original):
    def sleeping(*arguments, **options):
        time.sleep(NAP)
        return original(*arguments, **options)

    return sleeping


@pytest.mark.parametrize("batch", [1, 2])
def test_stages_add_up_to_the_total(predictor, good_cases, batch):
    """Every prediction lists all stages, and they sum to its total."""
    for result in predictor.predict(good_cases, batch=batch):
        assert {*STAGES, "total", "read"} <= set(result.seconds)
        assert stages_match_total(result.seconds), result.seconds
        assert all(result.seconds[stage] > 0 for stage in ("tokenise", "ct", "text", "fusion", "other"))


@pytest.mark.parametrize(
    ("where", "name"),
    [(predictor_module, "split_overlap"), (predictor_module, "sum_stages"), (case_loader, "sum_stages")],
)
def test_unaccounted_time_is_detected(predictor, good_cases, monkeypatch, where, name):
    """Time outside every stage makes `stages_match_total` false."""
    if name == "split_overlap" or where is predictor_module:
        # outside every stage of this thread: between the encoders and the result
        original = predictor_module.Stopwatch.wall.fget
        monkeypatch.setattr(predictor_module.Stopwatch, "wall", property(slow(original)))
    else:
        monkeypatch.setattr(where, name, slow(getattr(where, name)))
    (result,) = predictor.predict(good_cases[0])
    assert not stages_match_total(result.seconds)
    assert unaccounted_seconds(result.seconds) > NAP / 2


def test_overlapped_time_is_reported_separately(predictor, good_cases, monkeypatch):
    """Preparation that runs while another case computes counts in `overlapped`, not in `seconds`."""
    monkeypatch.setattr(predictor_module, "encode_ct", slow(predictor_module.encode_ct))
    start = time.perf_counter()
    first, second = predictor.predict(good_cases[:2])
    wall = time.perf_counter() - start
    assert second.seconds["ct"] > NAP
    assert sum(second.overlapped.values()) > 10 * second.seconds["read"], "it was prepared while the first computed"
    assert first.seconds["total"] + second.seconds["total"] <= wall


def test_stages_are_split_in_proportion_to_waiting():
    """Each stage is split by the fraction of the preparation that was waited for."""
    waited, hidden = split_overlap({"read": 3.0, "resample": 1.0}, wall=4.0, waited=1.0)
    assert waited == {"read": 0.75, "resample": 0.25}
    assert hidden == {"read": 2.25, "resample": 0.75}


def test_text_is_encoded_before_images_are_read(predictor, good_cases, monkeypatch):
    """The text of a single case is encoded while its images are still being read."""
    order: list[str] = []
    prepare, encode = case_loader.prepare_case, text_encoding.encode_text

    def preparing(case, *settings, on_text_ready, **options):
        def delayed(text):
            on_text_ready(text)
            time.sleep(NAP)

        prepared = prepare(case, *settings, on_text_ready=delayed, **options)
        order.append("images")
        return prepared

    monkeypatch.setattr(case_loader, "prepare_case", preparing)
    monkeypatch.setattr(text_encoding, "encode_text", lambda *a, **o: (encode(*a, **o), order.append("text"))[0])
    predictor.predict(good_cases[0])
    assert order == ["text", "images"]


def test_timing_option_prints_each_case_and_the_mean(tiny_bundle, good_cases):
    """`tmi predict --timing` prints one table for each case and one for the mean."""
    outcome = tmi("predict", *good_cases[:2], "--bundle", tiny_bundle, "--engine", "onnx", "--timing", "--json")
    assert [r["case_id"] for r in outcome.document["results"]] == ["P000", "P001"]
    for title in ("Time: P000", "Time: P001", "Time: mean of 2 cases"):
        assert title in outcome.err
    assert all(outcome.err.count(f" {stage} ") >= 3 for stage in ("read", *STAGES, "total"))
    assert "█" in outcome.err
    assert "2 predicted, 0 rejected in " in outcome.err


def test_device_copies_are_a_separate_stage(predictor, good_cases, monkeypatch):
    """Seconds of copies to and from a device are moved from the engine's stages to `copies`."""
    engine, delay = predictor._engine, 0.02
    run = engine.run

    def copying(graph, inputs):
        time.sleep(delay)
        engine.copied_seconds += delay
        return run(graph, inputs)

    assert COPIES not in predictor.predict(good_cases[0])[0].seconds, "a CPU has none"
    monkeypatch.setattr(engine, "copied_seconds", 0.0)
    monkeypatch.setattr(engine, "run", copying)
    (result,) = predictor.predict(good_cases[0])
    assert result.seconds[COPIES] == pytest.approx(engine.copied_seconds)
    assert engine.copied_seconds >= 3 * delay, "text, CT and fusion"
    assert stages_match_total(result.seconds), result.seconds


def test_waiting_for_a_rejected_case_is_not_attributed(predictor, good_cases, monkeypatch):
    """Seconds spent waiting for a rejected case do not count for the other cases of its round."""
    monkeypatch.setattr(predictor_module, "available_cores", lambda: 2)
    monkeypatch.setattr(predictor, "engine_record", replace(predictor.engine_record, threads=2))
    original = predictor._reader.read

    def read(case, on_text_ready):
        if case.case_id == "slow":
            time.sleep(1.0)
            return RejectedCase(case_id="slow", code="ct-missing", what="no CT", fix="give one")
        return original(case, on_text_ready)

    monkeypatch.setattr(predictor._reader, "read", read)
    rejected, result = predictor.predict([Case(folder=good_cases[0], case_id="slow"), good_cases[1]])
    assert isinstance(rejected, RejectedCase)
    assert stages_match_total(result.seconds)
    assert result.seconds["total"] < 0.9
