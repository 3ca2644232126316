"""One picture of a run: where the time of an answer goes, and how the engines compare at each graph."""

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
    """Write the picture; a part that was not measured is left out."""
    found = read_metrics(document)
    roads = {
        "MONAI pipeline": found.get("test_end_to_end_against_monai", {}).get("stages of the MONAI pipeline"),
        "tmi predict": found.get("test_end_to_end_against_monai", {}).get("stages of tmi predict"),
    }
    roads = {name: figure["stages"] for name, figure in roads.items() if figure}
    graphs = {name[13:-1]: seen for name, seen in found.items() if name.startswith("test_forward[")}
    drawn = [part for part in (roads, graphs) if part]
    if not drawn:
        return
    figure, axes = plt.subplots(len(drawn), 1, figsize=(9, 3.2 * len(drawn)), layout="constrained", squeeze=False)
    remaining = list(axes[:, 0])
    if roads:
        _stages(remaining.pop(0), roads)
    if graphs:
        _engines(remaining.pop(0), graphs)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _stages(axis: Any, roads: Mapping[str, Mapping[str, float]]) -> None:
    """Stacked bars; stages below a hundredth of the longest bar are drawn together as `other`."""
    longest = max(sum(stages.values()) for stages in roads.values())
    labelled: set[str] = set()
    for row, stages in enumerate(roads.values()):
        shown = {n: s for n, s in stages.items() if s >= longest / 100 and n in STAGE_COLOURS}
        shown["other"] = sum(stages.values()) - sum(shown.values())
        left = 0.0
        for name, seconds in shown.items():
            colour = STAGE_COLOURS.get(name, OTHER)
            axis.barh(row, seconds, left=left, color=colour, label=None if name in labelled else name)
            labelled.add(name)
            left += seconds
        axis.text(left, row, f" {left:.3g} s", va="center")
    axis.set_yticks(range(len(roads)), list(roads))
    axis.set_ylim(-0.6, len(roads) - 0.4)
    axis.set_xlim(0, longest * 1.15)
    axis.set_xlabel("seconds")
    axis.set_title("From a case's files to its answer, warm (medians)", loc="left")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _engines(axis: Any, graphs: Mapping[str, Mapping[str, Any]]) -> None:
    """Each engine's gain over eager at each graph, with the quartiles of the rounds."""
    ends = " / eager"
    engines = list(dict.fromkeys(n.removesuffix(ends) for seen in graphs.values() for n in seen if n.endswith(ends)))
    engines = [e for e in engines if e != "default engine"]
    width = 0.8 / max(1, len(engines))
    for number, engine in enumerate(engines):
        seen = [graphs[g][engine + ends] for g in graphs]
        places = [row + (number - (len(engines) - 1) / 2) * width for row in range(len(graphs))]
        gains = [1 / s["value"] for s in seen]
        spans = [[g - 1 / s["upper"] for g, s in zip(gains, seen, strict=True)],
                 [1 / s["lower"] - g for g, s in zip(gains, seen, strict=True)]]  # fmt: skip
        axis.bar(places, gains, width, yerr=spans, label=engine, color=COLOURS[number], ecolor="0.3", capsize=2)
    axis.axhline(1, color="0.3", linewidth=1, linestyle="--")
    axis.set_xticks(range(len(graphs)), list(graphs))
    axis.set_ylabel("times as quick as eager")
    axis.set_title("Forward pass of each graph against eager PyTorch (medians, whiskers: quartiles)", loc="left")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
