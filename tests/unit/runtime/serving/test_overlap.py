"""Who prepares cases, and when; answers are the same, in the same order.

Beside a GPU the next batch is prepared while this one's CT computes, and not before. An engine on the CPU rests while a
round of cases is prepared, one for each core at a time.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tmi.runtime.inference.ensemble import encoder_graphs
from tmi.runtime.serving import case_loader as case_inputs
from tmi.runtime.serving import predictor as module
from tmi.runtime.serving import text_encoding as text_branch
from tmi.runtime.serving.case_loader import CaseInputs, Prefetcher
from tmi.runtime.serving.results import RejectedCase
from tmi.runtime.serving.timing import stages_match_total
from tmi.toolkit.cases.case import Case

QUIET = 0.03
"""Seconds in which a thread that has leave to begin a case would have begun it."""


def case(name: str) -> Case:
    return Case(folder=Path(name), case_id=name)


@pytest.fixture
def on_gpu(predictor, monkeypatch) -> None:
    """The engine says that it has a device of its own."""
    monkeypatch.setattr(predictor._engine, "copied_seconds", 0.0)


@pytest.fixture
def have_cores(predictor, monkeypatch) -> Callable[[int], int]:
    """Says how many cores there are, and that the engine runs on all of them."""

    def have(count: int) -> int:
        monkeypatch.setattr(module, "available_cores", lambda: count)
        monkeypatch.setattr(predictor, "engine_record", replace(predictor.engine_record, threads=count))
        return count

    return have


@pytest.fixture(params=[1, 2, 3, 16])
def cores(request, have_cores) -> int:
    return have_cores(request.param)


def round_of(cores: int, batch: int) -> int:
    """Whole batches for at least as many readers as there may be."""
    readers = min(cores, module.MAX_READERS)
    return next(n for n in range(batch, 100, batch) if n >= readers)


def preparing() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("prepare")]


class Desk:
    """Stands in for the reader: notes who was begun, and gives at once what was read before."""

    def __init__(self, ready: list[CaseInputs]) -> None:
        self.ready = ready
        self.begun: list[str] = []
        self.alive: list[weakref.ref[object]] = []
        self.most_alive = 0
        self.more = threading.Condition()

    def read(self, case: Case, on_text_ready: Callable[[str], None]) -> CaseInputs | RejectedCase:
        with self.more:
            self.begun.append(case.case_id)
            self.more.notify_all()
        if case.case_id.startswith("bad"):
            return RejectedCase(case_id=case.case_id, code="case-missing", what="no such folder", fix="give another")
        inputs = self.ready[len(self.begun) % len(self.ready)]
        prepared = replace(inputs.case, case_id=case.case_id)
        on_text_ready(prepared.text)
        self.alive.append(weakref.ref(prepared))
        self.most_alive = max(self.most_alive, sum(one() is not None for one in self.alive))
        return replace(inputs, case=prepared)

    def wait_for(self, count: int) -> bool:
        with self.more:
            return self.more.wait_for(lambda: len(self.begun) >= count, timeout=20)


@pytest.fixture(scope="module")
def ready(predictor, good_cases) -> list[CaseInputs]:
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
    assert sorted(read) == sorted(c.case_id for c in cases), "each case is read once"


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.usefixtures("on_gpu")
def test_the_next_batch_is_begun_when_the_ct_starts_and_not_during_the_texts(predictor, desk, monkeypatch, batch):
    cases = [case(f"C{n}") for n in range(2 * batch + 1)]
    at_text: list[int] = []
    at_ct: list[int] = []
    text, ct = text_branch.encode_text, module.encode_ct

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

    monkeypatch.setattr(text_branch, "encode_text", encode_text)
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
class TestRefusedCasesStallNothing:
    def check(self, predictor, desk: Desk, batch: int, names: str) -> None:
        cases = [case(name) for name in names.split()]
        answers = [*predictor.stream(cases, batch=batch)]
        assert [a.case_id for a in answers] == names.split()
        assert [isinstance(a, RejectedCase) for a in answers] == [name.startswith("bad") for name in names.split()]
        assert sorted(desk.begun) == sorted(names.split()), "nothing is read twice"
        assert not preparing()

    @pytest.mark.usefixtures("on_gpu")
    def test_beside_a_gpu(self, predictor, desk, batch, names):
        self.check(predictor, desk, batch, names)
        assert desk.begun == names.split(), "in the order given"
        assert desk.most_alive <= 2 * batch

    def test_in_rounds(self, predictor, desk, batch, names, cores):
        self.check(predictor, desk, batch, names)
        assert desk.most_alive <= round_of(cores, batch) + batch - 1


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_on_a_cpu_a_round_is_prepared_while_the_engine_rests(predictor, desk, monkeypatch, batch, cores):
    cases = [case(f"C{n}") for n in range(2 * round_of(cores, batch) + 1)]
    reading: list[str] = []
    busy: list[int] = []
    honest = desk.read

    def read(case, on_text_ready):
        reading.append(case.case_id)
        try:
            time.sleep(QUIET / 10)
            return honest(case, on_text_ready)
        finally:
            reading.remove(case.case_id)

    def watched(stage):
        def run(*arguments, **options):
            if round_of(cores, batch) > 1 and len(desk.begun) < len(cases):  # the last case is alone in its round
                assert not reading, "nothing is prepared while the engine computes"
                busy.append(len(desk.begun))
            return stage(*arguments, **options)

        return run

    monkeypatch.setattr(predictor._reader, "read", read)
    for place, stage in ((text_branch, "encode_text"), (module, "encode_ct"), (module, "fuse")):
        monkeypatch.setattr(place, stage, watched(getattr(place, stage)))
    answers = predictor.predict(cases, batch=batch)
    assert [a.case_id for a in answers] == [c.case_id for c in cases]
    if round_of(cores, batch) > 1:
        assert set(busy) == {round_of(cores, batch) * n for n in (1, 2)}, "round by round"


def test_the_cases_of_a_round_are_prepared_at_the_same_time(predictor, desk, monkeypatch, have_cores):
    have_cores(3)
    together = threading.Barrier(3, timeout=20)
    honest = desk.read

    def read(case, on_text_ready):
        together.wait()  # one after the other would break it
        return honest(case, on_text_ready)

    monkeypatch.setattr(predictor._reader, "read", read)
    assert len(predictor.predict([case(f"C{n}") for n in range(6)])) == 6


def test_a_case_alone_has_its_text_encoded_while_its_images_are_read(predictor, desk, monkeypatch):
    encoded = threading.Event()
    honest, text = desk.read, text_branch.encode_text

    def read(case, on_text_ready):
        inputs = honest(case, on_text_ready)
        assert encoded.wait(timeout=20), "the text waits for the images"
        return inputs

    def encode_text(*arguments, **options):
        features = text(*arguments, **options)
        encoded.set()
        return features

    monkeypatch.setattr(predictor._reader, "read", read)
    monkeypatch.setattr(text_branch, "encode_text", encode_text)
    assert len(predictor.predict(case("C0"))) == 1


@pytest.mark.parametrize("batch", [1, 2])
def test_the_files_of_the_next_round_are_fetched_once_while_this_one_computes(
    predictor, good_cases, monkeypatch, have_cores, batch
):
    have_cores(2)
    fetched: list[str] = []
    wanted = [case.name for case in good_cases[2:]]  # the first round has nothing to hide behind
    honest, ct = predictor._reader.fetch, module.encode_ct

    def fetch(case):
        honest(case)
        fetched.append(case.case_id)

    def encode_ct(*arguments, **options):
        deadline = time.monotonic() + 20
        while len(fetched) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        return ct(*arguments, **options)

    monkeypatch.setattr(predictor._reader, "fetch", fetch)
    monkeypatch.setattr(module, "encode_ct", encode_ct)
    assert len(predictor.predict(good_cases, batch=batch)) == len(good_cases)
    assert sorted(fetched) == sorted(wanted)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_long_stream_on_a_cpu_holds_one_round_of_prepared_cases_at_most(predictor, desk, batch, cores):
    cases = [case(f"C{n}") for n in range(12)]
    most = round_of(cores, batch)
    for seen, _ in enumerate(predictor.stream(cases, batch=batch)):
        assert len(desk.begun) == min(len(cases), seen // most * most + most)
        if batch == 1:
            left = min(len(cases), len(desk.begun)) - seen - 1
            assert sum(one() is not None for one in desk.alive) == left, "an answered case holds nothing"
    assert desk.most_alive == most


def test_cores_that_the_engine_leaves_alone_prepare_while_it_computes(predictor, desk, have_cores, monkeypatch):
    have_cores(4)
    monkeypatch.setattr(predictor, "engine_record", replace(predictor.engine_record, threads=3))
    cases = [case(f"C{n}") for n in range(4)]
    ahead: list[int] = []
    ct = module.encode_ct

    def encode_ct(*arguments, **options):
        desk.wait_for(min(len(ahead) + 2, len(cases)))
        ahead.append(len(desk.begun))
        return ct(*arguments, **options)

    monkeypatch.setattr(module, "encode_ct", encode_ct)
    assert len(predictor.predict(cases)) == 4
    assert ahead == [2, 3, 4, 4]


def test_texts_of_a_round_run_together_where_they_are_of_one_length_and_answer_as_alone(
    predictor, ready, monkeypatch, have_cores
):
    have_cores(4)
    short = ready[0].case.text
    long = short + " and so on" * 20
    texts = {"C0": short, "C1": long, "bad2": short, "C3": short, "C4": long, "C5": short}
    ran: list[tuple[int, int]] = []
    run = predictor._engine.run

    def read(case, on_text_ready):
        on_text_ready(texts[case.case_id])
        if case.case_id.startswith("bad"):
            return RejectedCase(case_id=case.case_id, code="ct-missing", what="no CT", fix="give one")
        inputs = ready[0]
        return replace(inputs, case=replace(inputs.case, case_id=case.case_id, text=texts[case.case_id]))

    def watched(graph, inputs):
        if "input_ids" in inputs:
            ran.append(inputs["input_ids"].shape)
        return run(graph, inputs)

    monkeypatch.setattr(predictor._reader, "read", read)
    alone = {name: predictor.predict(case(name))[0] for name in texts}
    monkeypatch.setattr(predictor._engine, "run", watched)
    answers = predictor.predict([case(name) for name in texts])
    assert [a.case_id for a in answers] == list(texts)
    for answer in answers:
        if isinstance(answer, RejectedCase):
            assert answer.case_id == "bad2"
            continue
        assert answer.probability == pytest.approx(alone[answer.case_id].probability, abs=1e-6)
        assert stages_match_total(answer.seconds)
    assert alone["C0"].probability != alone["C1"].probability, "the texts matter"
    widths = sorted({width for _, width in ran})
    assert len(widths) == 2
    encoders = len(encoder_graphs(predictor.bundle.manifest, "text"))
    rows = {width: sum(count for count, w in ran if w == width) for width in widths}
    assert rows == {widths[0]: 3 * encoders, widths[1]: 2 * encoders}, "no refused case's text"
    assert max(count for count, _ in ran) == 2, "C0 and C3, of one round"


@pytest.mark.usefixtures("on_gpu")
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
    with Prefetcher(desk.read, [case(f"C{n}") for n in range(12)], max_ahead=most) as ahead:
        time.sleep(QUIET)
        assert desk.begun == [], "nothing is begun that was not asked for"
        for given in range(12):
            (pending,) = next(ahead)
            assert pending.inputs.result().case.case_id == f"C{given}"
            for _ in range(3):
                ahead.computing()
            desk.wait_for(min(given + 1 + most, 12))
            time.sleep(0.002)
            assert len(desk.begun) == min(given + 1 + most, 12)
        assert next(ahead, None) is None


def test_a_case_whose_preparation_fails_gives_its_error_and_leaves_no_one_waiting_for_its_text():
    def read(case: Case, on_text_ready: Callable[[str], None]) -> RejectedCase:
        raise RuntimeError(case.case_id)

    with Prefetcher(read, [case("C0")], max_ahead=1) as ahead:
        ((pending,),) = ahead
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
    assert begun <= max(2 * batch, module.MAX_READERS)
    time.sleep(QUIET)
    assert len(desk.begun) == begun
