"""Sign bundles and check signatures with `model-signing`, offline, with an elliptic-curve key pair.

The signature file `signature.sig` in the bundle covers the SHA-256 of every other file, the manifest included. Which
signature a bundle needs is set by `--key`, `TMI_KEY` or `tmi.toml`. The packages are imported only when a bundle is
signed or checked.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tmi.runtime.bundle.accepted import record_accepted, require_not_older
from tmi.runtime.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.toolkit.config.project import PROJECT_FILE, load_project
from tmi.toolkit.errors import DamagedError, UnavailableError, UsageError
from tmi.toolkit.storage.bounded_files import RECORD_BYTES, SETTINGS_BYTES, read_bytes, require_bounded
from tmi.toolkit.storage.documents import parse_json

Keys = Path | Sequence[Path] | None
"""Public keys (PEM files) of which one must have signed a bundle; None: those of `tmi.toml`, if it lists any."""
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
    _require_key(key, "private", fix="make one: see docs/bundle.md")
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


def open_trusted_bundle(folder: Path, key: Keys) -> Bundle:
    """Open a bundle as `open_bundle` does, require the signature that `required_keys` asks for, and record it as used.

    Every command that uses a bundle opens it here, with the keys of `--key` or `TMI_KEY`.

    Raises:
        UsageError: no such bundle or key, or the project requires a signature and no key is known.
        DamagedError: the bundle is damaged, was edited, is not signed by one of the keys, or is older than one of the
            same run that was used before.
        UnavailableError: a key is given, and a package to check it is missing.
    """
    keys = required_keys(key)  # before any file is read
    bundle = open_bundle(folder)
    if require_signature(bundle, keys):
        record_accepted(bundle)
    return bundle


def required_keys(given: Keys) -> tuple[Path, ...]:
    """Public keys of which one must have signed a bundle: those given, else `trusted_keys` of `tmi.toml`.

    The `tmi.toml` is that of the working directory. No keys mean that no signature is required.

    Raises:
        UsageError: `tmi.toml` requires a signature, and no key is known.
    """
    keys = (given,) if isinstance(given, Path) else tuple(given or ())
    if keys:
        return keys
    project = load_project()
    if project.require_signature and not project.trusted_keys:
        raise UsageError(
            f"{PROJECT_FILE} requires signed bundles, and no key is known to check them",
            fix=f"list the signers' public keys as trusted_keys in {PROJECT_FILE}, or give one with --key or TMI_KEY",
        )
    return project.trusted_key_files


def require_signature(bundle: Bundle, keys: Sequence[Path]) -> bool:
    """Require that one of the keys signed a bundle, and that it is no older than one accepted before.

    Returns:
        Whether a signature was checked: False without keys.

    Raises:
        UsageError: no such key.
        DamagedError: no signature by one of the keys, or an older bundle.
        UnavailableError: a package is missing.
    """
    errors: list[DamagedError] = []
    for key in keys:
        try:
            check_signature(bundle, key)
        except DamagedError as error:
            errors.append(error)
        else:
            require_not_older(bundle)
            return True
    if len(errors) == 1:
        raise errors[0]
    if errors:
        names = ", ".join(key.name for key in keys)
        raise DamagedError(
            f"bundle {bundle.folder}: no signature by one of {names}: {errors[0].what}", fix=errors[0].fix
        )
    return False


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
    _require_key(key, "public", fix="give the signer's public key as a PEM file")
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
        data = read_bytes(signature, max_bytes=RECORD_BYTES)
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


def _require_key(key: Path, kind: str, *, fix: str) -> None:
    """Raise unless a key is a regular file of a key's size: the library reads it whole.

    Raises:
        UsageError: it is not.
    """
    try:
        require_bounded(key, max_bytes=SETTINGS_BYTES)
    except FileNotFoundError as error:
        raise UsageError(f"{kind} key {key} does not exist", fix=fix) from error
    except OSError as error:
        raise UsageError(f"{kind} key {key} cannot be read: {error.strerror}", fix=fix) from error


def _signed_digest(signature: bytes, name: str) -> str | None:
    """SHA-256 of a file according to the payload of a checked signature; None if the payload does not list it."""
    payload = parse_json(base64.b64decode(parse_json(signature)["dsseEnvelope"]["payload"]))
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
