"""The next batch is prepared while this one's CT computes, and not before; answers are the same, in the same order."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tmi.runtime import case_inputs
from tmi.runtime import predictor as module
from tmi.runtime.case_inputs import Inputs, LookAhead
from tmi.runtime.prediction import Refusal
from tmi.toolkit.case import Case

QUIET = 0.03
"""Seconds in which a thread that has leave to begin a case would have begun it."""


def case(name: str) -> Case:
    return Case(folder=Path(name), case_id=name)


def preparing() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("prepare")]


class Desk:
    """Stands in for the reader: notes who was begun, and gives at once what was read before."""

    def __init__(self, ready: list[Inputs]) -> None:
        self.ready = ready
        self.begun: list[str] = []
        self.alive: list[weakref.ref[object]] = []
        self.most_alive = 0
        self.more = threading.Condition()

    def read(self, case: Case, on_text: Callable[[str], None]) -> Inputs | Refusal:
        with self.more:
            self.begun.append(case.case_id)
            self.more.notify_all()
        if case.case_id.startswith("bad"):
            return Refusal(case_id=case.case_id, code="case-missing", what="no such folder", fix="give another")
        inputs = self.ready[len(self.begun) % len(self.ready)]
        prepared = replace(inputs.case, case_id=case.case_id)
        on_text(prepared.text)
        self.alive.append(weakref.ref(prepared))
        self.most_alive = max(self.most_alive, sum(one() is not None for one in self.alive))
        return replace(inputs, case=prepared)

    def wait_for(self, count: int) -> bool:
        with self.more:
            return self.more.wait_for(lambda: len(self.begun) >= count, timeout=20)


@pytest.fixture(scope="module")
def ready(predictor, good_cases) -> list[Inputs]:
    """Four cases as the reader makes them."""
    return [predictor._reader.read(Case(folder=p, case_id=p.name), lambda text: None) for p in good_cases]


@pytest.fixture
def desk(predictor, ready, monkeypatch) -> Desk:
    made = Desk(ready)
    monkeypatch.setattr(predictor._reader, "read", made.read)
    return made


@pytest.mark.parametrize("batch", [1, 2])
def test_cases_are_prepared_in_another_thread_once_each_and_answered_in_order(
    predictor, good_cases, tmp_path, monkeypatch, batch
):
    missing = tmp_path / "P999"
    missing.mkdir()
    (missing / "clinical.json").write_text("{}")
    cases = [Case(folder=path, case_id=path.name) for path in (*good_cases[:2], missing, *good_cases[2:])]
    alone = [predictor.predict(case)[0] for case in cases]
    threads: list[str] = []
    read: list[str] = []
    honest = case_inputs.prepare_case

    def prepare(case, *arguments, **options):
        threads.append(threading.current_thread().name)
        read.append(case.case_id)
        return honest(case, *arguments, **options)

    monkeypatch.setattr(case_inputs, "prepare_case", prepare)
    answers = predictor.predict(cases, batch=batch)
    assert [a.case_id for a in answers] == [c.case_id for c in cases]
    for mine, theirs in zip(answers, alone, strict=True):
        assert type(mine) is type(theirs)
        assert getattr(mine, "probability", None) == pytest.approx(getattr(theirs, "probability", None), abs=1e-5)
    assert all(name.startswith("prepare") for name in threads)
    assert read == [c.case_id for c in cases], "each case is read once, in the order given"


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_next_batch_is_begun_when_the_ct_starts_and_not_during_the_texts(predictor, desk, monkeypatch, batch):
    cases = [case(f"C{n}") for n in range(2 * batch + 1)]
    at_text: list[int] = []
    at_ct: list[int] = []
    text, ct = module.encode_text, module.encode_ct

    own = [batch] * batch + [2 * batch] * batch + [len(cases)]

    def encode_text(*arguments, **options):
        desk.wait_for(own[len(at_text)])
        time.sleep(QUIET)
        at_text.append(len(desk.begun))
        return text(*arguments, **options)

    def encode_ct(*arguments, **options):
        desk.wait_for(min((len(at_ct) + 2) * batch, len(cases)))
        time.sleep(QUIET)
        at_ct.append(len(desk.begun))
        return ct(*arguments, **options)

    monkeypatch.setattr(module, "encode_text", encode_text)
    monkeypatch.setattr(module, "encode_ct", encode_ct)
    answers = predictor.predict(cases, batch=batch)
    assert [a.case_id for a in answers] == [c.case_id for c in cases]
    assert at_text == own, "a text runs beside its own batch only"
    assert at_ct == [2 * batch, len(cases), len(cases)], "while a CT runs, the next batch is prepared and no more"


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    "names",
    [
        "bad0 C1 C2 C3 C4 C5 C6",
        "C0 bad1 C2 bad3 bad4 C5 C6 bad7",
        "bad0 bad1 bad2 bad3 bad4",
        "C0 C1 bad2 bad3 bad4 bad5 C6",
        "C0",
    ],
)
def test_refused_cases_stall_nothing_and_no_more_than_two_batches_are_in_memory(predictor, desk, batch, names):
    cases = [case(name) for name in names.split()]
    answers = [*predictor.stream(cases, batch=batch)]
    assert [a.case_id for a in answers] == names.split()
    assert [isinstance(a, Refusal) for a in answers] == [name.startswith("bad") for name in names.split()]
    assert desk.begun == names.split(), "nothing is read twice, in the order given"
    assert desk.most_alive <= 2 * batch
    assert not preparing()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_long_stream_holds_two_batches_of_prepared_cases_at_most(predictor, desk, batch):
    cases = [case(f"C{n}") for n in range(12)]
    seen = 0
    for _ in predictor.stream(cases, batch=batch):
        seen += 1
        time.sleep(0.001)  # gives the thread every chance to run ahead
        assert len(desk.begun) <= (seen + batch - 1) // batch * batch + batch
    assert seen == len(cases)
    assert batch < desk.most_alive <= 2 * batch


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_than_so_many_cases_are_ahead_however_often_it_is_told_to_begin(ready, most):
    desk = Desk(ready)
    with LookAhead(desk.read, [case(f"C{n}") for n in range(12)], most=most) as ahead:
        time.sleep(QUIET)
        assert desk.begun == [], "nothing is begun that was not asked for"
        for given in range(12):
            assert next(ahead).inputs.result().case.case_id == f"C{given}"
            for _ in range(3):
                ahead.begin()
            desk.wait_for(min(given + 1 + most, 12))
            time.sleep(0.002)
            assert len(desk.begun) == min(given + 1 + most, 12)
        assert next(ahead, None) is None


def test_a_case_whose_preparation_fails_gives_its_error_and_leaves_no_one_waiting_for_its_text():
    def read(case: Case, on_text: Callable[[str], None]) -> Refusal:
        raise RuntimeError(case.case_id)

    with LookAhead(read, [case("C0")], most=1) as ahead:
        (pending,) = ahead
        assert pending.text.result(timeout=20) is None
        with pytest.raises(RuntimeError, match="C0"):
            pending.inputs.result(timeout=20)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_stream_that_is_left_early_stops_preparing(predictor, desk, batch):
    stream = predictor.stream([case(f"C{n}") for n in range(12)], batch=batch)
    next(stream)
    stream.close()
    assert not preparing()
    begun = len(desk.begun)
    assert begun <= 2 * batch
    time.sleep(QUIET)
    assert len(desk.begun) == begun
