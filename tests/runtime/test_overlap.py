"""The next batch is prepared while this one computes; the answers are the same, in the same order."""

from __future__ import annotations

import threading

import pytest

from tmi.runtime import case_inputs
from tmi.runtime import predictor as module


@pytest.mark.parametrize("batch", [1, 2])
def test_cases_are_prepared_ahead_in_another_thread_and_answered_in_order(
    predictor, good_cases, tmp_path, monkeypatch, batch
):
    missing = tmp_path / "P999"
    missing.mkdir()
    (missing / "clinical.json").write_text("{}")
    cases = [module.Case(folder=path, case_id=path.name) for path in (*good_cases[:2], missing, *good_cases[2:])]
    expected = predictor.predict(cases, batch=batch)
    threads: list[str] = []
    honest = case_inputs.prepare_case

    def prepare(*arguments, **options):
        threads.append(threading.current_thread().name)
        return honest(*arguments, **options)

    monkeypatch.setattr(case_inputs, "prepare_case", prepare)
    started = []
    compute = module.encode_ct
    monkeypatch.setattr(module, "encode_ct", lambda *a, **o: (started.append(len(threads)), compute(*a, **o))[1])
    answers = predictor.predict(cases, batch=batch)
    assert [a.case_id for a in answers] == [c.case_id for c in cases]
    for mine, theirs in zip(answers, expected, strict=True):
        assert type(mine) is type(theirs)
        assert getattr(mine, "probability", None) == getattr(theirs, "probability", None)
    assert all(name.startswith("prepare") for name in threads)
    assert started[0] > batch, "the next batch was on its way when the first was computed"


def test_a_stream_that_is_left_early_stops_preparing(predictor, good_cases):
    stream = predictor.stream(good_cases)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prepare")]
