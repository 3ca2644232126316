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
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "tmi", "font.size": 8, "font.family": "sans-serif"}
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
        axes.legend(frameon=False, fontsize=6, loc="upper left")
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
                axes.text(p, t, str(counts[t, p]), ha="center", va="center", fontsize=10)
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
            picked = int(np.argmin(validation))
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
        axes.locator_params(axis="x", integer=True, nbins=5)

    return _panels(rows, panel, width=2.6)


def fold_plot(rows: NamedResults) -> str:
    """Metrics of every fold as dots; the bar is the mean."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(9.5, 0.7 + 0.24 * len(rows)), layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(METRICS), sharey=True), METRICS, strict=True):
            for row, (_, result) in enumerate(rows):
                values = [v for fold in result.folds if (v := fold[metric]) is not None]
                axes.plot(values, [row] * len(values), "o", color=BLUE, markersize=3, alpha=0.7)
                if values:
                    axes.plot(np.mean(values), row, "|", color=ORANGE, markersize=11, markeredgewidth=2)
            axes.set_title(HEADERS[metric].removesuffix(" (%)"), fontsize=8)
            axes.set_xlim(-0.03, 1.03)
            axes.set_yticks(range(len(rows)), [label for label, _ in rows])
            axes.grid(axis="x", linewidth=0.3)
        axes.invert_yaxis()
        return _svg(figure)


def _band(axes: Any, curve: Curve) -> None:
    axes.fill_between(curve.x_G, curve.low_G, curve.high_G, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(curve.x_G, curve.y_G, color=BLUE, linewidth=1.2)


def _labels(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")


def _panels(rows: NamedResults, panel: Callable[[Any, Result], None], *, width: float = 2.3) -> str:
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width * columns, 2.3 * lines), layout="constrained")
        grid = np.atleast_1d(figure.subplots(lines, columns)).ravel()
        for axes, (label, result) in zip(grid, rows, strict=False):
            panel(axes, result)
            axes.set_title(label, fontsize=8)
        for axes in grid[len(rows) :]:
            axes.set_visible(False)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # a hundredth of a point is precise enough and halves the size
    return re.sub(r"(\d\.\d\d)\d+", r"\1", text.getvalue())
