"""Plots of a table as deterministic SVG: small multiples with one panel for each row."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from tmi.training.comparison.formatting import HEADERS
from tmi.training.comparison.results import THRESHOLD, Result
from tmi.training.evaluation.metrics import METRICS
from tmi.training.evaluation.statistics.curves import Curve, precision_recall, reliability, roc

NamedResults = Sequence[tuple[str, Result]]
"""Label and result of each row."""
BLUE, ORANGE, GREY = "#1f5fa8", "#c2570c", "#8a8a8a"
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "tmi", "font.size": 10, "font.family": "sans-serif"}
COLUMNS = 3
"""Panels in a row."""
PANEL_INCH = 3.9
"""Width of a panel; its height is nine tenths of it."""
CURVE_REPLICATES = 500
"""Bootstrap replicates used for the band of a curve."""


def roc_plot(rows: NamedResults, weights_RN: Float[np.ndarray, "R N"]) -> str:
    """ROC curves with 95% bands; weights_RN: bootstrap weights of R replicates and N cases."""

    def panel(axes: Any, result: Result) -> None:
        _band(axes, roc(result.positive_N, result.probability_N, weights_RN[:CURVE_REPLICATES]))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.7, linestyle=":")
        _labels(axes, "1 − specificity", "sensitivity")

    return _panels(rows, panel)


def precision_recall_plot(rows: NamedResults, weights_RN: Float[np.ndarray, "R N"]) -> str:
    """Precision-recall curves with 95% bands; dotted: prevalence."""

    def panel(axes: Any, result: Result) -> None:
        _band(axes, precision_recall(result.positive_N, result.probability_N, weights_RN[:CURVE_REPLICATES]))
        axes.axhline(result.positive_N.mean(), color=GREY, linewidth=0.7, linestyle=":")
        _labels(axes, "recall", "precision")

    return _panels(rows, panel)


def calibration_plot(rows: NamedResults) -> str:
    """Reliability diagram: observed fraction of bad prognoses against predicted probability, raw and calibrated."""

    def panel(axes: Any, result: Result) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.7, linestyle=":")
        for values, colour, name in ((result.probability_N, ORANGE, "raw"), (result.calibrated_N, BLUE, "calibrated")):
            bins = reliability(result.positive_N, values)
            axes.plot(
                bins.probability_B,
                bins.positive_fraction_B,
                marker="o",
                markersize=3,
                color=colour,
                linewidth=1,
                label=name,
            )
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        _labels(axes, "probability", "observed")

    return _panels(rows, panel)


def confusion_plot(rows: NamedResults) -> str:
    """Confusion matrices at a probability threshold of 0.5; colours are normalised over each true class."""

    def panel(axes: Any, result: Result) -> None:
        predicted_N = result.probability_N >= THRESHOLD
        counts = np.array(
            [[(predicted_N == p)[result.positive_N == t].sum() for p in (False, True)] for t in (False, True)]
        )
        axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1.3)
        for t in range(2):
            for p in range(2):
                share = counts[t, p] / max(counts[t].sum(), 1)
                colour = "white" if share > 0.6 else "black"
                axes.text(p, t, str(counts[t, p]), ha="center", va="center", fontsize=14, color=colour)
        axes.set_xticks([0, 1], ["good", "bad"])
        axes.set_yticks([0, 1], ["good", "bad"])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    return _panels(rows, panel)


def training_plot(rows: NamedResults) -> str:
    """Losses of each fold over the epochs: training (dashed, second axis) and validation; dot: selected epoch."""

    def panel(axes: Any, result: Result) -> None:
        training_axes = axes.twinx()
        for history in result.histories:
            epochs = [int(r["epoch"]) for r in history]
            validation = [float(r["validation_loss"]) for r in history]
            picked = max(
                (i for i, r in enumerate(history) if r.get("picked") == "1"), default=int(np.argmin(validation))
            )
            marker = "o" if len(epochs) == 1 else None  # a line of one point is invisible
            axes.plot(epochs, validation, color=BLUE, linewidth=1, marker=marker, markersize=3)
            axes.plot(epochs[picked], validation[picked], "o", color=BLUE, markersize=3)
            training_axes.plot(
                epochs,
                [float(r["train_loss"]) for r in history],
                color=ORANGE,
                linewidth=0.8,
                linestyle="--",
                marker=marker,
                markersize=3,
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation", color=BLUE)
        training_axes.set_ylabel("training", color=ORANGE)
        last = max((int(history[-1]["epoch"]) for history in result.histories if history), default=0)
        axes.set_xlim(-0.5, last + 0.5)
        axes.locator_params(axis="x", integer=True, nbins=5)

    return _panels(rows, panel)


def fold_plot(rows: NamedResults) -> str:
    """Metrics of every fold as dots; the bar is the mean."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(PANEL_INCH * COLUMNS, 0.9 + 0.32 * len(rows)), layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(METRICS), sharey=True), METRICS, strict=True):
            for row, (_, result) in enumerate(rows):
                values = [v for fold in result.folds if (v := fold[metric]) is not None]
                axes.plot(values, [row] * len(values), "o", color=BLUE, markersize=5, alpha=0.7)
                if values:
                    axes.plot(np.mean(values), row, "|", color=ORANGE, markersize=14, markeredgewidth=2.5)
            axes.set_title(HEADERS[metric].removesuffix(" (%)"), fontsize=11)
            axes.set_xlim(-0.03, 1.03)
            axes.set_yticks(range(len(rows)), [label for label, _ in rows])
            axes.grid(axis="x", linewidth=0.3)
        axes.invert_yaxis()
        return _svg(figure)


def _band(axes: Any, curve: Curve) -> None:
    axes.fill_between(curve.x_G, curve.low_G, curve.high_G, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(curve.x_G, curve.y_G, color=BLUE, linewidth=1.6)


def _labels(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")


def _panels(rows: NamedResults, panel: Callable[[Any, Result], None]) -> str:
    lines = -(-len(rows) // COLUMNS)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(PANEL_INCH * COLUMNS, 0.9 * PANEL_INCH * lines), layout="constrained")
        grid = np.atleast_1d(figure.subplots(lines, COLUMNS)).ravel()
        for axes, (label, result) in zip(grid, rows, strict=False):
            panel(axes, result)
            axes.set_title(label, fontsize=11)
        for axes in grid[len(rows) :]:
            axes.set_axis_off()
        return _svg(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # A hundredth of a point is precise enough for coordinates and halves the size; texts between the tags stay.
    return re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text.getvalue())
