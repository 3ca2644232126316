"""Tables of the commands at 40 and 80 columns, with five folds: cases, decisions and results stay in one piece."""

from __future__ import annotations

import json

import pytest

from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.reader import Bundle, inspect_bundle
from tmi.runtime.cli.tables.checks import checks_table, failures_table
from tmi.runtime.cli.tables.predictions import print_table
from tmi.runtime.cli.tables.timing import print_timing
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.results import FoldPrediction, Prediction, RejectedCase
from tmi.toolkit.cli.console import make_console
from tmi.toolkit.cli.listing import print_listing

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2" / "bundle"
CASES = ("HOSPITAL-A-0001", "P2")
FIVE = ("0.111", "0.222", "0.333", "0.444", "0.555")
ENGINE = EngineRecord(name="onnx", asked="auto", reason="", package="x 1", precision="float32", threads=2,
                      verified="now")  # fmt: skip


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A bundle whose manifest names the classes."""
    return inspect_bundle(PUBLISHED)


@pytest.fixture(params=[40, 80])
def columns(request, monkeypatch) -> int:
    """Width of the terminal."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def prediction(case_id: str) -> Prediction:
    folds = tuple(
        FoldPrediction(fold=k, probability={"good": 1 - float(p), "bad": float(p)}) for k, p in enumerate(FIVE)
    )
    return Prediction(
        case_id=case_id, probability={"good": 0.667, "bad": 0.333}, folds=folds, spread=0.157, decision="good",
        warnings=(), engine="onnx", bundle="0" * 64, seconds={"read": 0.25, "ct": 0.75, "total": 1.0}, overlapped={},
    )  # fmt: skip


def test_predictions_of_five_folds(bundle, capsys, columns):
    """`tmi predict`: each case with its decision and probability; at 40 columns a block with the five folds."""
    rejected = RejectedCase(case_id="P3", code="ct-missing", what="", fix="")
    print_table([*map(prediction, CASES), rejected], bundle=bundle, engine=ENGINE)
    text = capsys.readouterr().out
    words = text.split()
    for word in (*CASES, "P3", "rejected", "ct-missing", "0.3330"):
        assert word in words
    assert words.count("good") == len(CASES)
    table, _, _ = text.partition("engine onnx")
    assert max(map(len, table.splitlines())) <= columns
    assert (" ".join(FIVE) in " ".join(words)) == (columns == 40)
    assert ("not shown: each fold" in text) == (columns == 80)


def test_time_of_a_prediction(capsys, columns):
    """`tmi predict --timing`: stage and seconds at every width, the waterfall where it fits."""
    print_timing([prediction("P1")])
    text = capsys.readouterr().err
    assert max(map(len, text.splitlines())) <= columns
    assert "0.750" in text
    assert "█" in text or columns == 40


def test_waterfall_in_ascii(monkeypatch):
    """An output without the letter of the bars gets number signs."""
    import io
    import sys

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    print_timing([prediction("P1")])
    stream.flush()
    assert b"###" in stream.buffer.getvalue()


def test_checks_of_an_engine(capsys, columns):
    """`tmi verify` and `tmi inspect`: engine, check and result in one row; a failed check with all its values."""
    records = [
        CheckResult(check="probabilities", graph="fusion", artefact="onnx", engine="openvino-bf16", measured=0.25,
                    bound=0.01, passed=False, detail="case 3 of 4 differs")
    ]  # fmt: skip
    print_listing(make_console(), checks_table(records))
    print_listing(make_console(), failures_table(records))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.split() and {"openvino-bf16", "probabilities", "FAILED"} <= set(line.split()) for line in lines)
    assert "case 3 of 4 differs" in " ".join(" ".join(lines).replace("│", " ").split())


def test_bundle_of_inspect(columns):
    """`tmi inspect` keeps the names of graphs and checks; its document does not depend on the width."""
    text = tmi("inspect", PUBLISHED).out
    lines = text[text.index("\nengines ") :].splitlines()[2:-1]
    assert max(map(len, lines)) <= columns
    assert "fusion" in text
    assert json.loads(tmi("inspect", PUBLISHED, "--json").out)["schema"] == "tmi-inspection/2"
