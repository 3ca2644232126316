"""Faults of privacy: names and commands planted into cases and runs, which no output may hold, and files of others."""

# ruff: noqa: E501 - one fault per row
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factories.cases import write_cohort
from factories.nano import NANO_OPTIONS
from factories.other_user import umask
from factories.planted_faults import Fault, PlantFunction, Workbench
from factories.tmi_command import CommandResult, tmi

NAME = "Mustermann"
ESCAPE = "\x1b]0;owned\x07"


def _renamed(name: str) -> Callable[[Workbench], Path]:
    """Copy the case to a folder of that name."""
    return lambda bench: Path(shutil.copytree(bench.case, bench.folder / "cases" / name))


def _linked(bench: Workbench) -> Path:
    """A link with a pseudonym for its name to a folder with the patient's name."""
    real = _renamed(f"{NAME}_1950")(bench)
    link = bench.folder / "P001"
    link.symlink_to(real)
    return link


def _predicted(case: Callable[[Workbench], Path], *more: str, out: str | None = None) -> PlantFunction:
    """`tmi predict` on that case; the output file counts as output."""

    def run(bench: Workbench, _: pytest.MonkeyPatch) -> CommandResult:
        words = ("--bundle", bench.bundle, "--engine", "onnx", "--threads", 1, *more)
        file = () if out is None else ("--out", bench.folder / out)
        outcome = tmi("predict", case(bench), *words, *file)
        return outcome if out is None else replace(outcome, out=outcome.out + "\n" + (bench.folder / out).read_text())

    return run


def _name_in_run(bench: Workbench, _: pytest.MonkeyPatch) -> CommandResult:
    """Put a patient's name into the vocabulary of a run after its training."""
    run = Path(shutil.copytree(bench.run, bench.folder / "run"))
    tokenizer = run / "fold0" / "tokenizer.json"
    document = json.loads(tokenizer.read_text())
    document["model"]["vocab"][NAME.lower()] = len(document["model"]["vocab"])
    tokenizer.write_text(json.dumps(document))
    return tmi("export", run, "--engine", "torchscript", "--out", bench.folder / "exported", "--no-weights")


def _name_in_reports(bench: Workbench, _: pytest.MonkeyPatch) -> CommandResult:
    """Train and export on reports that name a patient twice; the files that hold the name count as output."""
    cohort = write_cohort(bench.folder / "cohort", cases=16, with_mask=False)
    for n, record in enumerate(sorted(cohort.glob("*/clinical.json"))):
        words = f"{NAME} " * 6 if n < 2 else ""
        record.write_text(json.dumps(json.loads(record.read_text()) | {"report": f"ascites, {words}ascites."}))
    options = ("--preset", "tiny", "--folds", "2", "--epochs", "1", "--accelerator", "cpu", "--no-cache")
    trained = tmi("train", cohort, "--out", bench.folder / "run", *options, *NANO_OPTIONS)
    assert trained.code == 0, trained.err
    exported = tmi("export", bench.folder / "run", "--out", bench.folder / "bundle", "--engine", "onnx")
    files = [p for name in ("run", "bundle") for p in (bench.folder / name).rglob("*") if p.is_file()]
    spellings = [s.encode() for s in (NAME, NAME.lower(), NAME.upper())]
    found = [f"{NAME} is in {p.name}" for p in files if any(s in p.read_bytes() for s in spellings)]
    return replace(exported, out="\n".join([f"{len(files)} files searched", *found]))


def _open_umask(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
    """Predict with caches under umask 000; files that other users may read or write count as output."""
    cache = bench.folder / "cache"
    patch.setenv("TMI_CACHE", str(cache))
    with umask(0o000):
        outcome = bench.predict(bench.bundle, "--cache", "--reuse")
    places = [cache, *cache.rglob("*")]
    open_ = [f"open to others: {p.name}" for p in places if p.stat().st_mode & 0o077]
    return replace(outcome, out="\n".join([f"{len(places)} places searched", *open_]))


def _foreign_self_test(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
    """Leave the record of a passed self-test that others can write, then compute something else."""
    from tmi.runtime.engines.onnxruntime import OnnxEngine

    patch.setenv("TMI_CACHE", str(bench.folder / "cache"))
    assert bench.predict(bench.bundle).code == 0
    (record,) = (bench.folder / "cache" / "opened").iterdir()
    record.chmod(0o666)
    original = OnnxEngine._run
    patch.setattr(OnnxEngine, "_run", lambda self, *a: {k: v * np.float32(1.1) for k, v in original(self, *a).items()})
    return bench.predict(bench.bundle)


def _silent(name: str, plant: PlantFunction, planted: str, reason: str = "", *, quick: bool = True) -> Fault:
    """A fault that the command survives: the planted text is in no output."""
    return Fault(name=name, where="privacy", plant=plant, code=0, reason=reason, planted=planted, quick=quick)


PRIVACY_FAULTS = (
    _silent("a patient's name as the folder behind a link, in the table", _predicted(_linked), NAME, "P001"),
    _silent("a patient's name as the folder behind a link, in JSON", _predicted(_linked, "--json"), NAME, "P001"),
    _silent("a patient's name as the folder behind a link, in CSV", _predicted(_linked, out="results.csv"), NAME, "P001"),
    _silent("a formula as a case id, in CSV", _predicted(_renamed("=1+1"), out="results.csv"), "\n=1+1", "'=1.1"),
    _silent("a terminal command as a case id", _predicted(_renamed(ESCAPE)), "\x1b", "owned"),
    _silent("caches under umask 000", _open_umask, "open to others", "places searched", quick=False),
    _silent("a patient's name in two reports of a cohort", _name_in_reports, f"{NAME} is in", "files searched", quick=False),
    Fault(name="a patient's name in the vocabulary of a run", where="privacy", plant=_name_in_run, code=6, reason="fold0/tokenizer.json"),
    Fault(name="a passed self-test that others can write", where="privacy", plant=_foreign_self_test, code=4, reason="features of ct-0", quick=False),
)  # fmt: skip
