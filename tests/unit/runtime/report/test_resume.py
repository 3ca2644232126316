"""`tmi report --quick` and `--resume`: which pages are kept, which are written again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from factories.tmi_command import CommandResult, tmi
from tmi.runtime.report.finished_pages import RECORD


@pytest.fixture
def cases(cohort, tmp_path) -> Path:
    """Two valid cases and a rejected one, writable."""
    return Path(shutil.copytree(cohort, tmp_path / "cohort"))


@pytest.fixture
def quick(cases, tmp_path, tiny_bundle):
    """Run `tmi report --quick` in a folder of the test."""

    def run(*more: str) -> CommandResult:
        base = ["report", cases, "--bundle", tiny_bundle, "--out", tmp_path / "out", "--engine", "onnx"]
        return tmi(*base, "--threads", 1, "--quick", *more)

    return run


def pages(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (folder / "cases").iterdir()}


def test_quick_page_has_no_map(quick, tmp_path, monkeypatch):
    """A quick page has the prediction, its trust and the clinical values, and needs neither map nor weights."""
    monkeypatch.setattr("tmi.runtime.explanation.model_source.bundle_models", None)
    outcome = quick()
    assert outcome.code == 3, outcome.err
    page = (tmp_path / "out" / "cases" / "P1.html").read_text(encoding="utf-8")
    for text in ("tmi report --quick", "Standard deviation over the folds", "Albumin", "unlike-training"):
        assert text in page
    for text in ("XGrad-CAM", 'id="slices"', "Integrated gradients"):
        assert text not in page


def test_interrupted_report_keeps_finished_pages(quick, tmp_path, monkeypatch):
    """After Ctrl-C `--resume` keeps the pages whose inputs are the same, writes the others, and the index."""
    from tmi.runtime.report import pages as module

    real, calls = module.case_page, []

    def stop_at_second(*arguments, **named):
        calls.append(named["case"].case_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(module, "case_page", stop_at_second)
    outcome = quick()
    assert outcome.code == 130
    assert f"interrupted; continue with the same command and --out {tmp_path / 'out'} --resume" in outcome.err
    assert not (tmp_path / "out" / "index.html").exists()
    first = pages(tmp_path / "out")
    assert len(first) == 1
    outcome = quick("--resume")
    assert outcome.code == 3, outcome.err
    assert outcome.err.count(": kept") == 1
    second = pages(tmp_path / "out")
    assert second.items() >= first.items()
    assert len(second) == 2
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "2 predicted, 1 rejected" in index


@pytest.mark.parametrize("changed", ["record", "page", "truncated", "option"])
def test_page_with_other_inputs_is_written_again(quick, cases, tmp_path, changed):
    """A page is written again if a file of its case or an option changed, or if its record is damaged."""
    quick()
    page = tmp_path / "out" / "cases" / "P1.html"
    more: tuple[str, ...] = ()
    if changed == "record":
        record = cases / "P1" / "clinical.json"
        record.write_text(record.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    elif changed == "page":
        page.write_text(RECORD.sub('<script type="application/json" id="record">{</script>', page.read_text()))
    elif changed == "truncated":
        page.write_text(page.read_text()[:-20])
    else:
        more = ("--mask-label", "1")
    before = page.read_bytes()
    outcome = quick("--resume", *more)
    assert outcome.code == 3, outcome.err
    assert "P1: kept" not in outcome.err
    assert outcome.err.count(": kept") == (0 if changed == "option" else 1)
    assert page.read_bytes() != before


def test_record_of_a_page_holds_digest_and_prediction(quick, tmp_path):
    """The record of a page has the digest of its inputs and the prediction that the index shows, no patient data."""
    quick()
    found = RECORD.search((tmp_path / "out" / "cases" / "P1.html").read_text(encoding="utf-8"))
    assert found is not None
    record = json.loads(found[1])
    assert set(record) == {"schema", "inputs", "result"}
    assert len(record["inputs"]) == 64
    assert record["result"]["status"] == "predicted"
    assert "patient-P" not in found[1]


def test_resume_rejects_other_folders_and_force(quick, tmp_path):
    """`--resume` is wrong usage together with `--force`, and in a folder that is no report."""
    assert quick("--resume", "--force").code == 2
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("")
    outcome = quick("--resume")
    assert outcome.code == 2
    assert "is not a report that can be continued" in outcome.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes.txt"]
