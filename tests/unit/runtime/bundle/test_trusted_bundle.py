"""`--key`, `TMI_KEY`, `tmi.toml`: every command that opens a bundle requires the signature and rejects an older one."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest

from factories.other_user import OTHER_UID
from factories.paths import ROOT
from factories.planted_faults import manifest_at, write_key_pair
from factories.tmi_command import tmi
from tmi.runtime import Predictor
from tmi.runtime.bundle.reader import write_manifest
from tmi.runtime.bundle.signing import open_trusted_bundle, sign_bundle
from tmi.toolkit.cli.main import COMMANDS
from tmi.toolkit.errors import DamagedError

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"
SIGNING = {
    "sign": "its key is the private key that signs",
    "export": "it writes a bundle",
    "doctor": "it reads no file but the manifest",
}
"""Commands with a bundle that they do not open for use, and the reason."""


class Signed(NamedTuple):
    """A signed copy of the published bundle."""

    bundle: Path
    public: Path
    other: Path
    private: Path


@pytest.fixture(scope="module")
def signed(tmp_path_factory) -> Signed:
    folder = tmp_path_factory.mktemp("signed")
    bundle = shutil.copytree(PUBLISHED / "bundle", folder / "bundle")
    private, public = write_key_pair(folder, "signer")
    assert tmi("sign", bundle, "--key", private).code == 0
    return Signed(bundle, public, write_key_pair(folder, "other")[1], private)


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    """An empty folder of records, like on a machine that has used no signed bundle yet."""
    monkeypatch.setenv("TMI_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def exported_at(signed: Signed, folder: Path, created: str, *, run: str = "run") -> Path:
    """A copy of the bundle, exported at another time from a run of that name, and signed again."""
    shutil.copytree(signed.bundle, folder)
    manifest = manifest_at(folder)
    write_manifest(folder, replace(manifest, created=created, run=replace(manifest.run, name=run)))
    sign_bundle(folder, signed.private, force=True)
    return folder


def command_words(name: str, bundle: Path, out: Path) -> list[Any]:
    case = PUBLISHED / "case"
    return {
        "predict": ["predict", case, "--bundle", bundle, "--engine", "onnx"],
        "explain": ["explain", case, "--bundle", bundle, "--out", out, "--quick"],
        "report": ["report", case, "--bundle", bundle, "--out", out],
        "bench": ["bench", bundle, "--engine", "onnx"],
        "verify": ["verify", bundle, "--engine", "onnx"],
        "inspect": ["inspect", bundle],
        "build": ["build", bundle],
        "triton": ["triton", bundle, out],
        "collect": ["collect", PUBLISHED / "case", PUBLISHED / "predictions.json", "--bundle", bundle, "--json"],
    }[name]


def commands_with_a_bundle() -> dict[str, Any]:
    functions = {}
    for name, spec in COMMANDS.items():
        module, _, function = spec.target.partition(":")
        functions[name] = getattr(importlib.import_module(module), function)
    return {n: f for n, f in functions.items() if "bundle" in inspect.signature(f).parameters and n not in SIGNING}


def test_every_command_with_a_bundle_takes_a_key():
    """Every command with a bundle has `--key`, and takes `TMI_KEY` in its place."""
    commands = commands_with_a_bundle()
    assert set(commands) == {
        "predict", "serve", "explain", "report", "bench", "verify", "inspect", "build", "audit", "triton",
        "collect",
    }  # fmt: skip
    for name, function in commands.items():
        hints = get_type_hints(function, include_extras=True, localns={"Path": Path})
        (option,) = hints["key"].__metadata__
        assert option.envvar == "TMI_KEY", name


@pytest.mark.parametrize(
    "name", ["predict", "explain", "report", "bench", "verify", "inspect", "build", "triton", "collect"]
)
def test_bundle_of_another_signer_is_rejected(signed, name, tmp_path, monkeypatch):
    """A bundle that the key did not sign ends with exit code 6, by option and by variable; nothing is written."""
    words = command_words(name, signed.bundle, tmp_path / "out")
    by_option = tmi(*words, "--key", signed.other)
    monkeypatch.setenv("TMI_KEY", str(signed.other))
    by_variable = tmi(*words)
    for outcome in (by_option, by_variable):
        assert outcome.code == 6, outcome.err
        assert "the signature is not by other" in outcome.err
        assert outcome.out == ""
    assert not (tmp_path / "out").exists()


def test_bundle_of_the_signer_is_opened(signed, monkeypatch):
    """With the signer's key the commands run, and `tmi inspect` reports that the signature was checked."""
    monkeypatch.setenv("TMI_KEY", str(signed.public))
    outcome = tmi("inspect", signed.bundle)
    assert outcome.code == 0, outcome.err
    assert "signature  signed by the key given" in outcome.out
    assert "every byte as exported" in outcome.out
    assert tmi("predict", PUBLISHED / "case", "--bundle", signed.bundle, "--engine", "onnx").code == 0


