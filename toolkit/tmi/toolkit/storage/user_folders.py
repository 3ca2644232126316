"""Folders of the user for caches and records, where the operating system wants them (platformdirs).

On Linux they are `$XDG_CACHE_HOME/tmi` or `~/.cache/tmi`, and `$XDG_STATE_HOME/tmi` or `~/.local/state/tmi`; an
environment variable of this project names another folder. Nothing is created here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

CACHE_VARIABLE = "TMI_CACHE"
"""Environment variable with the folder of the caches."""
CACHE_OFF = "off"
"""Value of `TMI_CACHE` that disables every cache."""
STATE_VARIABLE = "TMI_STATE"
"""Environment variable with the folder of the records."""


def cache_root() -> Path | None:
    """Return the folder of all caches; None if caching is off or the user has no home folder."""
    setting = os.environ.get(CACHE_VARIABLE, "").strip()
    if setting.lower() == CACHE_OFF:
        return None
    if setting:
        return Path(setting).expanduser()
    from platformdirs import user_cache_path

    return _folder(user_cache_path)


def state_root() -> Path | None:
    """Return the folder of the user's records; None if the user has no home folder."""
    setting = os.environ.get(STATE_VARIABLE, "").strip()
    if setting:
        return Path(setting).expanduser()
    from platformdirs import user_state_path

    return _folder(user_state_path)


def _folder(user_path: Callable[..., Path]) -> Path | None:
    try:
        folder = user_path("tmi", appauthor=False)
    except RuntimeError:  # no home folder
        return None
    return folder if folder.is_absolute() else None  # platformdirs before 4.14 leaves the `~` of a missing home folder
