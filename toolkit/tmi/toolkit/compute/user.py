"""A name and a home folder for a user that the system does not know, as containers are started (`docker --user 12345`).

Some packages look both up when they are imported, and fail: MONAI asks for the user's name, OpenVINO and MLflow for the
home folder. Processes started later inherit the variables.
"""

from __future__ import annotations

import atexit
import getpass
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


def provide_user() -> None:
    """Set `LOGNAME` and `HOME` if the system knows neither a name nor a home folder; may be called any number of times.

    The home folder is a private temporary one, removed when this process ends, and so are the caches in it; `TMI_CACHE`
    names a folder that stays.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # Python 3.13 raises OSError
        os.environ["LOGNAME"] = f"user{os.getuid()}" if hasattr(os, "getuid") else "user"
    try:
        Path.home()
    except RuntimeError:
        folder = tempfile.mkdtemp(prefix="tmi-home-")
        os.environ["HOME"] = folder
        atexit.register(_remove, folder, os.getpid())


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # a forked child leaves it to its parent
        with suppress(OSError):
            shutil.rmtree(folder)
