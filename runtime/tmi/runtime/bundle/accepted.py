"""Export time of the newest bundle of each run that was accepted: protection against going back to an older one.

A signature proves who signed a bundle, not that it is the current one: whoever can write to the place of a bundle can
put back an older one of the same signer, with a fault that was fixed since. The export time of every bundle that is
used and whose signature was checked is therefore recorded for its run, by name, in `$TMI_STATE`, else the user's state
folder (`tmi.toolkit.storage.user_folders`). The records are the user's own files
(`tmi.toolkit.storage.private_files`). Unsigned bundles are neither recorded nor compared: their export time is whatever
the forger writes.
"""

from __future__ import annotations

import datetime
import errno
import os
from contextlib import suppress
from pathlib import Path

from tmi.runtime.bundle.reader import Bundle
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.storage.documents import parse_json
from tmi.toolkit.storage.hashing import canonical_json, sha256_bytes
from tmi.toolkit.storage.private_files import open_private, write_private
from tmi.toolkit.storage.user_folders import STATE_VARIABLE, state_root

ALLOW_VARIABLE = "TMI_ALLOW_OLDER"
"""Environment variable that allows an older bundle if it is `1`."""
MAX_RECORD_BYTES = 2**16
"""Largest record that is read, in bytes; they have about 200."""


def require_not_older(bundle: Bundle) -> None:
    """Raise if a newer bundle of the same run was accepted before, unless `TMI_ALLOW_OLDER=1`.

    Args:
        bundle: an opened bundle whose signature was checked.

    Raises:
        DamagedError: the bundle is older than one accepted before, its export time is no time, or the record cannot be
            used.
    """
    created, newest = _export_time(bundle), _newest(bundle)
    if newest is not None and created < newest and os.environ.get(ALLOW_VARIABLE) != "1":
        raise DamagedError(
            f"bundle {bundle.folder}: it was exported on {created.isoformat()}, and a newer one of run "
            f"{_run_name(bundle)} was used here before ({newest.isoformat()})",
            fix=f"get the newer bundle; to go back on purpose, set {ALLOW_VARIABLE}=1 for this call",
        )


def record_accepted(bundle: Bundle) -> None:
    """Record a bundle as accepted, unless a newer one of its run was. If it cannot be written, nothing is recorded."""
    file, created = _record_file(bundle), _export_time(bundle)
    newest = _newest(bundle)
    if file is not None and (newest is None or created > newest):
        text = canonical_json({"run": _run_name(bundle), "created": created.isoformat(), "bundle": bundle.digest})
        with suppress(OSError):
            write_private(file, [text.encode()])


def _newest(bundle: Bundle) -> datetime.datetime | None:
    """Export time of the newest accepted bundle of the same run; None if none is recorded."""
    file = _record_file(bundle)
    if file is None:
        return None
    try:
        with open_private(file) as stream:
            return _time(parse_json(stream.read(MAX_RECORD_BYTES))["created"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.EACCES:  # a home folder of somebody else: nothing can be recorded there either
            return None
        reason = error.strerror or "it cannot be read"
    except (ValueError, TypeError, KeyError, RecursionError):
        reason = "it is damaged"
    raise DamagedError(
        f"the record of accepted bundles {file} cannot be used: {reason}",
        fix=f"name a folder of your own in {STATE_VARIABLE}; or remove the record, if no older bundle can be in use",
    )


def _record_file(bundle: Bundle) -> Path | None:
    folder = state_root()
    return None if folder is None else folder / "accepted" / f"{sha256_bytes(_run_name(bundle).encode())}.json"


def _run_name(bundle: Bundle) -> str:
    return bundle.manifest.run.name or bundle.manifest.preset


def _export_time(bundle: Bundle) -> datetime.datetime:
    try:
        return _time(bundle.manifest.created)
    except ValueError as error:
        raise DamagedError(
            f"bundle {bundle.folder}: its export time {bundle.manifest.created!r} is no time", fix="export it again"
        ) from error


def _time(text: str) -> datetime.datetime:
    """A time with its zone; without one it is UTC."""
    time = datetime.datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=datetime.UTC)
