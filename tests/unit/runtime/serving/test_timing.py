"""Where the time went: the stages add up to the wall, and a second is counted once."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from factories.tmi_command import tmi
from tmi.runtime.serving import case_loader as case_inputs
from tmi.runtime.serving import predictor as module
from tmi.runtime.serving import text_encoding as text_branch
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
def test_the_stages_add_up_to_the_total(predictor, good_cases, batch):
    for answer in predictor.predict(good_cases, batch=batch):
        assert {*STAGES, "total", "read"} <= set(answer.seconds)
        assert stages_match_total(answer.seconds), answer.seconds
        assert all(answer.seconds[stage] > 0 for stage in ("tokenise", "ct", "text", "fusion", "other"))


@pytest.mark.parametrize(
    ("where", "name"), [(module, "split_overlap"), (module, "sum_stages"), (case_inputs, "sum_stages")]
)
def test_time_that_no_stage_claims_is_found(predictor, good_cases, monkeypatch, where, name):
    if name == "split_overlap" or where is module:
        # outside every stage of this thread: between the encoders and the answer
        original = module.Stopwatch.wall.fget
        monkeypatch.setattr(module.Stopwatch, "wall", property(slow(original)))
    else:
        monkeypatch.setattr(where, name, slow(getattr(where, name)))
    (answer,) = predictor.predict(good_cases[0])
    assert not stages_match_total(answer.seconds)
    assert unaccounted_seconds(answer.seconds) > NAP / 2


def test_what_passes_behind_other_work_is_told_beside_the_waterfall(predictor, good_cases, monkeypatch):
    monkeypatch.setattr(module, "encode_ct", slow(module.encode_ct))
    start = time.perf_counter()
    first, second = predictor.predict(good_cases[:2])
    wall = time.perf_counter() - start
    assert second.seconds["ct"] > NAP
    assert sum(second.overlapped.values()) > 10 * second.seconds["read"], "it was prepared while the first computed"
    assert first.seconds["total"] + second.seconds["total"] <= wall


def test_a_stage_is_split_in_proportion_to_what_was_waited_for():
    waited, hidden = split_overlap({"read": 3.0, "resample": 1.0}, wall=4.0, waited=1.0)
    assert waited == {"read": 0.75, "resample": 0.25}
    assert hidden == {"read": 2.25, "resample": 0.75}


def test_the_text_is_encoded_while_the_images_are_still_being_read(predictor, good_cases, monkeypatch):
    order: list[str] = []
    prepare, encode = case_inputs.prepare_case, text_branch.encode_text

    def preparing(case, *settings, on_text_ready, **options):
        def told(text):
            on_text_ready(text)
            time.sleep(NAP)

        prepared = prepare(case, *settings, on_text_ready=told, **options)
        order.append("images")
        return prepared

    monkeypatch.setattr(case_inputs, "prepare_case", preparing)
    monkeypatch.setattr(text_branch, "encode_text", lambda *a, **o: (encode(*a, **o), order.append("text"))[0])
    predictor.predict(good_cases[0])
    assert order == ["text", "images"]


def test_timing_shows_each_case_and_the_mean(tiny_bundle, good_cases):
    outcome = tmi("predict", *good_cases[:2], "--bundle", tiny_bundle, "--engine", "onnx", "--timing", "--json")
    assert [r["case_id"] for r in outcome.document["results"]] == ["P000", "P001"]
    for title in ("Time: P000", "Time: P001", "Time: mean of 2 cases"):
        assert title in outcome.err
    assert all(outcome.err.count(f" {stage} ") >= 3 for stage in ("read", *STAGES, "total"))
    assert "█" in outcome.err
    assert "2 predicted, 0 refused in " in outcome.err


def test_copies_to_a_device_and_back_are_a_stage_of_their_own(predictor, good_cases, monkeypatch):
    engine, napped = predictor._engine, 0.02
    run = engine.run

    def copying(graph, inputs):
        time.sleep(napped)
        engine.copied_seconds += napped
        return run(graph, inputs)

    assert COPIES not in predictor.predict(good_cases[0])[0].seconds, "a CPU has none"
    monkeypatch.setattr(engine, "copied_seconds", 0.0)
    monkeypatch.setattr(engine, "run", copying)
    (answer,) = predictor.predict(good_cases[0])
    assert answer.seconds[COPIES] == pytest.approx(engine.copied_seconds)
    assert engine.copied_seconds >= 3 * napped, "text, CT and fusion"
    assert stages_match_total(answer.seconds), answer.seconds


def test_waiting_for_a_refused_case_is_not_the_others_time(predictor, good_cases, monkeypatch):
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    monkeypatch.setattr(predictor, "engine_record", replace(predictor.engine_record, threads=2))
    honest = predictor._reader.read

    def read(case, on_text_ready):
        if case.case_id == "slow":
            time.sleep(1.0)
            return RejectedCase(case_id="slow", code="ct-missing", what="no CT", fix="give one")
        return honest(case, on_text_ready)

    monkeypatch.setattr(predictor._reader, "read", read)
    refused, answer = predictor.predict([Case(folder=good_cases[0], case_id="slow"), good_cases[1]])
    assert isinstance(refused, RejectedCase)
    assert stages_match_total(answer.seconds)
    assert answer.seconds["total"] < 0.9
