"""Plot of a benchmark run: the time of each stage of a prediction, and the speed-up of the engines at each graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from limits import read_metrics

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = plt.get_cmap("tab10").colors
STAGE_COLOURS = {
    "ct": COLOURS[0],
    "text": COLOURS[1],
    "fusion": COLOURS[2],
    "read": COLOURS[4],
    "read and prepare": COLOURS[4],
    "inflate": COLOURS[6],
    "preprocess": COLOURS[5],
    "resample": COLOURS[5],
    "record and tokens": COLOURS[3],
    "tokenise": COLOURS[3],
    "radiomics": COLOURS[8],
}
OTHER = COLOURS[7]


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Write the plot; panels without measurements are left out."""
    metrics = read_metrics(document)
    pipelines = {
        "MONAI pipeline": metrics.get("test_end_to_end_against_monai", {}).get("stages of the MONAI pipeline"),
        "tmi predict": metrics.get("test_end_to_end_against_monai", {}).get("stages of tmi predict"),
    }
    pipelines = {name: metric["stages"] for name, metric in pipelines.items() if metric}
    graphs = {name[13:-1]: values for name, values in metrics.items() if name.startswith("test_forward[")}
    panels = [panel for panel in (pipelines, graphs) if panel]
    if not panels:
        return
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 3.2 * len(panels)), layout="constrained", squeeze=False)
    remaining = list(axes[:, 0])
    if pipelines:
        _stages(remaining.pop(0), pipelines)
    if graphs:
        _engines(remaining.pop(0), graphs)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _stages(axis: Any, pipelines: Mapping[str, Mapping[str, float]]) -> None:
    """Stacked bars; stages below a hundredth of the longest bar are summed as `other`."""
    longest = max(sum(stages.values()) for stages in pipelines.values())
    labelled: set[str] = set()
    for row, stages in enumerate(pipelines.values()):
        shown = {n: s for n, s in stages.items() if s >= longest / 100 and n in STAGE_COLOURS}
        shown["other"] = sum(stages.values()) - sum(shown.values())
        left = 0.0
        for name, seconds in shown.items():
            colour = STAGE_COLOURS.get(name, OTHER)
            axis.barh(row, seconds, left=left, color=colour, label=None if name in labelled else name)
            labelled.add(name)
            left += seconds
        axis.text(left, row, f" {left:.3g} s", va="center")
    axis.set_yticks(range(len(pipelines)), list(pipelines))
    axis.set_ylim(-0.6, len(pipelines) - 0.4)
    axis.set_xlim(0, longest * 1.15)
    axis.set_xlabel("seconds")
    axis.set_title("Time of a prediction from the files of a case, warm (medians)", loc="left")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _engines(axis: Any, graphs: Mapping[str, Mapping[str, Any]]) -> None:
    """Speed-up of each engine over eager at each graph, with the quartiles of the rounds."""
    suffix = " / eager"
    engines = list(
        dict.fromkeys(n.removesuffix(suffix) for values in graphs.values() for n in values if n.endswith(suffix))
    )
    engines = [e for e in engines if e != "default engine"]
    width = 0.8 / max(1, len(engines))
    for number, engine in enumerate(engines):
        ratios = [graphs[g][engine + suffix] for g in graphs]
        positions = [row + (number - (len(engines) - 1) / 2) * width for row in range(len(graphs))]
        speedups = [1 / r["value"] for r in ratios]
        # the upper quartile of a time ratio is the lower quartile of the speed-up
        spans = [[s - 1 / r["upper"] for s, r in zip(speedups, ratios, strict=True)],
                 [1 / r["lower"] - s for s, r in zip(speedups, ratios, strict=True)]]  # fmt: skip
        axis.bar(positions, speedups, width, yerr=spans, label=engine, color=COLOURS[number], ecolor="0.3", capsize=2)
    axis.axhline(1, color="0.3", linewidth=1, linestyle="--")
    axis.set_xticks(range(len(graphs)), list(graphs))
    axis.set_ylabel("speed-up over eager")
    axis.set_title("Forward pass of each graph against eager PyTorch (medians, whiskers: quartiles)", loc="left")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
