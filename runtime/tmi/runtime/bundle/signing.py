"""Signatures by `model-signing`, the field's own tool, offline and with an elliptic-curve key pair.

The signature lies in the bundle as `signature.sig` and covers the SHA-256 of every other file, manifest included. The
packages are imported when a bundle is signed or checked, and at no other time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

from tmi.runtime.bundle.manifest import SIGNATURE_FILE
from tmi.runtime.bundle.reader import open_bundle
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError

SIGNED = "signed by the key given"
UNCHECKED = "signed, not checked: give the signer's public key with --key"
UNSIGNED = "not signed"
PACKAGES = ("model_signing", "OpenSSL")
"""model-signing imports OpenSSL without requiring it."""


def sign_bundle(folder: Path, key: Path, *, password: str | None = None, force: bool = False) -> Path:
    """Sign a bundle after comparing every byte of it with its manifest; returns the signature's path.

    Args:
        folder: the bundle.
        key: private key, PEM, on one of the curves P-256, P-384, P-521.
        password: of the key, where it has one.
        force: replace a signature that is there.

    Raises:
        UsageError: no such bundle or key, or a signature is there.
        DamagedError: the bundle is not what was exported.
        UnavailableError: the packages are missing.
    """
    _require_packages()
    open_bundle(folder)
    target = folder / SIGNATURE_FILE
    if target.exists() and not force:
        raise UsageError(f"bundle {folder} is signed already", fix="sign it again with --force")
    if not key.is_file():
        raise UsageError(f"private key {key} is not there", fix="make one: see docs/bundle.md")
    from model_signing import signing

    part = folder.resolve().with_name(f".{folder.resolve().name}.{SIGNATURE_FILE}.part")
    try:
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=key, password=_bytes(password))
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{key} is no private key that can sign: {' '.join(str(error).split())[:120]}",
                fix="give an unencrypted PEM key of P-256, P-384 or P-521, or its password in TMI_KEY_PASSWORD",
            ) from error
        config.set_hashing_config(_hashing()).sign(folder, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def check_signature(folder: Path, key: Path) -> None:
    """Refuse a bundle that this key did not sign as it lies there.

    Raises:
        UsageError: no such key.
        DamagedError: no signature, one that cannot be read, another key's, or one over other files.
        UnavailableError: the packages are missing.
    """
    _require_packages()
    if not key.is_file():
        raise UsageError(f"public key {key} is not there", fix="give the signer's public key as a PEM file")
    signature = folder / SIGNATURE_FILE
    again = "get the bundle again from the one who signed it, and the public key from a source of its own"
    if not signature.is_file():
        raise DamagedError(f"bundle {folder}: {SIGNATURE_FILE} is missing, but a key was given to check it", fix=again)
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{key} is no public key that can check a signature", fix="give a PEM key") from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a warning about old signatures
            config.set_hashing_config(_hashing()).verify(folder, signature)
    except InvalidSignature as error:
        raise DamagedError(f"bundle {folder}: the signature is not by {key.name}", fix=again) from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        text = " ".join(str(error).split())
        what = f"is not by {key.name}" if "Key mismatch" in text else f"does not fit the files: {text[:200]}"
        raise DamagedError(f"bundle {folder}: the signature {what}", fix=again) from error


def _hashing() -> Any:
    """SHA-256 of every file but the signature itself; nothing is left out for its name, no link is followed."""
    from model_signing import hashing

    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    return config.set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _bytes(password: str | None) -> Any:
    return None if password is None else password.encode()


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UnavailableError(
            f"signatures need the package {missing[0]}, which is not installed", fix="pip install 'tmi-clnet[sign]'"
        )
