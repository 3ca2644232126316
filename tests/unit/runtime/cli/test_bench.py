"""`tmi bench`: time, memory and agreement of engines on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factories.cases import write_case
from factories.tmi_command import CommandResult, tmi
from tmi.runtime.benchmark import benchmark
from tmi.runtime.benchmark.benchmark import BenchmarkPlan, BenchmarkReport, EngineBenchmark, choose_engines, measure
from tmi.runtime.benchmark.interleaved_timing import Ratio
from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.cli.bench_worker import WORKER
from tmi.runtime.cli.tables.benchmark import engines_table, stages_table
from tmi.toolkit.cases.case import Case
from tmi.toolkit.cli.console import make_console
from tmi.toolkit.cli.listing import print_listing
from tmi.toolkit.errors import UnavailableError


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path) -> dict[str, Any]:
    """One run on synthetic cases; both engines and their worker are torch-free."""
    words = ("--engine", "onnx", "--engine", "openvino", "--repeat", 3, "--ct", "48x40x20", "--threads", 1)
    outcome = tmi("bench", tiny_bundle, *words, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.document


def test_document_describes_the_measurement(measured, tiny_bundle):
    """The document states bundle, cases, CT size, hardware, engines and threads."""
    assert measured["schema"] == "tmi-bench/1"
    assert measured["bundle"]["digest"] == open_bundle(tiny_bundle).digest
    assert measured["cases"] == ["made-up-0", "made-up-1"]
    assert measured["made_up_ct_xyz"] == [48, 40, 20]
    assert measured["hardware"]["cpu"]
    assert [f["engine"] for f in measured["figures"]] == ["onnx", "openvino"]
    assert {f["threads"] for f in measured["figures"]} == {1}


def test_every_round_is_recorded(measured):
    """The document holds the seconds of each round, and percentiles within them."""
    for figures in measured["figures"]:
        assert len(figures["warm_seconds"]) == 3
        assert min(figures["warm_seconds"]) <= figures["p50_seconds"] <= figures["p95_seconds"]
        assert figures["p95_seconds"] <= max(figures["warm_seconds"])


def test_start_time_and_memory_are_plausible(measured):
    """A start takes longer than a warm prediction; peak memory is that of one process."""
    for figures in measured["figures"]:
        assert figures["start_seconds"] > figures["p50_seconds"]
        assert 50e6 < figures["peak_bytes"] < 2e9
        assert figures["cases_a_minute"] > 0


def test_stages_are_those_of_a_prediction(measured):
    """The stages are those of a warm prediction."""
    for figures in measured["figures"]:
        stages = figures["stage_seconds"]
        assert {"ct", "text", "fusion", "total"} <= set(stages)
        assert stages["total"] <= max(figures["warm_seconds"])


def test_torch_free_engines_import_nothing_heavy(measured):
    """The workers of torch-free engines import no heavy package."""
    assert [f["heavy"] for f in measured["figures"]] == [[], []]


def test_last_engine_is_the_reference_without_eager(measured):
    """Without eager the last engine of the table is the reference."""
    assert measured["reference"] == "openvino"
    (last,) = (f for f in measured["figures"] if f["engine"] == "openvino")
    assert last["to_reference"]["median"] == 1.0
    assert last["max_difference"] == 0.0


def test_agreeing_engines_are_within_their_bounds(measured):
    """Engines stay within their declared bound and change no decision."""
    first = measured["figures"][0]
    assert first["max_difference"] <= first["allowed_difference"]
    assert first["changed_decisions"] == []


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--ct", "512x512"), 2, "--ct 512x512 is not a CT size"),
        (("--ct", "512x512x4"), 2, "--ct 512x512x4 is not a CT size"),
        (("--engine", "warp"), 2, "unknown engine 'warp'"),
        (("--engine", "trt"), 5, "trt: the bundle holds no trt graphs"),
    ],
)
def test_invalid_options_fail_before_measuring(tiny_bundle, words, code, text):
    """Invalid options and missing engines fail before any engine runs."""
    outcome = tmi("bench", tiny_bundle, *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert text in outcome.err


def test_rejected_case_ends_the_benchmark(tiny_bundle, tmp_path):
    """A rejected case ends the benchmark with exit code 3 and the code of its check."""
    case = write_case(tmp_path / "P001")
    (case / "ct.nii.gz").write_bytes(b"no image")
    outcome: CommandResult = tmi("bench", tiny_bundle, case, "--engine", "onnx")
    assert outcome.code == 3
    assert "case P001" in outcome.err
    assert "[ct-unreadable]" in outcome.err


def figures_of(engine: str, **changes: Any) -> EngineBenchmark:
    plain = EngineBenchmark(
        engine=engine, package="onnxruntime 1.22", precision="float32", threads=2, p50_seconds=0.5, p95_seconds=0.75,
        warm_seconds=(0.5, 0.75), stage_seconds={"read": 0.25, "ct": 0.25, "other": 0.0, "total": 0.5},
        cases_a_minute=120.0, start_seconds=1.5, first_start_seconds=4.0, peak_bytes=2**30, heavy=(),
        to_reference=Ratio(median=0.5, lower=0.4, upper=0.6, lowest=0.4, highest=0.6), max_difference=1e-6,
        allowed_difference=1e-4, changed_decisions=(),
    )  # fmt: skip
    return replace(plain, **changes)


def printed(*figures: EngineBenchmark, **options: Any) -> str:
    report = BenchmarkReport(figures=figures, reference="eager", passed_over={})
    console = make_console()
    with console.capture() as capture:
        print_listing(console, engines_table(report, rounds=2, cases=1))
        print_listing(console, stages_table(report))
    return capture.get()


def test_tables_show_speedup_agreement_and_stages():
    """The tables show times, speed-up, agreement and stages."""
    text = printed(figures_of("onnx"))
    for shown in ("0.5", "0.75", "2.00", "120", "1.50", "1.00", "1.0e-06", "equal", "read", "250", "500"):
        assert shown in text
    assert "other" not in text, "a stage without time in any engine"


def test_table_shows_changed_decisions():
    """Changed decisions are counted in the table."""
    assert "1 changed" in printed(figures_of("onnx", changed_decisions=("P001",)))


def test_excess_error_raises_a_parity_error():
    """An engine beyond its declared bound raises a `ParityError`."""
    report = BenchmarkReport(figures=(figures_of("onnx"),), reference="eager", passed_over={})
    report.require_agreement()
    exceeded = replace(report, figures=(figures_of("onnx", max_difference=2e-4),))
    with pytest.raises(ParityError, match=r"differs from eager by up to 0\.0002 in .*; the declared bound is 0\.0001"):
        exceeded.require_agreement()


def test_unavailable_engines_are_skipped_with_a_reason(tiny_bundle, monkeypatch):
    """Without `--engine`, an engine that is not installed is skipped with its reason."""
    monkeypatch.setattr("tmi.runtime.engines.registry.installed", lambda name: name != "openvino")
    chosen, skipped = choose_engines((), open_bundle(tiny_bundle))
    assert "openvino" not in chosen
    assert chosen[-1] == "eager"
    assert skipped["openvino"] == "openvino is not installed"
    assert not any(name.startswith("trt") for name in skipped), "missing plans need no line"


@pytest.mark.parametrize("named", [True, False])
def test_failing_engine_is_skipped_unless_named(tiny_bundle, good_cases, monkeypatch, named):
    """An engine that fails is skipped with its reason; if it was requested by name, its error is raised."""
    original = benchmark.BenchmarkWorker

    def worker(plan: BenchmarkPlan, engine: str) -> benchmark.BenchmarkWorker:
        if engine == "openvino":
            raise ParityError("its outputs differ here", fix="another engine")
        return original(plan, engine)

    monkeypatch.setattr(benchmark, "BenchmarkWorker", worker)
    plan = BenchmarkPlan(
        worker=WORKER,
        bundle=open_bundle(tiny_bundle), engines=("openvino", "onnx"), named=named, repeats=1, starts=1, threads=1,
        cases=(Case(folder=good_cases[0], case_id="P000"),),
    )  # fmt: skip
    if named:
        with pytest.raises(ParityError, match="its outputs differ here"):
            measure(plan)
        return
    report = measure(plan)
    assert [f.engine for f in report.figures] == ["onnx"]
    assert report.passed_over == {"openvino": "its outputs differ here"}


def test_dead_worker_is_reported(tiny_bundle, good_cases):
    """A worker that ends without a result raises an error with its exit code."""
    plan = BenchmarkPlan(
        worker=("-c", "import sys; sys.exit(9)"),
        bundle=open_bundle(tiny_bundle),
        engines=("onnx",),
        repeats=1,
        cases=(Case(folder=good_cases[0], case_id="P000"),),
    )
    with pytest.raises(UnavailableError, match=r"engine onnx ended without a result \(exit code 9\)"):
        measure(plan)
