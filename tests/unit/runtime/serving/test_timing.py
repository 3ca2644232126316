"""Timing of predictions: stages add up to the wall time, and each second is counted once."""

from __future__ import annotations

import time

import pytest

from factories.staged_predictor import WatchedEngine
from factories.tmi_command import tmi
from tmi.runtime.serving.results import COPIES, STAGES, RejectedCase
from tmi.runtime.serving.trace import stages_match_total, unaccounted_seconds
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


@pytest.mark.parametrize("batch", [1, 2])
def test_totals_add_up_to_the_wall_time(opened, good_cases, batch):
    """The totals of all cases are the time that the caller waited, within 5 %."""
    slowed = opened.predictor(encode_ct=slow(opened.pipeline.encode_ct))
    start = time.perf_counter()
    results = slowed.predict(good_cases[:2], batch=batch)
    wall = time.perf_counter() - start
    assert sum(result.seconds["total"] for result in results) == pytest.approx(wall, rel=0.05)


def test_time_outside_every_stage_is_detected(opened, good_cases):
    """Time of the engine's thread outside every stage makes `stages_match_total` false."""

    class Watched(WatchedEngine):
        @property
        def copied_seconds(self) -> None:  # read before a stage of the engine starts
            time.sleep(NAP)

        @copied_seconds.setter
        def copied_seconds(self, value: object) -> None: ...

    (result,) = opened.predictor(Watched(opened.engine)).predict(good_cases[0])
    assert not stages_match_total(result.seconds)
    assert unaccounted_seconds(result.seconds) > NAP


def test_time_of_a_preparation_outside_its_stages_is_detected(opened, good_cases):
    """Time of a worker outside the stages of its preparation makes `stages_match_total` false."""
    (result,) = opened.predictor(prepare=slow(opened.pipeline.prepare)).predict(good_cases[0])
    assert not stages_match_total(result.seconds)
    assert unaccounted_seconds(result.seconds) > NAP / 2


def test_overlapped_time_is_reported_separately(opened, good_cases):
    """Preparation that runs while another case computes counts in `overlapped`, not in `seconds`."""
    overlapping = opened.on_gpu(encode_ct=slow(opened.pipeline.encode_ct))
    start = time.perf_counter()
    first, second = overlapping.predict(good_cases[:2])
    wall = time.perf_counter() - start
    assert second.seconds["ct"] > NAP
    assert sum(second.overlapped.values()) > 10 * sum(second.seconds[stage] for stage in ("record", "read", "check"))
    assert first.seconds["total"] + second.seconds["total"] <= wall


def test_text_is_encoded_before_images_are_read(opened, good_cases):
    """The text of a single case is encoded while its images are still being read."""
    order: list[str] = []
    pipeline = opened.pipeline

    def prepare(case, on_text_ready):
        def delayed(text):
            on_text_ready(text)
            time.sleep(NAP)

        prepared = pipeline.prepare(case, delayed)
        order.append("images")
        return prepared

    def encode_text(tokens):
        order.append("text")
        return pipeline.encode_text(tokens)

    opened.predictor(prepare=prepare, encode_text=encode_text).predict(good_cases[0])
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


def test_device_copies_are_a_separate_stage(opened, predictor, good_cases):
    """Seconds of copies to and from a device are moved from the engine's stages to `copies`."""
    delay = 0.02

    def copy(graph, inputs):
        time.sleep(delay)
        engine.copied_seconds += delay

    engine = WatchedEngine(opened.engine, before_run=copy, copied_seconds=0.0)
    assert COPIES not in predictor.predict(good_cases[0])[0].seconds, "a CPU has none"
    (result,) = opened.predictor(engine).predict(good_cases[0])
    assert result.seconds[COPIES] == pytest.approx(engine.copied_seconds)
    assert engine.copied_seconds >= 3 * delay, "text, CT and fusion"
    assert stages_match_total(result.seconds), result.seconds


def test_waiting_for_a_rejected_case_is_not_attributed(opened, good_cases):
    """Seconds spent waiting for a rejected case do not count for the other cases of its round."""
    pipeline = opened.pipeline

    def prepare(case, on_text_ready):
        if case.case_id == "slow":
            time.sleep(1.0)
            return RejectedCase(case_id="slow", code="ct-missing", what="no CT", fix="give one")
        return pipeline.prepare(case, on_text_ready)

    cases = [Case(folder=good_cases[0], case_id="slow"), Case(folder=good_cases[1], case_id="quick")]
    rejected, result = opened.on_cores(2, prepare=prepare).predict(cases)
    assert isinstance(rejected, RejectedCase)
    assert stages_match_total(result.seconds)
    assert result.seconds["total"] < 0.9
