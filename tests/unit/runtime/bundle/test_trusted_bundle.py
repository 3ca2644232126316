"""`--key` and `TMI_KEY`: every command that opens a bundle requires the signature."""

from __future__ import annotations

import importlib
import inspect
import shutil
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest

from factories.paths import ROOT
from factories.planted_faults import write_key_pair
from factories.tmi_command import tmi
from tmi.runtime.bundle.signing import open_trusted_bundle
from tmi.toolkit.cli.main import COMMANDS
from tmi.toolkit.errors import DamagedError

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"
SIGNING = {"sign": "its key is the private key that signs", "export": "it writes a bundle"}
"""Commands with a bundle that they do not open for use, and the reason."""


class Signed(NamedTuple):
    """A signed copy of the published bundle."""

    bundle: Path
    public: Path
    other: Path


@pytest.fixture(scope="module")
def signed(tmp_path_factory) -> Signed:
    folder = tmp_path_factory.mktemp("signed")
    bundle = shutil.copytree(PUBLISHED / "bundle", folder / "bundle")
    private, public = write_key_pair(folder, "signer")
    assert tmi("sign", bundle, "--key", private).code == 0
    return Signed(bundle, public, write_key_pair(folder, "other")[1])


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
    assert set(commands) == {"predict", "explain", "report", "bench", "verify", "inspect", "build"}
    for name, function in commands.items():
        hints = get_type_hints(function, include_extras=True, localns={"Path": Path})
        (option,) = hints["key"].__metadata__
        assert option.envvar == "TMI_KEY", name


@pytest.mark.parametrize("name", ["predict", "explain", "report", "bench", "verify", "inspect", "build"])
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
