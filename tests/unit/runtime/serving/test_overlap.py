"""Overlap of preparation and computation: when each case is prepared; results do not depend on it.

With a GPU the next batch is prepared while the current CT computes. A CPU engine is idle while a round is prepared.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from factories.staged_predictor import WatchedEngine
from tmi.runtime.inference.ensemble import encoder_graphs
from tmi.runtime.serving.predictor import MAX_READERS
from tmi.runtime.serving.prefetching import Prefetcher, fetch_images
from tmi.runtime.serving.results import RejectedCase
from tmi.runtime.serving.trace import stages_match_total
from tmi.toolkit.cases.case import Case
from tmi.toolkit.preprocessing.pipeline import PreparedCase

QUIET = 0.03
"""Seconds within which a thread that may start a case would have started it."""


def case(name: str) -> Case:
    return Case(folder=Path(name), case_id=name)


@pytest.fixture(params=[1, 2, 3, 16])
def cores(request) -> int:
    """Number of cores, all of which the engine uses."""
    return request.param


def round_of(cores: int, batch: int) -> int:
    """Size of a round: whole batches for at least the maximum number of readers."""
    readers = min(cores, MAX_READERS)
    return next(n for n in range(batch, 100, batch) if n >= readers)


def preparing() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("prepare")]


class FakeLoader:
    """Replaces the preparation: records which cases were started, and returns prepared cases at once."""

    def __init__(self, ready: list[PreparedCase]) -> None:
        self.ready = ready
        self.started: list[str] = []
        self.alive: list[weakref.ref[object]] = []
        self.most_alive = 0
        self.changed = threading.Condition()

    def prepare(self, case: Case, on_text_ready: Callable[[str], None]) -> PreparedCase | RejectedCase:
        with self.changed:
            self.started.append(case.case_id)
            self.changed.notify_all()
        if case.case_id.startswith("bad"):
            return RejectedCase(case_id=case.case_id, code="case-missing", what="no such folder", fix="give another")
        prepared = replace(self.ready[len(self.started) % len(self.ready)], case_id=case.case_id)
        on_text_ready(prepared.text)
        self.alive.append(weakref.ref(prepared))
        self.most_alive = max(self.most_alive, sum(reference() is not None for reference in self.alive))
        return prepared

    def wait_for(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.started) >= count, timeout=20)


@pytest.fixture(scope="module")
def ready(opened, good_cases) -> list[PreparedCase]:
    """Four cases as the pipeline prepares them, which take no time."""
    pipeline = opened.pipeline
    return [replace(pipeline.prepare(Case(folder=p, case_id=p.name)), spans=()) for p in good_cases]


@pytest.fixture
def loader(ready) -> FakeLoader:
    return FakeLoader(ready)


@pytest.mark.parametrize("batch", [1, 2])
def test_cases_are_prepared_once_in_worker_threads(opened, predictor, good_cases, tmp_path, batch):
    """Every case is prepared once, outside the calling thread, and results keep the order of the input."""
    missing = tmp_path / "P999"
    missing.mkdir()
    (missing / "clinical.json").write_text("{}")
    cases = [Case(folder=path, case_id=path.name) for path in (*good_cases[:2], missing, *good_cases[2:])]
    alone = [predictor.predict(case)[0] for case in cases]
    threads: list[str] = []
    read: list[str] = []
    pipeline = opened.pipeline

    def prepare(case, on_text_ready):
        threads.append(threading.current_thread().name)
        read.append(case.case_id)
        return pipeline.prepare(case, on_text_ready)

    results = opened.predictor(prepare=prepare).predict(cases, batch=batch)
    assert [r.case_id for r in results] == [c.case_id for c in cases]
    for result, expected in zip(results, alone, strict=True):
        assert type(result) is type(expected)
        assert getattr(result, "probability", None) == pytest.approx(getattr(expected, "probability", None), abs=1e-5)
    assert all(name.startswith("prepare") for name in threads)
    assert sorted(read) == sorted(c.case_id for c in cases), "each case is read once"


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_next_batch_starts_with_the_ct(opened, loader, batch):
    """On a GPU the preparation of the next batch starts when the CT is encoded, not while texts are encoded."""
    cases = [case(f"C{n}") for n in range(2 * batch + 1)]
    at_text: list[int] = []
    at_ct: list[int] = []
    pipeline = opened.pipeline

    own = [batch] * batch + [2 * batch] * batch + [len(cases)]

    def encode_text(tokens):
        loader.wait_for(own[len(at_text)])
        time.sleep(QUIET)
        at_text.append(len(loader.started))
        return pipeline.encode_text(tokens)

    def encode_ct(rows):
        loader.wait_for(min((len(at_ct) + 2) * batch, len(cases)))
        time.sleep(QUIET)
        at_ct.append(len(loader.started))
        return pipeline.encode_ct(rows)

    on_gpu = opened.on_gpu(prepare=loader.prepare, encode_text=encode_text, encode_ct=encode_ct)
    results = on_gpu.predict(cases, batch=batch)
    assert [r.case_id for r in results] == [c.case_id for c in cases]
    assert at_text == own, "a text overlaps its own batch only"
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
class TestRejectedCases:
    """Rejected cases, wherever they stand, neither stall the pipeline nor change the memory bound."""

    def check(self, predictor, loader: FakeLoader, batch: int, names: str) -> None:
        cases = [case(name) for name in names.split()]
        results = [*predictor.stream(cases, batch=batch)]
        assert [r.case_id for r in results] == names.split()
        assert [isinstance(r, RejectedCase) for r in results] == [name.startswith("bad") for name in names.split()]
        assert sorted(loader.started) == sorted(names.split()), "nothing is read twice"
        assert not preparing()

    def test_on_a_gpu(self, opened, loader, batch, names):
        self.check(opened.on_gpu(prepare=loader.prepare), loader, batch, names)
        assert loader.started == names.split(), "in the order given"
        assert loader.most_alive <= 2 * batch

    def test_in_rounds(self, opened, loader, batch, names, cores):
        self.check(opened.on_cores(cores, prepare=loader.prepare), loader, batch, names)
        assert loader.most_alive <= round_of(cores, batch) + batch - 1


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_cpu_engine_is_idle_while_a_round_is_prepared(opened, loader, batch, cores):
    """With an engine on all cores, no case is prepared while the engine computes."""
    cases = [case(f"C{n}") for n in range(2 * round_of(cores, batch) + 1)]
    reading: list[str] = []
    busy: list[int] = []

    def prepare(case, on_text_ready):
        reading.append(case.case_id)
        try:
            time.sleep(QUIET / 10)
            return loader.prepare(case, on_text_ready)
        finally:
            reading.remove(case.case_id)

    def before_run(graph, inputs):
        if round_of(cores, batch) > 1 and len(loader.started) < len(cases):  # the last case is alone in its round
            assert not reading, "nothing is prepared while the engine computes"
            busy.append(len(loader.started))

    engine = WatchedEngine(opened.engine, before_run=before_run)
    results = opened.predictor(engine, cores=cores, threads=cores, prepare=prepare).predict(cases, batch=batch)
    assert [r.case_id for r in results] == [c.case_id for c in cases]
    if round_of(cores, batch) > 1:
        assert set(busy) == {round_of(cores, batch) * n for n in (1, 2)}, "round by round"


def test_cases_of_a_round_are_prepared_in_parallel(opened, loader):
    """The cases of a round are in preparation at the same time."""
    barrier = threading.Barrier(3, timeout=20)

    def prepare(case, on_text_ready):
        barrier.wait()  # sequential preparation would break the barrier
        return loader.prepare(case, on_text_ready)

    assert len(opened.on_cores(3, prepare=prepare).predict([case(f"C{n}") for n in range(6)])) == 6


def test_text_of_a_single_case_overlaps_its_images(opened, loader):
    """A single case has its text encoded while its images are read."""
    encoded = threading.Event()
    pipeline = opened.pipeline

    def prepare(case, on_text_ready):
        prepared = loader.prepare(case, on_text_ready)
        assert encoded.wait(timeout=20), "the text waits for the images"
        return prepared

    def encode_text(tokens):
        features = pipeline.encode_text(tokens)
        encoded.set()
        return features

    assert len(opened.predictor(prepare=prepare, encode_text=encode_text).predict(case("C0"))) == 1


@pytest.mark.parametrize("batch", [1, 2])
def test_files_of_the_next_round_are_fetched_once(opened, good_cases, monkeypatch, batch):
    """While a round computes, the files of the next one are read into the page cache, each once."""
    fetched: list[str] = []
    wanted = [case.name for case in good_cases[2:]]  # no computation precedes the first round
    pipeline = opened.pipeline

    def fetch(case):
        fetch_images(case)
        fetched.append(case.case_id)

    def encode_ct(rows):
        deadline = time.monotonic() + 20
        while len(fetched) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        return pipeline.encode_ct(rows)

    monkeypatch.setattr("tmi.runtime.serving.predictor.fetch_images", fetch)
    assert len(opened.on_cores(2, encode_ct=encode_ct).predict(good_cases, batch=batch)) == len(good_cases)
    assert sorted(fetched) == sorted(wanted)


@pytest.mark.parametrize("batch", [1, 2])
def test_stream_on_a_cpu_holds_one_round(opened, loader, batch, cores):
    """On a CPU at most one round of prepared cases is in memory, and a predicted case is released."""
    cases = [case(f"C{n}") for n in range(12)]
    size = round_of(cores, batch)
    for seen, _ in enumerate(opened.on_cores(cores, prepare=loader.prepare).stream(cases, batch=batch)):
        assert len(loader.started) == min(len(cases), seen // size * size + size)
        if batch == 1:
            left = min(len(cases), len(loader.started)) - seen - 1
            assert sum(reference() is not None for reference in loader.alive) == left, (
                "a predicted case holds no arrays"
            )
    assert loader.most_alive == size


def test_unused_cores_prepare_while_the_engine_computes(opened, loader):
    """If the engine has fewer threads than cores, the next case is prepared while it computes."""
    cases = [case(f"C{n}") for n in range(4)]
    ahead: list[int] = []
    pipeline = opened.pipeline

    def encode_ct(rows):
        loader.wait_for(min(len(ahead) + 2, len(cases)))
        ahead.append(len(loader.started))
        return pipeline.encode_ct(rows)

    assert len(opened.on_cores(4, threads=3, prepare=loader.prepare, encode_ct=encode_ct).predict(cases)) == 4
    assert ahead == [2, 3, 4, 4]


def test_texts_of_equal_length_run_as_one_batch(opened, ready):
    """Texts of equal length in a round are encoded together and give the same result as alone."""
    short = ready[0].text
    long = short + " and so on" * 20
    texts = {"C0": short, "C1": long, "bad2": short, "C3": short, "C4": long, "C5": short}
    shapes: list[tuple[int, int]] = []

    def prepare(case, on_text_ready):
        on_text_ready(texts[case.case_id])
        if case.case_id.startswith("bad"):
            return RejectedCase(case_id=case.case_id, code="ct-missing", what="no CT", fix="give one")
        return replace(ready[0], case_id=case.case_id, text=texts[case.case_id])

    def before_run(graph, inputs):
        if "input_ids" in inputs:
            shapes.append(inputs["input_ids"].shape)

    alone = {name: opened.on_cores(4, prepare=prepare).predict(case(name))[0] for name in texts}
    watched = WatchedEngine(opened.engine, before_run=before_run)
    in_rounds = opened.predictor(watched, cores=4, threads=4, prepare=prepare)
    results = in_rounds.predict([case(name) for name in texts])
    assert [r.case_id for r in results] == list(texts)
    for result in results:
        if isinstance(result, RejectedCase):
            assert result.case_id == "bad2"
            continue
        assert result.probability == pytest.approx(alone[result.case_id].probability, abs=1e-6)
        assert stages_match_total(result.seconds)
    assert alone["C0"].probability != alone["C1"].probability, "the texts matter"
    widths = sorted({width for _, width in shapes})
    assert len(widths) == 2
    encoders = len(encoder_graphs(opened.bundle.manifest, "text"))
    rows = {width: sum(count for count, w in shapes if w == width) for width in widths}
    assert rows == {widths[0]: 3 * encoders, widths[1]: 2 * encoders}, "no text of a rejected case"
    assert max(count for count, _ in shapes) == 2, "C0 and C3, of one round"


@pytest.mark.parametrize("batch", [1, 2])
def test_stream_on_a_gpu_holds_two_batches(opened, loader, batch):
    """On a GPU at most two batches of prepared cases are in memory."""
    cases = [case(f"C{n}") for n in range(12)]
    seen = 0
    for _ in opened.on_gpu(prepare=loader.prepare).stream(cases, batch=batch):
        seen += 1
        time.sleep(0.001)  # lets the worker thread run ahead if it could
        assert len(loader.started) <= (seen + batch - 1) // batch * batch + batch
    assert seen == len(cases)
    assert batch < loader.most_alive <= 2 * batch


@pytest.mark.parametrize("max_ahead", [1, 2, 5])
def test_prefetching_is_bounded(ready, max_ahead):
    """At most `max_ahead` cases are started ahead, however often `computing` is called, and none before."""
    loader = FakeLoader(ready)
    with Prefetcher(loader.prepare, [case(f"C{n}") for n in range(12)], max_ahead=max_ahead) as prefetcher:
        time.sleep(QUIET)
        assert loader.started == [], "no case starts before one is requested"
        for given in range(12):
            (pending,) = next(prefetcher)
            assert pending.inputs.result().case_id == f"C{given}"
            for _ in range(3):
                prefetcher.computing()
            loader.wait_for(min(given + 1 + max_ahead, 12))
            time.sleep(0.002)
            assert len(loader.started) == min(given + 1 + max_ahead, 12)
        assert next(prefetcher, None) is None


def test_failed_preparation_raises_and_releases_its_text():
    """An error in a worker thread is raised to the consumer, and its text resolves to None."""

    def read(case: Case, on_text_ready: Callable[[str], None]) -> RejectedCase:
        raise RuntimeError(case.case_id)

    with Prefetcher(read, [case("C0")], max_ahead=1) as prefetcher:
        ((pending,),) = prefetcher
        assert pending.text.result(timeout=20) is None
        with pytest.raises(RuntimeError, match="C0"):
            pending.inputs.result(timeout=20)


@pytest.mark.parametrize("batch", [1, 2])
def test_closed_stream_stops_preparing(opened, loader, batch):
    """Closing a stream early ends the worker threads."""
    stream = opened.predictor(prepare=loader.prepare).stream([case(f"C{n}") for n in range(12)], batch=batch)
    next(stream)
    stream.close()
    assert not preparing()
    started = len(loader.started)
    assert started <= max(2 * batch, MAX_READERS)
    time.sleep(QUIET)
    assert len(loader.started) == started
