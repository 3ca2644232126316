"""`tmi bench`: what engines cost on this machine, told with their agreement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factories.cases import write_case
from factories.tmi_command import CommandResult, tmi
from tmi.runtime.benchmark import benchmark as bench
from tmi.runtime.benchmark.benchmark import BenchmarkPlan, BenchmarkReport, EngineBenchmark, choose_engines, measure
from tmi.runtime.benchmark.interleaved_timing import Ratio
from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.cli.bench_worker import WORKER
from tmi.runtime.cli.tables.benchmark import engines_table, stages_table
from tmi.runtime.cli.tables.checks import wide_console
from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import UnavailableError


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path) -> dict[str, Any]:
    """One run on made-up cases; both engines are torch-free, and so is what starts them."""
    words = ("--engine", "onnx", "--engine", "openvino", "--repeat", 3, "--ct", "48x40x20", "--threads", 1)
    outcome = tmi("bench", tiny_bundle, *words, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.document


def test_the_document_says_what_was_measured_and_on_what(measured, tiny_bundle):
    assert measured["schema"] == "tmi-bench/1"
    assert measured["bundle"]["digest"] == open_bundle(tiny_bundle).digest
    assert measured["cases"] == ["made-up-0", "made-up-1"]
    assert measured["made_up_ct_xyz"] == [48, 40, 20]
    assert measured["hardware"]["cpu"]
    assert [f["engine"] for f in measured["figures"]] == ["onnx", "openvino"]
    assert {f["threads"] for f in measured["figures"]} == {1}


def test_every_round_of_every_engine_is_kept(measured):
    for figures in measured["figures"]:
        assert len(figures["warm_seconds"]) == 3
        assert min(figures["warm_seconds"]) <= figures["p50_seconds"] <= figures["p95_seconds"]
        assert figures["p95_seconds"] <= max(figures["warm_seconds"])


def test_a_start_takes_longer_than_a_warm_answer_and_memory_is_that_of_one_process(measured):
    for figures in measured["figures"]:
        assert figures["start_seconds"] > figures["p50_seconds"]
        assert 50e6 < figures["peak_bytes"] < 2e9
        assert figures["cases_a_minute"] > 0


def test_stages_are_those_of_a_prediction(measured):
    for figures in measured["figures"]:
        stages = figures["stage_seconds"]
        assert {"ct", "text", "fusion", "total"} <= set(stages)
        assert stages["total"] <= max(figures["warm_seconds"])


def test_torch_free_engines_import_nothing_heavy(measured):
    assert [f["heavy"] for f in measured["figures"]] == [[], []]


def test_without_eager_the_last_engine_is_the_reference(measured):
    assert measured["reference"] == "openvino"
    (last,) = (f for f in measured["figures"] if f["engine"] == "openvino")
    assert last["to_reference"]["median"] == 1.0
    assert last["max_difference"] == 0.0


def test_engines_that_agree_are_within_what_they_declare(measured):
    first = measured["figures"][0]
    assert first["max_difference"] <= first["allowed_difference"]
    assert first["changed_decisions"] == []


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--ct", "512x512"), 2, "--ct 512x512 is no size of a CT"),
        (("--ct", "512x512x4"), 2, "--ct 512x512x4 is no size of a CT"),
        (("--engine", "warp"), 2, "unknown engine 'warp'"),
        (("--engine", "trt"), 5, "trt: the bundle holds no trt graphs"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_runs(tiny_bundle, words, code, text):
    outcome = tmi("bench", tiny_bundle, *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert text in outcome.err


def test_a_refused_case_stops_with_its_code(tiny_bundle, tmp_path):
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
    console = wide_console()
    with console.capture() as capture:
        console.print(engines_table(report, rounds=2, cases=1))
        console.print(stages_table(report))
    return capture.get()


def test_the_table_shows_gain_agreement_and_stages():
    text = printed(figures_of("onnx"))
    for shown in ("0.5", "0.75", "2.00", "120", "1.50", "1.00", "1.0e-06", "equal", "read", "250", "500"):
        assert shown in text
    assert "other" not in text, "a stage in which no engine spends time"


def test_the_table_shows_changed_decisions():
    assert "1 changed" in printed(figures_of("onnx", changed_decisions=("P001",)))


def test_an_engine_beyond_its_declared_error_is_no_success():
    honest = BenchmarkReport(figures=(figures_of("onnx"),), reference="eager", passed_over={})
    honest.require_agreement()
    wrong = replace(honest, figures=(figures_of("onnx", max_difference=2e-4),))
    with pytest.raises(
        ParityError, match=r"engine onnx is up to 0\.0002 from eager in probability; 0\.0001 is declared"
    ):
        wrong.require_agreement()


def test_engines_that_were_not_asked_for_are_passed_over_with_the_reason(tiny_bundle, monkeypatch):
    monkeypatch.setattr(bench, "installed", lambda name: name != "openvino")
    chosen, passed_over = choose_engines((), open_bundle(tiny_bundle))
    assert "openvino" not in chosen
    assert chosen[-1] == "eager"
    assert passed_over["openvino"] == "openvino is not installed"
    assert not any(name.startswith("trt") for name in passed_over), "plans that the bundle does not have need no line"


@pytest.mark.parametrize("named", [True, False])
def test_one_engine_that_fails_here_does_not_take_the_table_with_it_unless_it_was_asked_for(
    tiny_bundle, good_cases, monkeypatch, named
):
    real = bench.BenchmarkWorker

    def worker(plan: BenchmarkPlan, engine: str) -> bench.BenchmarkWorker:
        if engine == "openvino":
            raise ParityError("it answers something else here", fix="another engine")
        return real(plan, engine)

    monkeypatch.setattr(bench, "BenchmarkWorker", worker)
    plan = BenchmarkPlan(
        worker=WORKER,
        bundle=open_bundle(tiny_bundle), engines=("openvino", "onnx"), named=named, repeats=1, starts=1, threads=1,
        cases=(Case(folder=good_cases[0], case_id="P000"),),
    )  # fmt: skip
    if named:
        with pytest.raises(ParityError, match="it answers something else here"):
            measure(plan)
        return
    report = measure(plan)
    assert [f.engine for f in report.figures] == ["onnx"]
    assert report.passed_over == {"openvino": "it answers something else here"}


def test_a_process_that_dies_is_told_as_such(tiny_bundle, good_cases):
    plan = BenchmarkPlan(
        worker=("-c", "import sys; sys.exit(9)"),
        bundle=open_bundle(tiny_bundle),
        engines=("onnx",),
        repeats=1,
        cases=(Case(folder=good_cases[0], case_id="P000"),),
    )
    with pytest.raises(UnavailableError, match=r"engine onnx ended without an answer \(exit code 9\)"):
        measure(plan)
