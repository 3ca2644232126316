"""The table of planted faults of exports, bundles and serving machines, and the workbench they are planted into.

Each fault is planted in real files or code, and a command must fail with exit code 4 (the outputs differ from the
validated model) or 6 (the files are not those of the export, or not signed with the expected key) and the right reason.
A fault of privacy may end with 0, if the planted text reaches no output.
`tests/unit/export/checks/test_fault_table.py` checks the table; `make faults` prints it.
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
from tmi.toolkit.storage.hashing import canonical_json, sha256_bytes


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """Runs, bundles and a case into which faults are planted; all but `folder` is read-only."""

    run: Path
    """A finished run of two folds that share no encoder."""
    bundle: Path
    """That run exported as ONNX and TorchScript, signed."""
    other_bundle: Path
    """Another run of the same configuration, exported as ONNX and signed with the same key."""
    public: Path
    """Public key of the signatures."""
    case: Path
    """A valid case."""
    folder: Path
    """An empty folder for the files of one fault."""

    def copy(self) -> Path:
        """Copy the valid bundle, to be changed."""
        target = self.folder / "bundle"
        shutil.copytree(self.bundle, target)
        return target

    def export(self, engine: str = "torchscript") -> CommandResult:
        """Export the run; a failed export must leave no file behind."""
        out = self.folder / "exported"
        outcome = tmi("export", self.run, "--engine", engine, "--out", out, "--no-weights")
        assert outcome.code == 0 or not list(self.folder.iterdir()), "a failed export left files behind"
        return outcome

    def verify(self, bundle: Path, *more: object) -> CommandResult:
        """`tmi verify` with ONNX Runtime."""
        return tmi("verify", bundle, "--engine", "onnx", "--threads", 1, *more)

    def predict(self, bundle: Path, *more: object) -> CommandResult:
        """`tmi predict` on the valid case with ONNX Runtime."""
        return tmi("predict", self.case, "--bundle", bundle, "--engine", "onnx", "--threads", 1, *more)


PlantFunction = Callable[[Workbench, pytest.MonkeyPatch], CommandResult]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the table."""

    name: str
    """What is wrong."""
    where: str
    """Step at which it is planted: export, file, resealed, signature, forged, exchanged, privacy, runtime."""
    plant: PlantFunction
    """Plants the fault and runs the command that must fail."""
    code: int
    """Expected exit code."""
    reason: str
    """Regular expression that standard error must match; for a command that ends with 0, its whole output."""
    planted: str | None = None
    """Text that may be in no output."""
    quick: bool = True
    """Whether it is in the default test run; the others take over a second and have a more specific test elsewhere."""

    def blocked(self, outcome: CommandResult) -> bool:
        """Whether the command ended with the expected code and reason, and without the planted text."""
        if self.planted is not None and self.planted in outcome.out + outcome.err:
            return False
        said = outcome.err if self.code else outcome.out + outcome.err
        return outcome.code == self.code and bool(re.search(self.reason, " ".join(said.split())))


def reason_of(outcome: CommandResult) -> str:
    """The last error message on standard error."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else "(no reason was given)"


def write_key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a private and a public key as PEM files."""
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
    """Sign copies of two valid bundles and write a case. `folder` is shared: give each fault a folder of its own."""
    private, public = write_key_pair(folder, "signer")
    for source, name in ((bundle, "valid"), (other_bundle, "other")):
        shutil.copytree(source, folder / name)
        signed = tmi("sign", folder / name, "--key", private)
        assert signed.code == 0, signed.err
    case = write_case(folder / "case")
    return Workbench(
        run=run, bundle=folder / "valid", other_bundle=folder / "other", public=public, case=case, folder=folder
    )


def manifest_at(folder: Path) -> Manifest:
    """The manifest of a bundle, read without checking the files."""
    return manifest_from_json(json.loads((folder / "manifest.json").read_text()))


def reseal(folder: Path, **changes: Any) -> None:
    """Compute all fingerprints again, so that a changed bundle opens; `changes` replace fields of the manifest."""
    write_manifest(folder, replace(manifest_at(folder), files=fingerprint(folder), **changes))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as a JSON document, and write its digest again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    rewrite_manifest(folder, canonical_json(manifest))


def rewrite_manifest(folder: Path, text: str) -> None:
    """Replace the manifest's text, and write its digest again."""
    (folder / "manifest.json").write_text(text)
    (folder / "manifest.json.sha256").write_text(f"{sha256_bytes(text.encode())}  manifest.json\n")


def all_faults() -> tuple[Fault, ...]:
    """The whole table."""
    from factories.export_faults import EXPORT_FAULTS
    from factories.file_faults import FILE_FAULTS
    from factories.forgery_faults import FORGERY_FAULTS
    from factories.int8_faults import INT8_FAULTS
    from factories.privacy_faults import PRIVACY_FAULTS
    from factories.runtime_faults import RUNTIME_FAULTS
    from factories.trust_faults import TRUST_FAULTS

    return (
        *EXPORT_FAULTS, *FILE_FAULTS, *FORGERY_FAULTS, *INT8_FAULTS, *PRIVACY_FAULTS, *RUNTIME_FAULTS, *TRUST_FAULTS,
    )  # fmt: skip
