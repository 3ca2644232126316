"""Report of a benchmark run: a Markdown table with the machine and versions, a plot, and the limits.

python benchmarks/report.py build/bench/benchmarks.json                # writes .md and .png next to it
python benchmarks/report.py build/bench/ci.json --check                # exit code 1 on a broken ratio
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from limits import GOALS, RATIOS, LimitResult, evaluate_limits
from tmi.runtime.engines.host import hardware
from tmi.toolkit.compute.cpu import available_cores

PACKAGES = ("tmi-clnet", "numpy", "onnxruntime", "openvino", "torch", "monai", "transformers", "SimpleITK", "nibabel",
            "isal")  # fmt: skip


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
        "Seconds depend on the machine and its load, and prove nothing by themselves (benchmarks/README.md).",
        "",
        "| benchmark | metric | median | lowest to highest |",
        "| --- | --- | --- | --- |",
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
            yield f"| {name} | {metric.replace('|', '&#124;')} | {shown(values['value'], unit)} | {span} |"


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
    options = parser.parse_args()
    document = json.loads(options.json.read_text(encoding="utf-8"))
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
