"""Sign bundles and check signatures with `model-signing`, offline, with an elliptic-curve key pair.

The signature file `signature.sig` in the bundle covers the SHA-256 of every other file, the manifest included. The
packages are imported only when a bundle is signed or checked.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tmi.runtime.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError

SIGNED = "signed by the key given"
UNCHECKED = "signed, not checked: give the signer's public key with --key"
UNSIGNED = "not signed"
PACKAGES = ("model_signing", "OpenSSL")
"""Both are needed: model-signing imports OpenSSL without declaring the dependency."""


def sign_bundle(folder: Path, key: Path, *, password: str | None = None, force: bool = False) -> Path:
    """Sign a bundle after comparing every file with its manifest. Returns the signature's path.

    Args:
        folder: the bundle.
        key: private key, PEM, on one of the curves P-256, P-384, P-521.
        password: password of the key, if it has one.
        force: replace an existing signature.

    Raises:
        UsageError: no such bundle or key, or the bundle is already signed.
        DamagedError: the bundle differs from the exported one.
        UnavailableError: a package is missing.
    """
    _require_packages()
    open_bundle(folder)
    target = folder / SIGNATURE_FILE
    if target.exists() and not force:
        raise UsageError(f"bundle {folder} is already signed", fix="sign it again with --force")
    if not key.is_file():
        raise UsageError(f"private key {key} does not exist", fix="make one: see docs/bundle.md")
    from model_signing import signing

    part = folder.resolve().with_name(f".{folder.resolve().name}.{SIGNATURE_FILE}.part")
    try:
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=key, password=_bytes(password))
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{key} is not a private key that can sign: {' '.join(str(error).split())[:120]}",
                fix="give an unencrypted PEM key of P-256, P-384 or P-521, or its password in TMI_KEY_PASSWORD",
            ) from error
        config.set_hashing_config(_hashing()).sign(folder, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def open_trusted_bundle(folder: Path, key: Path | None) -> Bundle:
    """Open a bundle as `open_bundle` does and, if a key is given, require that it was signed with it.

    Every command that uses a bundle opens it here, with the key of `--key` or `TMI_KEY`.

    Raises:
        UsageError: no such bundle or key.
        DamagedError: the bundle is damaged, was edited, or is not signed by the key.
        UnavailableError: a key is given, and a package to check it is missing.
    """
    bundle = open_bundle(folder)
    if key is not None:
        check_signature(bundle, key)
    return bundle


def check_signature(bundle: Bundle, key: Path) -> None:
    """Require that a bundle was signed with the private key of a public key.

    The signature must cover the manifest that was read, not only the one that is in the folder now: every other file is
    compared with it when its bytes are read.

    Raises:
        UsageError: no such key.
        DamagedError: no signature, an unreadable one, one by another key, or one over other files.
        UnavailableError: a package is missing.
    """
    _require_packages()
    if not key.is_file():
        raise UsageError(f"public key {key} does not exist", fix="give the signer's public key as a PEM file")
    folder = bundle.folder
    signature = folder / SIGNATURE_FILE
    fix = "get the bundle again from its signer, and the public key from an independent source"
    if not signature.is_file():
        raise DamagedError(f"bundle {folder}: {SIGNATURE_FILE} is missing, but a key was given to check it", fix=fix)
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{key} is not a public key that can check a signature", fix="give a PEM key") from error
    try:
        # A private copy: the file in the folder may be exchanged between the check and the reading of its payload.
        data = signature.read_bytes()
        with tempfile.TemporaryDirectory(prefix="tmi-signature-") as private:
            checked = Path(private) / SIGNATURE_FILE
            checked.write_bytes(data)
            with contextlib.redirect_stdout(io.StringIO()):  # the verifier prints a warning about old signatures
                config.set_hashing_config(_hashing()).verify(folder, checked)
        if _signed_digest(data, MANIFEST_FILE) != bundle.digest:
            raise ValueError(f"{MANIFEST_FILE} was exchanged while it was checked")
    except InvalidSignature as error:
        raise DamagedError(f"bundle {folder}: the signature is not by {key.name}", fix=fix) from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        text = " ".join(str(error).split())
        what = f"is not by {key.name}" if "Key mismatch" in text else f"does not match the files: {text[:200]}"
        raise DamagedError(f"bundle {folder}: the signature {what}", fix=fix) from error


def _signed_digest(signature: bytes, name: str) -> str | None:
    """SHA-256 of a file according to the payload of a checked signature; None if the payload does not list it."""
    payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    digests = {str(r["name"]): str(r["digest"]) for r in payload["predicate"]["resources"]}
    return digests.get(name)


def _hashing() -> Any:
    """SHA-256 of every file except the signature. No file is ignored because of its name, and no link is followed."""
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
