"""What makes the bytes of a bundle a function of its run, the versions and the machine: the time, and an order of keys.

See https://reproducible-builds.org/docs/source-date-epoch/.
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

from tmi.toolkit.errors import UsageError

TIME_VARIABLE = "SOURCE_DATE_EPOCH"
"""Environment variable with the time that is recorded as that of the export, in seconds since 1970 (UTC)."""


def export_time() -> str:
    """Time to record as that of the export, ISO 8601 in UTC with seconds: now, unless `SOURCE_DATE_EPOCH` sets it.

    Raises:
        UsageError: the variable is not a number of seconds.
    """
    setting = os.environ.get(TIME_VARIABLE, "")
    if not setting:
        return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        return datetime.datetime.fromtimestamp(int(setting), datetime.UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"{TIME_VARIABLE}={setting!r} is not a time in seconds since 1970",
            fix=f"set it to a whole number, or unset {TIME_VARIABLE}",
        ) from error


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file in place. safetensors writes them in a random order."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The tensors start at the same offset, so that they stay aligned; the format pads the header with spaces.
    if len(text) > size:
        raise ValueError(f"the sorted header of {path} is longer than the written one")
    path.write_bytes(data[:8] + text.ljust(size) + data[8 + size :])
