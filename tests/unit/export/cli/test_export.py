"""Tests of the command `tmi export`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from factories.tmi_command import tmi
from tmi.runtime.bundle.reader import open_bundle


def project(tmp_path: Path, run: Path, *names: str) -> Path:
    """A project folder whose runs are hard-linked copies of one run."""
    for name in names or ("2026-01-01-tiny",):
        shutil.copytree(run, tmp_path / "runs" / name, copy_function=os.link)
    return tmp_path


def finished_at(run: Path, when: str) -> None:
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").unlink()
    (run / "run.json").write_text(json.dumps(state | {"finished_at": when, "name": run.name}))


def test_export_without_arguments_uses_newest_run(nano_run, tmp_path):
    """Without arguments the newest finished run and tmi.toml are used, and each default is reported."""
    folder = project(tmp_path, nano_run, "a", "b", "c")
    finished_at(folder / "runs" / "a", "2026-01-01T00:00:00+00:00")
    finished_at(folder / "runs" / "b", "2026-01-03T00:00:00+00:00")
    finished_at(folder / "runs" / "c", "2026-01-02T00:00:00+00:00")
    (folder / "tmi.toml").write_text('engine = "torchscript"\nbundle = "./out/b"\n')
    outcome = tmi("export", cwd=folder)
    assert outcome.code == 0, outcome.err
    assert "engine torchscript (from tmi.toml)" in outcome.err
    assert "run runs/b (the newest finished one)" in outcome.err
    assert "bundle out/b (from tmi.toml)" in outcome.err
    bundle = open_bundle(folder / "out" / "b")
    assert bundle.manifest.run.name == "b"
    assert bundle.has("torchscript")
    assert not bundle.has("onnx")
    assert "bundle out/b: 2 folds of a synthetic cohort, graphs ct-0, ct-1, text-0, text-1, fusion" in outcome.out
    assert "torchscript  " in outcome.out
    assert "checks passed; logits differ from eager by" in outcome.out
    assert f"manifest {bundle.digest[:16]}; predict with: tmi predict CASE --bundle out/b" in outcome.out


def test_existing_bundle_needs_force(nano_run, nano_bundle, tmp_path):
    """An existing bundle is exit code 2 without --force and is replaced with it."""
    folder = project(tmp_path, nano_run)
    shutil.copytree(nano_bundle, folder / "bundle")
    rejected = tmi("export", "--engine", "torchscript", cwd=folder)
    assert rejected.code == 2
    assert "error: bundle bundle exists" in rejected.err
    assert "replace it with --force" in rejected.err
    assert open_bundle(folder / "bundle").has("onnx")
    forced = tmi("export", "--engine", "torchscript", "--force", "--no-weights", cwd=folder)
    assert forced.code == 0, forced.err
    assert not open_bundle(folder / "bundle").has("onnx")
    assert not open_bundle(folder / "bundle").has("weights")


def test_export_without_finished_run_exits_with_2(tmp_path):
    """Without a finished run the error names `tmi train`."""
    outcome = tmi("export", cwd=tmp_path)
    assert outcome.code == 2
    assert "error: no finished run in runs\n  fix: train one with `tmi train`, or name a run folder" in outcome.err


def test_unfinished_run_is_rejected(nano_run, tmp_path):
    """An unfinished run is exit code 2, and the fix names --resume."""
    run = tmp_path / "run"
    shutil.copytree(nano_run, run)
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(state | {"status": "running"}))
    outcome = tmi("export", run, "--out", tmp_path / "bundle")
    assert outcome.code == 2
    assert "is not finished" in outcome.err
    assert "--resume" in outcome.err


def test_damaged_run_exits_with_6(nano_run, tmp_path):
    """A run with a changed file is exit code 6, and nothing is written."""
    run = tmp_path / "run"
    shutil.copytree(nano_run, run)
    (run / "fold0" / "scaler.json").write_text("{}")
    outcome = tmi("export", run, "--out", tmp_path / "bundle")
    assert outcome.code == 6
    assert "fold0/scaler.json was changed after the training" in outcome.err
    assert not (tmp_path / "bundle").exists()


def test_key_without_a_signed_bundle_is_wrong_usage(nano_run, tmp_path, monkeypatch):
    """`--key` is rejected where no signature exists; the variable holds for all commands and is not."""
    outcome = tmi("export", nano_run, "--key", "signer.pem", cwd=tmp_path)
    assert outcome.code == 2
    assert "error: --key has no effect here: a new bundle is not signed yet" in outcome.err
    explained = tmi("explain", "case", "--run", nano_run, "--key", "signer.pem", "-o", "out", cwd=tmp_path)
    assert (explained.code, "a run has no signature" in explained.err) == (2, True)
    audited = tmi("audit", nano_run, "--key", "signer.pem", cwd=tmp_path)
    assert (audited.code, "no bundle is given" in audited.err) == (2, True)
    monkeypatch.setenv("TMI_KEY", "signer.pem")
    assert "--key" not in tmi("export", "missing", cwd=tmp_path).err
