"""The table of planted faults: what goes wrong with bundles, each planted for real and put before the command line.

Every fault must end with exit code 4 (it does not answer like the validated model) or 6 (it is not what was exported,
or not by whom it should be), and say why. `tests/unit/export/checks/test_fault_table.py` holds it, `make faults` prints
it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from factories.cases import write_case
from factories.tmi_command import CommandResult, tmi
from tmi.runtime.bundle.manifest import Manifest, manifest_from_json
from tmi.runtime.bundle.reader import fingerprint, write_manifest


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """What faults are planted into; everything but `folder` is read only."""

    run: Path
    """A finished run of two folds that share nothing."""
    bundle: Path
    """That run exported as ONNX and TorchScript, signed."""
    other_bundle: Path
    """Another run of the same configuration, exported as ONNX and signed with the same key."""
    public: Path
    """The signer's public key."""
    case: Path
    """A good case."""
    folder: Path
    """An empty folder to work in."""

    def copy(self) -> Path:
        """The honest bundle, to be spoilt."""
        target = self.folder / "bundle"
        shutil.copytree(self.bundle, target)
        return target

    def export(self, engine: str = "torchscript") -> CommandResult:
        """Export the run; nothing may be left behind when it is refused."""
        out = self.folder / "exported"
        outcome = tmi("export", self.run, "--engine", engine, "--out", out, "--no-weights")
        assert outcome.code == 0 or not list(self.folder.iterdir()), "a refused export left something behind"
        return outcome

    def verify(self, bundle: Path, *more: object) -> CommandResult:
        """`tmi verify` with one quick engine."""
        return tmi("verify", bundle, "--engine", "onnx", "--threads", 1, *more)

    def predict(self, bundle: Path, *more: object) -> CommandResult:
        """`tmi predict` on the good case."""
        return tmi("predict", self.case, "--bundle", bundle, "--engine", "onnx", "--threads", 1, *more)


PlantFunction = Callable[[Workbench, pytest.MonkeyPatch], CommandResult]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row."""

    name: str
    """What is wrong."""
    where: str
    """At which step it is planted: export, file, resealed, signature, runtime."""
    plant: PlantFunction
    """Plants it and runs the command that must refuse it."""
    code: int
    """Exit code it must end with."""
    reason: str
    """Pattern that standard error must hold."""
    quick: bool = True
    """Whether the default test run has it; the others have a closer test of their own in `test_planted_faults.py`."""

    def blocked(self, outcome: CommandResult) -> bool:
        """Whether the command refused it for the right reason."""
        return outcome.code == self.code and bool(re.search(self.reason, " ".join(outcome.err.split())))


def reason_of(outcome: CommandResult) -> str:
    """The line of standard error that says what is wrong."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else "(no reason was given)"


def write_key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.private.pem", folder / f"{name}.public.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def make_workbench(folder: Path, run: Path, bundle: Path, other_bundle: Path) -> Workbench:
    """Sign copies of two honest bundles and lay everything out; `folder` is shared, so give each fault its own."""
    private, public = write_key_pair(folder, "signer")
    for source, name in ((bundle, "honest"), (other_bundle, "another")):
        shutil.copytree(source, folder / name)
        signed = tmi("sign", folder / name, "--key", private)
        assert signed.code == 0, signed.err
    case = write_case(folder / "case")
    return Workbench(
        run=run, bundle=folder / "honest", other_bundle=folder / "another", public=public, case=case, folder=folder
    )


def manifest_at(folder: Path) -> Manifest:
    """The manifest that lies there, whatever the files say."""
    return manifest_from_json(json.loads((folder / "manifest.json").read_text()))


def reseal(folder: Path, **changes: Any) -> None:
    """Take every fingerprint again, as somebody would who edits a bundle and makes it open."""
    write_manifest(folder, replace(manifest_at(folder), files=fingerprint(folder), **changes))


def all_faults() -> tuple[Fault, ...]:
    """The whole table."""
    from factories.export_faults import EXPORT_FAULTS
    from factories.file_faults import FILE_FAULTS
    from factories.runtime_faults import RUNTIME_FAULTS

    return (*EXPORT_FAULTS, *FILE_FAULTS, *RUNTIME_FAULTS)