def test_unsigned_bundle_needs_no_key_and_fails_with_one(signed):
    """Without a key no signature is required; with one a missing signature is an error."""
    assert open_trusted_bundle(PUBLISHED / "bundle", None).digest == open_trusted_bundle(*signed[:2]).digest
    with pytest.raises(DamagedError, match=r"signature\.sig is missing, but a key was given"):
        open_trusted_bundle(PUBLISHED / "bundle", signed.public)


@pytest.mark.parametrize(
    "name", ["predict", "explain", "report", "bench", "verify", "inspect", "build", "triton", "collect"]
)
def test_project_requires_a_signature(signed, state, name, tmp_path):
    """With `trusted_keys` in `tmi.toml` every command rejects another signer's bundle, and an unsigned one."""
    (tmp_path / "tmi.toml").write_text(f"require_signature = true\ntrusted_keys = [{json.dumps(str(signed.other))}]")
    for bundle, message in ((signed.bundle, "the signature is not by other"), (PUBLISHED / "bundle", "is missing")):
        outcome = tmi(*command_words(name, bundle, tmp_path / "out"), cwd=tmp_path)
        assert outcome.code == 6, outcome.err
        assert message in outcome.err
        assert outcome.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["predict", "explain", "report", "bench", "verify", "inspect", "build", "triton", "collect"]
)
def test_required_signature_needs_a_key(signed, state, name, tmp_path):
    """`require_signature` without any key is an error of its own, not a bundle opened unchecked."""
    (tmp_path / "tmi.toml").write_text("require_signature = true")
    outcome = tmi(*command_words(name, signed.bundle, tmp_path / "out"), cwd=tmp_path)
    assert outcome.code == 2, outcome.err
    assert "no key is known to check them" in outcome.err


def test_project_keys_hold_for_programs(signed, state, tmp_path, monkeypatch):
    """A program that runs in the project's folder needs the signature too."""
    (tmp_path / "tmi.toml").write_text(f"trusted_keys = [{json.dumps(str(signed.other))}]")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DamagedError, match="not by other"):
        Predictor.open(signed.bundle, engine="onnx")
    assert open_trusted_bundle(signed.bundle, signed.public).folder == signed.bundle


def test_one_of_several_keys_suffices(signed, state, tmp_path, monkeypatch):
    """Repeated `--key`, a list in `TMI_KEY` and `trusted_keys`, relative to `tmi.toml`, each accept either signer."""
    third = write_key_pair(tmp_path, "third")[1]
    assert tmi("inspect", signed.bundle, "--key", signed.other, "--key", signed.public).code == 0
    outcome = tmi("inspect", signed.bundle, "--key", signed.other, "--key", third)
    assert outcome.code == 6
    assert "no signature by one of other" in outcome.err
    with monkeypatch.context() as patch:
        patch.setenv("TMI_KEY", os.pathsep.join((str(signed.other), str(signed.public))))
        assert tmi("verify", signed.bundle, "--engine", "onnx").code == 0
    shutil.copy(signed.public, tmp_path / "signer.pem")
    (tmp_path / "tmi.toml").write_text(f"trusted_keys = [{json.dumps(str(third))}, 'signer.pem']")
    assert tmi("verify", signed.bundle, "--engine", "onnx", "--json", cwd=tmp_path).document["signature"] == (
        "signed by the key given"
    )


