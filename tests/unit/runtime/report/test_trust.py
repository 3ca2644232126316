"""Statements beside a prediction: agreement of the folds, threshold, reasons for doubt; bars of contributions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tmi.runtime.explanation.overlay import Picture, grey, legend_colours, map_colours
from tmi.runtime.report.contributions import FLOOR, common_scale, split_by_noise
from tmi.runtime.report.slices import _map
from tmi.runtime.report.trust import (
    digits_needed,
    fold_agreement,
    format_threshold,
    signed,
    trust_statements,
    unbroken,
)
from tmi.runtime.serving.results import FoldPrediction, Prediction
from tmi.toolkit.imaging.volume import PLANES, Volume
from tmi.toolkit.issues.issue import Issue


def prediction(*probabilities: float, warnings: tuple[Issue, ...] = ()) -> Prediction:
    folds = tuple(FoldPrediction(fold=n, probability={"good": 1 - p, "bad": p}) for n, p in enumerate(probabilities))
    mean = float(np.mean(probabilities))
    return Prediction(
        case_id="P1", probability={"good": 1 - mean, "bad": mean}, folds=folds, spread=float(np.std(probabilities)),
        decision="bad", warnings=warnings, engine="onnx", bundle="", seconds={}, overlapped={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("probabilities", "level", "text"),
    [
        ((0.9, 0.45, 0.51), "warn", "The folds disagree: 2 of 3 decide bad, 1 good (0.450 to 0.900)."),
        ((0.61, 0.62, 0.63), "ok", "The folds agree: all 3 decide bad (0.610 to 0.630)."),
        ((0.1, 0.12), "ok", "The folds agree: all 2 decide good (0.100 to 0.120)."),
        ((0.51, 0.99), "warn", "All 2 folds decide bad, but their probabilities differ (0.510 to 0.990)."),
        ((0.7,), "warn", "The bundle has one fold"),
    ],
)
def test_agreement_of_folds_in_words(probabilities, level, text):
    """The statement says whether the folds decide alike, and how far their probabilities lie apart."""
    statement = fold_agreement(prediction(*probabilities), "bad", 0.5)
    assert statement.level == level
    assert statement.text.startswith(text)


@pytest.mark.parametrize(
    ("threshold", "p", "texts"),
    [
        (0.48372614, 0.9, ("0.484", "0.900")),
        (0.5, 0.5, ("0.5", "0.500")),
        (0.48372614, 0.48369, ("0.48373", "0.48369")),  # both round to 0.484 although p is below
        (0.48372614, 0.48377, ("0.484", "0.484")),
    ],
)
def test_rounded_threshold_does_not_change_a_decision(threshold, p, texts):
    """Threshold and probability are rounded to the digits at which their order is visible."""
    digits = digits_needed(threshold, [p])
    assert (format_threshold(threshold, digits), f"{p:.{digits}f}") == texts
    assert (float(texts[1]) >= float(texts[0])) == (p >= threshold)


def test_reasons_for_doubt_begin_with_the_gravest():
    """An alert comes first; warnings and findings are listed once; lists of names are left out."""
    edge = Issue.of("mask-edge", "the mask touches the edge", "fix", case_id="P1")
    stale = Issue.of("radiomics-stale", "the table is stale", "fix", case_id="P1")
    elsewhere = Issue.of("liver-place", "elsewhere", "fix", case_id="P1")
    notices = (
        Issue.of("radiomics-clipped", "3 features were clipped: a, b, c", "fix", count=3, names=("a", "b", "c")),
        edge,
        Issue.of("synthetic-model", "the models were trained on synthetic cases, not on patients", "fix"),
        Issue.of("liver-place", "elsewhere; do not rely on the prediction", "fix"),
    )
    trained = {"synthetic": True, "cases": 9, "auc": 0.81234, "auc_sd": 0.01234, "temperatures": []}
    parity = {"engine": "onnx", "passed": 3, "checks": 3}
    found = [edge, stale, elsewhere]
    statements = trust_statements(
        prediction(0.7, 0.7, warnings=notices), found, positive="bad", threshold=0.5, trained=trained, parity=parity
    )
    assert statements[0].level == "bad"
    assert [s.text for s in statements if s.about == "Input"] == [
        "elsewhere; do not rely on the prediction (liver-place).",
        "3 features were clipped (radiomics-clipped).",
        "the mask touches the edge (mask-edge).",
        "the table is stale (radiomics-stale).",
    ]
    assert [s.text for s in statements if s.about == "Training"] == [
        "The models were trained on 9 synthetic cases, not on patients; ROC AUC on held-out cases 0.81 \u00b1 0.01."
    ]
    without = trust_statements(
        prediction(0.7, 0.7), [], positive="bad", threshold=0.5, trained=trained | {"synthetic": False}, parity=None
    )
    assert [s.level for s in without if s.about in ("Input", "Training", "Folds")] == ["ok"] * 3


def test_bars_of_all_tables_have_one_scale():
    """A bar's length is its share of the common scale; contributions below the noise floor are not good or bad."""
    scale = common_scale([0.3, -0.02, 0.004], 0.01)
    assert scale.end == 0.5
    rows = [scale.bar("", "", value) for value in (0.3, -0.02, 0.004, 0.0)]
    assert [row["length"] for row in rows] == pytest.approx([30, 2, 0.4, 0])
    assert [row["start"] for row in rows] == pytest.approx([50, 48, 50, 50])
    assert [row["side"] for row in rows] == ["bad", "good", "noise", "noise"]
    assert [len(part) for part in split_by_noise(rows, 1)] == [1, 3]


def test_bars_of_noise_are_short():
    """Where every contribution is noise no bar is longer than a tenth of its half."""
    scale = common_scale([0.0011, -0.0007], FLOOR)
    assert scale.bar("", "", 0.0011)["length"] <= 5


def test_signs_and_units_stay_with_their_number():
    """A signed value has a true minus, and a value that rounds to zero no sign; units follow a no-break space."""
    assert [signed(v) for v in (0.0123, -0.0123, -0.0001)] == ["+0.012", "\u22120.012", "0.000"]
    assert (
        unbroken("80 % of 12 cases, 5 mm, 0.8 \u00b1 0.1")
        == "80\u00a0% of 12 cases, 5\u00a0mm, 0.8\u00a0\u00b1\u00a00.1"
    )


def test_map_of_zero_leaves_the_ct_unchanged():
    """The map's picture is transparent where the map is 0, and a small value darkens no tissue visibly."""
    ct = Volume(array_DHW=np.full((4, 6, 6), 240, np.int16), affine_xyz=np.eye(4))
    levels = np.broadcast_to(np.repeat([0.0, 0.1], 3), (4, 6, 6)).astype(np.float32)
    picture = Picture(ct=ct, map_DHW=levels, liver_DHW=None, title="")
    rgba = np.asarray(_map(picture, PLANES[0], 0, (6, 6)).resize((6, 6), Image.Resampling.NEAREST)).astype(float) / 255
    shown = rgba[..., :3] * rgba[..., 3:] + (grey(np.full((6, 6, 1), 240)) / 255.0) * (1 - rgba[..., 3:])
    columns = shown.mean(axis=(0, 2))
    assert columns.max() == 1
    assert columns.min() > 0.92
    opacity = map_colours()(np.linspace(0, 1, 11))[:, 3]
    assert opacity == pytest.approx(np.linspace(0, opacity[-1], 11), abs=0.01)
    assert legend_colours()(0.0) == pytest.approx((0.5, 0.5, 0.5, 1))
