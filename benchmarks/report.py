"""Report of a benchmark run: a Markdown table with the machine and versions, a plot, the limits, and a history file.

python benchmarks/report.py build/bench/benchmarks.json                # writes .md and .png next to it
python benchmarks/report.py build/bench/ci.json --check                # exit code 1 on a broken ratio
python benchmarks/report.py build/bench/ci.json --history history.json # for github-action-benchmark
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from limits import GOALS, RATIOS, LimitResult, evaluate_limits
from tmi.runtime.engines.host import hardware
from tmi.toolkit.compute.cpu import available_cores

PACKAGES = ("tmi-clnet", "numpy", "onnxruntime", "openvino", "torch", "monai", "transformers", "SimpleITK", "nibabel",
            "isal")  # fmt: skip

MIN_ROUNDS = 5
"""Fewest rounds of which percentiles are shown."""


def versions() -> dict[str, str]:
    """Versions of the compared packages."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def shown(value: float, unit: str) -> str:
    """A metric as text with three digits."""
    return f"{value:.3g} {unit}".strip() if unit != "x" else f"{value:.3f}"


def markdown(document: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    machine = hardware()
    sizes = sorted({b.get("extra_info", {}).get("size", "?") for b in document["benchmarks"]})
    lines = [
        f"# Benchmarks, size {', '.join(sizes)}",
        "",
        f"{document.get('datetime', '')[:19]} on {machine['cpu']}, {available_cores()} cores, {machine['system']}. "
        + ", ".join(f"{name} {number}" for name, number in versions().items())
        + ".",
        "",
        "Medians over rounds with alternating order. Ratios are taken within each round; below 1 the first is faster.",
        f"p90 and p99 are percentiles over the rounds, of seconds with at least {MIN_ROUNDS} rounds.",
        "Seconds depend on the machine and its load, and prove nothing by themselves (benchmarks/README.md).",
        "",
        "| benchmark | metric | median (p50) | p90 | p99 | lowest to highest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += _rows(document)
    lines += ["", "## Ratios that must hold", "", *_limit_rows(list(evaluate_limits(document, RATIOS)))]
    if sizes == ["paper"]:
        lines += ["", "## Goals at full size", ""]
        lines += _limit_rows([r for limits in GOALS.values() for r in evaluate_limits(document, limits)])
    return "\n".join(lines) + "\n"


def _rows(document: Mapping[str, Any]) -> Iterator[str]:
    for benchmark in document["benchmarks"]:
        name = benchmark["name"].removeprefix("test_").replace("_", " ")
        for metric, values in benchmark.get("extra_info", {}).get("figures", {}).items():
            unit = values.get("unit", "")
            low, high = values.get("lowest"), values.get("highest")
            if low is None and values.get("rounds"):
                low, high = min(values["rounds"]), max(values["rounds"])
            span = "" if low is None else f"{shown(low, unit)} to {shown(high, unit)}"
            high_percentiles = " | ".join("" if p is None else shown(p, unit) for p in percentiles(values)[1:])
            title = metric.replace("|", "&#124;")
            yield f"| {name} | {title} | {shown(values['value'], unit)} | {high_percentiles} | {span} |"


def percentiles(values: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Return p50, p90 and p99 over the rounds of a metric, interpolated linearly; None without enough rounds."""
    rounds = values.get("rounds") or []
    if len(rounds) < MIN_ROUNDS:
        return values.get("value"), None, None
    p50, p90, p99 = np.percentile(rounds, (50, 90, 99))
    return float(p50), float(p90), float(p99)


def history(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics as github-action-benchmark's `customSmallerIsBetter`: seconds and ratios, smaller is better.

    Seconds of CI machines differ from run to run; only the ratios show what a change does.
    """
    entries = []
    for benchmark in document["benchmarks"]:
        for metric, values in benchmark.get("extra_info", {}).get("figures", {}).items():
            unit = values.get("unit", "")
            if unit not in ("s", "x"):
                continue
            low, high = values.get("lowest"), values.get("highest")
            rounds = values.get("rounds") or []
            if low is None and rounds:
                low, high = min(rounds), max(rounds)
            _, p90, p99 = percentiles(values)
            extra = [f"p90 {p90:.6g}, p99 {p99:.6g}"] if p90 is not None and p99 is not None else []
            extra += [f"{len(rounds)} rounds"] if rounds else []
            entries.append(
                {
                    "name": f"{benchmark['name']}: {metric}",
                    "unit": "ratio" if unit == "x" else unit,
                    "value": float(values["value"]),
                    **({} if low is None else {"range": f"{low:.6g} to {high:.6g}"}),
                    "extra": "; ".join([*extra, f"{hardware()['cpu']}, {available_cores()} cores"]),
                }
            )
    return entries


def _limit_rows(results: Sequence[LimitResult]) -> list[str]:
    rows = ["| limit | measured | bound | |", "| --- | --- | --- | --- |"]
    for r in results:
        value = "not measured" if r.value is None else f"{r.value:.3g}"
        rows.append(
            f"| {r.limit.description} | {value} | {r.limit.bound} | {'holds' if r.is_met else '**does not hold**'} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("json", type=Path, help="JSON of pytest-benchmark")
    parser.add_argument("--check", action="store_true", help="end with 1 if a ratio is broken; write nothing")
    parser.add_argument("--history", type=Path, help="write the metrics for github-action-benchmark and nothing else")
    options = parser.parse_args()
    document = json.loads(options.json.read_text(encoding="utf-8"))
    if options.history is not None:
        options.history.write_text(json.dumps(history(document), indent=2) + "\n", encoding="utf-8")
        print(f"wrote {options.history}")
        return
    if not options.check:
        from plot import draw

        options.json.with_suffix(".md").write_text(markdown(document), encoding="utf-8")
        draw(document, options.json.with_suffix(".png"))
        print(f"wrote {options.json.with_suffix('.md')} and {options.json.with_suffix('.png')}")
        return
    results = list(evaluate_limits(document, RATIOS))
    for r in results:
        value = "not measured" if r.value is None else f"{r.value:.3g}"
        print(f"{'holds ' if r.is_met else 'BROKEN'}  {r.limit.description}: {value}, {r.limit.bound} ({r.limit.test})")
    sys.exit(0 if all(r.is_met for r in results) else 1)


if __name__ == "__main__":
    main()
