"""Faults planted into the trust statistics: another fold's, edited ones, another level."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from factories.planted_faults import Fault, PlantFunction, Workbench, edit_manifest, manifest_at, reseal
from factories.tmi_command import CommandResult, tmi
from factories.trust import bundle_with_random_trust, run_with_trust

FIRST, SECOND = "trust/fold0.safetensors", "trust/fold1.safetensors"


def _corrupted(corrupt: Callable[[Path], object], *, verify: bool) -> PlantFunction:
    def run(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
        patch.setenv("TMI_CACHE", str(bench.folder / "cache"))  # an empty cache, so that the self-test runs
        folder = bundle_with_random_trust(bench.bundle, bench.folder / "bundle")
        corrupt(folder)
        return bench.verify(folder) if verify else bench.predict(folder)

    return run


def _other_fold(folder: Path) -> None:
    shutil.copyfile(folder / SECOND, folder / FIRST)
    reseal(folder)


def _edited(folder: Path) -> None:
    """Widen the deviations of one part, so that every case is trusted."""
    path = folder / FIRST
    with safe_open(path, "numpy") as stream:
        metadata = stream.metadata()
    arrays = load_file(path)
    save_file(arrays | {"clinical.values.scale": arrays["clinical.values.scale"] * 100}, path, metadata=metadata)
    reseal(folder)


def _edited_scores(folder: Path) -> None:
    """Move the calibration scores of a class, so that its prediction sets become narrower."""
    path = folder / FIRST
    with safe_open(path, "numpy") as stream:
        metadata = stream.metadata()
    arrays = load_file(path)
    save_file(arrays | {"conformal.bad": arrays["conformal.bad"] - 1.0}, path, metadata=metadata)
    reseal(folder)


def _removed(folder: Path) -> None:
    shutil.rmtree(folder / "trust")
    reseal(folder, trust=None)


def _level(folder: Path) -> None:
    reseal(folder, trust=replace(manifest_at(folder).trust, level=1e-9))


def _level_in_text(folder: Path) -> None:
    digest = (folder / "manifest.json.sha256").read_text()

    def edit(manifest: dict[str, Any]) -> None:
        manifest["trust"]["level"] = 1e-9

    edit_manifest(folder, edit)
    (folder / "manifest.json.sha256").write_text(digest)


def _export_of_other_fold(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
    from tmi.toolkit.run_folder import RunFolder

    run = RunFolder.open(run_with_trust(bench.run, bench.folder / "run"))
    shutil.copyfile(run.fold(1).trust, run.fold(0).trust)
    run.finish()
    outcome = tmi("export", run.path, "--engine", "torchscript", "--out", bench.folder / "exported", "--no-weights")
    assert not (bench.folder / "exported").exists()
    return outcome


TRUST_FAULTS = (
    Fault(
        name="trust statistics of another fold in a run",
        where="export",
        plant=_export_of_other_fold,
        code=6,
        reason="those of fold 1, not of fold 0",
    ),
    Fault(
        name="trust statistics of another fold, fingerprints taken again",
        where="resealed",
        plant=_corrupted(_other_fold, verify=False),
        code=4,
        reason="meaning .* trust/fold0.safetensors changed",
    ),
    Fault(
        name="trust statistics that were edited, fingerprints taken again",
        where="resealed",
        plant=_corrupted(_edited, verify=True),
        code=4,
        reason="meaning .* trust/fold0.safetensors changed",
        quick=False,
    ),
    Fault(
        name="calibration scores of prediction sets that were edited, fingerprints taken again",
        where="resealed",
        plant=_corrupted(_edited_scores, verify=False),
        code=4,
        reason="meaning .* trust/fold0.safetensors changed",
    ),
    Fault(
        name="trust statistics removed, fingerprints taken again",
        where="resealed",
        plant=_corrupted(_removed, verify=True),
        code=4,
        reason="meaning .* trust/fold0.safetensors, trust/fold1.safetensors changed",
        quick=False,
    ),
    Fault(
        name="another trust level, fingerprints taken again",
        where="resealed",
        plant=_corrupted(_level, verify=True),
        code=4,
        reason="meaning .* trust is .*1e-09",
    ),
    Fault(
        name="the trust level edited in the manifest",
        where="file",
        plant=_corrupted(_level_in_text, verify=False),
        code=6,
        reason="manifest.json",
    ),
)
