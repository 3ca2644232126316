"""The bytes of a bundle are a function of its run, versions and machine; `tmi verify --rebuild` compares them again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from factories.planted_faults import manifest_at, reseal
from factories.tmi_command import tmi
from tmi.export.bundle import rebuild
from tmi.export.bundle.reproducible import export_time
from tmi.runtime.bundle.manifest import REAL_CASES_FILE
from tmi.runtime.bundle.reader import open_bundle
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError

TIME = 1_700_000_000


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.long
def test_export_in_another_process_gives_the_same_bytes(nano_bundle, nano_run, tmp_path):
    """Another process, folder and caller write the same bytes, except for the time, which `SOURCE_DATE_EPOCH` sets."""
    program = (
        "import sys, torch\nfrom pathlib import Path\nfrom tmi.export.bundle.writer import export_run\n"
        "torch.set_num_threads(1)\nimport tmi.runtime.engines.graph_engine as engine\n"
        "engine.available_cores = lambda: 1\n"
        "export_run(Path(sys.argv[1]), Path(sys.argv[2]), artefacts=('onnx', 'torchscript'))"
    )
    again = tmp_path / "elsewhere" / "named otherwise"
    again.parent.mkdir()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(TIME)}
    subprocess.run([sys.executable, "-c", program, nano_run, again], check=True, cwd=tmp_path, env=environment)
    first, second = contents(nano_bundle), contents(again)
    differing = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    assert differing == {"manifest.json", "manifest.json.sha256"}
    manifests = [json.loads(files["manifest.json"]) for files in (first, second)]
    assert manifests[0].pop("created") > "2026"
    assert manifests[1].pop("created") == "2023-11-14T22:13:20+00:00"
    assert manifests[0] == manifests[1]


def test_torchscript_holds_no_call_stacks(nano_bundle):
    """The archives hold no paths of the exporting machine, and no records with call stacks."""
    root = str(Path(__file__).parents[4]).encode()
    for file in sorted(nano_bundle.glob("graphs/*.pt")):
        with zipfile.ZipFile(file) as archive:
            assert not [name for name in archive.namelist() if name.endswith(".debug_pkl")]
        assert root not in file.read_bytes()


@pytest.mark.long
def test_verify_rebuild_accepts_the_run_of_the_bundle(nano_run, nano_bundle):
    """The command exports the run again, reports the comparison in both forms, and ends with 0."""
    outcome = tmi("verify", nano_bundle, "--engine", "onnx", "--rebuild", nano_run, "--json")
    assert outcome.code == 0, outcome.err
    manifest = open_bundle(nano_bundle).manifest
    assert outcome.document["rebuild"] == {"run": manifest.run.name, "files": len(manifest.files)}


@pytest.fixture
def copy(nano_bundle, tmp_path, monkeypatch) -> Path:
    """A copy of the bundle; an export of its run again is the bundle itself."""
    monkeypatch.setattr(rebuild, "export_run", lambda *arguments, **options: open_bundle(nano_bundle))
    shutil.copytree(nano_bundle, tmp_path / "copy")
    return tmp_path / "copy"


def flip_weight(folder: Path) -> None:
    path = folder / "weights" / "fusion.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def edit_scaler(folder: Path) -> None:
    path = folder / "scalers" / "fold0.json"
    path.write_text(path.read_text().replace("1", "2", 1))


def drop_parity_record(folder: Path) -> None:
    reseal(folder, parity=manifest_at(folder).parity[:-1])


FAULTS: dict[str, tuple[Callable[[Path], object], dict[str, object], str]] = {
    "weight": (flip_weight, {}, r"weights/fusion\.safetensors differs"),
    "scaler": (edit_scaler, {}, r"scalers/fold0\.json differs"),
    "added file": (lambda folder: (folder / "evidence" / "x.json").write_text("{}"), {}, "is in one of them only"),
    "threshold": (lambda folder: None, {"threshold": 0.25}, r"threshold: 0\.25, exported again 0\.5"),
    "synthetic": (lambda folder: None, {"synthetic": False}, "synthetic: false, exported again true"),
    "parity": (drop_parity_record, {}, r"parity.*exported again"),
    "preset": (lambda folder: None, {"preset": "paper"}, 'preset: "paper", exported again "tiny"'),
}


@pytest.mark.parametrize("name", FAULTS)
def test_forged_bundle_is_not_what_its_run_gives(name, copy):
    """A bundle that is consistent in itself, and that its run does not give, is found by the comparison."""
    plant, fields, message = FAULTS[name]
    plant(copy)
    reseal(copy, **fields)
    with pytest.raises(DamagedError, match=message):
        rebuild.compare_with_rebuild(open_bundle(copy), Path("run"))


def test_unchanged_copy_is_what_its_run_gives(copy):
    """The comparison passes for the copy before a fault is planted, so the faults are what it finds."""
    result = rebuild.compare_with_rebuild(open_bundle(copy), Path("run"))
    assert result.files == len(manifest_at(copy).files)


def test_other_machine_is_named_as_the_reason(copy):
    """If versions or hardware differ, the message says so first, with exit code 5: the comparison decides nothing."""
    flip_weight(copy)
    reseal(copy, versions={**manifest_at(copy).versions, "torch": "0.1"})
    with pytest.raises(UnavailableError, match=r'versions\.torch: "0\.1", exported again'):
        rebuild.compare_with_rebuild(open_bundle(copy), Path("run"))


def test_evidence_of_real_cases_cannot_be_repeated(copy):
    """A bundle with evidence of real cases is a usage error that says why."""
    (copy / REAL_CASES_FILE).write_bytes(b"")
    reseal(copy)
    with pytest.raises(UsageError, match="evidence of real cases"):
        rebuild.compare_with_rebuild(open_bundle(copy), Path("run"))


@pytest.mark.parametrize("setting", ["soon", "1e9", "-" * 3, "9" * 30])
def test_time_that_is_no_number_is_a_usage_error(setting, monkeypatch):
    """`SOURCE_DATE_EPOCH` is a whole number of seconds; an empty one counts as unset."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", setting)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        export_time()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "")
    assert export_time() > "2026"
