"""The limits of `make bench-ci`: a planted fault breaks each, and the report and the plot show the metrics."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import test_auto
import test_cold_start
import test_end_to_end
import test_forward
from factories.paths import ROOT
from limits import GOALS, RATIOS, Limit, evaluate_limits
from plot import draw
from recorder import Recorder
from report import markdown, percentiles
from tmi.runtime import Predictor
from tmi.runtime.benchmark.synthetic_case import write_bench_case
from tmi.runtime.engines.graph_engine import GraphEngine
from tmi.toolkit.clinical.schema import load_schema

DELAY_S = 0.25
"""Seconds of a planted delay; a prediction takes less."""


class FakeBenchmark:
    """The part of pytest-benchmark's fixture that the recorder uses."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, work: Callable[[], Any], *, rounds: int, iterations: int) -> Any:
        assert iterations == 1
        return [work() for _ in range(rounds)][-1]


def measured(name: str, run: Callable[[Recorder], None]) -> dict[str, Any]:
    """The JSON that pytest-benchmark writes after one test."""
    benchmark = FakeBenchmark()
    run(Recorder(benchmark, repeats=5))
    return {"benchmarks": [{"name": name, "extra_info": {**benchmark.extra_info, "size": "small"}}]}


def limits_met(document: dict[str, Any], test: str) -> list[bool]:
    results = [r for r in evaluate_limits(document, RATIOS) if r.limit.test == test]
    assert all(r.value is not None for r in results)
    return [r.is_met for r in results]


