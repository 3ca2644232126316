"""Reads what pytest-benchmark wrote: a Markdown table with the machine and the versions, a plot, and a verdict.

python benchmarks/report.py build/bench/benchmarks.json                # writes .md and .png beside it
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
from tmi.runtime.engines.graph_engine import available_cores
from tmi.runtime.engines.host import hardware

PACKAGES = ("tmi-clnet", "numpy", "onnxruntime", "openvino", "torch", "monai", "transformers", "SimpleITK", "nibabel",
            "isal")  # fmt: skip


def versions() -> dict[str, str]:
    """Of the packages that are compared."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def shown(value: float, unit: str) -> str:
    """A figure as it is printed: three digits."""
    return f"{value:.3g} {unit}".strip() if unit != "x" else f"{value:.3f}"


def markdown(document: Mapping[str, Any]) -> str:
    """The whole report."""
    machine = hardware()
    sizes = sorted({b.get("extra_info", {}).get("size", "?") for b in document["benchmarks"]})
    lines = [
        f"# Benchmarks, size {', '.join(sizes)}",
        "",
        f"{document.get('datetime', '')[:19]} on {machine['cpu']}, {available_cores()} cores, {machine['system']}. "
        + ", ".join(f"{name} {number}" for name, number in versions().items())
        + ".",
        "",
        "Medians over rounds in which the roads took turns. Ratios are taken round by round: below 1 the first is",
        "quicker. Seconds are this machine's at that hour, and prove nothing by themselves (benchmarks/README.md).",
        "",
        "| question | figure | median | lowest to highest |",
        "| --- | --- | --- | --- |",
    ]
    lines += _rows(document)
    lines += ["", "## Ratios that must hold", "", *_verdicts(list(evaluate_limits(document, RATIOS)))]
    if sizes == ["paper"]:
        lines += ["", "## Goals at full size", ""]
        lines += _verdicts([v for limits in GOALS.values() for v in evaluate_limits(document, limits)])
    return "\n".join(lines) + "\n"


def _rows(document: Mapping[str, Any]) -> Iterator[str]:
    for benchmark in document["benchmarks"]:
        name = benchmark["name"].removeprefix("test_").replace("_", " ")
        for figure, seen in benchmark.get("extra_info", {}).get("figures", {}).items():
            unit = seen.get("unit", "")
            low, high = seen.get("lowest"), seen.get("highest")
            if low is None and seen.get("rounds"):
                low, high = min(seen["rounds"]), max(seen["rounds"])
            span = "" if low is None else f"{shown(low, unit)} to {shown(high, unit)}"
            yield f"| {name} | {figure.replace('|', '&#124;')} | {shown(seen['value'], unit)} | {span} |"


def _verdicts(verdicts: Sequence[LimitResult]) -> list[str]:
    rows = ["| what | measured | bound | |", "| --- | --- | --- | --- |"]
    for v in verdicts:
        value = "not measured" if v.value is None else f"{v.value:.3g}"
        rows.append(
            f"| {v.limit.description} | {value} | {v.limit.bound} | {'holds' if v.is_met else '**does not hold**'} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("json", type=Path, help="what pytest-benchmark wrote")
    parser.add_argument("--check", action="store_true", help="end with 1 where a ratio is broken; write nothing")
    asked = parser.parse_args()
    document = json.loads(asked.json.read_text(encoding="utf-8"))
    if not asked.check:
        from plot import draw

        asked.json.with_suffix(".md").write_text(markdown(document), encoding="utf-8")
        draw(document, asked.json.with_suffix(".png"))
        print(f"written {asked.json.with_suffix('.md')} and {asked.json.with_suffix('.png')}")
        return
    broken = [v for v in evaluate_limits(document, RATIOS) if not v.is_met]
    for v in evaluate_limits(document, RATIOS):
        value = "not measured" if v.value is None else f"{v.value:.3g}"
        print(f"{'holds ' if v.is_met else 'BROKEN'}  {v.limit.description}: {value}, {v.limit.bound} ({v.limit.test})")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
