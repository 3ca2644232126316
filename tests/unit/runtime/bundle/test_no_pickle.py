"""`predict`, `verify` and `inspect` unpickle no file of a bundle, even if a file was replaced by a pickle.

Worst case: the fingerprints are recomputed, so that the planted pickle is opened and not only rejected by its digest. A
TorchScript file is a zip archive with pickles; libtorch reads them with its own unpickler, which supports tensors and
TorchScript classes, but no Python functions.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from factories.paths import ROOT
from factories.planted_faults import manifest_at, reseal

PROGRAM = """
import json, shutil, sys
from pathlib import Path

found = []
sys.addaudithook(lambda event, a: found.append(f"{a[0]}.{a[1]}") if event == "pickle.find_class" else None)
sys.path.insert(0, sys.argv[1])
from factories.tmi_command import tmi

codes = {}
for folder in map(Path, sys.argv[4:]):
    case, marker = sys.argv[2], Path(sys.argv[3])
    engine = json.loads((folder.parent / "engine.json").read_text())
    for name, arguments in {
        "inspect": ("inspect", folder),
        "verify": ("verify", folder, "--engine", engine, "--threads", 1),
        "predict": ("predict", case, "--bundle", folder, "--engine", engine, "--threads", 1),
    }.items():
        codes[f"{folder.parent.name} {name}"] = tmi(*arguments).code
    if marker.exists():
        found.append(f"the code in {folder.parent.name} was executed")
print(json.dumps({"codes": codes, "found": [f for f in found if "was executed" in f or f == "builtins.exec"]}))
"""


class Poison:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"

    def __reduce__(self):
        return exec, (self.code,)


def poisoned_torchscript(file: Path, poison: bytes) -> None:
    """Replace the pickled data of a TorchScript archive by the planted pickle."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, poison if name.endswith("data.pkl") else data)


@pytest.fixture(scope="module")
def report(tiny_bundle, good_cases, tmp_path_factory) -> dict[str, object]:
    """Exit codes and audit events of all three commands on a bundle for every place of the pickle, in one process."""
    import shutil

    root = tmp_path_factory.mktemp("poisoned")
    marker = root / "marker"
    poison = pickle.dumps(Poison(marker))
    engines = {"graphs/fusion.onnx": "onnx", "graphs/fusion.pt": "torchscript", "weights/fusion.safetensors": "eager"}
    slots = [*engines, "scalers/fold0.json", "tokenizers/text-0.json", "golden.safetensors", "golden-case.safetensors",
             "evidence/onnx.safetensors", "MODEL_CARD.md", "archive:graphs/ct-0.pt"]  # fmt: skip
    folders = []
    for number, slot in enumerate(slots):
        folder = root / f"slot-{number}" / "bundle"
        shutil.copytree(tiny_bundle, folder)
        if slot.startswith("archive:"):
            poisoned_torchscript(folder / slot.partition(":")[2], poison)
            engine = "torchscript"
        else:
            (folder / slot).write_bytes(poison)
            engine = engines.get(slot, "onnx")
        reseal(folder)
        (folder.parent / "engine.json").write_text(json.dumps(engine))
        folders.append(str(folder))
    tests = str(ROOT / "tests")
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, tests, str(good_cases[0]), str(marker), *folders],
        capture_output=True,
        text=True,
        check=True,
    )
    output = json.loads(process.stdout.splitlines()[-1])
    by_slot = {key.replace(f"slot-{n} ", f"{slot} "): code for key, code in output["codes"].items()
               for n, slot in enumerate(slots) if key.startswith(f"slot-{n} ")}  # fmt: skip
    return {"codes": by_slot, "found": output["found"], "ran": marker.exists()}


def test_planted_pickle_is_never_executed(report):
    """No command resolves or executes the code of a planted pickle."""
    assert report["found"] == []
    assert not report["ran"]


def test_planted_pickle_executes_when_unpickled(tmp_path):
    """The planted pickle would create its marker if it was unpickled."""
    pickle.loads(pickle.dumps(Poison(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_commands_reject_the_files_they_read(report):
    """`verify` and `predict` reject every planted file that they read; `inspect` reads none."""
    codes = report["codes"]
    needed = [
        slot for slot in {key.rpartition(" ")[0] for key in codes} if "evidence" not in slot and "CARD" not in slot
    ]
    assert {codes[f"{slot} verify"] for slot in needed} <= {4, 6}
    assert {codes[f"{slot} predict"] for slot in needed} <= {4, 6}
    assert {code for key, code in codes.items() if key.endswith("inspect")} == {0}  # opens none of them


def test_digest_rejects_every_planted_file(tiny_bundle, tmp_path):
    """Without recomputed fingerprints every planted file is rejected by its digest."""
    import shutil

    from factories.tmi_command import tmi

    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    poison = pickle.dumps(Poison(tmp_path / "marker"))
    for name in manifest_at(folder).files:
        original = (folder / name).read_bytes()
        (folder / name).write_bytes(poison)
        result = tmi("verify", folder)
        assert result.code == 6
        assert f"{name} was changed after the export" in result.err
        (folder / name).write_bytes(original)
    for name in ("manifest.json", "manifest.json.sha256"):
        original = (folder / name).read_bytes()
        (folder / name).write_bytes(poison)
        assert {tmi(command, folder).code for command in ("verify", "inspect")} == {6}
        (folder / name).write_bytes(original)
    assert not (tmp_path / "marker").exists()