@pytest.fixture(scope="module")
def good_cases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One case, so large that thread switches on a busy machine are a small part of its time."""
    folder = tmp_path_factory.mktemp("cases") / "P000"
    return [write_bench_case(folder, load_schema(), seed=0, shape_XYZ=(320, 320, 80)).folder]


@pytest.mark.long
@pytest.mark.parametrize("planted", [False, True])
def test_slow_default_engine_breaks_the_ratio(tiny_bundle, good_cases, monkeypatch, planted):
    """The limit is met, and broken if every engine but eager is delayed."""
    if planted:
        run_graph = GraphEngine.run

        def slow(self: GraphEngine, graph: str, inputs: Any) -> Any:
            time.sleep(0 if self.name == "eager" else 4 * DELAY_S)
            return run_graph(self, graph, inputs)

        monkeypatch.setattr(GraphEngine, "run", slow)

    def run(record: Recorder) -> None:
        with test_forward.open_engines(tiny_bundle, good_cases[0]) as opened:
            test_forward.test_forward(record, opened, "ct-0")

    assert limits_met(measured("test_forward[ct-0]", run), "test_forward[ct-0]") == [not planted]


@pytest.mark.long
def test_slow_choice_of_auto_breaks_the_ratio(tiny_bundle, monkeypatch):
    """An engine that `auto` takes although it is slower than another one breaks the limit at both sizes."""
    with Predictor.open(tiny_bundle) as predictor:
        taken = predictor.engine_record.name
    run_graph = GraphEngine.run

    def slow(self: GraphEngine, graph: str, inputs: Any) -> Any:
        time.sleep(0.02 if self.name == taken else 0)
        return run_graph(self, graph, inputs)

    monkeypatch.setattr(GraphEngine, "run", slow)
    for name in ("test_auto_against_the_quickest[small]", "test_auto_against_the_quickest[middle]"):
        document = measured(name, lambda record: test_auto.compare_with_quickest(record, tiny_bundle))
        assert limits_met(document, name) == [False]


def test_time_outside_of_stages_breaks_the_ratio(tiny_bundle, good_cases, monkeypatch):
    """A delay that belongs to no stage breaks the limit.

    `make bench-ci` checks that the limit is met without it: here a prediction is so short that thread switches matter.
    """
    predict = Predictor.predict

    def slow(self: Predictor, *arguments: Any, **options: Any) -> Any:
        time.sleep(DELAY_S)
        return predict(self, *arguments, **options)

    monkeypatch.setattr(Predictor, "predict", slow)

    def run(record: Recorder) -> None:
        with Predictor.open(tiny_bundle, engine="onnx", threads=1) as predictor:
            test_end_to_end.test_stages_add_up(record, good_cases[0], predictor)

    document = measured("test_stages_add_up", run)
    assert limits_met(document, "test_stages_add_up") == [False]


@pytest.mark.parametrize("planted", [False, True])
def test_heavy_import_breaks_the_ratio(tiny_bundle, good_cases, tmp_path, monkeypatch, planted):
    """The limit is met, and broken if the process imports a heavy package."""
    name = "test_imports_of_a_first_answer"
    if planted:  # an empty package of the name is enough; an empty torch would break packages that inspect it
        (tmp_path / "monai.py").write_text("")
        (tmp_path / "sitecustomize.py").write_text("import monai\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    document = measured(
        name, lambda record: test_cold_start.test_imports_of_a_first_answer(record, tiny_bundle, good_cases[0])
    )
    assert limits_met(document, name) == [not planted]


def document_of(limit: Limit, value: float) -> dict[str, Any]:
    metric = {limit.metric: {"value": value, "unit": "x"}}
    return {"benchmarks": [{"name": limit.test, "extra_info": {"figures": metric, "size": "paper"}}]}


ALL_LIMITS = [*RATIOS, *(limit for limits in GOALS.values() for limit in limits)]


@pytest.mark.parametrize("limit", ALL_LIMITS, ids=lambda limit: f"{limit.test}: {limit.metric}")
def test_limit_is_met_up_to_its_bound(limit):
    """The bound itself is within the limit; a value beyond it and NaN are not."""
    bound = limit.at_most if limit.at_least is None else limit.at_least
    beyond = bound + 0.01 if limit.at_least is None else bound - 0.01
    for value, holds in ((bound, True), (beyond, False), (float("nan"), False)):
        (result,) = evaluate_limits(document_of(limit, value), [limit])
        assert result.is_met is holds


@pytest.mark.parametrize("limit", ALL_LIMITS, ids=lambda limit: f"{limit.test}: {limit.metric}")
def test_limit_names_an_existing_metric(limit):
    """The test and the metric of a limit occur in the benchmarks; after a rename it would never be measured."""
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").glob("test_*.py"))
    assert f"def {limit.test.partition('[')[0]}(" in sources
    for part in limit.metric.split(" / "):
        assert part in sources


@pytest.mark.parametrize("limit", RATIOS, ids=lambda limit: limit.test)
def test_ci_runs_the_benchmark_of_every_limit(limit):
    """`make bench-ci` runs the file of every limited ratio."""
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    runs = make.partition("RATIOS :=")[2].partition("\n\n")[0]
    defined = f"def {limit.test.partition('[')[0]}("
    (file,) = (f for f in (ROOT / "benchmarks").glob("test_*.py") if defined in f.read_text(encoding="utf-8"))
    assert f"benchmarks/{file.name}" in runs


@pytest.mark.parametrize("document", [{"benchmarks": []}, {"benchmarks": [{"name": RATIOS[0].test, "extra_info": {}}]}])
def test_limit_without_measurement_is_not_met(document):
    """A limit is broken if its benchmark did not run or recorded no metric."""
    assert not any(r.is_met for r in evaluate_limits(document, RATIOS))


@pytest.mark.parametrize("broken", [False, True])
def test_check_ends_with_1_on_a_broken_ratio(tmp_path, broken):
    """`report.py --check` prints the broken ratio and ends with 1."""
    values = [limit.at_most or 0.0 for limit in RATIOS]
    values[-1] += broken
    parts = [document_of(limit, value) for limit, value in zip(RATIOS, values, strict=True)]
    file = tmp_path / "ci.json"
    file.write_text(json.dumps({"benchmarks": [b for part in parts for b in part["benchmarks"]]}))
    argv = [sys.executable, str(ROOT / "benchmarks" / "report.py"), str(file), "--check"]
    process = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert process.returncode == int(broken), process.stderr
    assert process.stdout.count("BROKEN") == int(broken)


def test_report_shows_metrics_limits_and_versions(tmp_path):
    """The Markdown report has metrics, limits, the date and the versions of packages."""
    limit = RATIOS[0]
    document = {**document_of(limit, 0.25), "datetime": "2026-01-31T12:00:00.0"}
    text = markdown(document)
    assert "Benchmarks, size paper" in text
    assert "2026-01-31T12:00:00" in text
    assert f"| {limit.metric} | 0.250 |  |  |" in text
    assert f"| {limit.description} | 0.25 | at most {limit.at_most:g} | holds |" in text
    assert "not measured" in text
    assert "onnxruntime" in text


ROUNDS = {"value": 3.0, "unit": "s", "rounds": [1.0, 2.0, 3.0, 4.0, 15.0]}


def test_report_shows_percentiles_of_seconds():
    """p90 and p99 are interpolated between the rounds; fewer than five rounds have none."""
    assert percentiles(ROUNDS) == pytest.approx((3.0, 10.6, 14.56))
    assert percentiles({**ROUNDS, "rounds": [1.0, 3.0]}) == (3.0, None, None)
    document = {"benchmarks": [{"name": "test_forward[ct-0]", "extra_info": {"figures": {"onnx s": ROUNDS}}}]}
    assert "| forward[ct-0] | onnx s | 3 s | 10.6 s | 14.6 s | 1 s to 15 s |" in markdown(document)


def test_history_is_github_action_benchmarks_format(tmp_path):
    """The history has name, unit, value, range and percentiles of each time and ratio, and no other metric."""
    figures = {"onnx s": ROUNDS, "onnx / eager": {"value": 0.5, "unit": "x", "lowest": 0.4, "highest": 0.7},
               "memory": {"value": 3.0, "unit": "GiB"}}  # fmt: skip
    file = tmp_path / "ci.json"
    file.write_text(json.dumps({"benchmarks": [{"name": "test_forward", "extra_info": {"figures": figures}}]}))
    argv = [sys.executable, str(ROOT / "benchmarks" / "report.py"), str(file), "--history", str(tmp_path / "h.json")]
    process = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    times, ratios = json.loads((tmp_path / "h.json").read_text())
    assert (times["name"], times["unit"], times["value"]) == ("test_forward: onnx s", "s", 3.0)
    assert times["range"] == "1 to 15"
    assert times["extra"].startswith("p90 10.6, p99 14.56; 5 rounds; ")
    assert (ratios["unit"], ratios["value"], ratios["range"]) == ("ratio", 0.5, "0.4 to 0.7")


def test_plot_is_written_from_measurements(tmp_path):
    """The plot is a PNG file; without measurements, no file is written."""
    span = {"value": 0.25, "lower": 0.2, "upper": 0.3, "lowest": 0.2, "highest": 0.4, "unit": "x"}
    stages = {"stages of the MONAI pipeline": {"value": 4.0, "unit": "s", "stages": {"ct": 3.0, "text": 1.0}},
              "stages of tmi predict": {"value": 1.0, "unit": "s", "stages": {"ct": 0.9, "read": 0.1}}}  # fmt: skip
    tests = {"test_end_to_end_against_monai": stages, "test_forward[ct-0]": {"onnx / eager": span}}
    document = {"benchmarks": [{"name": n, "extra_info": {"figures": f}} for n, f in tests.items()]}
    draw(document, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    draw({"benchmarks": []}, tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