def test_older_bundle_of_the_run_is_rejected(signed, state, tmp_path, monkeypatch):
    """After a newer bundle was used, an older one of its run is rejected by every command, unless allowed."""
    old = exported_at(signed, tmp_path / "old", "2026-01-01T00:00:00+00:00")
    new = exported_at(signed, tmp_path / "new", "2026-02-01T01:00:00+01:00")
    other = exported_at(signed, tmp_path / "other", "2025-01-01T00:00:00+00:00", run="another run")
    for bundle in (old, new, other, new):
        assert open_trusted_bundle(bundle, signed.public).folder == bundle
    for name in ("predict", "explain", "report", "bench", "verify", "inspect", "build"):
        outcome = tmi(*command_words(name, old, tmp_path / "out"), "--key", signed.public)
        assert outcome.code == 6, outcome.err
        assert "a newer one of run run was used here before (2026-02-01T01:00:00+01:00)" in outcome.err
    monkeypatch.setenv("TMI_ALLOW_OLDER", "1")
    assert open_trusted_bundle(old, signed.public).folder == old
    monkeypatch.delenv("TMI_ALLOW_OLDER")
    with pytest.raises(DamagedError, match="a newer one"):  # what was allowed once is not allowed for good
        open_trusted_bundle(old, signed.public)


def test_unsigned_bundle_and_mere_checks_are_not_recorded(signed, state, tmp_path):
    """The time of an unsigned bundle counts for nothing; `verify` and `inspect` of a new bundle retire no old one."""
    assert tmi("inspect", signed.bundle, "--key", signed.public).code == 0
    assert tmi("verify", signed.bundle, "--key", signed.public, "--engine", "onnx").code == 0
    open_trusted_bundle(signed.bundle, None)
    assert not state.exists()
    open_trusted_bundle(signed.bundle, signed.public)
    assert len(list((state / "accepted").iterdir())) == 1


@pytest.mark.parametrize("damage", ["text", "mode", "owner"])
def test_record_that_cannot_be_trusted_is_an_error(signed, state, damage):
    """A record that is damaged or may be another user's ends with an error, not with an older bundle."""
    open_trusted_bundle(signed.bundle, signed.public)
    (record,) = (state / "accepted").iterdir()
    if damage == "text":
        record.write_text("[" * 10_000)
    elif damage == "mode":
        record.chmod(0o666)
    elif os.geteuid() == 0:
        os.chown(record, OTHER_UID, -1)
    else:
        pytest.skip("only root can give files away")
    with pytest.raises(DamagedError, match="the record of accepted bundles"):
        open_trusted_bundle(signed.bundle, signed.public)


def test_state_that_cannot_be_written_stops_nothing(signed, tmp_path, monkeypatch):
    """Without a place for records signed bundles are opened."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMI_STATE", str(tmp_path / "file" / "below"))
    assert open_trusted_bundle(signed.bundle, signed.public).folder == signed.bundle


@pytest.mark.parametrize("fault", ["pipe", "large"])
def test_special_or_huge_key_is_not_read(signed, tmp_path, fault):
    """A key that is no regular file, or larger than a key can be, is an error at once, to sign and to check."""
    key = tmp_path / "key.pem"
    if fault == "pipe":
        os.mkfifo(key)
    else:
        key.touch()
        os.truncate(key, 6 * 2**30)
    for words in (["inspect", signed.bundle], ["sign", signed.bundle, "--force"]):
        outcome = tmi(*words, "--key", key)
        assert outcome.code == 2, outcome.err
        assert "cannot be read: it is" in outcome.err
